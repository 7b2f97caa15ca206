"""Zones and their pages against a look at each page alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.free_area import ZONE_NAMES, zone_sizes
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange

PAGE, HALF = 4096, 2048
FRAMES = (1 << 32) // PAGE  # below 4 GiB
BASE = FRAMES - 40  # the first frame that RAM may have
SPANS = st.lists(st.tuples(st.integers(0, 160), st.integers(1, 50)), min_size=1, max_size=5)
FEW = st.lists(st.tuples(st.integers(0, 80), st.integers(1, 9)), max_size=3)


def halves(spans: list[tuple[int, int]]) -> set[int]:
    return {BASE * 2 + at for start, size in spans for at in range(start, start + size)}


def areas(spans: list[tuple[int, int]], unit: int) -> list[PhysRange]:
    return [PhysRange.of(BASE * PAGE + start * unit, size * unit) for start, size in spans]


@given(
    st.sampled_from(["6.4", "6.12"]),
    st.sampled_from(["y", "n"]),
    st.sampled_from(["y", "n"]),
    SPANS,
    FEW,
    FEW,
    st.integers(0, 120),
    st.one_of(st.none(), st.integers(0, 120)),
)
def test_each_page_is_of_the_zone_that_its_address_says_and_managed_where_it_is_free(
    era: str,
    dma: str,
    dma32: str,
    ram: list[tuple[int, int]],
    reserved: list[tuple[int, int]],
    nomap: list[tuple[int, int]],
    dma_end: int,
    movable: int | None,
) -> None:
    """free_area_init() and memblock_free_all(); no page is any zone's that is not RAM as a whole."""
    memory = Memblock()
    for area in areas(ram, HALF):
        memory.add(area)
    for area in areas(reserved, HALF):
        memory.reserve(area)
    for area in areas(nomap, PAGE):
        memory.mark_nomap(area)
    there, hidden = halves(ram), halves([(2 * start, 2 * size) for start, size in nomap])
    free = there - halves(reserved) - hidden
    first, last = -(-min(there) // 2), (max(there) + 1) // 2
    start = None if movable is None else BASE + movable
    # Before 6.12 memory that begins above 4 GiB is DMA32's as a whole.
    below = last if era == "6.4" and min(there) >= 2 * FRAMES else FRAMES

    def zone(pfn: int) -> str:
        if start is not None and pfn >= start:
            return "Movable"
        if dma == "y" and pfn < BASE + dma_end:
            return "DMA"
        return "DMA32" if dma32 == "y" and pfn < below else "Normal"

    config = KernelConfig(era, options={"ZONE_DMA": dma, "ZONE_DMA32": dma32})
    found = zone_sizes(config, memory, (BASE + dma_end) * PAGE, None if start is None else start * PAGE)
    assert tuple(one.name for one in found) == ZONE_NAMES
    for one in found:
        own = [pfn for pfn in range(first, last) if zone(pfn) == one.name]
        assert (one.start_pfn, one.spanned_pages) == (own[0] if own else 0, len(own))
        for pages, of in ((one.present_pages, there), (one.managed_pages, free)):
            assert pages == sum({2 * pfn, 2 * pfn + 1} <= of for pfn in own)
