"""A dynamic program of another Linux with the libraries that it needs, found in the packages that it came with."""

import struct
from pathlib import Path

from kexecemu.errors import FormatError, InputError
from kexecemu.formats.elf import ELFMAG, ET_DYN, Section, read_header, read_sections, string_at

__all__ = ["program_files"]

_SHT_DYNAMIC = 6
_DT_NEEDED = 1
_DYN = struct.Struct("<QQ")

_LOADER = "ld-linux-aarch64.so.1"
_LIBRARIES = "lib/aarch64-linux-gnu"


def program_files(program: Path, packages: Path) -> dict[str, Path]:
    """Files of an initramfs that make a program run there: itself, its libraries and the loader.

    packages is a folder with the unpacked packages; libraries are looked for in its folders aarch64-linux-gnu only.
    The keys are paths without a leading slash, as build_initramfs() takes them: bin/NAME, lib/aarch64-linux-gnu/NAME
    and lib/ld-linux-aarch64.so.1, which aarch64 programs name as their interpreter. Raises InputError for a library
    that is missing, FormatError for what is no dynamic aarch64 ELF file.
    """
    # Sorted, so that it is always the same file that counts.
    there = {path.name: path for path in sorted(packages.glob("**/aarch64-linux-gnu/*.so*"), reverse=True)}
    needed: dict[str, Path] = {}
    waiting = [program]
    while waiting:
        user = waiting.pop()
        for name in _needed(user):
            if name in needed:
                continue
            if name not in there:
                raise InputError(f"{packages} has no library {name}, which {user.name} needs")
            needed[name] = there[name]
            waiting.append(there[name])
    if _LOADER not in needed:
        if _LOADER not in there:
            raise InputError(f"{packages} has no {_LOADER}, which starts every dynamic program")
        needed[_LOADER] = there[_LOADER]
    files = {f"{_LIBRARIES}/{name}": path for name, path in sorted(needed.items()) if name != _LOADER}
    return {f"bin/{program.name}": program, f"lib/{_LOADER}": needed[_LOADER], **files}


def _needed(path: Path) -> list[str]:
    """The names of DT_NEEDED, in the file's order."""
    data = path.read_bytes()
    if data[:4] != ELFMAG:
        raise FormatError(f"{path.name}: no ELF file")
    sections = read_sections(data, read_header(data, path.name, ET_DYN), path.name)
    tables = [section for section in sections if section.type == _SHT_DYNAMIC]
    return [name for table in tables for name in _names(sections, table, path)]


def _names(sections: tuple[Section, ...], table: Section, path: Path) -> list[str]:
    if table.link >= len(sections) or table.size % _DYN.size:
        raise FormatError(f"{path.name}: damaged dynamic section")
    strings = sections[table.link].data
    needed = [value for tag, value in _DYN.iter_unpack(table.data) if tag == _DT_NEEDED]
    return [string_at(strings, value, path.name) for value in needed]
