"""The ways of protecting a loaded image: which pages, against whom, and what it costs."""

from __future__ import annotations

import re

import pytest
from kernel_bench import DATA, IMAGE, INITRD, MIB, arm64_image, boot, small

from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import Protection
from kexecemu.kernel.image.kimage import KEXEC_FILE_ON_CRASH, KEXEC_FILE_UNLOAD, Kimage
from kexecemu.kernel.image.protection import protected_areas
from kexecemu.kernel.image.segment import Segment
from kexecemu.kernel.memory.linear_map import PAGE_KERNEL, PAGE_KERNEL_RO
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.memory.descriptors import Granule, TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange


def loaded(era: str = "6.1", **arguments: object) -> tuple[KernelModel, Kimage]:
    kernel = small(era, **arguments)
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None
    return kernel, image


def stray(kernel: KernelModel, phys: int) -> str:
    """Store a byte at a physical address through the linear map; "" if it went in, else the fault in words."""
    cpu = kernel.board.boot_cpu
    seen = len(cpu.exceptions)
    before = kernel.ram.read(phys, 1)
    new = bytes([before[0] ^ 0xFF])
    went_in = kernel.stray_write_virt(kernel.space.linear_virt(phys), new)
    assert kernel.ram.read(phys, 1) == (new if went_in else before)
    assert went_in == (len(cpu.exceptions) == seen)
    return "" if went_in else cpu.exceptions[-1].status


# -- a real kernel's pages -------------------------------------------------------------------------------------


def test_the_pages_that_a_real_kernel_could_not_read_are_the_ones_that_are_gone_here() -> None:
    """Linux 6.1.192, 768 MiB, crashkernel=96M, drgn's look at pages in and beside each segment after the load."""
    kernel = boot("6.1", "crashkernel=96M", ram="768M", purgatory=None, options={"ZONE_DMA": "n"})
    image = kernel.kexec_file_load(arm64_image(0x50B200, image_size=0x550000), bytes(0x27D988), "panic=5")
    assert image is not None
    record = (DATA / "crashkernel-protection.txt").read_text()
    segments = re.findall(r"^seg \d (0x\w+) (0x\w+)$", record, re.M)
    ours = [(one.mem, one.memsz) for one in image.segments]
    # The dtb of that machine is longer than this board's; its size is not the subject.
    assert [start for start, _ in ours] == [int(start, 16) for start, _ in segments]
    assert [size for _, size in ours[:3]] == [int(size, 16) for _, size in segments[:3]]
    pages = re.findall(r"^(0x\w+) linear map -> (.*)$", record, re.M)
    assert len(pages) == 13
    for page, answer in pages:
        if int(page, 16) == 0x6FE01000:
            continue  # the dtb's second page, see above
        walk = kernel.tables.walk(kernel.space.linear_virt(int(page, 16)))
        assert (walk.phys is None) == ("not mapped" in answer), page
        assert walk.phys is None or walk.phys == int(answer, 16)


# -- which write each way stops --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protection", "segment", "free"),
    [
        ("none", "", ""),
        ("pte", "translation fault level 3", ""),
        ("readonly", "permission fault level 3", "permission fault level 3"),
        ("bbml2", "translation fault level 3", ""),
    ],
)
@pytest.mark.parametrize("cmdline", ["crashkernel=64M", "crashkernel=64M rodata=on"])
def test_each_way_stops_the_writes_that_it_covers(
    protection: str, segment: str, free: str, cmdline: str
) -> None:
    kernel = boot("6.4", cmdline, ram="256M", protection=protection)
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None and kernel.crashk_res is not None
    for one in image.segments:
        assert stray(kernel, one.mem) == segment, one.name
        assert stray(kernel, one.area.last) == segment, one.name
    assert stray(kernel, kernel.crashk_res.start + 32 * MIB) == free
    # The kernel itself must be able to write CRASHTIME there when it panics.
    for page in image.control_pages:
        assert stray(kernel, page.start) == "" and stray(kernel, page.last) == ""
    assert stray(kernel, kernel.crashk_res.start - 1) == ""
    assert stray(kernel, kernel.crashk_res.end) == ""


def test_dma_does_not_see_the_page_tables() -> None:
    kernel, image = loaded("6.1")
    kernel.board.dma.write(image.segments[2].mem, b"\xa5\x5a")
    assert kernel.ram.read(image.segments[2].mem, 2) == b"\xa5\x5a"


def test_what_is_protected_is_told() -> None:
    kernel, image = loaded("6.1")
    assert kernel.protected == [one.area for one in image.segments]
    assert loaded("6.4")[0].protected == []
    kernel, image = loaded("6.4", protection="readonly")
    assert kernel.crashk_res is not None
    assert sum(one.size for one in kernel.protected) == kernel.crashk_res.size - 2 * 4096
    assert not any(one.overlaps(page) for one in kernel.protected for page in image.control_pages)


# -- life ------------------------------------------------------------------------------------------------------

WAYS = [way.value for way in Protection if way is not Protection.NONE]


def descriptors(kernel: KernelModel) -> list[tuple[int, int, int]]:
    assert kernel.crashk_res is not None
    start = kernel.space.linear_virt(kernel.crashk_res.start)
    leaves = kernel.tables.leaves(start, start + kernel.crashk_res.size)
    return [(one.virt, one.level, one.descriptor) for one in leaves]


