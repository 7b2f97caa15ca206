"""CMA areas: where cma_declare_contiguous() of mm/cma.c puts them, and what it says."""

from collections.abc import Callable

from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.zones import MAX_PAGE_ORDER
from kexecemu.machine.ranges import PhysRange

__all__ = ["cma_declare_contiguous", "cma_min_alignment"]

# By PAGE_SIZE: a huge page. Debian's 6.1 has its 64 MiB of CMA at 5b600000 on a board of 512 MiB.
_HUGE_PAGE = {4096: 2 << 20, 16384: 32 << 20, 65536: 512 << 20}
_4G = 4 << 30


def cma_min_alignment(config: KernelConfig) -> int:
    """CMA_MIN_ALIGNMENT_BYTES: a pageblock, which is a huge page where there are any, else the largest buddy block."""
    page = config.page_size
    return _HUGE_PAGE[page] if config.enabled("HUGETLB_PAGE") else page << MAX_PAGE_ORDER[page]


def cma_declare_contiguous(
    config: KernelConfig,
    memblock: Memblock,
    size: int,
    log: Callable[[str], None],
    *,
    start: int = 0,
    limit: int = 0,
) -> PhysRange | None:
    """An area of that many bytes at least, from start on and below limit (physical; 0: anywhere); None for no room.

    Above 4 GiB, where there is so much memory, from below: away from what is in use; else from above.
    """
    align = cma_min_alignment(config)
    rules, area, end = config.release.rules, align_up(size, align), memblock.end_of_dram
    mib = (size if rules.cma_says_what_was_asked else area) >> 20
    base, node = 0, " on node -1" if rules.cma_says_node else ""
    if limit:
        end = min(limit & -align, end)
    if start + area <= end:
        if end >= _4G + area:
            base = memblock.phys_alloc_range_bottom_up(area, align, _4G, end)
        base = base or memblock.phys_alloc_range(area, align, align_up(start, align), end)
    if not base:
        log(f"cma: Failed to reserve {mib} MiB{node}")
        return None
    log(f"cma: Reserved {mib} MiB at {base:#018x}{node}")
    return PhysRange.of(base, area)
