"""Kexec handover: what the command line asks for, where the scratch areas are, and what an image for a reboot has."""

from __future__ import annotations

import hashlib
from errno import EADDRNOTAVAIL

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import GIB, IMAGE, INITRD, MIB, arm64_image, boot

from kexecemu.crash.kernel import Kernel
from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd
from kexecemu.errors import KexecError
from kexecemu.formats.fdt import Fdt, reg64
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.early_param import parse_early_param
from kexecemu.kernel.image.kimage import IMA, KHO_SCRATCH, Kimage
from kexecemu.kernel.memory.kho import KhoEarly, reserve_scratch
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.model import KernelModel
from kexecemu.kernel.procfs import proc_iomem
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

ON = {"KEXEC_HANDOVER": "y"}
SIZES = "kho=on kho_scratch=16M,64M,16M"
NOTHING = hashlib.sha256(b"").digest()


def booted(
    cmdline: str = f"crashkernel=128M {SIZES}", era: str = "7.3", ram: str = "1G", cpus: int = 1, **more: str
) -> KernelModel:
    return boot(era, cmdline, ram=ram, cpus=cpus, options={**ON, **more})


def load(kernel: KernelModel, flags: int = 0, image: bytes = IMAGE) -> Kimage:
    loaded = kernel.kexec_file_load(image, INITRD, "panic=5", flags=flags)
    assert loaded is not None
    return loaded


# -- the command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cmdline", "found", "said"),
    [
        ("", KhoEarly(), []),
        ("kho=on", KhoEarly(True), []),
        ("kho=y kho=off", KhoEarly(False), []),
        ("kho", KhoEarly(), ["Malformed early option 'kho'"]),
        ("kho=maybe kho=1", KhoEarly(True), ["Malformed early option 'kho'"]),
        ("kho_scratch=50%", KhoEarly(scale=50), ["KHO: scratch scale is 50%"]),
        ("kho_scratch=0%", KhoEarly(scale=0), ["KHO: scratch scale is 0%"]),
        ("kho_scratch=4294967295%", KhoEarly(scale=4294967295), ["KHO: scratch scale is -1%"]),
        ("kho_scratch=4294967296%", KhoEarly(), ["Malformed early option 'kho_scratch'"]),
        ("kho_scratch=00000000050%", KhoEarly(), ["Malformed early option 'kho_scratch'"]),
        ("kho_scratch=%", KhoEarly(), ["Malformed early option 'kho_scratch'"]),
        (
            "kho_scratch=16M,1G,0x100000",
            KhoEarly(scale=0, lowmem=16 * MIB, anywhere=GIB, pernode=MIB),
            ["KHO: scratch areas: lowmem: 16MiB global: 1024MiB pernode: 1MiB"],
        ),
        (
            "kho-scratch=0,0,1",
            KhoEarly(scale=0, pernode=1),
            ["KHO: scratch areas: lowmem: 0MiB global: 0MiB pernode: 0MiB"],
        ),
        ("kho_scratch=0,0,0", KhoEarly(), ["Malformed early option 'kho_scratch'"]),
        ("kho_scratch=1M,2M", KhoEarly(), ["Malformed early option 'kho_scratch'"]),
        ("kho_scratch=1M,2M,3M,4M", KhoEarly(), ["Malformed early option 'kho_scratch'"]),
        ("kho_scratch=1M,,3M", KhoEarly(), ["Malformed early option 'kho_scratch'"]),
        # The percentage counts again, and the sizes of before are no more than remembered.
        (
            "kho_scratch=1M,2M,3M kho_scratch=10%",
            KhoEarly(scale=10, lowmem=MIB, anywhere=2 * MIB, pernode=3 * MIB),
            ["KHO: scratch areas: lowmem: 1MiB global: 2MiB pernode: 3MiB", "KHO: scratch scale is 10%"],
        ),
    ],
)
def test_kho_and_its_scratch_are_read_as_early_parameters(
    cmdline: str, found: KhoEarly, said: list[str]
) -> None:
    log: list[str] = []
    assert parse_early_param(KernelConfig("7.3", options=ON), cmdline, log.append).kho == found
    assert log == said
    assert parse_early_param(KernelConfig("7.3"), cmdline, log.append).kho == KhoEarly() and log == said


