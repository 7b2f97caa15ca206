"""Free memory as the buddy allocator's lists have it in guest memory, and who is reserved."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import GIB, IMAGE, INITRD, MIB, boot

from kexecemu.kernel.base.config import Era
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.boot import free_area
from kexecemu.kernel.boot.free_area import BLOCKS_LIMIT
from kexecemu.kernel.crash_size import crash_shrink_memory
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.load import environment
from kexecemu.kernel.load.relocation import ImagePages
from kexecemu.kernel.memory.buddy import FreeBlock, free_blocks
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.sparsemem import vmemmap_base
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.ranges import PhysRange

RELEASES = [era.value for era in Era]
PAGES = ("ARM64_4K_PAGES", "ARM64_16K_PAGES", "ARM64_64K_PAGES")
ORDERS = 11


def struct_page(kernel: KernelModel, pfn: int) -> tuple[int, ...]:
    """flags, lru.next, lru.prev, private, _mapcount (signed), _refcount, found by the page tables."""
    walk = kernel.tables.walk(vmemmap_base(kernel.space, kernel.page_size) + 64 * pfn)
    assert walk.phys is not None
    flags, following, before, _, _, private, mapcount, count, _ = struct.unpack(
        "<QQQQQQiiQ", kernel.ram.read(walk.phys, 64)
    )
    return flags, following, before, private, mapcount, count


def walked(kernel: KernelModel) -> Iterator[tuple[int, int, int, int]]:
    """(zone, order, kind, pfn) of each block, by following the lists in both directions; counts are held to."""
    guest, layout = kernel.guest, kernel.guest.vmlinux
    said = dict(line.split("=") for line in kernel.vmcoreinfo().decode().splitlines())
    base = vmemmap_base(kernel.space, kernel.page_size)
    for zone in range(4):
        areas = (
            layout.offsetof("pglist_data", "node_zones")
            + zone * layout.sizeof("zone")
            + layout.offsetof("zone", "free_area")
        )
        for order in range(ORDERS):
            area = areas + order * layout.sizeof("free_area")
            if not guest.read("contig_page_data", areas):
                continue  # a zone without pages is not initialised
            blocks = 0
            for kind in range(4):
                at = area + 16 * kind
                head = layout.virt("contig_page_data") + at
                link, previous = guest.read("contig_page_data", at), head
                while link != head:
                    pfn = (link - 8 - base) // 64
                    flags, following, before, private, mapcount, count = struct_page(kernel, pfn)
                    assert (before, private, flags, count) == (previous, order, 0, 0)
                    assert mapcount == int(said["NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)"])
                    yield zone, order, kind, pfn
                    link, previous, blocks = following, link, blocks + 1
                assert guest.read("contig_page_data", at + 8) == previous
            assert guest.read("contig_page_data", area + layout.offsetof("free_area", "nr_free")) == blocks


def free_count(kernel: KernelModel) -> int:
    """NR_FREE_PAGES, which is the sum of the zones'."""
    layout = kernel.guest.vmlinux
    zones = layout.offsetof("pglist_data", "node_zones") + layout.offsetof("zone", "vm_stat")
    total = sum(kernel.guest.read("contig_page_data", zones + n * layout.sizeof("zone")) for n in range(4))
    assert kernel.guest.read("vm_zone_stat") == total
    return total


def listed(kernel: KernelModel) -> set[int]:
    """Frames of all blocks; none is in two of them."""
    frames: set[int] = set()
    for _, order, _, pfn in walked(kernel):
        assert not pfn % (1 << order)
        block = set(range(pfn, pfn + (1 << order)))
        assert not frames & block
        frames |= block
    return frames


