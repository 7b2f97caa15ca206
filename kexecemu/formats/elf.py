"""What the ELF readers share: file header, sections, strings and symbols of ELF64 little endian aarch64.

The kinds of file are read by elfrel (purgatory.ro), elfimage (vmlinux) and elfcore (/proc/vmcore). Every
offset that a file gives is checked before it is followed, so that a damaged file ends in FormatError and
nothing else.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kexecemu.errors import FormatError
from kexecemu.shown import shown

__all__ = ["ElfHeader", "ProgramHeader", "Section", "Symbol", "read_header", "read_sections", "read_symbols"]

ELFMAG = b"\x7fELF"
ELFCLASS64, ELFDATA2LSB, EV_CURRENT = 2, 1, 1
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_AARCH64 = 183

PT_LOAD, PT_NOTE = 1, 4
SHT_NULL, SHT_SYMTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS = 0, 2, 4, 7, 8
SHF_EXECINSTR = 4
SHN_UNDEF = 0
STB_LOCAL, STB_GLOBAL = 0, 1
STT_SECTION, STT_FILE = 3, 4

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
# Names longer than this are damage; they may overlap, and together fill all memory.
_NAME_MAX = 4096
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
EHDR_SIZE, SHDR_SIZE, PHDR_SIZE = EHDR.size, _SHDR.size, PHDR.size


@shown()
class ElfHeader(NamedTuple):
    """Elf64_Ehdr; phoff and shoff are file offsets in bytes."""

    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


@shown()
@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """Elf64_Phdr. In an elfcorehdr offset is the physical address paddr; in a file it is a file offset."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int = 0


@shown()
@dataclass(frozen=True, slots=True)
class Section:
    """One section: Elf64_Shdr in file order, and its bytes (none for SHT_NOBITS and SHT_NULL)."""

    index: int
    # Sections may overlap in a hostile file, so none is copied before it is asked for.
    file: bytes = field(repr=False, compare=False)
    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entsize: int

    @property
    def data(self) -> bytes:
        """The section's bytes in the file."""
        if self.type in (SHT_NULL, SHT_NOBITS):
            return b""
        return self.file[self.offset : self.offset + self.size]


@shown()
@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol; value is an offset into section shndx in ET_REL, a virtual address in ET_EXEC."""

    name: str
    value: int
    size: int
    binding: int
    type: int
    shndx: int


def read_header(data: bytes, what: str, elf_type: int) -> ElfHeader:
    """Read and check the file header; `what` begins every message of a FormatError."""
    if len(data) < EHDR_SIZE:
        raise FormatError(f"{what}: {len(data)} bytes are too short for an ELF header of {EHDR_SIZE}")
    header = ElfHeader(*EHDR.unpack_from(data))
    ident = header.ident
    if ident[:4] != ELFMAG:
        raise FormatError(f"{what}: no ELF magic at offset 0")
    if ident[4] != ELFCLASS64 or ident[5] != ELFDATA2LSB:
        raise FormatError(f"{what}: not 64-bit little endian (class {ident[4]}, data {ident[5]} at offset 4)")
    if ident[6] != EV_CURRENT or header.version != EV_CURRENT:
        raise FormatError(f"{what}: unknown ELF version {header.version} at offset 0x14")
    if header.type != elf_type:
        raise FormatError(f"{what}: ELF type {header.type} at offset 0x10, not {elf_type}")
    if header.machine != EM_AARCH64:
        raise FormatError(f"{what}: ELF machine {header.machine} at offset 0x12, not aarch64 ({EM_AARCH64})")
    if header.ehsize != EHDR_SIZE:
        raise FormatError(f"{what}: ELF header size {header.ehsize} at offset 0x34, not {EHDR_SIZE}")
    return header


def string_at(table: bytes, index: int, what: str) -> str:
    """The NUL-terminated string at `index` of a string table."""
    end = table.find(b"\0", index, index + _NAME_MAX)
    if end < 0:
        raise FormatError(f"{what}: bad string index {index:#x} in a table of {len(table):#x} bytes")
    # ELF says nothing about the encoding of names; every byte string must survive.
    return table[index:end].decode("utf-8", "backslashreplace")


def read_sections(data: bytes, header: ElfHeader, what: str) -> tuple[Section, ...]:
    """All sections with their names and bytes, in the order of the table; () for a file without a table."""
    if header.shnum == 0:
        return ()
    if header.shentsize != SHDR_SIZE:
        raise FormatError(f"{what}: section header size {header.shentsize} at offset 0x3a, not {SHDR_SIZE}")
    if header.shoff + header.shnum * SHDR_SIZE > len(data):
        raise FormatError(f"{what}: {header.shnum} section headers at {header.shoff:#x} are truncated")
    raw = [_SHDR.unpack_from(data, header.shoff + i * SHDR_SIZE) for i in range(header.shnum)]
    for index, (_, kind, _, _, offset, size, *_) in enumerate(raw):
        if kind not in (SHT_NULL, SHT_NOBITS) and offset + size > len(data):
            raise FormatError(f"{what}: section {index} at {offset:#x}, size {size:#x}, is outside the file")
    if sum(fields[5] for fields in raw if fields[1] in (SHT_SYMTAB, SHT_RELA)) > len(data):
        raise FormatError(f"{what}: symbol and relocation tables overlap")
    if header.shstrndx >= header.shnum:
        raise FormatError(f"{what}: section name table {header.shstrndx} at offset 0x3e does not exist")
    _, _, _, _, names_offset, names_size, *_ = raw[header.shstrndx]
    names = data[names_offset : names_offset + names_size]
    # Without a name table (index 0, SHN_UNDEF) no section has a name.
    return tuple(
        Section(index, data, string_at(names, name, what) if header.shstrndx else "", *fields)
        for index, (name, *fields) in enumerate(raw)
    )


def read_symbols(sections: Sequence[Section], table: Section, what: str) -> tuple[Symbol, ...]:
    """All entries of the symbol table `table`, whose sh_link says where the names are."""
    if table.size % _SYM.size:
        raise FormatError(f"{what}: symbol table {table.index}, size {table.size:#x}, is truncated")
    if table.link >= len(sections):
        raise FormatError(f"{what}: string table {table.link} of symbol table {table.index} does not exist")
    names = sections[table.link].data
    return tuple(
        Symbol(string_at(names, name, what), value, size, info >> 4, info & 15, shndx)
        for name, info, _, shndx, value, size in _SYM.iter_unpack(table.data)
    )


def read_phdrs(data: bytes | bytearray | memoryview, offset: int, count: int) -> tuple[ProgramHeader, ...]:
    """`count` program headers from a file offset on, which must be there."""
    return tuple(ProgramHeader(*PHDR.unpack_from(data, offset + index * PHDR_SIZE)) for index in range(count))
