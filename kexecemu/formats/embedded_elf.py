"""Relocatable objects inside other files: kexec-tools carries its purgatory as an array of bytes in `kexec`.

Nothing names the array once the program is stripped, so the object is found by its own ELF header, and its length by
its own section table.
"""

from __future__ import annotations

from collections.abc import Iterator

from kexecemu.errors import FormatError
from kexecemu.formats import elf

__all__ = ["embedded_objects", "object_or_embedded"]

_WHAT = "embedded object"


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
        header = elf.read_header(data, _WHAT, elf.ET_REL)
        sections = elf.read_sections(data, header, _WHAT)
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
