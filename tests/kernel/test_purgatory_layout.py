"""Where the sections of a purgatory go: kexec_purgatory_setup_kbuf() and _sechdrs(), against a layout by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.data import purgatory_path
from kexecemu.errors import KexecError
from kexecemu.formats.elf import Section, Symbol
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.kernel.image.purgatory import LoadedPurgatory, link_at, parse_purgatory
from kexecemu.machine.ranges import PhysRange

PROGBITS, NOBITS, ALLOC, EXEC, WRITE = 1, 8, 2, 4, 1
BASE = 0x60000000
FILE = bytes(range(1, 252)) * 40
Kind = tuple[int, int, int, int]  # type, flags, bytes, alignment


@cache
def real() -> RelocatableObject:
    return parse_purgatory(purgatory_path().read_bytes())


def made(kinds: list[Kind], symbols: tuple[Symbol, ...] = (), entry: int = 0) -> RelocatableObject:
    """An object with these sections and no relocations."""
    sections = [Section(0, FILE, "", 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    for index, (kind, flags, size, align) in enumerate(kinds, 1):
        sections.append(Section(index, FILE, f"s{index}", kind, flags, 0, 7 * index, size, 0, 0, align, 0))
    table = replace(Section(len(sections), FILE, ".symtab", 2, 0, 0, 0, 0, 0, 0, 8, 24))
    header = real().header._replace(entry=entry)
    return RelocatableObject(header, (*sections, table), {table.index: symbols}, {})


def symbol(name: str, section: int, value: int = 0, size: int = 0) -> Symbol:
    like = real().global_symbol("purgatory_start")
    assert like is not None
    return replace(like, name=name, shndx=section, value=value, size=size)


def up(value: int, align: int) -> int:
    while align and value % align:
        value += 1
    return value


SECTION = st.tuples(
    st.sampled_from([PROGBITS, PROGBITS, NOBITS]),
    st.sampled_from([ALLOC, ALLOC | WRITE, ALLOC | EXEC, WRITE, 0]),
    st.integers(0, 70),
    st.sampled_from([0, 1, 2, 8, 16, 64]),
)


@given(st.lists(SECTION, max_size=7), st.integers(1, 40))
def test_what_is_stored_comes_first_and_bss_behind_it_each_aligned(kinds: list[Kind], text: int) -> None:
    kinds = [*kinds, (PROGBITS, ALLOC | EXEC, text, 4)]
    names = tuple(symbol(f"at{index}", index) for index in range(1, len(kinds) + 1))
    start = symbol("purgatory_start", len(kinds), text - 1)
    found = link_at(made(kinds, (*names, start)), BASE)
    stored = [one for one in enumerate(kinds, 1) if one[1][1] & ALLOC and one[1][0] == PROGBITS]
    bss = [one for one in enumerate(kinds, 1) if one[1][1] & ALLOC and one[1][0] == NOBITS]
    at, places, content = 0, dict[int, int](), bytearray()
    for index, (_, _, size, align) in stored:
        at = up(at, align)
        content = content.ljust(at, b"\0") + FILE[7 * index :][:size]
        places[index] = at
        at += size
    most = max([1, *(kind[3] for _, kind in bss)])
    length = up(at, most)
    assert bytes(found.buf) == bytes(content.ljust(length, b"\0"))
    at = length
    for index, (_, _, size, align) in bss:
        at = up(at, align)
        places[index] = at
        at += size
    table = found.symbol_table()
    assert {name: virt - BASE for name, (virt, _) in table.items() if name != "purgatory_start"} == {
        f"at{index}": place for index, place in places.items()
    }
    assert found.entry == BASE + places[len(kinds)] + text - 1
    assert found.segment.memsz == up(at, 4096)
    writable = [
        (BASE + places[index], kinds[index - 1][2]) for index in sorted(places) if kinds[index - 1][1] & WRITE
    ]
    assert [(one.start, one.size) for one in found.scratch()] == [one for one in writable if one[1]]


def placed(obj: RelocatableObject) -> tuple[int, int, int]:
    """What room is asked for: bytes stored, bytes in memory, alignment."""
    asked: list[tuple[int, int, int]] = []

    def place(buf: bytearray, memsz: int, align: int) -> object:
        asked.append((len(buf), memsz, align))
        return link_at(obj, BASE).segment

    LoadedPurgatory(obj, place)  # type: ignore[arg-type]
    return asked[0]


@pytest.mark.parametrize(
    ("kinds", "room"),
    [
        ([(PROGBITS, ALLOC | EXEC, 10, 4)], (10, 10, 4)),
        ([(PROGBITS, ALLOC | EXEC, 10, 4), (NOBITS, ALLOC, 5, 32)], (32, 37, 32)),
        ([(PROGBITS, ALLOC | EXEC, 10, 64), (NOBITS, ALLOC, 5, 8), (NOBITS, ALLOC, 1, 2)], (16, 23, 64)),
        ([(PROGBITS, ALLOC | EXEC, 10, 4), (PROGBITS, 0, 99, 256), (NOBITS, 0, 99, 256)], (10, 10, 4)),
        ([(PROGBITS, ALLOC | EXEC, 10, 0), (NOBITS, ALLOC, 5, 0)], (10, 15, 1)),
    ],
)
def test_room_is_asked_for_as_much_and_as_aligned_as_any_section_is(
    kinds: list[Kind], room: tuple[int, int, int]
) -> None:
    assert placed(made(kinds, (symbol("purgatory_start", 1),))) == room


@pytest.mark.parametrize(
    ("symbols", "entry", "found"),
    [
        ((symbol("purgatory_start", 2, 3),), 0, BASE + 8 + 3),
        ((symbol("purgatory_start", 2, 9),), 0, BASE + 8 + 9),
        (
            (symbol("purgatory_start", 2, 10),),
            4,
            BASE + 4,
        ),  # outside of its section: e_entry, in the first one
        ((), 9, BASE + 8 + 9),  # not in the first, which has 8 bytes
        ((symbol("purgatory_start", 3),), 0, BASE),  # in one that is not executable
        ((), 10, None),
    ],
)
def test_it_starts_at_purgatory_start_or_where_the_header_says_in_executable_code(
    symbols: tuple[Symbol, ...], entry: int, found: int | None
) -> None:
    kinds = [(PROGBITS, ALLOC | EXEC, 8, 4), (PROGBITS, ALLOC | EXEC, 10, 4), (PROGBITS, ALLOC, 20, 4)]
    obj = made(kinds, symbols, entry)
    if found is not None:
        assert link_at(obj, BASE).entry == found
        return
    with pytest.raises(KexecError, match="no purgatory_start in executable code"):
        link_at(obj, BASE)


def test_the_table_has_every_named_symbol_of_what_is_loaded_but_marks_files_and_sections() -> None:
    kinds = [(PROGBITS, ALLOC | EXEC, 8, 4), (PROGBITS, 0, 8, 4)]
    start = symbol("purgatory_start", 1, 2, 3)
    others = (
        replace(start, name="local", binding=0, value=5, size=1),
        replace(start, name="$x"),
        replace(start, name=""),
        replace(start, name="file.c", type=4),
        replace(start, name=".text", type=3),
        replace(start, name="elsewhere", shndx=2),
        replace(start, name="undefined", shndx=0),
    )
    found = link_at(made(kinds, (start, *others)), BASE)
    assert found.symbol_table() == {"purgatory_start": (BASE + 2, 3), "local": (BASE + 5, 1)}
    assert found.has_symbol("purgatory_start") and not found.has_symbol("undefined")
    assert not found.has_symbol("local") and found.symbol_size("local") == 0
    assert (found.symbol_size("purgatory_start"), found.symbol_offset("purgatory_start")) == (3, 2)
    assert (found.section_offset("purgatory_start"), found.symbol_phys("purgatory_start")) == (0, BASE + 2)
    assert found.target("purgatory:local") == PhysRange(BASE + 5, BASE + 4096)