def test_a_kernel_that_has_it_on_by_default_needs_no_kho() -> None:
    config = KernelConfig("7.3", options={**ON, "KEXEC_HANDOVER_ENABLE_DEFAULT": "y"})
    assert parse_early_param(config, "").kho.enable
    assert not parse_early_param(config, "kho=off").kho.enable


# -- where the areas are ---------------------------------------------------------------------------------------

# Linux 7.3.4 built with KEXEC_HANDOVER=y, in QEMU's virt: /proc/iomem, and where its segments went.
REAL = [
    ("512M", 1, SIZES, 0x57E00000, [(0x56400000, 16), (0x52400000, 64), (0x51400000, 16)]),
    ("1G", 1, SIZES, 0x77C00000, [(0x75800000, 16), (0x71800000, 64), (0x70800000, 16)]),
    ("3000M", 2, SIZES, 0xF3200000, [(0xEE400000, 16), (0xEA400000, 64), (0xE9400000, 16)]),
    # Low memory ends at 4 GiB, less a byte; what devices bounce through is before it.
    ("6G", 4, SIZES, 0xF8000000, [(0xF3000000, 16), (0x1B4400000, 64), (0x1B3400000, 16)]),
]


@pytest.mark.parametrize(("ram", "cpus", "asked", "crash", "areas"), REAL)
def test_they_lie_where_a_real_kernel_had_them_and_crash_memory_does_not_move(
    ram: str, cpus: int, asked: str, crash: int, areas: list[tuple[int, int]]
) -> None:
    options = {"NUMA": "n", "HUGETLB_PAGE": "n", "ARM64_VA_BITS": "48"}
    kernel = booted(f"console=ttyAMA0 crashkernel=128M {asked}", ram=ram, cpus=cpus, **options)
    assert kernel.crashk_res == PhysRange.of(crash, 128 * MIB) and kernel.kho is not None
    assert list(kernel.kho.areas) == [PhysRange.of(start, size * MIB) for start, size in areas]
    assert kernel.ram.read(kernel.kho.array_phys, 48) == kernel.kho.array
    low = min(one.start for one in kernel.kho.areas)
    assert f"  {low:08x}-" in proc_iomem(kernel)
    without = booted("crashkernel=128M kho=off", ram=ram, cpus=cpus, **options)
    assert without.kho is None and without.crashk_res == kernel.crashk_res


