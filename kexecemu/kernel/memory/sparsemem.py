"""The memory map: sections of physical memory, and the array of struct page at VMEMMAP_START (SPARSEMEM_VMEMMAP).

Followed: mm/sparse.c, and arch/arm64/include/asm/{sparsemem,memory,pgtable}.h as they were in 6.1; what is taken from
memblock, and how much, from kernels that were booted with memblock=debug.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from kexecemu.errors import InputError
from kexecemu.kernel.base.address_space import AddressSpace, align_up
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.memblock import SMP_CACHE_BYTES, Memblock
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["MAX_PHYSMEM_BITS", "STRUCT_PAGE_SIZE", "MemoryMap", "SparseMemory", "nr_section_roots"]
__all__ += ["section_size_bits", "sections_per_root", "sparse_init", "vmemmap_base", "vmemmap_range"]

STRUCT_PAGE_SIZE = 64
MAX_PHYSMEM_BITS = 48
_MEM_SECTION_SIZE = 16
_SECTION_SIZE_BITS = {4096: 27, 16384: 27, 65536: 29}
_U64 = 1 << 64
_4K = 4096
_USAGE_HEAD = 24  # struct mem_section_usage before its last member

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
    size = (space.page_end - _U64 + (1 << space.va_bits)) // page_size * STRUCT_PAGE_SIZE
    if space.vmemmap_at_end:
        return _U64 - (1 << 30) - size, _U64 - (1 << 30)
    start = _U64 - (1 << space.va_bits) * STRUCT_PAGE_SIZE // page_size
    return start, start + size


def vmemmap_base(space: AddressSpace, page_size: int) -> int:
    """vmemmap: the virtual address at which the struct page of pfn 0 would be; VMEMMAP_START has memstart_addr's."""
    return vmemmap_range(space, page_size)[0] - space.phys_offset // page_size * STRUCT_PAGE_SIZE


@shown()
@dataclass(frozen=True)
class SparseMemory:
    """What sparse_init() has taken: the memory map, pieces of mem_section[] by their number, and pages for tables.

    All physical. A piece is as long as a page, and begins at a multiple of 64.
    """

    memory_map: MemoryMap
    roots: Mapping[int, int]
    table_pages: Sequence[int]


def sparse_init(memblock: Memblock, space: AddressSpace, config: KernelConfig) -> SparseMemory:
    """sparse_init(): mem_section[], usage maps, one struct page for each page of every section that has memory.

    Where the memory map does not fit in one piece the kernel allocates section by section; a section for which there
    is no room is left out (sparse_init_nid() says that some memory will not be available).
    """
    page = config.page_size
    section = 1 << section_size_bits(page)
    of_section: dict[int, int | None] = {}
    for area in memblock.regions():
        for number in range(area.start // section, -(-area.end // section)):
            of_section.setdefault(number, memblock.node_of(area.start))
    sections = list(of_section)  # regions ascend
    memblock.phys_alloc_range(8 * nr_section_roots(page), SMP_CACHE_BYTES)
    roots: dict[int, int] = {}
    for number in sections:
        root = number // sections_per_root(page)
        if root not in roots:
            roots[root] = memblock.phys_alloc_range(page, SMP_CACHE_BYTES, node=of_section[number])
    if not all(roots.values()):
        raise InputError("RAM is too small for its own memory map")
    memory_map: MemoryMap = {}
    tables: dict[tuple[int, int], int] = {}
    for node, some in groupby(sections, of_section.__getitem__):
        memory_map |= _sparse_init_nid(memblock, space, config, list(some), node, tables)
    return SparseMemory(memory_map, roots, [tables[key] for key in sorted(tables)])


def _sparse_init_nid(
    memblock: Memblock,
    space: AddressSpace,
    config: KernelConfig,
    sections: Sequence[int],
    node: int | None,
    tables: dict[tuple[int, int], int],
) -> MemoryMap:
    """sparse_init_nid(): the sections of one node that follow each other; tables gets the pages for new ones."""
    page, rules = config.page_size, config.release.rules
    section = 1 << section_size_bits(page)
    huge = page // 8 * page  # a block of the last level but one, and a pageblock
    usage = _USAGE_HEAD + align_up(section // huge * rules.section_usage_bits, 64) // 8
    memblock.phys_alloc_range(usage * len(sections), SMP_CACHE_BYTES, node=node)
    size = section // page * STRUCT_PAGE_SIZE
    whole, buffer = align_up(size, huge) * len(sections), 0
    if rules.memmap_at_once:
        buffer = memblock.phys_alloc_range(whole, align_up(size, huge), node=node, exact=True)
    _add_tables(memblock, space, page, sections, node, tables)
    if buffer:
        memblock.free(PhysRange(buffer + len(sections) * size, buffer + whole))
        return {number: buffer + index * size for index, number in enumerate(sections)}
    # By blocks with pages of 4 KiB, else page by page, which come one after the other as well.
    align = size if page == _4K else page
    pieces = ((number, memblock.phys_alloc_range(size, align, node=node)) for number in sections)
    return {number: phys for number, phys in pieces if phys}


def _add_tables(
    memblock: Memblock,
    space: AddressSpace,
    page: int,
    sections: Sequence[int],
    node: int | None,
    tables: dict[tuple[int, int], int],
) -> None:
    """Pages for the tables of the memory map: those of the last level where there are no blocks, and those above."""
    base = vmemmap_base(space, page)
    size = (1 << section_size_bits(page)) // page * STRUCT_PAGE_SIZE
    bits = page.bit_length() - 1
    lowest = bits + (bits - 3) * (2 if page == _4K else 1)
    shifts = (lowest, lowest + bits - 3)
    needed = {
        (shift, at >> shift)
        for number in sections
        for at in (base + number * size, base + (number + 1) * size - 1)
        for shift in shifts
    }
    for key in sorted(needed - tables.keys()):
        if phys := memblock.phys_alloc_range(page, page, node=node):
            tables[key] = phys
