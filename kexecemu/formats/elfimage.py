"""A linked kernel, vmlinux (ET_EXEC): what to load where, its symbols and its build id."""

from collections.abc import Mapping
from dataclasses import dataclass

from kexecemu.errors import FormatError
from kexecemu.formats import elf
from kexecemu.formats.elf import ElfHeader, ProgramHeader, Section, Symbol
from kexecemu.formats.elfnote import iterate_notes
from kexecemu.shown import shown

__all__ = ["ElfImage", "LoadSegment", "parse"]

_WHAT = "kernel ELF"
_NT_GNU_BUILD_ID = 3


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
    header = elf.read_header(data, _WHAT, elf.ET_EXEC)
    sections = elf.read_sections(data, header, _WHAT)
    programs = _read_programs(data, header)
    segments = tuple(
        LoadSegment(p.vaddr, p.paddr, p.offset, p.filesz, p.memsz, p.flags, _content(data, p))
        for p in programs
        if p.type == elf.PT_LOAD
    )
    table = _symbol_table(sections)
    notes = [_content(data, program) for program in programs if program.type == elf.PT_NOTE]
    # An unusual linker script leaves notes without a PT_NOTE; objcopy can drop the sections. Either will do.
    notes += [section.data for section in sections if section.type == elf.SHT_NOTE]
    symbols = {name: symbol.value for name, symbol in table.items()}
    return ElfImage(header.entry, segments, table, symbols, _build_id(notes))


def _content(data: bytes, program: ProgramHeader) -> bytes:
    return data[program.offset : program.offset + program.filesz]


def _read_programs(data: bytes, header: ElfHeader) -> tuple[ProgramHeader, ...]:
    size = elf.PHDR_SIZE
    if header.phnum and header.phentsize != size:
        raise FormatError(f"{_WHAT}: program header size {header.phentsize} at offset 0x36, not {size}")
    if header.phnum and header.phoff + header.phnum * size > len(data):
        raise FormatError(f"{_WHAT}: {header.phnum} program headers at {header.phoff:#x} are truncated")
    programs = elf.read_phdrs(data, header.phoff, header.phnum)
    for index, one in enumerate(programs):
        segment = f"{_WHAT}: segment {index}"
        if one.type in (elf.PT_LOAD, elf.PT_NOTE) and one.offset + one.filesz > len(data):
            raise FormatError(f"{segment} at {one.offset:#x}, size {one.filesz:#x}, is outside the file")
        if one.type == elf.PT_LOAD and one.memsz < one.filesz:
            raise FormatError(f"{segment} has {one.filesz:#x} bytes in the file and {one.memsz:#x} in memory")
    return programs


def _symbol_table(sections: tuple[Section, ...]) -> dict[str, Symbol]:
    table: dict[str, Symbol] = {}
    for section in sections:
        if section.type != elf.SHT_SYMTAB:
            continue
        for symbol in elf.read_symbols(sections, section, _WHAT):
            nameless = symbol.shndx == elf.SHN_UNDEF or symbol.type in (elf.STT_SECTION, elf.STT_FILE)
            # Mapping symbols ($x, $d) are marks for disassemblers and come by the thousand under one name.
            if nameless or symbol.name[:1] in ("", "$"):
                continue
            known = table.get(symbol.name)
            if known is None or (known.binding == elf.STB_LOCAL and symbol.binding != elf.STB_LOCAL):
                table[symbol.name] = symbol
    return table


def _build_id(blocks: list[bytes]) -> bytes | None:
    for block in blocks:
        for note in iterate_notes(block):
            if note.name == "GNU" and note.type == _NT_GNU_BUILD_ID:
                return note.desc
    return None
