"""Relocatable aarch64 objects (ET_REL), which is what a kernel's purgatory.ro is.

Only structure is read here. What a purgatory loader refuses (undefined symbols, relocations it does not
know) is kexecemu.kernel's business, which has the kernel's errno for it.

Such objects lie inside other files, too: kexec-tools carries its purgatory as an array of bytes in `kexec`. Nothing
names the array once the program is stripped, so the object is found by its own ELF header, and its length by its own
section table.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kexecemu.errors import FormatError
from kexecemu.formats import elf
from kexecemu.formats.elf import ElfHeader, Section, Symbol
from kexecemu.shown import shown

__all__ = [
    "Rela",
    "RelocatableObject",
    "Section",
    "Symbol",
    "embedded_objects",
    "object_or_embedded",
    "parse",
]

_WHAT = "relocatable object"
_RELA = struct.Struct("<QQq")


@shown()
@dataclass(frozen=True, slots=True)
class Rela:
    """One Elf64_Rela: offset into the section to patch, index into the symbol table, type, signed addend."""

    offset: int
    symbol: int
    type: int
    addend: int


@shown()
@dataclass(frozen=True, slots=True)
class RelocatableObject:
    """A parsed object.

    relocations maps the index of each SHT_RELA section to its entries in file order; that section's info is
    the index of the section to patch and its link that of the symbol table meant. symbol_tables maps the
    index of each SHT_SYMTAB section to its entries.
    """

    header: ElfHeader
    sections: tuple[Section, ...]
    symbol_tables: Mapping[int, tuple[Symbol, ...]]
    relocations: Mapping[int, tuple[Rela, ...]]

    @property
    def entry(self) -> int:
        """e_entry, as the linker's -e left it."""
        return self.header.entry

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The first symbol table, which kexec_purgatory_find_symbol() searches; () if there is none."""
        return next(iter(self.symbol_tables.values()), ())

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def global_symbol(self, name: str) -> Symbol | None:
        """The first STB_GLOBAL symbol of that name, defined or not."""
        return next((s for s in self.symbols if s.name == name and s.binding == elf.STB_GLOBAL), None)


def parse(data: bytes | bytearray | memoryview) -> RelocatableObject:
    """Read an ET_REL file.

    Raises FormatError if it is not ELF64 LE aarch64 ET_REL, a table is truncated, a section is outside the
    file or a name is outside its string table.
    """
    data = bytes(data)
    header = elf.read_header(data, _WHAT, elf.ET_REL)
    sections = elf.read_sections(data, header, _WHAT)
    if not sections:
        raise FormatError(f"{_WHAT}: no section headers (offset 0x3c)")
    return RelocatableObject(
        header,
        sections,
        {s.index: elf.read_symbols(sections, s, _WHAT) for s in sections if s.type == elf.SHT_SYMTAB},
        {s.index: _read_rela(s) for s in sections if s.type == elf.SHT_RELA},
    )


def _read_rela(section: Section) -> tuple[Rela, ...]:
    if section.size % _RELA.size:
        raise FormatError(f"{_WHAT}: relocation table {section.index}, size {section.size:#x}, is truncated")
    return tuple(
        Rela(offset, info >> 32, info & 0xFFFFFFFF, addend)
        for offset, info, addend in _RELA.iter_unpack(section.data)
    )


def embedded_objects(data: bytes) -> Iterator[tuple[int, bytes]]:
    """All aarch64 ET_REL objects behind offset 0 of a file: (offset in bytes, the object's own bytes), ascending.

    What only looks like a header (another type, a section table or a section beyond the end of the file) is passed
    over; objects inside an object are not looked for.
    """
    at = data.find(elf.ELFMAG, 1)
    while at >= 0:
        length = _length(data[at:])
        if length:
            yield at, data[at : at + length]
        at = data.find(elf.ELFMAG, at + max(length, 1))


def _length(data: bytes) -> int:
    """How many bytes the object at the start of `data` has; 0 when there is none."""
    try:
        header = elf.read_header(data, "embedded object", elf.ET_REL)
        sections = elf.read_sections(data, header, "embedded object")
    except FormatError:
        return 0
    if not sections:
        return 0
    ends = [one.offset + one.size for one in sections if one.type not in (elf.SHT_NULL, elf.SHT_NOBITS)]
    return max([header.shoff + header.shnum * elf.SHDR_SIZE, *ends])


def object_or_embedded(data: bytes) -> bytes:
    """The first object inside an aarch64 program; any other file, and a program without one, as it is.

    So everything that reads a purgatory takes kexec-tools' `kexec` in its place.
    """
    for program in (elf.ET_DYN, elf.ET_EXEC):
        try:
            elf.read_header(data, "program", program)
        except FormatError:
            continue
        return next((found for _, found in embedded_objects(data)), data)
    return data
