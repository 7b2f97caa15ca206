"""Which line of source an address comes from, by DWARF, and which symbol it lies in."""

import bisect
import functools
from collections.abc import Iterable
from pathlib import Path

from elftools.elf.elffile import ELFFile

__all__ = ["SymbolMap", "source_line"]


@functools.cache
def _lines(path: Path) -> tuple[list[int], list[tuple[int, str, int]]]:
    """Starts of the address ranges of a file's line table, ascending, and (end, file, line) of each."""
    rows: list[tuple[int, int, str, int]] = []
    with open(path, "rb") as stream:
        elf = ELFFile(stream)
        if not elf.has_dwarf_info():
            return [], []
        dwarf = elf.get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            if program is None:
                continue
            version = program.header["version"]
            before = None
            for entry in program.get_entries():
                state = entry.state
                if state is None:
                    continue
                # Line 0 is code of the compiler's own.
                if before is not None and before.address < state.address and before.line:
                    # DWARF 5 counts files from 0.
                    file = program.header["file_entry"][before.file - (version < 5)].name.decode()
                    rows.append((before.address, state.address, file, before.line))
                before = None if state.end_sequence else state
    rows.sort()
    return [row[0] for row in rows], [row[1:] for row in rows]


def source_line(path: Path, virt: int) -> str:
    """ "file:line" of an address of an ELF file with DWARF; "" where there is none."""
    starts, rows = _lines(path)
    index = bisect.bisect_right(starts, virt) - 1
    if index < 0 or virt >= rows[index][0]:
        return ""
    _, file, line = rows[index]
    return f"{file}:{line}"


class SymbolMap:
    """Names for addresses: the nearest symbol at or below, if the address lies in its size (or it has none)."""

    def __init__(self, symbols: Iterable[tuple[int, int, str]]) -> None:
        """symbols are (address, size, name)."""
        self._symbols = sorted(symbols)
        self._starts = [start for start, _, _ in self._symbols]

    def name(self, address: int) -> str:
        """ "name+0x10", or "" for an address that belongs to none."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return ""
        start, size, name = self._symbols[index]
        if size and address >= start + size:
            return ""
        return f"{name}+{address - start:#x}" if address > start else name