def unreserved(kernel: KernelModel) -> set[int]:
    page = kernel.page_size
    return {
        pfn
        for area in kernel.arch.memblock.free_ranges()
        for pfn in range(-(-area.start // page), area.end // page)
    }


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("page", PAGES)
def test_the_lists_have_every_page_that_memblock_left_but_the_tasks(release: str, page: str) -> None:
    with boot(era=release, ram="512M", cmdline="crashkernel=64M", options={page: "y"}) as kernel:
        frames = listed(kernel)
        tasks = kernel.free_memory.slab.start // kernel.page_size
        assert frames == unreserved(kernel) - {tasks} and tasks in unreserved(kernel)
        assert free_count(kernel) == len(frames) == kernel.guest.read("_totalram_pages") - 1


def test_memory_of_two_zones_is_on_the_lists_of_each() -> None:
    ram = [PhysRange.of(GIB, 256 * MIB), PhysRange.of(4 * GIB, 256 * MIB)]
    with boot(ram=ram, cmdline="crashkernel=64M") as kernel:
        blocks = list(walked(kernel))
        assert {zone for zone, *_ in blocks} == {0, 2}
        for zone, order, kind, pfn in blocks:
            assert (pfn + (1 << order) <= 4 * GIB // 4096) is (zone == 0)
            # The tasks' page is of the highest zone; what is left of its block is for the kernel too.
            assert kind == (zone == 0 or order == 10 or not 0 < pfn - 4 * GIB // 4096 < 1024)
        assert kernel.free_memory.slab.start >= 4 * GIB


def test_crash_memory_that_is_given_back_is_free() -> None:
    with boot(ram="512M", cmdline="crashkernel=64M") as kernel:
        before = free_count(kernel)
        crash_shrink_memory(kernel, 20 * MIB)
        assert listed(kernel) == unreserved(kernel) - {kernel.free_memory.slab.start // 4096}
        assert free_count(kernel) == before + 44 * MIB // 4096


def test_of_a_large_board_only_the_count_is_there() -> None:
    pages = BLOCKS_LIMIT << ORDERS - 1
    with boot(ram=[PhysRange.of(GIB, pages * 4096 + 2 * GIB)], cmdline="rodata=on") as kernel:
        assert not list(walked(kernel))
        assert free_count(kernel) == kernel.guest.read("_totalram_pages") > pages


@pytest.mark.parametrize(("more", "listed"), [(0, True), (-1, False)])
def test_lists_are_written_up_to_the_limit_and_not_beyond(
    more: int, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with boot(ram="256M", cmdline="crashkernel=32M") as kernel:
        managed = kernel.guest.read("_totalram_pages")
        monkeypatch.setattr(free_area, "BLOCKS_LIMIT", (managed >> ORDERS - 1) + more)
        kernel.free_memory.publish()
        assert bool(list(walked(kernel))) is listed
        assert free_count(kernel) == managed - listed  # without lists the tasks' page counts as free


def test_struct_pages_of_reserved_memory_are_written_of_areas_up_to_64_mib() -> None:
    class Pages:
        seen: ClassVar[list[PhysRange]] = []

        def set_reserved(self, area: PhysRange, page_size: int) -> None:
            self.seen.append(area)

    memory, crash = Memblock(), PhysRange.of(GIB, MIB)
    memory.add(PhysRange(GIB, 2 * GIB))
    areas = [PhysRange.of(GIB + 2 * MIB, 64 * MIB), PhysRange.of(GIB + 128 * MIB, 64 * MIB + 4096), crash]
    for area in areas:
        memory.reserve(area)
    free_area.mark_reserved(Pages(), memory, [crash], 4096)  # type: ignore[arg-type]
    assert Pages.seen == areas[:1]


def test_an_ordinary_image_does_not_wait_in_the_tasks_page(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[PhysRange] = []
    load = environment.load_normal_segments

    def seen(guest: GuestKernel, image: Kimage, free: list[PhysRange], page_size: int) -> ImagePages:
        offered.extend(free)
        return load(guest, image, free, page_size)

    monkeypatch.setattr(environment, "load_normal_segments", seen)
    with boot(ram="256M", cmdline="crashkernel=32M") as kernel:
        assert kernel.kexec_file_load(IMAGE, INITRD, "", 0) is not None
        slab = kernel.free_memory.slab
        assert offered and not any(one.overlaps(slab) for one in offered)
        assert any(one.start == slab.end for one in offered)


@pytest.mark.parametrize("release", RELEASES)
def test_the_image_s_pages_are_reserved_and_free_ones_are_not(release: str) -> None:
    with boot(era=release, ram="256M", cmdline="crashkernel=32M") as kernel:
        said = dict(line.split("=") for line in kernel.vmcoreinfo().decode().splitlines())
        reserved = 1 << int(said["NUMBER(PG_private)"]) - 1
        start, end = (kernel.guest.phys(name) // 4096 for name in ("_stext", "_end"))
        for pfn in range(start, end):
            flags, following, before, _, mapcount, count = struct_page(kernel, pfn)
            assert (flags, mapcount, count) == (reserved, -1, 1)
            assert following == before == vmemmap_base(kernel.space, 4096) + 64 * pfn + 8
        assert kernel.crashk_res is not None
        assert struct_page(kernel, kernel.dtb_phys // 4096)[0] == reserved
        for phys in (kernel.crashk_res.start, 0x44000000):
            assert not struct_page(kernel, phys // 4096)[0]


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), max_size=6),
    st.integers(0, 8000),
    st.integers(1, 11),
)
def test_blocks_are_aligned_maximal_and_all_that_is_free(
    spans: list[tuple[int, int]], taken: int, orders: int
) -> None:
    areas, at = [], 0
    for gap, size in spans:
        areas.append(PhysRange.of((at + gap) * 4096, size * 4096))
        at += gap + size + 1
    free = {pfn for area in areas for pfn in range(area.start // 4096, area.end // 4096)}
    page = PhysRange.of(taken * 4096, 4096) if taken in free else PhysRange(0, 0)
    blocks = list(free_blocks(areas, page, 4096, orders))
    assert sum(1 << one.order for one in blocks) == len(free) - (taken in free)
    covered = {pfn for one in blocks for pfn in range(one.pfn, one.pfn + (1 << one.order))}
    assert covered == free - ({taken} if page.size else set())
    by_pfn = {one.pfn: one for one in blocks}
    for one in blocks:
        assert not one.pfn % (1 << one.order) and one.order < orders
        buddy = by_pfn.get(one.pfn ^ 1 << one.order)
        assert buddy is None or buddy.order != one.order or one.order == orders - 1


def test_what_is_left_of_a_block_is_of_the_kernel_s_own_kind() -> None:
    blocks = list(free_blocks([PhysRange(0, 8 * 4096)], PhysRange(0, 4096), 4096, 4))
    assert blocks == [FreeBlock(1, 0, 0), FreeBlock(2, 1, 0), FreeBlock(4, 2, 0)]
