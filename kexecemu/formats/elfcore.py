"""ELF cores: the elfcorehdr that a kernel prepares, and /proc/vmcore as its capture kernel presents it."""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import NamedTuple

from kexecemu.errors import FormatError
from kexecemu.files import replacing
from kexecemu.formats import elf
from kexecemu.formats.elf import EHDR_SIZE, PHDR_SIZE, PT_LOAD, PT_NOTE, ElfHeader, ProgramHeader
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CoreHeader", "LoadRange", "VmcoreLayout", "build_elfcorehdr", "parse_core_header", "write_vmcore"]

PF_RWX = 7

PAGE_SIZE = 4096
_U64 = (1 << 64) - 1
# The kernel kmallocs a buffer of p_memsz for each PT_NOTE; beyond KMALLOC_MAX_SIZE that fails.
_NOTE_MAX = 4 << 20


@shown()
@dataclass(frozen=True, slots=True)
class CoreHeader:
    """The header of a core that passed the kernel's checks."""

    program_headers: tuple[ProgramHeader, ...]


@shown()
class LoadRange(NamedTuple):
    """A run of bytes of a core file and the physical memory that it is; offsets and sizes in bytes."""

    file_offset: int
    phys: int
    size: int


def build_elfcorehdr(program_headers: Sequence[ProgramHeader], *, size: int | None = None) -> bytes:
    """An ELF64 aarch64 core header with program headers, zero filled to `size` bytes if that is given."""
    ident = elf.ELFMAG + bytes([2, 1, 1, 0]) + bytes(8)
    sizes = (EHDR_SIZE, PHDR_SIZE, len(program_headers), 0, 0, 0)
    header = elf.EHDR.pack(ident, elf.ET_CORE, elf.EM_AARCH64, 1, 0, EHDR_SIZE, 0, 0, *sizes)
    data = header + b"".join(elf.PHDR.pack(*astuple(each)) for each in program_headers)
    if size is not None and size < len(data):
        raise ValueError(f"{len(data)} bytes of core header do not fit in {size}")
    return data if size is None else data.ljust(size, b"\0")


def parse_core_header(data: bytes | bytearray | memoryview) -> CoreHeader:
    """Read an elfcorehdr or the start of a vmcore with the checks of parse_crash_elf64_headers().

    Like the kernel it ignores e_phoff: the program headers follow the file header. It does not look at
    EI_DATA either. Raises FormatError where the kernel would not make a /proc/vmcore.
    """
    if len(data) < EHDR_SIZE:
        raise FormatError(f"core: {len(data)} bytes are too short for an ELF header of {EHDR_SIZE}")
    header = ElfHeader(*elf.EHDR.unpack_from(data))
    ident, phnum = header.ident, header.phnum
    if ident[:4] != elf.ELFMAG:
        raise FormatError("Core image elf header not found: no ELF magic at offset 0")
    sane = (
        ("e_type", 0x10, header.type == elf.ET_CORE),
        ("e_machine", 0x12, header.machine == elf.EM_AARCH64),
        ("EI_CLASS", 4, ident[4] == 2),
        ("EI_VERSION", 6, ident[6] == 1),
        ("e_version", 0x14, header.version == 1),
        ("e_ehsize", 0x34, header.ehsize == EHDR_SIZE),
        ("e_phentsize", 0x36, header.phentsize == PHDR_SIZE),
        ("e_phnum", 0x38, phnum != 0),
    )
    for field, offset, good in sane:
        if not good:
            raise FormatError(f"Core image elf header is not sane: {field} at offset {offset:#x}")
    if EHDR_SIZE + phnum * PHDR_SIZE > len(data):
        raise FormatError(f"core: {phnum} program headers at {EHDR_SIZE:#x} are truncated at {len(data):#x}")
    return CoreHeader(elf.read_phdrs(data, EHDR_SIZE, phnum))


def _page_up(value: int) -> int:
    return (value + PAGE_SIZE - 1) & -PAGE_SIZE


