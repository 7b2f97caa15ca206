"""ET_REL objects, compared with what pyelftools reads of the same bytes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.errors import FormatError
from kexecemu.formats import elfrel
from kexecemu.formats.elf import SHT_NOBITS, SHT_NULL, SHT_RELA, SHT_SYMTAB

PURGATORY = (Path(__file__).parents[2] / "purgatory/purgatory.ro").read_bytes()


def test_sections_are_those_that_pyelftools_reads() -> None:
    theirs = list(ELFFile(io.BytesIO(PURGATORY)).iter_sections())
    ours = elfrel.parse(PURGATORY).sections
    assert [s.name for s in ours] == [s.name for s in theirs]
    for section, other in zip(ours, theirs, strict=True):
        fields = ("flags", "addr", "offset", "size", "link", "info", "addralign", "entsize")
        values = (section.flags, section.addr, section.offset, section.size, section.link, section.info)
        assert (*values, section.align, section.entsize) == tuple(other[f"sh_{name}"] for name in fields)
        if section.type not in (SHT_NULL, SHT_NOBITS):
            assert section.data == other.data()


def test_symbols_are_those_that_pyelftools_reads() -> None:
    table = ELFFile(io.BytesIO(PURGATORY)).get_section_by_name(".symtab")
    bindings = {"STB_LOCAL": 0, "STB_GLOBAL": 1, "STB_WEAK": 2}
    types = {"STT_NOTYPE": 0, "STT_OBJECT": 1, "STT_FUNC": 2, "STT_SECTION": 3, "STT_FILE": 4}
    places = {"SHN_UNDEF": 0, "SHN_ABS": 0xFFF1, "SHN_COMMON": 0xFFF2}
    ours = elfrel.parse(PURGATORY).symbols
    assert len(ours) == table.num_symbols() > 10
    for symbol, other in zip(ours, table.iter_symbols(), strict=True):
        # pyelftools gives a section symbol its section's name; in the file it has none.
        assert symbol.name == other.name or symbol.type == 3
        assert (symbol.value, symbol.size) == (other["st_value"], other["st_size"])
        assert symbol.binding == bindings[other["st_info"]["bind"]]
        assert symbol.type == types[other["st_info"]["type"]]
        assert symbol.shndx == places.get(other["st_shndx"], other["st_shndx"])


def test_relocations_are_those_that_pyelftools_reads() -> None:
    ours = elfrel.parse(PURGATORY)
    theirs = [s for s in ELFFile(io.BytesIO(PURGATORY)).iter_sections() if s["sh_type"] == "SHT_RELA"]
    assert theirs and [ours.sections[i].name for i in ours.relocations] == [s.name for s in theirs]
    for entries, section in zip(ours.relocations.values(), theirs, strict=True):
        assert [(r.offset, r.symbol, r.type, r.addend) for r in entries] == [
            (r["r_offset"], r["r_info_sym"], r["r_info_type"], r["r_addend"])
            for r in section.iter_relocations()
        ]


def test_a_symbol_that_a_loader_patches_is_found_with_its_section() -> None:
    obj = elfrel.parse(PURGATORY)
    symbol = obj.global_symbol("purgatory_sha256_digest")
    assert symbol is not None and symbol.size == 32
    assert obj.sections[symbol.shndx] == obj.section(".kexec-purgatory")
    assert obj.global_symbol("no_such_symbol") is None and obj.section(".nothing") is None


def _patched(offset: int, fmt: str, value: int) -> bytes:
    data = bytearray(PURGATORY)
    struct.pack_into(fmt, data, offset, value)
    return bytes(data)


def _section_header(kind: int) -> int:
    obj = elfrel.parse(PURGATORY)
    return obj.header.shoff + 64 * next(s.index for s in obj.sections if s.type == kind)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are too short"),
        (PURGATORY[:63], "63 bytes are too short"),
        (_patched(0, "<B", 0x7E), "no ELF magic at offset 0"),
        (_patched(4, "<B", 1), "not 64-bit little endian"),
        (_patched(5, "<B", 2), "not 64-bit little endian"),
        (_patched(0x10, "<H", 2), "ELF type 2 at offset 0x10, not 1"),
        (_patched(0x12, "<H", 62), "machine 62 at offset 0x12"),
        (_patched(0x3A, "<H", 40), "section header size 40"),
        (_patched(0x3C, "<H", 0), "no section headers"),
        (_patched(0x3C, "<H", 0xFFFF), "65535 section headers at .* are truncated"),
        (_patched(0x28, "<Q", len(PURGATORY) - 64), "are truncated"),
        (_patched(0x3E, "<H", 0xFFFE), "name table 65534 at offset 0x3e does not exist"),
        (_patched(_section_header(SHT_SYMTAB) + 24, "<Q", 1 << 63), "is outside the file"),
        (_patched(_section_header(SHT_SYMTAB), "<I", 0xFFFFFF), "bad string index 0xffffff"),
        (_patched(_section_header(SHT_SYMTAB) + 40, "<I", 0xFFFF), "string table 65535 of symbol table"),
        (_patched(_section_header(SHT_SYMTAB) + 32, "<Q", 25), "symbol table .* is truncated"),
        (_patched(_section_header(SHT_RELA) + 32, "<Q", 23), "relocation table .* is truncated"),
    ],
)
def test_a_damaged_object_is_refused_with_what_and_where(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        elfrel.parse(data)


def test_tables_that_overlap_to_be_read_again_and_again_are_refused() -> None:
    """A file of a few hundred KiB could otherwise claim billions of symbols."""
    count = 2000
    names = 64 * (count + 1) + 64
    table = struct.pack("<IIQQQQIIQQ", 0, SHT_SYMTAB, 0, 0, 64, 64 * count, 0, 0, 8, 24) * count
    strings = struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, names, 1, 0, 0, 1, 0)
    header = bytearray(PURGATORY[:64])
    struct.pack_into("<Q", header, 0x28, 64)
    struct.pack_into("<HH", header, 0x3C, count + 1, 0)
    with pytest.raises(FormatError, match="overlap"):
        elfrel.parse(bytes(header) + strings + table + b"\0")


@given(st.data())
def test_any_damage_gives_an_object_or_a_format_error(data: st.DataObject) -> None:
    blob = bytearray(PURGATORY[: data.draw(st.integers(0, len(PURGATORY)) | st.just(len(PURGATORY)))])
    # Most bytes of the file are code and names; aim at the headers.
    shoff = int.from_bytes(PURGATORY[0x28:0x30], "little")
    places = st.integers(0, 63) | st.integers(shoff, len(PURGATORY) - 1) | st.integers(0, len(PURGATORY) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        if place < len(blob):
            blob[place] = value
    try:
        obj = elfrel.parse(blob)
    except FormatError:
        return
    assert all(len(s.data) in (0, s.size) for s in obj.sections)


@given(st.binary(max_size=300))
def test_any_bytes_behind_an_elf_magic_give_a_format_error_or_an_object(data: bytes) -> None:
    try:
        elfrel.parse(PURGATORY[:0x14] + data)
    except FormatError:
        pass
    else:
        pytest.fail("a random header with sections inside so few bytes would be news")
