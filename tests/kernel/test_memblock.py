"""memblock and the arithmetic of ranges, against sets of pages."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.kernel.memory.memblock import Memblock, merge
from kexecemu.machine.ranges import PhysRange, subtract

PAGE = 4096
PAGES = 64  # a small world: page numbers 0 to 63


def pages(ranges: list[PhysRange]) -> set[int]:
    return {page for one in ranges for page in range(one.start // PAGE, one.end // PAGE)}


def ranges_of(numbers: set[int]) -> list[PhysRange]:
    """The maximal runs of a set of pages."""
    runs = []
    for _, run in itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        runs.append(PhysRange(members[0] * PAGE, (members[-1] + 1) * PAGE))
    return runs


areas = st.builds(
    lambda start, size: PhysRange.of(start * PAGE, size * PAGE), st.integers(0, PAGES - 1), st.integers(1, 16)
)
page_sets = st.sets(st.integers(0, PAGES - 1))
operations = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "reserve", "free", "mark_nomap", "clear_nomap"]), areas),
    max_size=20,
)


@given(st.lists(areas))
def test_merged_ranges_are_the_maximal_runs_of_their_pages(ranges: list[PhysRange]) -> None:
    assert merge(ranges) == ranges_of(pages(ranges))


@given(page_sets, st.lists(areas))
def test_subtraction_leaves_exactly_the_pages_outside_the_holes(
    numbers: set[int], holes: list[PhysRange]
) -> None:
    left = subtract(ranges_of(numbers), holes)
    assert pages(left) == numbers - pages(holes)
    assert left == sorted(left) and all(one.size for one in left)
    assert sum(one.size for one in left) == len(pages(left)) * PAGE


@given(operations)
def test_memblock_keeps_the_pages_that_a_set_would_keep(steps: list[tuple[str, PhysRange]]) -> None:
    memblock = Memblock()
    memory: set[int] = set()
    reserved: set[int] = set()
    nomap: set[int] = set()
    for name, area in steps:
        getattr(memblock, name)(area)
        touched = pages([area])
        if name == "add":
            memory |= touched
        elif name == "remove":
            memory -= touched
        elif name == "reserve":
            reserved |= touched
        elif name == "free":
            reserved -= touched
        elif name == "mark_nomap":
            nomap |= touched
        else:
            nomap -= touched
    assert memblock.memory == ranges_of(memory)
    assert pages(memblock.reserved) == reserved
    assert pages(memblock.mappable()) == memory - nomap
    assert pages(memblock.free_ranges()) == memory - nomap - reserved
    assert memblock.phys_mem_size == len(memory) * PAGE
    if memory:
        assert (memblock.start_of_dram, memblock.end_of_dram) == (
            min(memory) * PAGE,
            (max(memory) + 1) * PAGE,
        )


@given(
    page_sets,
    page_sets,
    st.integers(1, 12),
    st.sampled_from([1, 2, 4, 16]),
    st.integers(0, PAGES),
    st.integers(0, PAGES),
)
def test_an_allocation_is_the_highest_aligned_place_that_fits(
    memory: set[int], reserved: set[int], count: int, align: int, start: int, end: int
) -> None:
    memblock = Memblock()
    memblock.memory, memblock.reserved = ranges_of(memory), ranges_of(reserved)
    free = memory - reserved - {0}  # page 0 is never handed out
    stop = end or PAGES
    candidates = [
        first
        for first in range(max(start, 1), stop)
        if first % align == 0 and first + count <= stop and free.issuperset(range(first, first + count))
    ]
    got = memblock.phys_alloc_range(count * PAGE, align * PAGE, start * PAGE, end * PAGE)
    assert got == (candidates[-1] * PAGE if candidates else 0)
    taken = set(range(candidates[-1], candidates[-1] + count)) if candidates else set()
    assert pages(memblock.reserved) == reserved | taken


@pytest.mark.parametrize("bottom_up", [False, True])
@pytest.mark.parametrize(
    ("count", "end", "place"),
    [(4, 0, 4), (5, 0, 0), (4, 8, 4), (4, 7, 0), (3, 7, 4), (1, 4, 0), (1, 5, 4)],
)
def test_an_allocation_may_take_an_area_to_its_last_byte_and_not_one_page_more(
    bottom_up: bool, count: int, end: int, place: int
) -> None:
    memblock = Memblock()
    memblock.add(PhysRange(4 * PAGE, 8 * PAGE))
    alloc = memblock.phys_alloc_range_bottom_up if bottom_up else memblock.phys_alloc_range
    assert alloc(count * PAGE, PAGE, 0, end * PAGE) == place * PAGE


def test_the_same_allocation_again_gets_other_memory() -> None:
    memblock = Memblock()
    memblock.add(PhysRange(0x40000000, 0x40800000))
    first = memblock.phys_alloc_range(2 << 20, 2 << 20)
    second = memblock.phys_alloc_range(2 << 20, 2 << 20)
    assert (first, second) == (0x40600000, 0x40400000)
    memblock.free(PhysRange.of(first, 2 << 20))
    assert memblock.phys_alloc_range(2 << 20, 2 << 20) == first


def test_nomap_memory_is_ram_but_is_neither_mapped_nor_given_away() -> None:
    memblock = Memblock()
    memblock.add(PhysRange(0x40000000, 0x40004000))
    memblock.mark_nomap(PhysRange(0x40002000, 0x40004000))
    assert memblock.phys_mem_size == 0x4000
    assert memblock.mappable() == [PhysRange(0x40000000, 0x40002000)]
    assert memblock.phys_alloc_range(0x1000, 0x1000) == 0x40001000


def test_a_range_cannot_end_before_it_starts() -> None:
    with pytest.raises(ValueError, match="not a range"):
        PhysRange(0x2000, 0x1000)