@shown("size", "loads", "notes", "header")
class VmcoreLayout:
    """/proc/vmcore as vmcore_init() lays it out, from an elfcorehdr and the old kernel's memory.

    The PT_NOTEs become one, first, that holds only the notes really written; the PT_LOADs follow in their
    order, each widened to whole pages. `read(phys, length)` must return that much physical memory and is
    called for notes only; what it raises goes through to the caller. Raises FormatError where the kernel
    would give no /proc/vmcore.

    header and notes are the bytes before the memory, each padded to whole pages; loads say where memory
    goes; program_headers are those of the vmcore; dropped_notes counts PT_NOTEs cut short for exceeding
    their p_memsz. note_align is the p_align of the notes, which kernels do not agree about.
    """

    def __init__(
        self,
        elfcorehdr: bytes | bytearray | memoryview,
        read: Callable[[int, int], bytes | bytearray | memoryview],
        note_align: int = 0,
    ) -> None:
        old = parse_core_header(elfcorehdr).program_headers
        notes, self.dropped_notes = _merge_notes(old, read)
        count = sum(header.type == PT_NOTE for header in old)
        if count == 0:
            # merge_note_headers_elf64() would overwrite the first PT_LOAD; no kernel prepares such a header.
            raise FormatError("core: no PT_NOTE program header")
        notes_offset = _page_up(EHDR_SIZE + (len(old) - count + 1) * PHDR_SIZE)
        note = ProgramHeader(PT_NOTE, 0, notes_offset, 0, 0, len(notes), len(notes), note_align)
        headers = [note]
        self.loads: list[LoadRange] = []
        self.notes = notes.ljust(_page_up(len(notes)), b"\0")
        offset = notes_offset + len(self.notes)
        # The kernel drops as many headers from the front as there are PT_NOTEs, whatever those are.
        for header in old[count:]:
            if header.type == PT_LOAD:
                phys, end = header.offset & -PAGE_SIZE, _page_up(header.offset + header.memsz)
                if end > _U64:
                    raise FormatError(
                        f"core: PT_LOAD at {header.offset:#x}, size {header.memsz:#x}, wraps around"
                    )
                self.loads.append(LoadRange(offset, phys, end - phys))
                header = replace(header, offset=offset + header.offset - phys)
                offset += end - phys
            headers.append(header)
        self.size = offset
        self.program_headers = tuple(headers)
        # The kernel keeps the old file header and changes e_phnum alone.
        ehdr = bytearray(elfcorehdr[:EHDR_SIZE])
        struct.pack_into("<H", ehdr, 0x38, len(headers))
        packed = b"".join(elf.PHDR.pack(*astuple(each)) for each in headers)
        self.header = (bytes(ehdr) + packed).ljust(notes_offset, b"\0")


def _merge_notes(
    headers: Sequence[ProgramHeader], read: Callable[[int, int], bytes | bytearray | memoryview]
) -> tuple[bytes, int]:
    merged = bytearray()
    dropped = 0
    for header in headers:
        if header.type != PT_NOTE:
            continue
        if header.memsz > _NOTE_MAX:
            raise FormatError(
                f"core: PT_NOTE at {header.offset:#x} of {header.memsz:#x} bytes, no memory for it"
            )
        data = bytes(read(header.offset, header.memsz))
        size, cut = _notes_size(data)
        merged += data[:size]
        dropped += cut
    return bytes(merged), dropped


def _notes_size(data: bytes) -> tuple[int, bool]:
    """Bytes up to the note with n_namesz == 0, and whether a note was dropped for going beyond the data."""
    size = 0
    while size + 12 <= len(data):
        namesz, descsz = struct.unpack_from("<II", data, size)
        if namesz == 0:
            return size, False
        step = 12 + ((namesz + 3) & ~3) + ((descsz + 3) & ~3)
        if size + step > len(data):
            return size, True
        size += step
    return size, False


def write_vmcore(
    path: str | os.PathLike[str],
    layout: VmcoreLayout,
    ram_view: Callable[[int, int], bytes | bytearray | memoryview],
    data_ranges: Callable[[PhysRange], Iterator[PhysRange]],
) -> None:
    """Write the core to `path`, sparse, and only complete: a reader sees the old file or the whole new one.

    ram_view(phys, length) gives memory; data_ranges(range) yields the parts of a range that may hold
    anything but zeros, in any order; the rest becomes holes. Raises OSError if the file cannot be written, as
    when a damaged header speaks of exabytes.
    """
    with replacing(path) as file:
        file.write(layout.header + layout.notes)
        for load in layout.loads:
            for part in data_ranges(PhysRange.of(load.phys, load.size)):
                file.seek(load.file_offset + part.start - load.phys)
                file.write(ram_view(part.start, part.size))
        file.truncate(layout.size)
