"""reserved_mem[]: which regions have an element, and in which order sort() leaves them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import MIB
from test_reserved_pools import CMA, EVERY, ODD, reg, size
from tree_bench import BANK, Node, tree

from kexecemu.formats.fdt import Fdt, cells
from kexecemu.formats.fdt_read import Node as FdtNode
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.fdt_memory import early_init_dt_scan
from kexecemu.kernel.boot.reserved_memory import ReservedMemory, heapsort
from kexecemu.kernel.boot.reserved_pools import Region
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.ranges import PhysRange


def scanned(era: str, dtb: bytes) -> tuple[list[Region], list[str]]:
    said = list[str]()
    found, config = Fdt(dtb), KernelConfig(era)
    memblock = early_init_dt_scan(found, config, print)
    reserved = ReservedMemory(config, found, memblock, cma_asked=False, log=said.append)
    reserved.scan(lambda: None)
    reserved.scan_late()
    return reserved.regions, said


@pytest.mark.parametrize("era", EVERY)
def test_from_7_3_on_the_element_of_a_region_that_nobody_wants_is_the_next_one_s(era: str) -> None:
    nodes: list[Node] = [("odd", {**CMA, **reg(ODD.start, ODD.size)}), ("x", size(MIB))]
    regions, _ = scanned(era, tree(*nodes))
    assert sorted(one.node.name for one in regions) == (["x"] if era == "7.3" else ["odd", "x"])


@pytest.mark.parametrize("era", EVERY)
def test_of_several_areas_of_a_region_the_first_has_an_element(era: str) -> None:
    regions, _ = scanned(
        era, tree(("two", reg(0x50000000, MIB, 0x60000000, 2 * MIB)), ("low", reg(0x40000000, MIB)))
    )
    assert [(one.base, one.size) for one in regions] == [(0x40000000, MIB), (0x50000000, MIB)]


@pytest.mark.parametrize("era", EVERY)
def test_a_tree_without_regions_is_told_of_from_6_12_on(era: str) -> None:
    regions, said = scanned(era, virt_device_tree([BANK], 1, 0x9000000))
    words = "OF: reserved mem: Reserved memory: No reserved-memory node in the DT"
    assert (regions, said) == ([], [words] if era in ("6.12", "7.3") else [])


def lib_sort_since_6_11(found: list[tuple[int, int]]) -> None:
    """lib/sort.c as it is written from 6.11 on, by the first number of each."""

    def cmp(one: int, other: int) -> int:
        return found[one][0] - found[other][0]

    def swap(one: int, other: int) -> None:
        found[one], found[other] = found[other], found[one]

    n, a, shift = len(found), len(found) // 2, 0
    if not a:
        return
    while True:
        if a:
            a -= 1 << shift
        elif n > 3:
            n -= 1
            swap(0, n)
            shift = int(cmp(1, 2) <= 0)
            a = 1 << shift
            n -= 1
            swap(a, n)
        else:
            break
        b = a
        while (d := (c := 2 * b + 1) + 1) < n:
            b = c if cmp(c, d) > 0 else d
        if d == n:
            b = c
        while b != a and cmp(a, b) >= 0:
            b = (b - 1) // 2
        c = b
        while b != a:
            b = (b - 1) // 2
            swap(b, c)
    n -= 1
    swap(0, n)
    if n == 2 and cmp(0, 1) > 0:
        swap(0, 1)


@given(st.lists(st.integers(0, 3), max_size=40))
def test_what_is_equal_is_left_in_the_order_that_two_at_a_time_leave_it_in(keys: list[int]) -> None:
    ours = [Region(FdtNode(number, 1, "x"), key, 0) for number, key in enumerate(keys)]
    theirs = [(key, number) for number, key in enumerate(keys)]
    heapsort(ours, lambda one: one.key, double_pop=True)
    lib_sort_since_6_11(theirs)
    assert [(one.base, one.node.offset) for one in ours] == theirs


MISALIGNED = "Reserved memory: incorrect alignment of CMA region"


@pytest.mark.parametrize("era", EVERY)
@pytest.mark.parametrize(
    ("base", "length"), [(0x50000000, MIB), (0x50100000, 2 * MIB), (0x50000000, 2 * MIB)]
)
def test_both_place_and_size_of_a_cma_region_are_in_whole_pageblocks(
    era: str, base: int, length: int
) -> None:
    _, said = scanned(era, tree(("c", {**CMA, **reg(base, length)})))
    assert (said[0] == MISALIGNED) is (base % (2 * MIB) > 0 or length % (2 * MIB) > 0)


@pytest.mark.parametrize("era", EVERY)
def test_what_lay_in_a_region_that_was_given_back_is_given_back_too(era: str) -> None:
    outer: Node = ("outer", {**CMA, **reg(0x50000000, 4 * MIB + 4096)})
    inner: Node = ("inner", {**CMA, **reg(0x50200000, 2 * MIB)})
    _, said = scanned(era, tree(outer, inner))
    fail = "OF: reserved mem: node {} compatible matching fail"
    lines = [line for line in said if "OVERLAP" not in line]
    unable = "Reserved memory: unable to setup CMA region"
    assert lines == [MISALIGNED, fail.format("outer"), unable, fail.format("inner")]


@pytest.mark.parametrize("era", EVERY)
@pytest.mark.parametrize("nomap", [False, True])
def test_what_is_given_back_is_the_region_and_nothing_behind_it(era: str, nomap: bool) -> None:
    kept: dict[str, bytes] = {"no-map": b""} if nomap else {}
    nodes: list[Node] = [
        ("below", {**kept, **reg(0x4FF00000, MIB)}),
        ("odd", {**CMA, **kept, **reg(ODD.start, ODD.size)}),
        ("above", {**kept, **reg(ODD.end, MIB)}),
        ("far", {**kept, **reg(0x7F000000, MIB)}),
    ]
    dtb, config = Fdt(tree(*nodes)), KernelConfig(era)
    memblock = early_init_dt_scan(dtb, config, print)
    reserved = ReservedMemory(config, dtb, memblock, cma_asked=False, log=print)
    reserved.scan(lambda: None)
    reserved.scan_late()
    left = memblock.nomap if nomap else memblock.reserved
    places = [PhysRange.of(one, MIB) for one in (0x4FF00000, ODD.end, 0x7F000000)]
    assert all(any(one.covers(place) for one in left) for place in places)
    # From 7.3 on what is no-map as well is no CMA area, and stays.
    assert any(one.overlaps(ODD) for one in left) is (nomap and era == "7.3")


@pytest.mark.parametrize("era", EVERY)
@pytest.mark.parametrize("sizes", [(0, MIB), (MIB, 0)])
def test_a_first_area_of_no_bytes_is_told_of_and_from_6_12_on_has_no_element(
    era: str, sizes: tuple[int, int]
) -> None:
    areas = reg(0x50000000, sizes[0], 0x60000000, sizes[1])
    regions, said = scanned(era, tree(("z", {**areas})))
    late = era in ("6.12", "7.3")
    assert [(one.base, one.size) for one in regions if one.base] == (
        [(0x50000000, sizes[0])] if sizes[0] or not late else []
    )
    at = 0x60000000 if sizes[0] else 0x50000000
    where = "OF: reserved mem" if late else "OF: fdt"
    words = f"{where}: Reserved memory: failed to reserve memory for node 'z': base {at:#018x}, size 0 MiB"
    assert (words in said) is (era != "7.3" or not sizes[0])


@pytest.mark.parametrize("era", EVERY)
def test_a_parent_in_another_format_has_an_array_of_64_in_6_12_alone(era: str) -> None:
    dtb, config = Fdt(tree(("x", reg(0x50000000, MIB)), parent={"ranges": b""})), KernelConfig(era)
    memblock, said = early_init_dt_scan(dtb, config, print), list[str]()
    reserved = ReservedMemory(config, dtb, memblock, cma_asked=False, log=said.append)
    reserved.scan(lambda: None)
    reserved.scan_late()
    array = 64 * 48 if era == "6.12" else 0
    assert sum(one.size for one in memblock.reserved) == array and not reserved.regions
    assert len(said) == (2 if era in ("6.12", "7.3") else 1)


@pytest.mark.parametrize("era", EVERY)
def test_no_map_memory_that_is_taken_is_refused_in_whichever_bank_it_lies(era: str) -> None:
    regions = [(name, reg(start, MIB)) for name, start in (("a", 0x50000000), ("b", 0xC0000000))]
    nomap: list[Node] = [(f"n{name}", {**where, "no-map": b""}) for name, where in regions]
    dtb, config = Fdt(tree(*regions, *nomap)), KernelConfig(era)
    memblock, said = early_init_dt_scan(dtb, config, print), list[str]()
    memblock.add(PhysRange.of(0xC0000000, 2 * MIB))
    reserved = ReservedMemory(config, dtb, memblock, cma_asked=False, log=said.append)
    reserved.scan(lambda: None)
    assert memblock.nomap == []
    assert sum("failed to reserve memory for node 'n" in line for line in said) == 2


@pytest.mark.parametrize("era", EVERY)
def test_of_several_windows_the_first_with_room_is_taken_from(era: str) -> None:
    windows = cells(0, 0x10000000, 0, 0x1000000, 0, 0x50000000, 0, 0x1000000, 0, 0x60000000, 0, 0x1000000)
    dtb, config = Fdt(tree(("w", {**size(MIB), "alloc-ranges": windows}))), KernelConfig(era)
    memblock = early_init_dt_scan(dtb, config, print)
    reserved = ReservedMemory(config, dtb, memblock, cma_asked=False, log=print)
    reserved.scan(lambda: None)
    assert [one.base for one in reserved.regions] == [0x50F00000]
    assert memblock.reserved == [PhysRange.of(0x50F00000, MIB)]


@pytest.mark.parametrize("era", EVERY)
def test_sizes_and_windows_have_64_bits(era: str) -> None:
    half = 1 << 31, 0  # cells of 2^63
    _, said = scanned(era, tree(("w", {"size": cells(*half)})))
    words = f"failed to allocate memory for node 'w': size {1 << 43} MiB"
    assert f"OF: reserved mem: {words}" in said
    regions, _ = scanned(era, tree(("w", {**size(MIB), "alloc-ranges": cells(0, 0x50000000, *half)})))
    assert [one.base for one in regions] == [BANK.end - MIB]
    # An end of all addresses is 0, which is none.
    regions, _ = scanned(
        era, tree(("w", {**size(MIB), "alloc-ranges": cells(0, 4096, (1 << 32) - 1, 0xFFFFF000)}))
    )
    assert [one.base for one in regions] == [BANK.end - MIB]


# A window, what lies somewhere already, and whether a place in the window is looked for from below.
BESIDE = [
    (0x60000000, [], False),
    (0x60000000, [(0x5F000000, 0x1000000)], True),
    (0x60000000, [(0x5FF00000, 0x200000)], True),  # it begins inside
    (0x60000000, [(0x60000000, MIB)], True),
    (0x60000000, [(0x5F000000, 0x0FFF000)], False),
    (0x60000000, [(0x61000000, MIB)], False),
    (0x60000000, [(0x5F000000, 0x1000000), (0x61000000, MIB)], False),  # at both ends
    (0x60000000, [(0x5F000000, 0x1000000), (0x60F00000, MIB)], False),
    (0x60000000, [(0x5F000000, 0x1000000), (0x60E00000, MIB)], True),
    (0x60000000, [(0x5F000000, 0x1000000), (0x61100000, MIB)], True),
]


@pytest.mark.parametrize("era", ["6.4", "6.5", "6.11"])
@pytest.mark.parametrize(("start", "others", "below"), BESIDE)
def test_a_window_is_filled_from_below_where_it_begins_at_a_region_and_ends_at_none(
    era: str, start: int, others: list[tuple[int, int]], below: bool
) -> None:
    """__reserved_mem_alloc_in_range(); before 6.12 all that has a reg lies somewhere already."""
    window = {**size(4096), "alloc-ranges": cells(0, start, 0, 0x1000000)}
    fixed = [(f"r{at:x}", reg(at, length)) for at, length in others]
    regions, _ = scanned(era, tree(*fixed, ("w", window)))
    (found,) = (one.base for one in regions if one.node.name == "w")
    taken = [PhysRange.of(*one) for one in others]
    pages = [at for at in range(start, start + 0x1000000, 4096) if not any(at in one for one in taken)]
    assert found == (pages[0] if below and era != "6.4" else pages[-1])
