"""What memory management leaves in memory at boot, as far as readers of a dump follow it.

Followed: bootmem_init() and mem_init() of arch/arm64/mm/init.c, sparse_init() of mm/sparse.c and vmemmap_populate() of
arch/arm64/mm/mmu.c. Zones and what is free are free_area.py's, what struct pages there are struct_page.py's.
"""

import struct
from collections.abc import Callable, Iterator

from kexecemu.errors import InputError
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.kernel.boot.free_area import FreeMemory, mark_reserved
from kexecemu.kernel.boot.setup_memory import ArchSetup
from kexecemu.kernel.boot.slab_init import slab_init
from kexecemu.kernel.boot.struct_page import StructPages
from kexecemu.kernel.memory.linear_map import PAGE_KERNEL
from kexecemu.kernel.memory.sparsemem import (
    STRUCT_PAGE_SIZE,
    MemoryMap,
    SparseMemory,
    section_size_bits,
    sections_per_root,
    vmemmap_base,
)
from kexecemu.kernel.memory.zones import zone_movable_start
from kexecemu.machine.memory.descriptors import TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

__all__ = ["mm_init"]

# SECTION_MARKED_PRESENT, SECTION_HAS_MEM_MAP, SECTION_IS_ONLINE, SECTION_IS_EARLY; the node number above them is 0.
_SECTION_FLAGS = 0xF

# vmemmap_populate() has blocks of 2 MiB and none of 1 GiB: no stretch of this length holds a whole one of those.
_NO_PUD_BLOCK = 512 << 20


def mm_init(
    guest: GuestKernel,
    arch: ArchSetup,
    config: KernelConfig,
    fmt: TableFormat,
    late: Callable[[], None] = lambda: None,
) -> FreeMemory:
    """Map and publish the memory map, then the tasks' slab and what is free; swapper_pg_dir is live.

    late is what asks memblock last of all. What memblock has not reserved by then is free. Raises InputError where RAM
    is too small for the tables of the map.
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
    guest.write("max_pfn", memblock.end_of_dram // page)
    guest.write("max_low_pfn", memblock.end_of_dram // page)
    guest.write("min_low_pfn", -(-memblock.start_of_dram // page))
    guest.write("high_memory", guest.space.linear_virt(memblock.end_of_dram))
    struct_pages = StructPages(guest, config, arch.sparse.memory_map)
    reservation = arch.reservation
    crash = [area for area in (reservation.crashk_res, reservation.crashk_low_res) if area is not None]
    mark_reserved(struct_pages, memblock, [*crash, *reservation.cma, *_memory_map_areas(arch, page)], page)
    late()
    movable_phys = zone_movable_start(config, memblock)
    memblock.clear_hotplug()  # as memblock_free_all() does
    free = FreeMemory(guest, config, memblock, (arch.dma_phys_limit, movable_phys), struct_pages)
    slab_init(guest, struct_pages, free.slab, page)
    return free


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


def _memory_map_areas(arch: ArchSetup, page: int) -> Iterator[PhysRange]:
    map_size = (1 << section_size_bits(page)) // page * STRUCT_PAGE_SIZE
    return (PhysRange.of(phys, size) for _, phys, size in _stretches(arch.sparse.memory_map, map_size))


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
