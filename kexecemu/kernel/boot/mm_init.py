"""What memory management leaves in memory at boot, as far as readers of a dump follow it.

Followed: bootmem_init() and mem_init() of arch/arm64/mm/init.c, free_area_init() of mm/page_alloc.c, sparse_init() of
mm/sparse.c and vmemmap_populate() of arch/arm64/mm/mmu.c. What is not there: a buddy allocator (its lists are empty,
though managed pages are counted), and contents of struct page, which are zero but for one slab's: a large board must
not pay for them.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kexecemu.errors import InputError
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.boot.setup_memory import ArchSetup
from kexecemu.kernel.boot.slab_init import slab_init
from kexecemu.kernel.memory.linear_map import PAGE_KERNEL
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.sparsemem import (
    STRUCT_PAGE_SIZE,
    MemoryMap,
    SparseMemory,
    section_size_bits,
    sections_per_root,
    vmemmap_base,
)
from kexecemu.kernel.memory.zones import max_zone_phys, zone_movable_start
from kexecemu.machine.memory.descriptors import TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown

__all__ = ["ZONE_NAMES", "Zone", "mm_init", "zone_sizes"]

ZONE_NAMES = ("DMA", "DMA32", "Normal", "Movable")
"""The guest's enum zone_type. A kernel built without ZONE_DMA lacks that one; here it is empty instead."""

# SECTION_MARKED_PRESENT, SECTION_HAS_MEM_MAP, SECTION_IS_ONLINE, SECTION_IS_EARLY; the node number above them is 0.
_SECTION_FLAGS = 0xF

# vmemmap_populate() has blocks of 2 MiB and none of 1 GiB: no stretch of this length holds a whole one of those.
_NO_PUD_BLOCK = 512 << 20


@shown()
@dataclass(frozen=True)
class Zone:
    """One zone of the only node: page frames from start_pfn (0 for an empty zone), numbers of pages."""

    name: str
    start_pfn: int
    spanned_pages: int
    present_pages: int
    managed_pages: int


