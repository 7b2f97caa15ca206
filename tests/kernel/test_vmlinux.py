"""The guest's image: in whatever memory it is put, its addresses in words, and both views of physical memory."""

from __future__ import annotations

import io
from functools import cache

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.kernel.base.address_space import AddressSpace, align_up, memstart_addr, roundup_pow_of_two
from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.kernel.base.vmlinux import GuestKernel, Vmlinux, guest_vmlinux
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

MIB, GIB = 1 << 20, 1 << 30
PHYS = GIB + 2 * MIB
HVC, SMC = bytes.fromhex("020000d4"), bytes.fromhex("030000d4")


@cache
def elf(path: str) -> tuple[ELFFile, list[tuple[int, bytes, int]]]:
    """By pyelftools: the file, and (virtual address, what is stored, bytes) of each segment."""
    with open(path, "rb") as file:
        found = ELFFile(io.BytesIO(file.read()))
    loads = [one for one in found.iter_segments() if one["p_type"] == "PT_LOAD"]
    return found, [(one["p_vaddr"], one.data(), one["p_memsz"]) for one in loads]


def loaded(conduit: str = "hvc", era: Era = Era.V6_12) -> tuple[Vmlinux, GuestKernel, Ram]:
    """In RAM that is full of something else."""
    vmlinux = guest_vmlinux(KernelConfig(era))
    ram = Ram([PhysRange.of(GIB, 16 * MIB)])
    ram.write(GIB, b"\xa5" * (16 * MIB))
    guest = GuestKernel(vmlinux, ram, AddressSpace(GIB, vmlinux.virt("_text"), PHYS, vmlinux.size))
    guest.load(era, conduit)
    return vmlinux, guest, ram


@pytest.mark.parametrize("conduit", ["hvc", "smc"])
def test_every_segment_is_in_memory_with_zeros_behind_it_and_calls_by_the_board_s_conduit(
    conduit: str,
) -> None:
    vmlinux, guest, ram = loaded(conduit)
    try:
        said = {guest.phys("init_uts_ns"): 1024, guest.phys("linux_banner"): 256}
        _, segments = elf(str(vmlinux.path))
        assert any(size > len(data) for _, data, size in segments)
        text = range(vmlinux.virt("_stext"), vmlinux.virt("_etext"))
        calls = 0
        for virt, data, size in segments:
            phys = virt - vmlinux.virt("_text") + PHYS
            found = bytearray(ram.read(phys, size))
            wanted = bytearray(data.ljust(size, b"\0"))
            for at in range(0, len(data) - 3, 4):
                if virt + at in text and data[at : at + 4] == HVC:
                    calls += 1
                    wanted[at : at + 4] = HVC if conduit == "hvc" else SMC
            for at, length in said.items():  # the release, which is the era's
                for one in (found, wanted):
                    if phys <= at < phys + size:
                        one[at - phys : at - phys + length] = bytes(length)
            assert found == wanted
        assert calls >= 1
        assert ram.read(guest.area.end, 4096) == ram.read(PHYS - 4096, 4096) == b"\xa5" * 4096
    finally:
        ram.close()


def test_the_area_is_from_text_to_end_and_values_are_cut_to_their_size() -> None:
    vmlinux, guest, ram = loaded()
    try:
        assert guest.area == PhysRange.of(PHYS, vmlinux.virt("_end") - vmlinux.virt("_text"))
        guest.write("max_pfn", -2)
        assert guest.read("max_pfn") == (1 << 64) - 2
        guest.write("max_pfn", 1 << 64 | 5)
        assert guest.read("max_pfn") == 5 == ram.read_u64(guest.phys("max_pfn"))
        guest.write_u32("max_pfn", -1, 4)
        assert (guest.read_u32("max_pfn"), guest.read_u32("max_pfn", 4)) == (5, 0xFFFFFFFF)
        virt = vmlinux.virt("max_pfn")
        assert guest.read_virt(virt, 8) == guest.read_virt(guest.space.linear_virt(guest.phys("max_pfn")), 8)
        ram.write(guest.phys("max_pfn"), b"abc\xff\0xyz")
        assert (guest.string(virt), guest.string(virt, 2)) == ("abc\N{REPLACEMENT CHARACTER}", "ab")
    finally:
        ram.close()


