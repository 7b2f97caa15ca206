"""CMA areas: where cma_declare_contiguous() of mm/cma.c puts them, and what it says."""

from collections.abc import Callable

from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.zones import MAX_PAGE_ORDER
from kexecemu.machine.ranges import PhysRange

__all__ = ["buddy_block", "cma_declare_contiguous", "cma_min_alignment"]

# By PAGE_SIZE: a huge page. Debian's 6.1 has its 64 MiB of CMA at 5b600000 on a board of 512 MiB.
_HUGE_PAGE = {4096: 2 << 20, 16384: 32 << 20, 65536: 512 << 20}
_4G = 4 << 30


def buddy_block(page: int) -> int:
    """MAX_ORDER_NR_PAGES of a PAGE_SIZE, in bytes: the largest block of the buddy allocator."""
    return page << MAX_PAGE_ORDER[page]


def cma_min_alignment(config: KernelConfig) -> int:
    """CMA_MIN_ALIGNMENT_BYTES: a pageblock, which is a huge page where there are any, else the largest buddy block."""
    page = config.page_size
    return _HUGE_PAGE[page] if config.enabled("HUGETLB_PAGE") else buddy_block(page)


def cma_declare_contiguous(
    config: KernelConfig,
    memblock: Memblock,
    size: int,
    log: Callable[[str], None],
    *,
    start: int = 0,
    limit: int = 0,
    fixed: bool = False,
    node: int | None = None,
) -> PhysRange | None:
    """An area of that many bytes at least, from start on and below limit (physical; 0: anywhere); None for no room.

    fixed is at start and nowhere else. Above 4 GiB, where there is so much memory, from below: away from what is in
    use; else from above. node is the NUMA node that has it (None: any).
    """
    align = cma_min_alignment(config)
    rules, where = config.release.rules, ""
    if rules.cma_says_node:
        where = f" on node {-1 if node is None else node}"

    def refuse(why: str, mib: int) -> None:
        if why:
            log(f"cma: {why}")
        log(f"cma: Failed to reserve {mib} MiB{where}")

    if not size:
        refuse("", 0)
        return None
    if fixed and start % align:
        refuse(f"Region at {start:#018x} must be aligned to {align:#018x} bytes", size >> 20)
        return None
    start, area, end = align_up(start, align), align_up(size, align), memblock.end_of_dram
    mib = (size if rules.cma_says_what_was_asked else area) >> 20
    if fixed and start < end < start + area and not rules.cma_says_what_was_asked:
        refuse(f"Region at {start:#018x} defined on low/high memory boundary ({end:#018x})", mib)
        return None
    end = min(limit & -align, end) or end
    if start + area > end:
        refuse(f"Size ({area:#018x}) of region at {start:#018x} exceeds limit ({end:#018x})", mib)
        return None
    base = _find(memblock, start, area, align, end, fixed=fixed, node=node)
    if not base:
        refuse("", mib)
        return None
    log(f"cma: Reserved {mib} MiB at {base:#018x}{where}")
    return PhysRange.of(base, area)


def _find(
    memblock: Memblock, start: int, area: int, align: int, end: int, *, fixed: bool, node: int | None
) -> int:
    """Where it is, reserved; 0 for nowhere. A place that is asked for need not be memory."""
    if fixed and start:
        if memblock.is_region_reserved(PhysRange.of(start, area)):
            return 0
        memblock.reserve(PhysRange.of(start, area))
        return start
    base = memblock.phys_alloc_range_bottom_up(area, align, _4G, end, node) if end >= _4G + area else 0
    return base or memblock.phys_alloc_range(area, align, start, end, node=node, exact=True)
