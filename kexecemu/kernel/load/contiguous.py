"""Segments in the default CMA area: kexec_alloc_contig(), for images that reboot; what lies there need not be moved.

Followed: dma_alloc_from_contiguous(), cma_alloc() of mm/cma.c, dma_atomic_pool_init() of kernel/dma/pool.c. What else a
kernel has in the area can be moved away for this, but for the buffers of devices, of which there are none here.
"""

from collections.abc import Callable, Sequence

from kexecemu.kernel.base.address_space import align_up, roundup_pow_of_two
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.memory.cma import buddy_block
from kexecemu.machine.ranges import PhysRange

__all__ = ["Contiguous", "contiguous", "first_fit"]

Contiguous = Callable[[int, int], int | None]
"""A place for bytes of an alignment, physical; None where there is none. Both are in whole pages."""

_CMA_ALIGNMENT = 8  # CONFIG_CMA_ALIGNMENT, an order
_POOL = 128 << 10  # for each GiB of memory, and at least
_GIB = 1 << 30


def first_fit(area: PhysRange, taken: Sequence[PhysRange], size: int, align: int, page: int) -> int | None:
    """cma_alloc(): the lowest place in the area, aligned to 256 pages at most, whatever is asked for."""
    align = min(align, page << _CMA_ALIGNMENT)
    starts = (area.start, *(one.end for one in taken))
    for start in sorted(align_up(one, align) for one in starts):
        place = PhysRange.of(start, size)
        if area.covers(place) and not any(place.overlaps(one) for one in taken):
            return start
    return None


def _atomic_pools(state: KernelState, area: PhysRange) -> list[PhysRange]:
    """dma_atomic_pool_init(): the first that takes from the area; one for each kind of zone."""
    config, page = state.config, state.config.page_size
    memory = state.total_ram_pages * page + area.size
    size = max(_POOL, min(memory // (_GIB // _POOL) // page * page, buddy_block(page)))
    size = roundup_pow_of_two(size)
    above = state.arch.memblock.end_of_dram > state.arch.dma_phys_limit
    pools: list[PhysRange] = []
    for _ in range(max(1, int(above) + int(config.has_dma_zones))):
        start = first_fit(area, pools, size, size, page)
        pools += [] if start is None else [PhysRange.of(start, size)]
    return pools


def contiguous(state: KernelState, image: Kimage) -> Contiguous | None:
    """kexec_alloc_contig() for the segments of an image, None where it does not come to that.

    The image that was loaded before keeps its places until the new one is complete.
    """
    area = state.arch.cma_area
    if area is None or image.crash or state.kho is not None or not state.config.release.rules.segments_in_cma:
        return None
    page, before = state.config.page_size, state.kexec.reboot_image
    taken = _atomic_pools(state, area) + [one.area for one in (before.segments if before else ()) if one.cma]

    def allocate(size: int, align: int) -> int | None:
        now = [*taken, *(one.area for one in image.segments if one.cma)]
        start = first_fit(area, now, size, align, page)
        if start is None:
            return None
        # kimage_is_destination_range() takes an inclusive end, and gets the first byte behind.
        end = start + size
        if any(one.mem <= end and start < one.mem + one.memsz for one in image.segments):
            return None
        return start

    return allocate
