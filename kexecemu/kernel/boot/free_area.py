"""Free memory in guest memory: zones with their lists of free blocks, struct pages of these, and totals.

Followed: free_area_init_node(), zone_init_free_lists() and __free_one_page() of mm/page_alloc.c, memblock_free_all()
and memmap_init_reserved_pages() of mm/memblock.c. Nobody allocates from the lists at run time: they are what memblock
left, without the page of the tasks. Those of an ordinary image that waits for its reboot are not taken out of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kexecemu.errors import InputError
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.boot.struct_page import StructPages
from kexecemu.kernel.memory.buddy import FreeBlock, free_blocks
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.sparsemem import STRUCT_PAGE_SIZE
from kexecemu.kernel.memory.zones import max_zone_phys, zone_movable_start
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown

__all__ = ["BLOCKS_LIMIT", "ZONE_NAMES", "FreeMemory", "Zone", "mark_reserved", "zone_sizes"]

ZONE_NAMES = ("DMA", "DMA32", "Normal", "Movable")
"""The guest's enum zone_type. A kernel built without ZONE_DMA lacks that one; here it is empty instead."""

BLOCKS_LIMIT = 1 << 12
"""Free blocks of a board whose lists are written: 16 GiB by pages of 4 KiB. The lists of a larger one are empty."""

_RESERVED_LIMIT = 64 << 20  # bytes of a reserved area whose struct pages are written


@shown()
@dataclass(frozen=True)
class Zone:
    """One zone of the only node: page frames from start_pfn (0 for an empty zone), numbers of pages."""

    name: str
    start_pfn: int
    spanned_pages: int
    present_pages: int
    managed_pages: int


