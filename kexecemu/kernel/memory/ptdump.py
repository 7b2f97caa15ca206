"""The linear map as the kernel's own page-table dump prints it (/sys/kernel/debug/kernel_page_tables).

Followed: note_page() and dump_prot() in arch/arm64/mm/ptdump.c; a line per stretch of equal entries at one level, read
from the tables in guest RAM. The columns are those of 7.3; 6.1 to 6.12 print alike, but for blocks that are not valid,
of which they have none.
"""

from collections.abc import Iterator
from typing import NamedTuple

from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.machine.memory.descriptors import (
    AF,
    AP_EL0,
    AP_RO,
    ATTR_IDX,
    CONT,
    NG,
    PXN,
    SH_INNER,
    TYPE,
    UXN,
    VALID,
)
from kexecemu.machine.memory.walk import TableReader

__all__ = ["ptdump_linear_map", "ptdump_lines"]

_GUARDED = 1 << 50  # PTE_GP: a guarded page of branch target identification
_LEVELS = ("PGD", "PUD", "PMD", "PTE")
_UNITS = "KMGTPE"


class _Column(NamedTuple):
    """One word of a line: `set` where the bits under the mask have this value, else `clear`."""

    mask: int
    value: int
    set: str
    clear: str


_COLUMNS = (
    _Column(VALID, VALID, " ", "F"),
    _Column(AP_EL0, AP_EL0, "USR", "   "),
    _Column(AP_RO, AP_RO, "ro", "RW"),
    _Column(PXN, PXN, "NX", "x "),
    _Column(SH_INNER, SH_INNER, "SHD", "   "),
    _Column(AF, AF, "AF", "  "),
    _Column(NG, NG, "NG", "  "),
    _Column(CONT, CONT, "CON", "   "),
    _Column(TYPE | VALID, VALID, "BLK", "   "),
    _Column(UXN, UXN, "UXN", "   "),
    _Column(_GUARDED, _GUARDED, "GP", "  "),
)

# By attribute index, as the kernel fills MAIR_EL1 (linear_map.MAIR_VALUE). Like the kernel's dump this
# goes by the index alone: without MTE the memory behind 0 and 1 is the same.
_MEMORY = ("MEM/NORMAL", "MEM/NORMAL-TAGGED", "MEM/NORMAL-NC", "DEVICE/nGnRnE", "DEVICE/nGnRE")

_MASK = ATTR_IDX(7)
for _column in _COLUMNS:
    _MASK |= _column.mask


def ptdump_linear_map(tables: TableReader, space: AddressSpace) -> str:
    """The section between "Linear Mapping start" and "Linear Mapping end" with both marker lines, as text.

    tables is swapper_pg_dir.
    """
    lines = ptdump_lines(tables, space.page_offset, space.page_end)
    return "\n".join(["---[ Linear Mapping start ]---", *lines, "---[ Linear Mapping end ]---"]) + "\n"


def ptdump_lines(tables: TableReader, start_virt: int, end_virt: int) -> Iterator[str]:
    """The lines for [start_virt, end_virt), without line ends; both must be where an entry of the root starts."""
    current: tuple[int, int] | None = None
    start = start_virt
    for leaf in tables.leaves(start_virt, end_virt):
        found = (leaf.level, leaf.descriptor & _MASK)
        if found != current:
            if current is not None:
                yield _line(tables, start, leaf.virt, *current)
            current, start = found, leaf.virt
    if current is not None:
        yield _line(tables, start, end_virt, *current)


def _line(tables: TableReader, start: int, end: int, level: int, attributes: int) -> str:
    size, unit = (end - start) >> 10, 0
    while not size & 1023 and unit < len(_UNITS) - 1:
        size, unit = size >> 10, unit + 1
    # A level that the kernel has folded is its PGD: with 64K pages three levels are left of four.
    name = _LEVELS[0 if level == tables.fmt.start_level else level]
    words = [f"0x{start:016x}-0x{end:016x}   {size:9}{_UNITS[unit]} {name}"]
    if attributes:
        words += [one.set if attributes & one.mask == one.value else one.clear for one in _COLUMNS]
        words += _MEMORY[attributes >> 2 & 7 :][:1]
    return " ".join(words)