def mm_init(guest: GuestKernel, arch: ArchSetup, config: KernelConfig, fmt: TableFormat) -> None:
    """Map and publish the memory map, then zones and totals, in guest memory; swapper_pg_dir is live.

    Raises InputError where RAM is too small for the tables of the map.
    """
    memblock, page = arch.memblock, config.page_size
    pages = list(arch.sparse.table_pages)

    def alloc_page() -> int:
        phys = pages.pop(0) if pages else memblock.phys_alloc_range(page, page)
        if not phys:
            raise InputError("RAM is too small for its own memory map")
        guest.ram.fill(phys, page)
        return phys

    # A builder of its own: the kernel's other one counts what the linear map needs.
    tables = PageTables(guest.ram, fmt, guest.phys("swapper_pg_dir"), alloc_page)
    _vmemmap_populate(guest, arch.sparse.memory_map, tables)
    _publish_sections(guest, arch.sparse, page)
    slab_init(guest, config, arch.sparse.memory_map)
    zones = zone_sizes(config, memblock, arch.dma_phys_limit)
    _free_area_init(guest, zones, memblock, page)
    guest.write("max_pfn", memblock.end_of_dram // page)
    guest.write("min_low_pfn", -(-memblock.start_of_dram // page))
    guest.write("high_memory", guest.space.linear_virt(memblock.end_of_dram))
    memblock.clear_hotplug()  # as memblock_free_all() does
    guest.write("_totalram_pages", sum(zone.managed_pages for zone in zones))


# -- the memory map --------------------------------------------------------------------------------------------------


def _stretches(memory_map: MemoryMap, map_size: int) -> Iterator[tuple[int, int, int]]:
    """(first section, physical address, bytes) of each stretch of the map that is contiguous in both."""
    first = start = size = 0
    for number, phys in memory_map.items():
        if size and number == first + size // map_size and phys == start + size:
            size += map_size
            continue
        if size:
            yield first, start, size
        first, start, size = number, phys, map_size
    if size:
        yield first, start, size


def _clear(ram: Ram, area: PhysRange) -> None:
    """Zero an area of RAM that may go over from one bank to the next; it costs no host memory."""
    for bank in ram.banks:
        start, end = max(area.start, bank.start), min(area.end, bank.end)
        if start < end:
            ram.fill(start, end - start)


def _vmemmap_populate(guest: GuestKernel, memory_map: MemoryMap, tables: PageTables) -> None:
    """vmemmap_populate() for all sections: zeroed memory at its place in the array, by blocks with pages of 4 KiB."""
    page = tables.fmt.granule.size
    map_size = (1 << section_size_bits(page)) // page * STRUCT_PAGE_SIZE
    for first, phys, size in _stretches(memory_map, map_size):
        _clear(guest.ram, PhysRange.of(phys, size))
        virt = vmemmap_base(guest.space, page) + first * map_size
        end = virt + size
        while virt < end:
            step = min(end, (virt & -_NO_PUD_BLOCK) + _NO_PUD_BLOCK) - virt
            # ARM64_KERNEL_USES_PMD_MAPS: with larger pages a block is far larger than a section's map.
            tables.map(virt, phys, step, PAGE_KERNEL, blocks=page == 4096, contiguous=False)
            virt, phys = virt + step, phys + step


def _publish_sections(guest: GuestKernel, sparse: SparseMemory, page: int) -> None:
    """mem_section[][]: for each section with memory where its struct pages are, less its first pfn, and flags."""
    memory_map, per_root = sparse.memory_map, sections_per_root(page)
    size = guest.vmlinux.sizeof("mem_section")
    encoded = vmemmap_base(guest.space, page) | _SECTION_FLAGS
    roots_phys = guest.space.virt_to_phys(guest.read("mem_section"))
    guest.write("__highest_present_section_nr", max(memory_map, default=0))
    for root in sorted({number // per_root for number in memory_map}):
        pointer_phys = roots_phys + 8 * root
        # sparse_index_alloc(). The one for the lowest addresses is in the image, made for pages of 4 KiB.
        if not guest.ram.read_u64(pointer_phys) or page != 4096:
            guest.ram.write_u64(pointer_phys, guest.space.linear_virt(sparse.roots[root]))
        entries = bytearray(per_root * size)
        for index in range(per_root):
            if root * per_root + index in memory_map:
                at = index * size + guest.vmlinux.offsetof("mem_section", "section_mem_map")
                struct.pack_into("<Q", entries, at, encoded)
        guest.ram.write(guest.space.virt_to_phys(guest.ram.read_u64(pointer_phys)), entries)


# -- zones -----------------------------------------------------------------------------------------------------------


def _pages(areas: list[PhysRange], low_pfn: int, high_pfn: int, page: int) -> int:
    """How many whole pages of the areas lie in [low_pfn, high_pfn)."""
    spans = ((max(-(-area.start // page), low_pfn), min(area.end // page, high_pfn)) for area in areas)
    return sum(max(0, end - start) for start, end in spans)


def zone_sizes(config: KernelConfig, memblock: Memblock, dma_phys_limit: int) -> list[Zone]:
    """zone_sizes_init() and free_area_init(): the zones in the order of ZONE_NAMES.

    dma_phys_limit is arm64_dma_phys_limit, one past the last physical address of ZONE_DMA where there is one. Managed
    pages are those that memblock_free_all() gives to the buddy allocator: the free ones as memblock is now.
    """
    page = config.page_size
    first, last = -(-memblock.start_of_dram // page), memblock.end_of_dram // page
    movable = zone_movable_start(config, memblock) // page
    limits = (
        dma_phys_limit // page if config.enabled("ZONE_DMA") else 0,
        max_zone_phys(32, memblock) // page if config.enabled("ZONE_DMA32") else 0,
        last,
        last if movable else 0,  # nobody asked for kernelcore= or movablecore=
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


def _free_area_init(guest: GuestKernel, zones: list[Zone], memblock: Memblock, page: int) -> None:
    """free_area_init_node(): contig_page_data and the zones in it."""
    layout = guest.vmlinux

    def put(member: str, value: int) -> None:
        guest.write("contig_page_data", value, layout.offsetof("pglist_data", member))

    put("node_start_pfn", -(-memblock.start_of_dram // page))
    put("node_spanned_pages", sum(zone.spanned_pages for zone in zones))
    put("node_present_pages", sum(zone.present_pages for zone in zones))
    populated = [index for index, zone in enumerate(zones) if zone.spanned_pages]
    guest.write_u32("contig_page_data", populated[-1] + 1, layout.offsetof("pglist_data", "nr_zones"))
    for index in populated:
        zone = zones[index]
        base = layout.offsetof("pglist_data", "node_zones") + index * layout.sizeof("zone")
        for member, value in (
            ("zone_start_pfn", zone.start_pfn),
            ("spanned_pages", zone.spanned_pages),
            ("present_pages", zone.present_pages),
            ("managed_pages", zone.managed_pages),
        ):
            guest.write("contig_page_data", value, base + layout.offsetof("zone", member))
        _zone_init_free_lists(guest, base + layout.offsetof("zone", "free_area"))


def _zone_init_free_lists(guest: GuestKernel, offset: int) -> None:
    """zone_init_free_lists(): every list of a zone is empty, so its head points to itself. offset: contig_page_data."""
    layout = guest.vmlinux
    orders = layout.layout["structs"]["zone"]["lengths"]["free_area"]
    types = layout.layout["structs"]["free_area"]["lengths"]["free_list"]
    lists = layout.offsetof("free_area", "free_list")
    for order in range(orders):
        for kind in range(types):
            at = offset + order * layout.sizeof("free_area") + lists + kind * layout.sizeof("list_head")
            head_virt = layout.virt("contig_page_data") + at
            guest.write("contig_page_data", head_virt, at)
            guest.write("contig_page_data", head_virt, at + layout.offsetof("list_head", "prev"))
