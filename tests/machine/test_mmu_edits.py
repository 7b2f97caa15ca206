"""Edits of page tables: how many descriptors and how many writes each takes, and which are refused, word for word."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.errors import MachineError
from kexecemu.machine.memory.descriptors import AF, AP_RO, CONT, NG, SH_INNER, VALID, Granule, TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

K, M, G = 1 << 10, 1 << 20, 1 << 30
TABLES = PhysRange.of(0x40000000, 8 * M)
ATTRIBUTES = AF | SH_INNER


def new_tables(granule: Granule = Granule.K4) -> PageTables:
    fmt = TableFormat(granule)
    free = iter(range(TABLES.start, TABLES.end, fmt.granule.size))
    return PageTables(Ram([TABLES]), fmt, next(free), lambda: next(free))


def memory(tables: PageTables) -> bytes:
    return tables.ram.read(TABLES.start, TABLES.size)


def refused(tables: PageTables, virt: int, size: int, **how: bool) -> str:
    """The refusal of an update, which changes nothing."""
    before, written = memory(tables), tables.entries_written
    with pytest.raises(MachineError) as refusal:
        tables.update(virt, size, clear_bits=VALID, **how)
    assert (memory(tables), tables.entries_written) == (before, written)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("virt", "size"), [(G, 0), (G, -4 * K), (G + 1, 4 * K), (G, 4 * K + 1), (G - 2 * K, 4 * K), (G, 2 * K)]
)
def test_what_is_not_whole_pages_is_refused(virt: int, size: int) -> None:
    tables = new_tables()
    tables.map(G, G, 2 * M, ATTRIBUTES, blocks=False, contiguous=False)
    words = f"cannot update {size:#x} bytes at {virt:#x}: not whole pages of 0x1000"
    assert refused(tables, virt, size) == refused(tables, virt, size, blocks=True) == words
    for where in ((virt, 4 * K, G), (4 * K, virt, 4 * K), (4 * K, 4 * K, size)):
        if any(one % (4 * K) for one in where) or where[2] <= 0:
            with pytest.raises(
                MachineError, match=rf"cannot map {where[2]:#x} bytes .* not whole pages of 0x1000"
            ):
                tables.map(*where, ATTRIBUTES, blocks=False, contiguous=False)


def test_a_map_may_end_where_the_address_space_ends_and_no_page_behind() -> None:
    tables, end = new_tables(), 1 << 48
    tables.map(end - 4 * K, 0, 4 * K, ATTRIBUTES, blocks=False, contiguous=False)
    assert tables.walk((1 << 64) - 4 * K).phys == 0
    for upper in (0, ((1 << 16) - 1) << 48):
        words = re.escape(f"cannot map 0x2000 bytes at {upper + end - 4 * K:#x}: past 48 bits")
        with pytest.raises(MachineError, match=words):
            tables.map(upper + end - 4 * K, 0, 8 * K, ATTRIBUTES, blocks=False, contiguous=False)


def test_a_block_is_changed_only_by_who_says_so_and_only_whole() -> None:
    tables = new_tables()
    tables.map(G, G, 6 * M, ATTRIBUTES, blocks=True, contiguous=False)
    whole = "only whole leaves are changed"
    assert refused(tables, G, 2 * M) == f"{G:#x} has a block mapping (level 2): {whole}"
    for virt, size in ((G, 2 * M - 4 * K), (G + 4 * K, 2 * M)):
        assert (
            refused(tables, virt, size, blocks=True) == f"{virt:#x} is inside of a block (level 2): {whole}"
        )
    over = G + 4 * M
    assert (
        refused(tables, G + 2 * M, 3 * M, blocks=True) == f"{over:#x} is inside of a block (level 2): {whole}"
    )
    assert refused(tables, G + 4 * M, 4 * M, blocks=True) == f"{G + 6 * M:#x} has no mapping (level 2)"
    assert refused(tables, 0, 4 * K, blocks=True) == "0x0 has no mapping (level 1)"
    written = tables.entries_written
    tables.update(G + 2 * M, 4 * M, set_bits=NG, blocks=True)
    assert tables.entries_written == written + 2
    found = [(leaf.virt - G, leaf.size, bool(leaf.descriptor & NG)) for leaf in tables.leaves(G, G + 6 * M)]
    assert found == [(0, 2 * M, False), (2 * M, 2 * M, True), (4 * M, 2 * M, True)]


def test_a_hole_among_pages_is_told_by_its_address_and_one_that_is_only_invalid_is_none() -> None:
    tables = new_tables()
    for start, size in ((G, 12 * K), (G + 16 * K, 8 * K)):
        tables.map(start, start, size, ATTRIBUTES, blocks=False, contiguous=False)
    assert refused(tables, G, 24 * K) == f"{G + 12 * K:#x} is not mapped (level 3)"
    assert refused(tables, G + 12 * K, 4 * K) == f"{G + 12 * K:#x} is not mapped (level 3)"
    tables.update(G, 12 * K, clear_bits=VALID)
    assert [leaf.valid for leaf in tables.leaves(G, G + 12 * K)] == [False] * 3
    tables.update(G + 4 * K, 8 * K, set_bits=VALID)
    assert [leaf.valid for leaf in tables.leaves(G, G + 12 * K)] == [False, True, True]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(Granule)), st.data())
def test_an_update_takes_a_write_for_each_table_and_a_descriptor_for_each_page(
    granule: Granule, data: st.DataObject
) -> None:
    tables = new_tables(granule)
    page, span = granule.size, tables.fmt.entry_size(2)
    pages = 2 * span // page + 5
    tables.map(span - 3 * page, 0, pages * page, ATTRIBUTES, blocks=False, contiguous=False)
    first = data.draw(st.integers(0, pages - 1))
    count = data.draw(st.integers(1, pages - first))
    virt = span - 3 * page + first * page
    writes, entries = tables.ram.generation, tables.entries_written
    tables.update(virt, count * page, set_bits=NG, clear_bits=VALID)
    parts = (virt + count * page - 1) // span - virt // span + 1
    assert (tables.ram.generation - writes, tables.entries_written - entries) == (parts, count)
    for number in {0, first - 1, first, first + count - 1, first + count, pages - 1} & set(range(pages)):
        walk = tables.walk(span - 3 * page + number * page)
        inside = first <= number < first + count
        assert (walk.phys is None) is inside and bool(walk.descriptor & NG) is inside
    tables.ram.close()


def noted(write: Callable[..., None], order: list[int]) -> Callable[..., None]:
    """The same, with its addresses kept."""

    def noting(phys: int, data: object) -> None:
        order.append(phys)
        write(phys, data)

    return noting


@pytest.mark.parametrize("granule", Granule)
def test_a_split_takes_a_table_that_is_filled_before_it_is_linked(
    granule: Granule, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = new_tables(granule)
    fmt, block = tables.fmt, tables.fmt.entry_size(2)
    run = fmt.contiguous_size(2)
    tables.map(run, run, run, ATTRIBUTES, blocks=True, contiguous=True)
    written, entries = tables.entries_written, block // granule.size
    tables.split(run + block)  # the run of blocks, and no block
    assert tables.entries_written == written + fmt.contiguous_entries(2)
    tables.split(run + block)  # once is enough
    tables.split(run)
    assert tables.entries_written == written + fmt.contiguous_entries(2)
    written, order = tables.entries_written, list[int]()
    for name in ("write", "write_u64"):
        monkeypatch.setattr(tables.ram, name, noted(getattr(tables.ram, name), order))
    entry = tables.walk(run + block).entry_phys
    tables.split(run + block + fmt.contiguous_size(3))
    assert order == [tables.tables[-1], entry]
    assert tables.entries_written == written + entries + 1
    written, order[:] = tables.entries_written, []
    tables.split(run + block + granule.size)
    assert order == [tables.tables[-1]]
    assert tables.entries_written == written + fmt.contiguous_entries(3)


@pytest.mark.parametrize("blocks", [False, True])
def test_a_live_run_may_get_other_attributes_and_keeps_its_contiguous_bit(blocks: bool) -> None:
    tables = new_tables()
    for more in (0, AP_RO, NG):
        tables.map(G, G, 64 * M, ATTRIBUTES | more, blocks=blocks, contiguous=True)
        walk = tables.walk(G + 33 * M)
        assert walk.descriptor & CONT and walk.descriptor & (AP_RO | NG) == more
    with pytest.raises(MachineError, match="break before make: the live entry"):
        tables.map(G, G, 64 * M, ATTRIBUTES, blocks=blocks, contiguous=False)