@pytest.mark.parametrize("protection", WAYS)
def test_an_unload_gives_the_pages_back(protection: str) -> None:
    kernel = small("6.4", protection=protection)
    before = descriptors(kernel)
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None and descriptors(kernel) != before
    kernel.kexec_file_load(None, flags=KEXEC_FILE_ON_CRASH | KEXEC_FILE_UNLOAD)
    assert kernel.protected == []
    if protection != "bbml2":  # what was split stays split
        assert descriptors(kernel) == before
    for one in image.segments:
        assert stray(kernel, one.mem) == ""


@pytest.mark.parametrize("protection", WAYS)
def test_a_reload_writes_through_and_protects_what_is_loaded_then(protection: str) -> None:
    kernel = small("6.4", protection=protection)
    kernel.kexec_file_load(IMAGE, INITRD + bytes(8192), "panic=5")
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    initrd = image.segment("initrd") if image else None
    assert image is not None and initrd is not None
    assert stray(kernel, initrd.mem) != ""
    # Two pages that only the first image had; the first of them is a control page now.
    assert (stray(kernel, initrd.area.end + 3 * 4096) == "") is (protection != "readonly")
    assert stray(kernel, initrd.area.end) == ""


@pytest.mark.parametrize("protection", WAYS)
def test_what_a_cpu_has_in_its_tlb_does_not_outlive_a_change_of_protection(protection: str) -> None:
    kernel = small("6.4", protection=protection, cpus=2)
    assert kernel.crashk_res is not None
    first_page = kernel.crashk_res.start
    for _ in range(2):
        assert stray(kernel, first_page) == ""
        assert kernel.kexec_file_load(IMAGE, INITRD, "panic=5") is not None
        assert stray(kernel, first_page) != ""
        kernel.kexec_file_load(None, flags=KEXEC_FILE_ON_CRASH | KEXEC_FILE_UNLOAD)


@pytest.mark.parametrize("protection", WAYS)
def test_a_failed_reload_leaves_nothing_protected(protection: str) -> None:
    kernel = small("6.4", protection=protection)
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None
    with pytest.raises(OSError, match="not an arm64 Image"):
        kernel.kexec_file_load(b"no kernel", INITRD, "panic=5")
    assert kernel.protected == []
    assert stray(kernel, image.segments[0].mem) == ""


# -- price -----------------------------------------------------------------------------------------------------


def test_live_splitting_costs_tables_around_the_segments_only() -> None:
    """A 64 MiB region in blocks: each 2 MiB that holds a segment becomes a table, all else stays as it was."""
    kernel = boot("6.12", "crashkernel=64M", ram="1G", protection="bbml2")
    before = len(kernel.tables.tables)
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None
    touched = {phys // (2 * MIB) for one in image.segments for phys in range(one.mem, one.area.end, 4096)}
    assert len(kernel.tables.tables) - before == len(touched) == 2
    pages = boot("6.1", "crashkernel=64M", ram="1G")
    assert len(pages.tables.tables) > before + 500


def test_only_the_blocks_that_hold_segments_are_split() -> None:
    kernel = boot("6.12", "crashkernel=64M", ram="1G", protection="bbml2")
    image = kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
    assert image is not None and kernel.crashk_res is not None
    for at in range(kernel.crashk_res.start, kernel.crashk_res.end, 2 * MIB):
        block = PhysRange.of(at, 2 * MIB)
        has_segment = any(block.overlaps(one.area) for one in image.segments)
        assert kernel.tables.walk(kernel.space.linear_virt(at + 0x1FF000)).level == (3 if has_segment else 2)


def test_pages_that_keep_stores_out_are_one_area_where_they_touch() -> None:
    """Page by page: what is no part of the map, read-only or writable, in areas that begin and end anywhere."""
    kinds = "rr-wr--wwrw-r"  # read-only, none at all, writable
    ram = Ram([PhysRange.of(1 << 30, 1 << 20)])
    taken = iter(range((1 << 30) + 65536, (1 << 30) + (1 << 20), 4096))
    tables = PageTables(ram, TableFormat(Granule.K4, 48), 1 << 30, lambda: next(taken))
    space = AddressSpace(1 << 30, 0xFFFF800008000000, 1 << 30, 4096)
    region = PhysRange.of(0x60000000, len(kinds) * 4096)
    for index, kind in enumerate(kinds):
        if kind != "-":
            phys = region.start + index * 4096
            attributes = PAGE_KERNEL_RO if kind == "r" else PAGE_KERNEL
            virt = space.linear_virt(phys)
            tables.map(virt, phys, 4096, attributes, blocks=False, contiguous=False)
    image = Kimage(control_page=0, segments=[Segment("x", b"", region.start, region.size)])
    found = protected_areas(Protection.PTE, tables, space, image, region)
    pages = [(one.start - region.start) // 4096 for one in found], [one.size // 4096 for one in found]
    assert pages == ([0, 4, 9, 11], [3, 3, 1, 2])
    assert protected_areas(Protection.NONE, tables, space, image, region) == []
    ram.close()
