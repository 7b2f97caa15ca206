"""Relocatable aarch64 objects (ET_REL), which is what a kernel's purgatory.ro is.

Only structure is read here. What a purgatory loader refuses (undefined symbols, relocations it does not
know) is kexecemu.kernel's business, which has the kernel's errno for it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from kexecemu.errors import FormatError
from kexecemu.formats import elf
from kexecemu.formats.elf import ElfHeader, Section, Symbol
from kexecemu.shown import shown

__all__ = ["Rela", "RelocatableObject", "Section", "Symbol", "parse"]

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
