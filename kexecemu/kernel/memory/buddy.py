"""The buddy allocator's free blocks, as the boot leaves them (mm/memblock.c and mm/page_alloc.c)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kexecemu.machine.ranges import PhysRange

__all__ = ["UNMOVABLE", "FreeBlock", "free_blocks"]

UNMOVABLE, _MOVABLE = 0, 1  # enum migratetype


class FreeBlock(NamedTuple):
    """2^order free pages from a page frame on, and which of an order's lists they are on."""

    pfn: int
    order: int
    kind: int


def _split(pfn: int, end_pfn: int, orders: int) -> Iterator[tuple[int, int]]:
    """__free_pages_memory(): the largest blocks that are aligned to their size, ascending."""
    while pfn < end_pfn:
        aligned = (pfn & -pfn).bit_length() - 1 if pfn else orders
        order = min(orders - 1, aligned, (end_pfn - pfn).bit_length() - 1)
        yield pfn, order
        pfn += 1 << order


def free_blocks(
    free: Sequence[PhysRange], taken: PhysRange, page_size: int, orders: int
) -> Iterator[FreeBlock]:
    """Blocks of all free areas of one zone; physical addresses, orders is how many there are.

    taken are pages that somebody has allocated since, out of one block. They were the first that were wanted for the
    kernel's own use, of which no block was yet: so what is left of it is for that use too (__rmqueue_fallback()).
    """
    first, last = taken.start // page_size, taken.end // page_size
    for area in free:
        for pfn, order in _split(-(-area.start // page_size), area.end // page_size, orders):
            end = pfn + (1 << order)
            if last <= pfn or end <= first or not taken.size:
                yield FreeBlock(pfn, order, _MOVABLE)
                continue
            for low, high in ((pfn, first), (last, end)):
                yield from (FreeBlock(*left, UNMOVABLE) for left in _split(low, high, orders))
