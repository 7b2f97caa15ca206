"""What memblock is asked for between setup_arch() and the buddy allocator: it decides where KHO's scratch areas lie.

Followed: pcpu_embed_first_chunk(), alloc_large_system_hash() as vfs_caches_init_early() calls it, and swiotlb_init().
The command line's copies come before it, in start_kernel.py. The per-CPU areas are those of a small kernel, 64 KiB for
each; a larger one has twice or thrice as much, which moves the areas where it goes over a multiple of their alignment.
"""

from kexecemu.kernel.base.address_space import align_up, roundup_pow_of_two
from kexecemu.kernel.memory.memblock import SMP_CACHE_BYTES, Memblock, within_pages
from kexecemu.machine.ranges import PhysRange

__all__ = ["allocate_late", "nr_kernel_pages"]

_PERCPU_UNIT = 64 << 10
_SMALL = (8, 8, 4, 8, 288, 136, 1024, 1032, 256)  # struct pcpu_chunk, its maps and slots
# Of dentries and of inodes: bytes for each, and 2^this many bytes of memory for one.
_HASHES = ((8, 13), (8, 14))
_ADAPT_SCALE, _ADAPT_SHIFT = 64 << 30, 2
# IO_TLB_SIZE, IO_TLB_SEGSIZE, and the sizes of struct io_tlb_slot and struct io_tlb_area.
_SLAB, _SEGMENT, _SLOT, _AREA = 2048, 128, 24, 16
_MOST_SLABS, _FEWEST_SLABS = (64 << 20) // _SLAB, (1 << 20) // _SLAB


def nr_kernel_pages(memblock: Memblock, page: int) -> int:
    """calc_nr_kernel_pages(): whole pages that are free now."""
    return sum(area.size for area in within_pages(memblock.free_ranges(), page)) // page


def _hash_size(pages: int, page: int, entry: int, scale: int) -> int:
    """alloc_large_system_hash(): bytes of a table that nobody has said the size of."""
    wanted = align_up(pages, (1 << 20) // page)
    adapt = _ADAPT_SCALE // page
    while adapt < wanted:
        scale, adapt = scale + 1, adapt << _ADAPT_SHIFT
    shift = scale - (page.bit_length() - 1)
    wanted = wanted >> shift if shift > 0 else wanted << -shift
    wanted = roundup_pow_of_two(max(wanted, page // entry))
    most = max(1, (pages * page >> 4) // entry)
    return entry << min(wanted, most).bit_length() - 1


def _percpu(memblock: Memblock, page: int, cpus: int) -> None:
    """setup_per_cpu_areas(): two pages are given back."""
    info = memblock.phys_alloc_range(4096, page)
    areas = memblock.phys_alloc_range(4096, SMP_CACHE_BYTES)
    memblock.phys_alloc_range(cpus * align_up(_PERCPU_UNIT, page), page)
    for size in _SMALL:
        memblock.phys_alloc_range(size, SMP_CACHE_BYTES)
    for place in (info, areas):
        memblock.free(PhysRange.of(place, 4096))


def _swiotlb_slabs(memblock: Memblock, page: int, cpus: int, dma_phys_limit: int) -> int:
    """arch_mm_preinit(): 1 MiB for each GiB where no device needs a bounce buffer, else 64 MiB; then a power of two."""
    if memblock.end_of_dram // page > dma_phys_limit // page:
        return _MOST_SLABS
    size = align_up(-(-memblock.phys_mem_size // 1024), _SLAB)
    slabs = align_up(min(size // _SLAB, _MOST_SLABS), _SEGMENT)
    return roundup_pow_of_two(max(slabs, _SEGMENT * roundup_pow_of_two(cpus)))


def _swiotlb(memblock: Memblock, page: int, cpus: int, dma_phys_limit: int) -> None:
    """swiotlb_init_remap(): the buffer in low memory, half as large for want of room, and what says who has it."""
    slabs = _swiotlb_slabs(memblock, page, cpus, dma_phys_limit)
    while not memblock.phys_alloc_range(align_up(slabs * _SLAB, page), page, 0, dma_phys_limit - 1):
        if slabs <= _FEWEST_SLABS:
            return
        slabs >>= 1  # a power of two, and whole segments still
    memblock.phys_alloc_range(align_up(slabs * _SLOT, page), page)
    areas = min(roundup_pow_of_two(cpus), max(1, slabs // _SEGMENT))
    memblock.phys_alloc_range(areas * _AREA, SMP_CACHE_BYTES)


def allocate_late(memblock: Memblock, *, page: int, cpus: int, dma_phys_limit: int, pages: int) -> None:
    """All of it, in the kernel's order. page is PAGE_SIZE, pages what nr_kernel_pages() was for the zones."""
    _percpu(memblock, page, cpus)
    for entry, scale in _HASHES:
        memblock.phys_alloc_range(_hash_size(pages, page, entry, scale), SMP_CACHE_BYTES)
    _swiotlb(memblock, page, cpus, dma_phys_limit)
