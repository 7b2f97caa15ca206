"""The reservation of every era against a rewrite that follows that era's C line by line, retry loops and all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.errors import InputError
from kexecemu.kernel.base.cmdline import parse_crashkernel_option
from kexecemu.kernel.base.config import Era
from kexecemu.kernel.memory.crashkernel import reserve_crashkernel
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
ENOENT = 2
HIGH_MAX = 1 << 48
DEFAULT_LOW = 128 * MIB
Place = tuple[int, int]  # start and end


class Free:
    """What can be had, as places; found by trying each multiple of 2 MiB from above."""

    def __init__(self, banks: list[Place], taken: list[Place]) -> None:
        self.banks, self.taken = banks, list(taken)

    def alloc(self, size: int, start: int, end: int) -> int:
        start = max(start, PAGE)
        bases = {0}
        for low, high in self.banks:
            edges = [high, end, *(first for first, _ in self.taken)]
            bases |= {(edge - size) & -(2 * MIB) for edge in edges if edge >= size}
            bases |= {low}
        for base in sorted(bases, reverse=True):
            if base < start or base + size > end or base % (2 * MIB):
                continue
            inside = any(low <= base and base + size <= high for low, high in self.banks)
            if inside and not any(base < last and first < base + size for first, last in self.taken):
                self.taken.append((base, base + size))
                return base
        return 0


def parsed(line: str, ram: int, defaults: bool) -> tuple[int, int, int, bool] | None:
    """crash_size, crash_base, low_size and high; None to return at once. The grammar has tests of its own."""
    plain = parse_crashkernel_option(line, ram)
    if plain.error != ENOENT:
        return None if plain.error or not plain.size else (plain.size, plain.base, 0, False)
    high = parse_crashkernel_option(line, ram, ",high")
    if high.error or not high.size:
        return None
    low = parse_crashkernel_option(line, ram, ",low")
    if low.error == ENOENT:
        return high.size, 0, DEFAULT_LOW if defaults else 0, True
    return None if low.error else (high.size, 0, low.size, True)


def with_low(
    free: Free, base: int, size: int, low_size: int, low_max: int
) -> tuple[Place, Place | None] | None:
    low = free.alloc(low_size, 0, low_max)
    if not low:
        return None
    return (base, base + size), (low, low + low_size)


def as_6_1(line: str, ram: int, free: Free, low_max: int) -> tuple[Place, Place | None] | None:
    asked = parsed(line, ram, False)
    if asked is None:
        return None
    size, base, low_size, high = asked
    size = -(-size // PAGE) * PAGE
    crash_max = HIGH_MAX if high else low_max
    if base:
        crash_max = base + size
    found = free.alloc(size, base, crash_max)
    if not found:
        return None
    if found >= low_max and low_size:
        return with_low(free, found, size, low_size, low_max)
    return (found, found + size), None


def as_6_2(line: str, ram: int, free: Free, low_max: int) -> tuple[Place, Place | None] | None:
    asked = parsed(line, ram, True)
    if asked is None:
        return None
    size, base, low_size, high = asked
    size = -(-size // PAGE) * PAGE
    crash_max = HIGH_MAX if high else low_max
    fixed = bool(base)
    if fixed:
        crash_max = base + size
    while True:
        found = free.alloc(size, base, crash_max)
        if found:
            break
        if fixed or crash_max != low_max:
            return None
        crash_max, low_size = HIGH_MAX, DEFAULT_LOW
    if found > low_max - low_size and low_size:
        return with_low(free, found, size, low_size, low_max)
    return (found, found + size), None


def as_6_5(
    line: str, ram: int, free: Free, low_max: int, align: int = PAGE
) -> tuple[Place, Place | None] | None:
    asked = parsed(line, ram, True)
    if asked is None:
        return None
    size, base, low_size, high = asked
    size = -(-size // align) * align
    search, end = (low_max, HIGH_MAX) if high else (0, low_max)
    fixed = bool(base)
    if fixed:
        search, end = base, base + size
    while True:
        found = free.alloc(size, search, end)
        if found:
            break
        if fixed:
            return None
        if not high and end == low_max:
            end, search, low_size = HIGH_MAX, low_max, DEFAULT_LOW
            continue
        if high and end == HIGH_MAX:
            end, search = low_max, 0
            continue
        return None
    if found >= low_max and low_size:
        return with_low(free, found, size, low_size, low_max)
    return (found, found + size), None


def as_6_7(line: str, ram: int, free: Free, low_max: int) -> tuple[Place, Place | None] | None:
    return as_6_5(line, ram, free, low_max, align=1)


def as_6_12(line: str, ram: int, free: Free, low_max: int) -> tuple[Place, Place | None] | None:
    asked = parsed(line, ram, True)
    if asked is None or asked[0] >= ram:
        return None
    return as_6_7(line, ram, free, low_max)


Rewrite = Callable[[str, int, Free, int], tuple[Place, Place | None] | None]
SINCE: dict[Era, Rewrite] = {
    Era.V6_1: as_6_1,
    Era.V6_2: as_6_2,
    Era.V6_5: as_6_5,
    Era.V6_7: as_6_7,
    Era.V6_12: as_6_12,
}
REWRITES = {era: SINCE[max(since for since in SINCE if since <= era)] for era in Era}

number = st.one_of(
    st.integers(1, 9000).map(lambda mib: f"{mib}M"),
    st.sampled_from(["0", "1G", "33333K", "0x8000001", "2T", "128m", "M"]),
    st.integers(1, 1 << 33).map(str),
)
offset = st.one_of(
    st.integers(512, 4700).map(lambda number: f"@{number * 2}M"),
    st.sampled_from(["@0x50000001", "@0", "@1T"]),
)
ranges = st.tuples(number, number, number).map(lambda n: f"512M-2G:{n[0]},2G-4G:{n[1]},4G-:{n[2]}")
option = st.one_of(
    number,
    st.tuples(number, offset).map("".join),
    number.map(lambda size: f"{size},high"),
    number.map(lambda size: f"{size},low"),
    ranges,
).map(lambda value: f"crashkernel={value}")
line = st.lists(option, min_size=1, max_size=3).map(" ".join)


@pytest.mark.parametrize("era", list(Era), ids=lambda era: era.value)
@settings(max_examples=150, deadline=None)
@given(
    text=line,
    pages=st.integers(64 * MIB // PAGE, 8 * GIB // PAGE),
    hole=st.integers(0, 2048),
    taken=st.lists(st.tuples(st.integers(0, 4096), st.integers(1, 700)), max_size=4),
)
def test_any_line_on_any_ram_is_answered_as_by_the_era_s_own_loops(
    era: Era, text: str, pages: int, hole: int, taken: list[tuple[int, int]]
) -> None:
    """RAM from 1 GiB on, with a hole at an odd place; DMA reaches to 4 GiB, or to its end."""
    end = GIB + pages * PAGE
    middle = GIB + (pages // 3) * PAGE
    banks = [(GIB, middle), (middle + hole * PAGE, end)] if hole else [(GIB, end)]
    banks = [(first, last) for first, last in banks if first < last]
    memblock = Memblock()
    for first, last in banks:
        memblock.add(PhysRange(first, last))
    places = [(GIB + at * 2 * MIB + PAGE, GIB + at * 2 * MIB + PAGE + size * 64 * PAGE) for at, size in taken]
    for first, last in places:
        memblock.reserve(PhysRange(first, last))
    low_max = min(memblock.end_of_dram, 4 * GIB)
    free = Free(banks, places)
    expected = REWRITES[era](text, memblock.phys_mem_size, free, low_max)
    got = reserve_crashkernel(era, text, memblock, low_max, PAGE, lambda said: None)
    found = [None if one is None else (one.start, one.end) for one in (got.crashk_res, got.crashk_low_res)]
    assert found == list(expected or (None, None))


@pytest.mark.parametrize("era", list(Era), ids=lambda era: era.value)
@pytest.mark.parametrize("text", ["crashkernel=2G", "crashkernel=2G,high"])
def test_without_dma_zones_a_reservation_that_fails_went_on_for_ever_for_a_while(era: Era, text: str) -> None:
    memblock, said = Memblock(), list[str]()
    memblock.add(PhysRange(GIB, 2 * GIB))
    if Era.V6_2 <= era < Era.V6_11:
        with pytest.raises(InputError, match=f"of the {era.value} era tries for ever.*mended in 6.11"):
            reserve_crashkernel(era, text, memblock, HIGH_MAX, PAGE, said.append)
        return
    assert reserve_crashkernel(era, text, memblock, HIGH_MAX, PAGE, said.append).crashk_res is None
    assert said == ([] if era >= Era.V6_12 else ["cannot allocate crashkernel (size:0x80000000)"])
