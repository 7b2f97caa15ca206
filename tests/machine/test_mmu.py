"""Page tables: built as Linux builds them, and read by the emulated MMU as they are read here."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.errors import MachineError
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.memory.descriptors import (
    AF,
    AP_RO,
    ATTR_IDX,
    CONT,
    DBM,
    NG,
    PXN,
    SH_INNER,
    UXN,
    VALID,
    Granule,
    TableFormat,
)
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40

TABLE_MEMORY = PhysRange.of(0x40000000, 32 * M)
ATTRIBUTES = AF | SH_INNER | UXN | PXN | DBM | ATTR_IDX(5)


def new_tables(fmt: TableFormat) -> PageTables:
    ram = Ram([TABLE_MEMORY])
    position = TABLE_MEMORY.start

    def alloc() -> int:
        nonlocal position
        position += fmt.granule.size
        return position - fmt.granule.size

    return PageTables(ram, fmt, alloc(), alloc)


# -- the format ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granule", "va_bits", "start_level", "root_entries"),
    [
        (Granule.K4, 48, 0, 512),
        (Granule.K4, 39, 1, 512),
        (Granule.K4, 36, 1, 64),
        (Granule.K16, 48, 0, 2),
        (Granule.K16, 47, 1, 2048),
        (Granule.K16, 36, 2, 2048),
        (Granule.K64, 48, 1, 64),
        (Granule.K64, 42, 2, 8192),
    ],
)
def test_where_a_walk_starts(granule, va_bits, start_level, root_entries):
    fmt = TableFormat(granule, va_bits)
    assert (fmt.start_level, fmt.entries(fmt.start_level)) == (start_level, root_entries)


@pytest.mark.parametrize(
    ("granule", "leaves", "runs"),
    [
        # level: bytes in a leaf; level: bytes in a contiguous run
        (Granule.K4, {3: 4 * K, 2: 2 * M, 1: 1 * G}, {3: 64 * K, 2: 32 * M, 1: 16 * G}),
        (Granule.K16, {3: 16 * K, 2: 32 * M}, {3: 2 * M, 2: 1 * G}),
        (Granule.K64, {3: 64 * K, 2: 512 * M}, {3: 2 * M, 2: 16 * G}),
    ],
)
def test_sizes_of_leaves_and_contiguous_runs(granule, leaves, runs):
    fmt = TableFormat(granule)
    assert {level: fmt.entry_size(level) for level in range(4) if fmt.may_hold_leaf(level)} == leaves
    assert {n: fmt.contiguous_size(n) for n in range(4) if fmt.contiguous_entries(n) > 1} == runs


@pytest.mark.parametrize("va_bits", [24, 49, 52])
def test_sizes_of_address_space_that_are_not_in_the_format_are_refused(va_bits):
    with pytest.raises(MachineError):
        TableFormat(Granule.K4, va_bits)


@given(st.sampled_from(list(Granule)), st.integers(1, 3), st.integers(0, (1 << 48) - 1))
def test_a_leaf_gives_back_its_address_and_attributes(granule, level, address):
    fmt = TableFormat(granule)
    if not fmt.may_hold_leaf(level):
        return
    phys = address & -fmt.entry_size(level)
    descriptor = fmt.leaf(level, phys, ATTRIBUTES | CONT | NG)
    assert fmt.is_leaf(descriptor, level)
    assert not fmt.is_table(descriptor, level)
    assert fmt.address(descriptor, level) == phys
    assert fmt.attributes(descriptor, level) == ATTRIBUTES | CONT | NG


def test_the_reserved_kind_at_level_3_maps_nothing():
    fmt = TableFormat(Granule.K4)
    assert not fmt.is_leaf(0x40000000 | VALID, 3)


# -- a real kernel's tables ------------------------------------------------------------------------------

# Linux 6.1.192 under QEMU virt with 1 GiB, no DMA zones, crashkernel=128M: /sys/kernel/debug/kernel_page_tables.
PTDUMP = """
0xffff000000000000-0xffff000000200000           2M PMD       RW NX SHD AF        BLK UXN    MEM/NORMAL-TAGGED
0xffff000000200000-0xffff000000210000          64K PTE       RW NX SHD AF    CON     UXN    MEM/NORMAL-TAGGED
0xffff000000210000-0xffff0000005b0000        3712K PTE       ro NX SHD AF            UXN    MEM/NORMAL
0xffff0000005b0000-0xffff000000600000         320K PTE       RW NX SHD AF    CON     UXN    MEM/NORMAL-TAGGED
0xffff000000600000-0xffff000002000000          26M PMD       RW NX SHD AF        BLK UXN    MEM/NORMAL-TAGGED
0xffff000002000000-0xffff000038000000         864M PMD       RW NX SHD AF    CON BLK UXN    MEM/NORMAL-TAGGED
0xffff000038000000-0xffff000040000000         128M PTE       RW NX SHD AF            UXN    MEM/NORMAL
0xffff000040000000-0xffff008000000000         511G PUD
0xffff008000000000-0xffff800000000000      130560G PGD
"""
# The same after kexec_file_load: the segments' pages are invalid.
PTDUMP_LOADED = (
    PTDUMP.split("\n0xffff000038000000")[0]
    + """
