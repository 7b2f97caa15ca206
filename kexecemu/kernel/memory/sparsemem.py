"""The memory map: sections of physical memory, and the array of struct page at VMEMMAP_START (SPARSEMEM_VMEMMAP).

Followed: mm/sparse.c, and arch/arm64/include/asm/{sparsemem,memory,pgtable}.h as they were in 6.1.
"""

from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.memory.memblock import Memblock

__all__ = ["MAX_PHYSMEM_BITS", "STRUCT_PAGE_SIZE", "MemoryMap", "alloc_memory_map", "nr_section_roots"]
__all__ += ["section_size_bits", "sections_per_root", "vmemmap_base", "vmemmap_range"]

STRUCT_PAGE_SIZE = 64
MAX_PHYSMEM_BITS = 48
_MEM_SECTION_SIZE = 16
_SECTION_SIZE_BITS = {4096: 27, 16384: 27, 65536: 29}
_U64 = 1 << 64

MemoryMap = dict[int, int]
"""By number of section, ascending: the physical address of the struct pages of its pages."""


def section_size_bits(page_size: int) -> int:
    """SECTION_SIZE_BITS for a PAGE_SIZE in bytes."""
    return _SECTION_SIZE_BITS[page_size]


def sections_per_root(page_size: int) -> int:
    """SECTIONS_PER_ROOT: struct mem_section is kept in pieces of one page, each made when it is needed."""
    return page_size // _MEM_SECTION_SIZE


def nr_section_roots(page_size: int) -> int:
    """NR_SECTION_ROOTS: elements of the array that mem_section points to."""
    return (1 << (MAX_PHYSMEM_BITS - section_size_bits(page_size))) // sections_per_root(page_size)


def vmemmap_range(space: AddressSpace, page_size: int) -> tuple[int, int]:
    """VMEMMAP_START and VMEMMAP_END: virtual addresses of struct pages for all that the linear map can hold."""
    start = _U64 - (1 << space.va_bits) * STRUCT_PAGE_SIZE // page_size
    return start, start + space.linear_region_size // page_size * STRUCT_PAGE_SIZE


def vmemmap_base(space: AddressSpace, page_size: int) -> int:
    """vmemmap: the virtual address at which the struct page of pfn 0 would be; VMEMMAP_START has memstart_addr's."""
    return vmemmap_range(space, page_size)[0] - space.memstart // page_size * STRUCT_PAGE_SIZE


def alloc_memory_map(memblock: Memblock, page_size: int) -> MemoryMap:
    """sparse_init(): one struct page for each page of every section that has memory, in one allocation.

    Where that does not fit in one piece the kernel allocates section by section; a section for which there is no
    room is left out (sparse_init_nid() says that some memory will not be available).
    """
    section = 1 << section_size_bits(page_size)
    present: set[int] = set()
    for area in memblock.memory:
        present.update(range(area.start // section, -(-area.end // section)))
    sections = sorted(present)
    map_size = section // page_size * STRUCT_PAGE_SIZE
    map_align = max(page_size, map_size)
    whole = memblock.phys_alloc_range(len(sections) * map_size, map_align)
    if whole:
        return {number: whole + index * map_size for index, number in enumerate(sections)}
    pieces = ((number, memblock.phys_alloc_range(map_size, map_align)) for number in sections)
    return {number: phys for number, phys in pieces if phys}
