"""What kexec_file_load() leaves in memory: segments, digest, device tree, control pages, the guest's own kimage."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from kernel_bench import IMAGE, INITRD, MIB, arm64_image, boot, real, small, small_purgatory

from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.ranges import PhysRange

CMDLINE = "console=ttyAMA0 nr_cpus=1 panic=5"


@pytest.fixture
def kernel() -> KernelModel:
    return small()


# -- the real kernel's load ------------------------------------------------------------------------------------


def test_the_reference_machine_is_laid_out_and_described_as_by_a_real_kernel(tmp_path: Path) -> None:
    """Linux 6.1.192 without DMA zones, booted with the same device tree: its crash region, places and dtb bytes."""
    kernel = boot(
        "6.1",
        None,
        ram=[PhysRange.of(0x40000000, 768 * MIB)],
        cpus=2,
        dtb=real("main.dtb"),
        options={"ZONE_DMA": "n"},
        purgatory=small_purgatory(tmp_path),
    )
    assert kernel.crashk_res == PhysRange(0x6A000000, 0x70000000)
    image = kernel.kexec_file_load(
        arm64_image(0x50B200, image_size=0x550000),
        bytes(0x27D4D1),
        "console=ttyAMA0 nr_cpus=1 reset_devices irqpoll panic=5 rdinit=/init",
    )
    assert image is not None
    assert [(one.name, one.mem, one.bufsz, one.memsz) for one in image.segments] == [
        ("kernel", 0x6A000000, 0x50B200, 0x550000),
        ("elfcorehdr", 0x6FFF0000, 0x1000, 0x1000),
        ("initrd", 0x6A550000, 0x27D4D1, 0x27E000),
        ("dtb", 0x6FE00000, 8043, 0x2000),
        ("purgatory", 0x6FFFC000, image.segments[4].bufsz, 0x3000),
    ]
    assert (image.start, image.kernel_entry, image.dtb_mem) == (0x6FFFC000, 0x6A000000, 0x6FE00000)
    assert image.sha_regions == [one.area for one in image.segments[:4]]
    assert kernel.ram.read(0x6FE00000, 0x2000) == real("dtb-segment.bin").ljust(0x2000, b"\0")
    # The core header, but for the notes' places and the kernel's own size: memory as in the real one.
    ours, theirs = (
        parse_core_header(data) for data in (kernel.ram.read(0x6FFF0000, 0x1000), real("elf-segment.bin"))
    )
    assert [one.type for one in ours.program_headers] == [one.type for one in theirs.program_headers]
    assert [(one.paddr, one.memsz) for one in ours.program_headers[4:]] == [
        (one.paddr, one.memsz) for one in theirs.program_headers[4:]
    ]


# -- what a load leaves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ["6.1", "6.4", "6.12"])
def test_memory_holds_every_segment_padded_with_zeros_whatever_was_there(era: str) -> None:
    kernel = small(era)
    assert kernel.crashk_res is not None
    kernel.ram.fill(kernel.crashk_res.start, kernel.crashk_res.size, 0xA5)
    image = kernel.kexec_file_load(IMAGE, INITRD[:5001], CMDLINE)
    assert image is not None
    buffers = {"kernel": IMAGE, "initrd": INITRD[:5001]}
    for one in image.segments:
        expected = buffers.get(one.name, bytes(one.buf))
        assert kernel.ram.read(one.mem, one.memsz) == expected.ljust(one.memsz, b"\0"), one.name


def test_the_stored_digest_is_hashlib_s_over_memory_in_kimage_order(kernel: KernelModel) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert image is not None and image.purgatory is not None
    digest = hashlib.sha256()
    for one in image.segments:
        if one.name != "purgatory":
            digest.update(kernel.ram.read(one.mem, one.memsz))
    assert image.digest == digest.digest()
    # And so does the purgatory in memory, which is what will be compared with.
    symbol = image.purgatory.symbol_phys
    assert kernel.ram.read(symbol("purgatory_sha256_digest"), 32) == digest.digest()
    regions = struct.unpack("<32Q", kernel.ram.read(symbol("purgatory_sha_regions"), 256))
    pairs = list(zip(regions[::2], regions[1::2], strict=True))
    assert pairs == [(one.mem, one.memsz) for one in image.segments[:4]] + [(0, 0)] * 12
    for name, value in (("kernel_entry", image.kernel_entry), ("uart_base", 0x9000000)):
        assert kernel.ram.read_u64(symbol(f"purgatory_{name}")) == value


def test_the_guest_s_own_kimage_says_what_was_loaded(kernel: KernelModel) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert image is not None
    guest = kernel.guest
    kimage_phys = guest.space.virt_to_phys(guest.read("kexec_crash_image"))
    offset = {
        name: guest.vmlinux.offsetof("kimage", name) for name in ("head", "start", "nr_segments", "segment")
    }
    assert guest.ram.read_u64(kimage_phys + offset["head"]) == 4  # IND_DONE: no page to move
    assert guest.ram.read_u64(kimage_phys + offset["start"]) == image.start
    assert guest.ram.read_u64(kimage_phys + offset["nr_segments"]) == 5
    for index, one in enumerate(image.segments):
        raw = guest.ram.read(kimage_phys + offset["segment"] + 32 * index, 32)
        assert struct.unpack("<4Q", raw)[1:] == (one.bufsz, one.mem, one.memsz)


def test_control_pages_are_in_the_region_between_the_segments_and_in_no_digest(kernel: KernelModel) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert image is not None and kernel.crashk_res is not None
    code, copy = image.control_pages
    assert (code.start, copy.start) == (image.control_code_page, image.vmcoreinfo_safecopy)
    initrd = image.segment("initrd")
    assert initrd is not None and code.start == initrd.area.end
    for page in (code, copy):
        assert page.size == 4096 and kernel.crashk_res.covers(page)
        assert not any(page.overlaps(one.area) for one in image.segments)
        assert not any(page.overlaps(region) for region in image.sha_regions)


def test_the_safe_copy_of_vmcoreinfo_is_the_boot_s(kernel: KernelModel) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert image is not None
    text = kernel.vmcoreinfo()
    assert text.startswith(b"OSRELEASE=") and b"CRASHTIME" not in text
    assert kernel.ram.read(image.vmcoreinfo_safecopy, 4096) == text.ljust(4096, b"\0")


def test_the_device_tree_in_memory_leads_to_the_other_segments(kernel: KernelModel) -> None:
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert image is not None
    tree = Fdt(kernel.ram.read(image.dtb_mem, 0x1000))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None and kernel.crashk_res is not None
    initrd, core = image.segment("initrd"), image.segment("elfcorehdr")
    assert initrd is not None and core is not None
    assert tree.get_strings(chosen, "bootargs") == [CMDLINE]
    assert tree.getprop(chosen, "linux,initrd-start") == struct.pack(">Q", initrd.mem)
    assert tree.getprop(chosen, "linux,initrd-end") == struct.pack(">Q", initrd.mem + len(INITRD))
    assert tree.getprop(chosen, "linux,elfcorehdr") == struct.pack(">QQ", core.mem, core.memsz)
    region = struct.pack(">QQ", kernel.crashk_res.start, kernel.crashk_res.size)
    assert tree.getprop(chosen, "linux,usable-memory-range") == region


def test_a_low_reservation_is_the_second_usable_range_and_is_left_out_of_the_dump() -> None:
    banks = [PhysRange.of(0x40000000, 256 * MIB), PhysRange.of(1 << 32, 256 * MIB)]
    kernel = boot("6.4", "crashkernel=64M,high crashkernel=32M,low", ram=banks)
    image = kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert image is not None
    high, low = kernel.crashk_res, kernel.crashk_low_res
    assert high is not None and high.size == 64 * MIB and high.start >= 1 << 32
    assert low is not None and low.size == 32 * MIB and low.end <= 1 << 32
    tree = Fdt(kernel.ram.read(image.dtb_mem, 0x1000))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    ranges = struct.pack(">4Q", high.start, high.size, low.start, low.size)
    assert tree.getprop(chosen, "linux,usable-memory-range") == ranges
    core = image.segment("elfcorehdr")
    assert core is not None
    loads = [one for one in parse_core_header(bytes(core.buf)).program_headers if one.type == 1][1:]
    dumped = [PhysRange.of(one.paddr, one.memsz) for one in loads]
    assert not any(one.overlaps(area) for one in dumped for area in (high, low))
    assert sum(one.size for one in dumped) == 512 * MIB - high.size - low.size


def test_seeds_are_in_the_device_tree_once_the_random_numbers_are_ready_and_come_from_the_seed() -> None:
    def chosen(seed: int, ready: bool) -> dict[str, bytes]:
        kernel = small(rng_ready=ready, seed=seed)
        image = kernel.kexec_file_load(IMAGE, None, CMDLINE)
        assert image is not None
        tree = Fdt(kernel.ram.read(image.dtb_mem, 0x1000))
        node = tree.path_offset("/chosen")
        assert node is not None
        return {prop.name: prop.value for prop in tree.properties(node)}

    first, second, other = chosen(1, True), chosen(1, True), chosen(2, True)
    assert len(first["kaslr-seed"]) == 8 and len(first["rng-seed"]) == 128
    assert first == second and first["kaslr-seed"] != other["kaslr-seed"]
    assert not {"kaslr-seed", "rng-seed"} & chosen(1, False).keys()


def test_an_initrd_that_fills_the_gap_sends_the_control_pages_behind_the_device_tree() -> None:
    kernel = small(purgatory=None)
    assert kernel.crashk_res is not None
    dtb_mem = kernel.crashk_res.end - 2 * MIB
    room = dtb_mem - (kernel.crashk_res.start + 0x10000)
    image = kernel.kexec_file_load(IMAGE, bytes(room), CMDLINE)
    assert image is not None and image.dtb_mem == dtb_mem
    dtb = image.segment("dtb")
    assert dtb is not None and image.control_pages[0].start == dtb.area.end