0xffff000038000000-0xffff0000387ce000        7992K PTE F     RW NX SHD AF            UXN    MEM/NORMAL
0xffff0000387ce000-0xffff00003fe00000      121032K PTE       RW NX SHD AF            UXN    MEM/NORMAL
0xffff00003fe00000-0xffff00003fe02000           8K PTE F     RW NX SHD AF            UXN    MEM/NORMAL
0xffff00003fe02000-0xffff00003fff0000        1976K PTE       RW NX SHD AF            UXN    MEM/NORMAL
0xffff00003fff0000-0xffff00003fff1000           4K PTE F     RW NX SHD AF            UXN    MEM/NORMAL
0xffff00003fff1000-0xffff000040000000          60K PTE       RW NX SHD AF            UXN    MEM/NORMAL
0xffff000040000000-0xffff008000000000         511G PUD
0xffff008000000000-0xffff800000000000      130560G PGD
"""
)
LINEAR = 0xFFFF000000000000
LINEAR_END = 0xFFFF800000000000


def ptdump(tables: PageTables, start: int, end: int) -> str:
    """What the kernel's ptdump prints, from our reading of the tables."""
    runs: list[list[object]] = []
    for leaf in tables.leaves(start, end):
        d = leaf.descriptor
        level = ("PGD", "PUD", "PMD", "PTE")[leaf.level]
        text = f"{level}"
        if d:
            block = tables.fmt.is_leaf(d | VALID, leaf.level) and leaf.level < 3
            text = (
                f"{level} {' ' if leaf.valid else 'F'}     {'ro' if d & AP_RO else 'RW'} "
                f"{'NX' if d & PXN else 'x '} SHD {'AF' if d & AF else '  '}    "
                f"{'CON' if leaf.contiguous else '   '} {'BLK' if block else '   '} {'UXN' if d & UXN else '   '}"
                f"    {'MEM/NORMAL-TAGGED' if d >> 2 & 7 == 1 else 'MEM/NORMAL'}"
            )
        if runs and runs[-1][2] == text:
            runs[-1][1] = leaf.virt + leaf.size
        else:
            runs.append([leaf.virt, leaf.virt + leaf.size, text])
    lines = []
    for first, last, text in runs:
        size, unit = last - first >> 10, 0
        while size % 1024 == 0 and unit < 2:
            size, unit = size >> 10, unit + 1
        lines.append(f"{first:#018x}-{last:#018x} {size:>11}{'KMG'[unit]} {text}")
    return "\n" + "\n".join(lines) + "\n"


def test_the_linear_map_of_a_real_kernel_comes_out_the_same():
    tables = new_tables(TableFormat(Granule.K4))
    normal = AF | SH_INNER | UXN | PXN
    tagged = normal | ATTR_IDX(1)

    def linear(start: int, end: int, attributes: int, large: bool, contiguous: bool) -> None:
        tables.map(
            LINEAR + start - 0x40000000, start, end - start, attributes, blocks=large, contiguous=contiguous
        )

    # map_mem(): all RAM but the text's alias and the crash region, then these two.
    linear(0x40000000, 0x40210000, tagged, True, True)
    linear(0x405B0000, 0x78000000, tagged, True, True)
    linear(0x40210000, 0x405B0000, normal | AP_RO, True, False)
    linear(0x78000000, 0x80000000, normal, False, False)
    assert ptdump(tables, LINEAR, LINEAR_END) == PTDUMP
    # One table for each 2 MiB in pages: two around the text, 64 for the crash region; a PMD and a PUD table.
    assert len(tables.tables) == 2 + 64 + 2

    for start, end in ((0x78000000, 0x787CE000), (0x7FE00000, 0x7FE02000), (0x7FFF0000, 0x7FFF1000)):
        tables.update(LINEAR + start - 0x40000000, end - start, clear_bits=VALID)
    assert ptdump(tables, LINEAR, LINEAR_END) == PTDUMP_LOADED
    for start, end in ((0x78000000, 0x787CE000), (0x7FE00000, 0x7FE02000), (0x7FFF0000, 0x7FFF1000)):
        tables.update(LINEAR + start - 0x40000000, end - start, set_bits=VALID)
    assert ptdump(tables, LINEAR, LINEAR_END) == PTDUMP