def test_an_address_is_described_by_the_symbol_before_it_and_how_far_the_next_one_is() -> None:
    vmlinux = guest_vmlinux(KernelConfig("6.12"))
    virts = sorted({virt for name, virt in vmlinux.elf.symbols.items() if not name.startswith("$")})
    start, end = vmlinux.virt("panic"), vmlinux.virt("_end")
    following = next(virt for virt in virts if virt > start)
    assert vmlinux.describe(start) == f"panic+0x0/{following - start:#x}"
    assert vmlinux.describe(start + 4) == f"panic+0x4/{following - start:#x}"
    assert vmlinux.describe(following - 1).startswith("panic+")
    assert not vmlinux.describe(following).startswith("panic+")
    # A call at the very end of a function returns behind it.
    assert (
        vmlinux.describe(following, backtrace=True) == f"panic+{following - start:#x}/{following - start:#x}"
    )
    for virt in (end, vmlinux.virt("_text") - 1, 0, (1 << 64) - 1):
        assert vmlinux.describe(virt) == f"{virt:#x}"
    text = vmlinux.virt("_text")
    assert vmlinux.describe(text, backtrace=True) == f"{text:#x}" != vmlinux.describe(text)
    assert (
        vmlinux.describe(end - 1) != f"{end - 1:#x}" and vmlinux.describe(end, backtrace=True) != f"{end:#x}"
    )


def test_a_string_is_what_is_linked_whatever_memory_holds() -> None:
    vmlinux = guest_vmlinux(KernelConfig("6.12"))
    banner = vmlinux.virt("linux_banner")
    assert vmlinux.string(banner).startswith("Linux version ")
    assert vmlinux.string(banner + 6) == vmlinux.string(banner)[6:]
    for virt, data, _ in elf(str(vmlinux.path))[1]:
        assert vmlinux.string(virt + len(data)) == "" or any(
            virt + len(data) == other for other, _, _ in elf(str(vmlinux.path))[1]
        )
    assert vmlinux.string(0) == "" and vmlinux.string(vmlinux.virt("_text") - 1) == ""


@pytest.mark.parametrize(
    ("page", "start", "memstart"),
    [
        (4096, 0x40000000, 0x40000000),
        (4096, 0x7FFFFFFF, 0x40000000),
        (16384, 0xBFFFFFFF, 0x80000000),
        (65536, 0x5FFFFFFF, 0x40000000),
        (4096, 0, 0),
    ],
)
def test_the_linear_map_begins_at_a_whole_block_of_the_era_s(page: int, start: int, memstart: int) -> None:
    """ARM64_MEMSTART_ALIGN: PUD_SIZE with pages of 4 KiB, CONT_PMD_SIZE with 16 KiB, PMD_SIZE with 64 KiB."""
    assert memstart_addr(start, page) == memstart


@given(st.integers(0, 1 << 40), st.sampled_from([1, 8, 4096, 65536]))
def test_rounding_is_what_counting_up_finds(value: int, align: int) -> None:
    up = align_up(value, align)
    assert up % align == 0 and 0 <= up - value < align
    assert align_up(value, 0) == value
    power = roundup_pow_of_two(value)
    assert power >= max(value, 1) and not power & (power - 1) and (power == 1 or power // 2 < value)


def test_physical_memory_is_seen_in_two_ways() -> None:
    space = AddressSpace(GIB, 0xFFFF800008000000, PHYS, 4 * MIB)
    assert (space.page_offset, space.page_end) == (0xFFFF000000000000, 0xFFFF800000000000)
    assert space.linear_region_size == 1 << 47 and space.phys_offset == GIB
    assert space.kimage_voffset == 0xFFFF800008000000 - PHYS
    assert space.linear_virt(PHYS) == 0xFFFF000000200000
    for virt, phys in (
        (0xFFFF000000200000, PHYS),
        (0xFFFF7FFFFFFFFFFF, GIB + (1 << 47) - 1),
        (0xFFFF800008000000, PHYS),
        (0xFFFF800000000000, (PHYS - (128 << 20)) % (1 << 64)),
    ):
        assert space.virt_to_phys(virt) == phys
    large = AddressSpace(GIB, 0xFFFF800080000000, PHYS, 4 * MIB, 52, 48)
    assert large.phys_offset == GIB - (1 << 52) + (1 << 48)
    assert large.page_offset == 0xFFFF000000000000
