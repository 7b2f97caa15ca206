"""A linked kernel, vmlinux (ET_EXEC): what to load where, its symbols and its build id."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from kexecemu.errors import FormatError
from kexecemu.formats.elf import (
    ET_EXEC,
    PHDR_SIZE,
    SHN_UNDEF,
    SHT_NOTE,
    SHT_SYMTAB,
    STB_LOCAL,
    STT_FILE,
    STT_SECTION,
    ElfHeader,
    Section,
    Symbol,
    read_header,
    read_sections,
    read_symbols,
)
from kexecemu.formats.elfnote import iterate_notes
from kexecemu.shown import shown

__all__ = ["ElfImage", "LoadSegment", "parse"]

_WHAT = "kernel ELF"
_PT_LOAD, _PT_NOTE = 1, 4
_NT_GNU_BUILD_ID = 3
_PHDR = struct.Struct("<IIQQQQQQ")


@shown()
@dataclass(frozen=True, slots=True)
class LoadSegment:
    """One PT_LOAD: vaddr virtual, paddr physical as linked; data is filesz bytes, zeros follow to memsz."""

    vaddr: int
    paddr: int
    offset: int
    filesz: int
    memsz: int
    flags: int
    data: bytes


@shown()
@dataclass(frozen=True, slots=True)
class ElfImage:
    """A parsed kernel: symbols maps names to virtual addresses, symbol_table to all that is known of them."""

    entry: int
    segments: tuple[LoadSegment, ...]
    symbol_table: Mapping[str, Symbol]
    symbols: Mapping[str, int]
    build_id: bytes | None


def parse(data: bytes | bytearray | memoryview) -> ElfImage:
    """Read an ET_EXEC file.

    Where two symbols have one name, a global or weak one wins over local ones, and else the first in the
    table. Raises FormatError if the file is not ELF64 LE aarch64 ET_EXEC or a table or segment is outside
    it.
    """
    data = bytes(data)
    header = read_header(data, _WHAT, ET_EXEC)
    sections = read_sections(data, header, _WHAT)
    programs = _read_programs(data, header)
    segments = tuple(
        LoadSegment(vaddr, paddr, offset, filesz, memsz, flags, data[offset : offset + filesz])
        for kind, flags, offset, vaddr, paddr, filesz, memsz in programs
        if kind == _PT_LOAD
    )
    table = _symbol_table(sections)
    notes = [
        data[offset : offset + filesz] for kind, _, offset, _, _, filesz, _ in programs if kind == _PT_NOTE
    ]
    # An unusual linker script leaves notes without a PT_NOTE; objcopy can drop the sections. Either will do.
    notes += [section.data for section in sections if section.type == SHT_NOTE]
    return ElfImage(
        header.entry, segments, table, {name: s.value for name, s in table.items()}, _build_id(notes)
    )


def _read_programs(data: bytes, header: ElfHeader) -> list[tuple[int, int, int, int, int, int, int]]:
    if header.phnum == 0:
        return []
    if header.phentsize != PHDR_SIZE:
        raise FormatError(f"{_WHAT}: program header size {header.phentsize} at offset 0x36, not {PHDR_SIZE}")
    if header.phoff + header.phnum * PHDR_SIZE > len(data):
        raise FormatError(f"{_WHAT}: {header.phnum} program headers at {header.phoff:#x} are truncated")
    programs: list[tuple[int, int, int, int, int, int, int]] = []
    for index in range(header.phnum):
        kind, flags, offset, vaddr, paddr, filesz, memsz, _ = _PHDR.unpack_from(
            data, header.phoff + index * PHDR_SIZE
        )
        if kind in (_PT_LOAD, _PT_NOTE) and offset + filesz > len(data):
            raise FormatError(
                f"{_WHAT}: segment {index} at {offset:#x}, size {filesz:#x}, is outside the file"
            )
        if kind == _PT_LOAD and memsz < filesz:
            raise FormatError(
                f"{_WHAT}: segment {index} has {filesz:#x} bytes in the file and {memsz:#x} in memory"
            )
        programs.append((kind, flags, offset, vaddr, paddr, filesz, memsz))
    return programs


def _symbol_table(sections: tuple[Section, ...]) -> dict[str, Symbol]:
    table: dict[str, Symbol] = {}
    for section in sections:
        if section.type != SHT_SYMTAB:
            continue
        for symbol in read_symbols(sections, section, _WHAT):
            # Mapping symbols ($x, $d) are marks for disassemblers and come by the thousand under one name.
            if (
                symbol.shndx == SHN_UNDEF
                or symbol.type in (STT_SECTION, STT_FILE)
                or symbol.name[:1] in ("", "$")
            ):
                continue
            known = table.get(symbol.name)
            if known is None or (known.binding == STB_LOCAL and symbol.binding != STB_LOCAL):
                table[symbol.name] = symbol
    return table


def _build_id(blocks: list[bytes]) -> bytes | None:
    for block in blocks:
        for note in iterate_notes(block):
            if note.name == "GNU" and note.type == _NT_GNU_BUILD_ID:
                return note.desc
    return None
