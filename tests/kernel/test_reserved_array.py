"""reserved_mem[]: which regions have an element, and in which order sort() leaves them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import MIB
from test_reserved_pools import CMA, EVERY, ODD, reg, size
from tree_bench import BANK, Node, tree

from kexecemu.formats.fdt import Fdt
from kexecemu.formats.fdt_read import Node as FdtNode
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.fdt_memory import early_init_dt_scan
from kexecemu.kernel.boot.reserved_memory import ReservedMemory, heapsort
from kexecemu.kernel.boot.reserved_pools import Region
from kexecemu.kernel.boot.virt_board import virt_device_tree


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