def _whole_pages(areas: Sequence[PhysRange], low_pfn: int, high_pfn: int, page: int) -> Iterator[PhysRange]:
    """The areas' whole pages in [low_pfn, high_pfn)."""
    for area in areas:
        start, end = max(-(-area.start // page), low_pfn), min(area.end // page, high_pfn)
        if start < end:
            yield PhysRange(start * page, end * page)


def _pages(areas: Sequence[PhysRange], low_pfn: int, high_pfn: int, page: int) -> int:
    return sum(one.size for one in _whole_pages(areas, low_pfn, high_pfn, page)) // page


def zone_sizes(
    config: KernelConfig, memblock: Memblock, dma_phys_limit: int, movable_phys: int | None = None
) -> list[Zone]:
    """zone_sizes_init() and free_area_init(): the zones in the order of ZONE_NAMES.

    dma_phys_limit is arm64_dma_phys_limit, one past the last physical address of ZONE_DMA where there is one;
    movable_phys zone_movable_start(), of memblock as it is now if it is not given. Managed pages are those that
    memblock_free_all() gives to the buddy allocator: the free ones as memblock is now.
    """
    page = config.page_size
    first, last = -(-memblock.start_of_dram // page), memblock.end_of_dram // page
    movable = (zone_movable_start(config, memblock) if movable_phys is None else movable_phys) // page
    limits = (
        dma_phys_limit // page if config.enabled("ZONE_DMA") else 0,
        max_zone_phys(config, (1 << 32) - 1, memblock) // page if config.enabled("ZONE_DMA32") else 0,
        last,
        last,
    )
    regions, free = memblock.regions(), subtract(memblock.mappable(), memblock.reserved)
    zones = []
    low = first
    for name, limit in zip(ZONE_NAMES, limits, strict=True):
        high = max(limit, low)
        end = min(high, last)
        if movable and name != "Movable":
            high = end = max(low, min(end, movable))
        present = _pages(regions, low, end, page)
        spanned = max(0, end - low)
        zones.append(Zone(name, low if spanned else 0, spanned, present, _pages(free, low, end, page)))
        low = high
    return zones


def mark_reserved(pages: StructPages, memblock: Memblock, other: Sequence[PhysRange], page: int) -> None:
    """memmap_init_reserved_pages() for the kernel's image and what else is small.

    other are areas to leave out: crash memory, which no dump has, and the memory map itself.
    """
    for area in subtract(memblock.reserved, other):
        if area.size <= _RESERVED_LIMIT:
            pages.set_reserved(area, page)


@shown("slab")
class FreeMemory:
    """The free memory of a booted kernel; slab is the physical page that the tasks are in."""

    def __init__(
        self,
        guest: GuestKernel,
        config: KernelConfig,
        memblock: Memblock,
        limits: tuple[int, int],
        pages: StructPages,
    ) -> None:
        """limits are zone_sizes()'s last two. Raises InputError where there is no free page for the tasks."""
        self._guest, self._config, self._memblock = guest, config, memblock
        self._limits, self._pages = limits, pages
        self._heads: list[int] = []
        self._orders = guest.vmlinux.layout["structs"]["zone"]["lengths"]["free_area"]
        self.slab = PhysRange(0, 0)
        self.slab = PhysRange.of(self._first_page(), config.page_size)
        self.publish()

    def page_virt(self, phys: int) -> int:
        """phys_to_page()."""
        return self._pages.virt(phys // self._config.page_size)

    def _zones(self) -> list[Zone]:
        return zone_sizes(self._config, self._memblock, *self._limits)

    def _blocks(self, zone: Zone) -> Iterator[FreeBlock]:
        page = self._config.page_size
        span = (zone.start_pfn, zone.start_pfn + zone.spanned_pages)
        areas = list(_whole_pages(self._memblock.free_ranges(), *span, page))
        blocks = free_blocks(areas, self.slab, page, self._orders)
        return (one for one in blocks if self._pages.phys(one.pfn) is not None)

    def _first_page(self) -> int:
        """What the first alloc_pages() gives: of the highest zone, the first of the largest blocks."""
        for zone in reversed(self._zones()):
            best: FreeBlock | None = None
            for one in self._blocks(zone):
                if best is None or one.order > best.order:
                    best = one
                if best.order == self._orders - 1:
                    break
            if best is not None:
                return best.pfn * self._config.page_size
        raise InputError("RAM is too small: no page is free for the tasks")

    def publish(self) -> None:
        """Zones, lists and totals by what memblock has not reserved now."""
        guest, layout = self._guest, self._guest.vmlinux
        for pfn in self._heads:
            self._pages.write(pfn, bytes(STRUCT_PAGE_SIZE))
        self._heads = []
        zones, total = self._zones(), 0
        self._publish_node(zones)
        managed = sum(zone.managed_pages for zone in zones)
        listed = managed >> self._orders - 1 <= BLOCKS_LIMIT
        for index, zone in enumerate(zones):
            if not zone.spanned_pages:
                continue
            base = layout.offsetof("pglist_data", "node_zones") + index * layout.sizeof("zone")
            blocks = list(self._blocks(zone)) if listed else []
            free = sum(1 << one.order for one in blocks) if listed else zone.managed_pages
            for member, value in (
                ("zone_start_pfn", zone.start_pfn),
                ("spanned_pages", zone.spanned_pages),
                ("present_pages", zone.present_pages),
                ("managed_pages", zone.managed_pages),
                ("vm_stat", free),  # NR_FREE_PAGES, the first
            ):
                guest.write("contig_page_data", value, base + layout.offsetof("zone", member))
            self._publish_lists(base + layout.offsetof("zone", "free_area"), blocks)
            total += free
        guest.write("vm_zone_stat", total)
        guest.write("_totalram_pages", managed)

    def _publish_node(self, zones: Sequence[Zone]) -> None:
        """free_area_init_node(): contig_page_data but for the zones in it."""
        guest, layout, page = self._guest, self._guest.vmlinux, self._config.page_size
        for member, value in (
            ("node_start_pfn", -(-self._memblock.start_of_dram // page)),
            ("node_spanned_pages", sum(zone.spanned_pages for zone in zones)),
            ("node_present_pages", sum(zone.present_pages for zone in zones)),
        ):
            guest.write("contig_page_data", value, layout.offsetof("pglist_data", member))
        populated = max((index for index, zone in enumerate(zones) if zone.spanned_pages), default=-1)
        guest.write_u32("contig_page_data", populated + 1, layout.offsetof("pglist_data", "nr_zones"))

    def _publish_lists(self, offset: int, blocks: Sequence[FreeBlock]) -> None:
        """A zone's free_area[], at an offset in contig_page_data, and the first struct page of each block."""
        guest, layout, pages = self._guest, self._guest.vmlinux, self._pages
        kinds = layout.layout["structs"]["free_area"]["lengths"]["free_list"]
        lists: dict[tuple[int, int], list[int]] = {}
        for one in blocks:
            lists.setdefault((one.order, one.kind), []).append(one.pfn)
        for order in range(self._orders):
            area = offset + order * layout.sizeof("free_area")
            count = sum(len(lists.get((order, kind), ())) for kind in range(kinds))
            guest.write("contig_page_data", count, area + layout.offsetof("free_area", "nr_free"))
            for kind in range(kinds):
                at = area + layout.offsetof("free_area", "free_list") + kind * layout.sizeof("list_head")
                head, pfns = layout.virt("contig_page_data") + at, lists.get((order, kind), [])
                links = [head, *map(pages.lru_virt, pfns), head]
                guest.write("contig_page_data", links[1], at)
                guest.write("contig_page_data", links[-2], at + layout.offsetof("list_head", "prev"))
                for pfn, before, following in zip(pfns, links, links[2:], strict=False):
                    pages.set_buddy(pfn, order, following, before)
                self._heads += pfns