@pytest.mark.parametrize(
    ("era", "page", "align"),
    [
        ("7.3", "ARM64_4K_PAGES", 4 * MIB),
        ("7.3", "ARM64_16K_PAGES", 32 * MIB),
        ("6.16", "ARM64_4K_PAGES", 2 * MIB),
        ("6.18", "ARM64_4K_PAGES", 2 * MIB),
    ],
)
def test_they_are_in_whole_blocks_of_the_buddy_allocator_or_of_cma(era: str, page: str, align: int) -> None:
    kernel = booted("crashkernel=64M kho=on kho_scratch=1M,33M,1", era, "1G", **{page: "y"})
    assert kernel.kho is not None
    sizes = [-(-size // align) * align for size in (MIB, 33 * MIB, 1)]
    assert [one.size for one in kernel.kho.areas] == sizes
    assert all(one.start % align == 0 for one in kernel.kho.areas)


def memory(*taken: PhysRange) -> Memblock:
    memblock = Memblock()
    memblock.add(PhysRange(GIB, 2 * GIB))
    for area in taken:
        memblock.reserve(area)
    return memblock


def test_percents_are_of_what_was_given_out_and_not_of_what_was_found_taken() -> None:
    memblock = memory(PhysRange.of(GIB, 64 * MIB))
    assert memblock.phys_alloc_range(10 * MIB, MIB)
    assert memblock.phys_alloc_range(2 * MIB, MIB, 0, GIB + 512 * MIB)
    assert memblock.kern_size(1 << 64) == 12 * MIB
    assert memblock.kern_size(GIB + 512 * MIB) == 2 * MIB
    assert memblock.kern_size(2 * GIB - 4 * MIB) == 8 * MIB
    config, early = KernelConfig("7.3", options=ON), KhoEarly(True, 200)
    kho = reserve_scratch(config, memblock, 2 * GIB, early, print)
    assert kho is not None
    # 24 MiB less a byte's worth for low memory (the end of RAM is out of reach), what is left of them anywhere, and
    # for the node twice what there is then: 12 MiB, a page, 24 and 4 MiB.
    assert [one.size // MIB for one in kho.areas] == [24, 4, 84]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1024, 1, 1), "lowmem scratch buffer"),
        ((1, 1024, 1), "global scratch buffer"),
        ((1, 1, 1020), "nid 0 scratch buffer"),
    ],
)
def test_want_of_room_gives_all_back_and_switches_it_off(sizes: tuple[int, int, int], words: str) -> None:
    memblock, said = memory(), list[str]()
    early = KhoEarly(True, 0, *(size * MIB for size in sizes))
    assert reserve_scratch(KernelConfig("7.3", options=ON), memblock, 2 * GIB, early, said.append) is None
    off = "KHO: Failed to reserve scratch area, disabling kexec handover"
    assert said == [f"KHO: Failed to reserve {words}", off] and memblock.reserved == []


@given(
    sizes=st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300)),
    taken=st.lists(st.tuples(st.integers(0, 250), st.integers(1, 40)), max_size=5),
    limit=st.integers(16, 256),
)
def test_areas_are_free_memory_apart_from_each_other_the_highest_that_there_is(
    sizes: tuple[int, int, int], taken: list[tuple[int, int]], limit: int
) -> None:
    """Beside a search of every 4 MiB from above."""
    memblock = memory(*(PhysRange.of(GIB + at * 4 * MIB, size * MIB) for at, size in taken))
    page_taken = memblock.free_ranges()
    blocks = {
        at
        for at in range(256)
        if any(one.covers(PhysRange.of(GIB + at * 4 * MIB, 4 * MIB)) for one in page_taken)
    }
    early, dma_limit = KhoEarly(True, 0, *(size * MIB for size in sizes)), GIB + limit * 4 * MIB
    kho = reserve_scratch(KernelConfig("7.3", options=ON), memblock, dma_limit, early, lambda text: None)
    # The array's page is the highest that is free, and spoils its block.
    if page_taken:
        blocks.discard((max(one.end for one in page_taken) - 1 - GIB) // (4 * MIB))
    wanted = list[int | None]()
    for size, end in zip(sizes, (limit - 2, 255, 255), strict=True):
        count = -(-size // 4)
        place = next(
            (
                at
                for at in range(end - count + 1, -1, -1)
                if count and all(at + number in blocks for number in range(count))
            ),
            None,
        )
        if place is not None:
            blocks -= set(range(place, place + count))
        wanted.append(place)
    if kho is None:
        assert None in wanted
        return
    for size, area, place in zip(sizes, kho.areas, wanted, strict=True):
        assert area.size == -(-size // 4) * 4 * MIB
        if size:
            assert place is not None and area.start == GIB + place * 4 * MIB


# -- an image for a reboot -------------------------------------------------------------------------------------


def test_the_array_goes_first_and_everything_into_the_first_area_that_has_room() -> None:
    kernel = booted()
    image, kho = load(kernel), kernel.kho
    assert kho is not None
    assert [one.name for one in image.segments] == [KHO_SCRATCH, "kernel", "initrd", "dtb", "purgatory"]
    first, low = image.segments[0], kho.areas[0]
    assert (first.mem, first.bufsz, first.memsz) == (low.end - 0x10000, 48, 4096)
    assert bytes(first.buf) == b"".join(
        number.to_bytes(8, "little") for one in kho.areas for number in (one.start, one.size)
    )
    assert all(low.covers(one.area) for one in image.segments)


def test_what_the_first_area_has_no_room_for_goes_into_the_next_and_all_behind_it_too() -> None:
    kernel = booted()
    image, kho = load(kernel, image=arm64_image(64, image_size=40 * MIB)), kernel.kho
    assert kho is not None and kho.areas[1].end == kho.areas[0].start
    kernel_segment = image.segments[1]
    assert kernel_segment.mem == kho.areas[1].start
    # From above is from the first area's top, though the second one is lower: the areas have their own order.
    dtb = image.segment("dtb")
    assert dtb is not None and kho.areas[0].covers(dtb.area)


def test_what_no_area_has_room_for_is_refused_though_memory_is_free() -> None:
    with pytest.raises(
        KexecError, match=r"kernel needs .* largest hole in KHO's scratch areas is"
    ) as refusal:
        load(booted(), image=arm64_image(64, image_size=80 * MIB))
    assert refusal.value.errno == EADDRNOTAVAIL


def test_ima_s_list_is_before_it_and_in_an_area_too() -> None:
    kernel = booted(IMA_KEXEC="y")
    image = load(kernel)
    assert [one.name for one in image.segments][:2] == [IMA, KHO_SCRATCH] and kernel.kho is not None
    assert image.segments[0].area.end == kernel.kho.areas[0].end


def test_the_next_kernel_is_told_where_both_are_between_usable_memory_and_bootargs() -> None:
    kernel = booted()
    image, kho = load(kernel), kernel.kho
    dtb = image.segment("dtb")
    assert dtb is not None and kho is not None
    tree = Fdt(bytes(dtb.buf))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    assert tree.getprop(chosen, "linux,kho-fdt") == reg64(kho.fdt_phys, 4096)
    assert tree.getprop(chosen, "linux,kho-scratch") == reg64(image.segments[0].mem, 48)
    names = [one.name for one in tree.properties(chosen)]
    at = [names.index(name) for name in ("linux,kho-scratch", "linux,kho-fdt", "linux,initrd-end")]
    assert at == sorted(at) and not tree.mem_reservations()[1:]


def test_a_crash_image_has_nothing_of_it() -> None:
    kernel = booted()
    image, region = load(kernel, flags=2), kernel.crashk_res
    assert region is not None and all(region.covers(one.area) for one in image.segments)
    assert image.segment(KHO_SCRATCH) is None and image.digest != NOTHING and image.sha_regions
    dtb = image.segment("dtb")
    assert dtb is not None and b"kho" not in bytes(dtb.buf)


@pytest.mark.parametrize(
    ("era", "cmdline", "checked"),
    [
        ("7.3", SIZES, False),
        ("7.0", SIZES, True),
        ("6.16", SIZES, True),
        ("7.3", "kho=off", True),
    ],
)
def test_since_7_3_no_digest_is_kept_of_what_lies_safe_and_the_purgatory_lets_it_pass(
    era: str, cmdline: str, checked: bool
) -> None:
    config = KernelConfig(era, options=ON)
    kernel = Kernel.boot(Board("1G"), config, cmdline=f"crashkernel=128M {cmdline}")
    image = load(kernel)
    assert (image.digest != NOTHING, bool(image.sha_regions)) == (checked, checked)
    initrd = image.segment("initrd")
    assert initrd is not None
    end = kernel.reboot_by_kexec()
    assert end.purgatory is not None and end.purgatory.end is PurgatoryEnd.KERNEL
    assert end.kernel is not None and end.kernel.end is CaptureEnd.NO_DUMP


# -- what is only nearly so ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("era", "options", "cmdline", "words"),
    [
        ("7.3", ON, SIZES, []),
        ("7.3", ON, "kho=on", ["kho_scratch= in percent is of what memblock has given out"]),
        ("6.18", ON, SIZES, ["KHO: whether debugfs has finalized it is not modelled"]),
        ("7.3", {}, "kho=on", ["kho= says nothing to a kernel without KEXEC_HANDOVER=y"]),
        ("7.3", {}, "", []),
        ("6.16", ON, "", []),
    ],
)
def test_it_is_said_what_is_known_only_nearly(
    era: str, options: dict[str, str], cmdline: str, words: list[str]
) -> None:
    found = boot(era, f"crashkernel=64M {cmdline}", ram="512M", options=options).not_modelled()
    assert len(found) == len(words) and all(
        one.startswith(word) for one, word in zip(found, words, strict=True)
    )


def test_pages_that_the_areas_hold_still_count_as_memory() -> None:
    with_, without = booted(), booted("crashkernel=128M")
    missing = without.total_ram_pages - with_.total_ram_pages
    assert 0 < missing < 4 * MIB // 4096