# -- against a page by page model ------------------------------------------------------------------------


def expected_leaf(fmt: TableFormat, virt: int, phys: int, start: int, end: int, blocks: bool, cont: bool):
    """(level, contiguous) that one page must be mapped with: the largest leaf that fits, said in another way."""

    def fits(size: int) -> bool:
        low = virt & -size
        return start <= low and low + size <= end and (phys - virt + low) % size == 0

    level = next(
        n for n in (1, 2, 3) if n == 3 or (blocks and fmt.may_hold_leaf(n) and fits(fmt.entry_size(n)))
    )
    return level, cont and level > 1 and fits(fmt.contiguous_size(level))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [(Granule.K4, 48), (Granule.K4, 39), (Granule.K16, 47), (Granule.K16, 48), (Granule.K64, 48)]
    ),
    st.data(),
    st.booleans(),
    st.booleans(),
)
def test_every_page_has_the_largest_leaf_that_fits(shape, data, blocks, contiguous):
    fmt = TableFormat(*shape)
    page = fmt.granule.size
    unit = data.draw(st.sampled_from([page, fmt.contiguous_size(3), fmt.entry_size(2)]))
    start = data.draw(st.integers(0, 40)) * unit + fmt.entry_size(2) * 30
    offset = data.draw(
        st.sampled_from([page, fmt.contiguous_size(3), fmt.entry_size(2), fmt.contiguous_size(2)])
    )
    phys = start + offset * data.draw(st.integers(0, 5))
    size = data.draw(st.integers(1, 300)) * unit
    if not blocks or (phys - start) % fmt.entry_size(2):
        size = min(size, 3000 * page)  # nothing but pages: keep it short
    upper = (1 << 64) - (1 << fmt.va_bits)
    tables = new_tables(fmt)
    tables.map(upper + start, phys, size, ATTRIBUTES, blocks=blocks, contiguous=contiguous)

    edges = {0, size - page, *(data.draw(st.integers(0, size // page - 1)) * page for _ in range(20))}
    for step in sorted(edges):
        walk = tables.walk(upper + start + step + 5)
        assert walk.phys == phys + step + 5
        level, cont = expected_leaf(fmt, start + step, phys + step, start, start + size, blocks, contiguous)
        assert (walk.level, bool(walk.descriptor & CONT)) == (level, cont)
        assert fmt.attributes(walk.descriptor, walk.level) & ~CONT == ATTRIBUTES
    for outside in (start - page, start + size):
        assert tables.walk(upper + outside).phys is None
    # leaves() says the same in order, without gaps.
    position = upper + start
    for leaf in tables.leaves(upper + start, upper + start + size):
        assert leaf.virt == position
        assert fmt.address(leaf.descriptor, leaf.level) == phys + position - upper - start
        position += leaf.size
    assert position == upper + start + size
    tables.ram.close()


def test_the_lower_half_is_mapped_the_same_way():
    fmt = TableFormat(Granule.K4)
    low, high = new_tables(fmt), new_tables(fmt)
    low.map(0x40000000, 0x40000000, 4 * M, ATTRIBUTES, blocks=True, contiguous=True)
    high.map(0xFFFF000040000000, 0x40000000, 4 * M, ATTRIBUTES, blocks=True, contiguous=True)
    assert low.ram.read(TABLE_MEMORY.start, 0x8000) == high.ram.read(TABLE_MEMORY.start, 0x8000)


def test_tables_come_in_the_order_in_which_they_are_needed():
    tables = new_tables(TableFormat(Granule.K4))
    tables.map(0x40000000, 0x40000000, 4 * M, ATTRIBUTES, blocks=False, contiguous=False)
    steps = tables.walk(0x40000000).steps
    assert tables.tables == [
        *(entry & -0x1000 for _, entry, _ in steps[1:]),
        tables.walk(0x40200000).entry_phys,
    ]
    assert tables.entries_written == 1 + 1 + 2 + 1024


# -- break before make -----------------------------------------------------------------------------------


def mapped(blocks: bool = True, contiguous: bool = False) -> PageTables:
    tables = new_tables(TableFormat(Granule.K4))
    tables.map(0x40000000, 0x40000000, 64 * M, ATTRIBUTES, blocks=blocks, contiguous=contiguous)
    return tables


@pytest.mark.parametrize(
    ("kwargs", "change"),  # change: virt, phys, size, blocks, contiguous
    [
        ({"blocks": True}, (0x40000000, 0x40000000, 4 * K, True, False)),
        (
            {"blocks": False},
            (0x40000000, 0x40000000, 2 * M, True, False),
        ),
        ({"blocks": True}, (0x40000000, 0x80000000, 2 * M, True, False)),
        (
            {"blocks": False},
            (0x40001000, 0x40002000, 4 * K, True, False),
        ),
        (
            {"blocks": False},
            (0x40000000, 0x40000000, 64 * K, False, True),
        ),
    ],
    ids=["table over block", "block over table", "other block", "other page", "contiguous bit"],
)
def test_a_live_entry_is_not_replaced_without_a_break(kwargs, change):
    tables = mapped(**kwargs)
    virt, phys, size, blocks, contiguous = change
    before = tables.ram.read(TABLE_MEMORY.start, TABLE_MEMORY.size)
    with pytest.raises(MachineError, match="break before make"):
        tables.map(virt, phys, size, ATTRIBUTES, blocks=blocks, contiguous=contiguous)
    assert tables.ram.read(TABLE_MEMORY.start, TABLE_MEMORY.size) == before


@pytest.mark.parametrize("gap", [0, 1])
def test_a_live_entry_between_empty_ones_is_not_replaced_either(gap):
    tables = new_tables(TableFormat(Granule.K4))
    live = 0x40000000 + gap * 4 * K
    tables.map(live, live, 4 * K, ATTRIBUTES, blocks=False, contiguous=False)
    with pytest.raises(MachineError, match=f"live entry .* at {live:#x}"):
        tables.map(0x40000000, 0x80000000, 8 * K, ATTRIBUTES, blocks=False, contiguous=False)


def test_attributes_of_a_live_entry_may_change():
    tables = mapped()
    tables.map(0x40000000, 0x40000000, 2 * M, ATTRIBUTES | AP_RO, blocks=True, contiguous=False)
    assert tables.walk(0x40000000).descriptor & AP_RO
    assert not tables.walk(0x40200000).descriptor & AP_RO


@pytest.mark.parametrize(
    ("virt", "phys", "size"),
    [(0x800, 0, 0x1000), (0, 0x800, 0x1000), (0, 0, 0x800), (0, 0, 0), ((1 << 48) - 0x1000, 0, 0x2000)],
)
def test_ranges_that_are_not_pages_or_not_in_the_space_are_refused(virt, phys, size):
    with pytest.raises(MachineError):
        new_tables(TableFormat(Granule.K4)).map(virt, phys, size, ATTRIBUTES, blocks=True, contiguous=True)


# -- editing ---------------------------------------------------------------------------------------------


def test_update_refuses_blocks_and_holes_and_changes_nothing_then():
    tables = mapped(blocks=True)
    tables.map(0x50000000, 0x50000000, 8 * K, ATTRIBUTES, blocks=False, contiguous=False)
    before = tables.ram.read(TABLE_MEMORY.start, TABLE_MEMORY.size)
    with pytest.raises(MachineError, match="block"):
        tables.update(0x40000000, 4 * K, clear_bits=VALID)
    with pytest.raises(MachineError, match="0x50002000 is not mapped"):
        tables.update(0x50000000, 12 * K, clear_bits=VALID)
    with pytest.raises(MachineError, match="no mapping"):
        tables.update(0x60000000, 4 * K, set_bits=VALID)
    with pytest.raises(MachineError, match="whole pages"):
        tables.update(0x50000000, 100, set_bits=VALID)
    assert tables.ram.read(TABLE_MEMORY.start, TABLE_MEMORY.size) == before


def leaves_of(tables, start, size):
    """What [start, start + size) is mapped by: address, level and contiguous bit of each leaf."""
    return [(leaf.virt, leaf.level, leaf.contiguous) for leaf in tables.leaves(start, start + size)]


@pytest.mark.parametrize("granule", list(Granule))
@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("inside", [0, 1, 3])
def test_splitting_changes_no_translation(granule, contiguous, inside):
    fmt = TableFormat(granule)
    tables = new_tables(fmt)
    block, run = fmt.entry_size(2), fmt.contiguous_size(2)
    tables.map(0, 0, 2 * run, ATTRIBUTES, blocks=True, contiguous=contiguous)
    count = len(tables.tables)
    at = run + block + inside * granule.size
    tables.split(at)
    assert len(tables.tables) == count + bool(inside)
    for virt in (0, at, at + granule.size, run + 2 * block - 1, run + 2 * block, 2 * run - 1):
        walk = tables.walk(virt)
        assert walk.phys == virt
        paged = bool(inside) and run + block <= virt < run + 2 * block
        assert walk.level == (3 if paged else 2)
        # The run of blocks that it was inside of is dissolved; of the pages that one became, all runs but its own.
        kept = virt % block >= fmt.contiguous_size(3) if paged else contiguous and virt < run
        assert bool(walk.descriptor & CONT) is kept
        assert fmt.attributes(walk.descriptor, walk.level) & ~CONT == ATTRIBUTES


@settings(max_examples=60)
@given(st.integers(0, 3 * 512 - 1), st.integers(1, 3 * 512), st.booleans())
def test_what_begins_and_ends_with_a_leaf_is_changed_as_a_whole_and_nothing_else(first, pages, contiguous):
    fmt = TableFormat(Granule.K4)
    tables = new_tables(fmt)
    start, size = G, 96 * M
    tables.map(start, start, size, ATTRIBUTES, blocks=True, contiguous=contiguous)
    area = range(start + 31 * M + first * 4 * K, start + 31 * M + (first + pages) * 4 * K)
    tables.split(area.start)
    tables.split(area.stop)
    tables.update(area.start, len(area), set_bits=NG, clear_bits=VALID, blocks=True)
    for leaf in tables.leaves(start, start + size):
        assert leaf.valid is (leaf.virt not in area) and bool(leaf.descriptor & NG) is not leaf.valid
        assert fmt.address(leaf.descriptor, leaf.level) == leaf.virt
    # Tables are added for the blocks at the two ends alone.
    assert len(tables.tables) <= 3 + 2
    tables.update(area.start, len(area), set_bits=VALID, clear_bits=NG, blocks=True)
    for virt in (start, area.start - 1, area.start, area.stop - 1, area.stop, start + size - 1):
        assert tables.walk(virt).phys == virt


def test_splitting_a_gigabyte_goes_down_only_where_it_must():
    fmt = TableFormat(Granule.K4)
    tables = new_tables(fmt)
    tables.map(0x40000000, 0x40000000, G, ATTRIBUTES, blocks=True, contiguous=True)
    assert tables.walk(0x40000000).level == 1
    tables.split(0x40000000)
    assert tables.walk(0x40000000).level == 1
    tables.split(0x40000000 + 38 * M + 4 * K)
    found = leaves_of(tables, 0x40000000, G)
    at = [leaf[0] for leaf in found].index(0x40000000 + 38 * M)
    assert [level for _, level, _ in found] == [2] * 19 + [3] * 512 + [2] * 492
    assert [one for _, level, one in found if level == 2] == [True] * 16 + [False] * 15 + [True] * 480
    assert [one for _, _, one in found[at : at + 512]] == [False] * 16 + [True] * 496


def test_splitting_pages_dissolves_their_contiguous_run_alone():
    fmt = TableFormat(Granule.K4)
    tables = new_tables(fmt)
    tables.map(0, 0, 192 * K, ATTRIBUTES, blocks=False, contiguous=True)
    tables.split(64 * K)
    assert all(contiguous for _, _, contiguous in leaves_of(tables, 0, 192 * K))
    tables.split(72 * K)
    contiguous = [leaf.contiguous for leaf in tables.leaves(0, 192 * K)]
    assert contiguous == [True] * 16 + [False] * 16 + [True] * 16


def test_a_hole_has_nothing_to_split():
    tables = mapped()
    before = tables.ram.read(TABLE_MEMORY.start, TABLE_MEMORY.size)
    tables.split(0x60001000)
    assert tables.ram.read(TABLE_MEMORY.start, TABLE_MEMORY.size) == before


def test_a_block_is_changed_as_a_whole_or_not_at_all():
    tables = mapped(blocks=True)
    before = tables.ram.read(TABLE_MEMORY.start, TABLE_MEMORY.size)
    for virt, size in ((0x40000000, 4 * K), (0x40001000, 4 * M)):
        with pytest.raises(MachineError, match="inside of a block"):
            tables.update(virt, size, clear_bits=VALID, blocks=True)
    assert tables.ram.read(TABLE_MEMORY.start, TABLE_MEMORY.size) == before


def test_an_allocator_that_gives_an_unaligned_table_is_found_out():
    ram = Ram([TABLE_MEMORY])
    tables = PageTables(
        ram, TableFormat(Granule.K64), TABLE_MEMORY.start, lambda: TABLE_MEMORY.start + 0x1000
    )
    with pytest.raises(MachineError, match="not aligned"):
        tables.map(0, 0, 64 * K, ATTRIBUTES, blocks=False, contiguous=False)


# -- the emulated MMU reads the same tables --------------------------------------------------------------


@pytest.mark.parametrize(
    ("granule", "va_bits"),
    [
        (Granule.K4, 48),
        (Granule.K4, 39),
        (Granule.K16, 48),
        (Granule.K16, 47),
        (Granule.K64, 48),
        (Granule.K64, 42),
    ],
)
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("contiguous", [False, True])
def test_a_guest_loads_through_the_tables_what_walk_says(guest, a64, granule, va_bits, blocks, contiguous):
    fmt = TableFormat(granule, va_bits)
    upper = guest.tables(fmt)
    base = (1 << 64) - (1 << va_bits)
    # A linear map of everything from physical 0 on, so that RAM at 1 GiB lies inside the largest leaves and runs.
    run = max(fmt.contiguous_size(2), G)
    size = 2 * run if blocks else 2 * G
    upper.map(
        base + G, G, (size if blocks else 32 * M), a64.NORMAL_DATA, blocks=blocks, contiguous=contiguous
    )
    ram = guest.ram
    offsets = [0x100000, 0x123458, 0x1FFFF8, 0x700000]
    program = []
    for number, offset in enumerate(offsets):
        phys = a64.RAM_BASE + offset
        ram.write_u64(phys, 0x1000 + number)
        walk = upper.walk(base + phys)
        assert walk.phys == phys
        if blocks and granule is Granule.K4:
            assert walk.level < 3
        program += [*a64.mov(20, base + phys), a64.load(1 + number, 20)]
        program += [a64.movz(21, 0x2000 + number), a64.store(21, 20)]
    guest.start(program, a64.WFI)
    guest.mmu_on(upper, fmt)
    stop = guest.cpu.run(deliver=False)
    assert stop.kind is CpuStopKind.IDLE, stop
    assert [guest.cpu.x(1 + number) for number in range(4)] == [0x1000 + n for n in range(4)]
    assert [ram.read_u64(a64.RAM_BASE + offset) for offset in offsets] == [0x2000 + n for n in range(4)]


@pytest.mark.parametrize("granule", list(Granule))
def test_the_guest_faults_where_walk_ends_and_at_that_level(guest, a64, granule):
    fmt = TableFormat(granule)
    upper = guest.tables(fmt)
    base = (1 << 64) - (1 << fmt.va_bits)
    upper.map(base, a64.RAM_BASE, granule.size, a64.NORMAL_DATA, blocks=False, contiguous=False)
    for virt in (base + granule.size, base + fmt.entry_size(2), base + fmt.entry_size(1)):
        walk = upper.walk(virt)
        assert walk.phys is None
        guest.start(a64.mov(1, virt), a64.load(2, 1))
        guest.mmu_on(upper, fmt)
        fault = guest.cpu.run(deliver=False).fault
        assert fault.dfsc == 0x04 | walk.level
        assert fault.far == virt


def test_building_a_gigabyte_of_pages_takes_no_python_loop_over_pages():
    # One write for each table, not one for each entry: 512 tables, their 512 links, and two more.
    tables = new_tables(TableFormat(Granule.K4))
    writes = tables.ram.generation
    tables.map(LINEAR, 0x40000000, G, ATTRIBUTES, blocks=False, contiguous=False)
    assert tables.entries_written == 262144 + 512 + 2
    assert tables.ram.generation - writes == 512 + 512 + 2
