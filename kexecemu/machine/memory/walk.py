"""Reads stage 1 page tables in guest RAM, as the MMU does: one walk, or everything that is mapped."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from kexecemu.machine.memory.descriptors import CONT, ENTRY_SIZE, VALID, TableFormat
from kexecemu.machine.memory.ram import Ram
from kexecemu.shown import shown

__all__ = ["Leaf", "TableReader", "Walk"]


@shown()
@dataclass(frozen=True, slots=True)
class Walk:
    """One walk of the tables: the descriptors passed, and where it ended.

    steps are (level, physical address of the entry, descriptor) from the root on; level and descriptor are
    the last step's. phys is None when that one maps nothing.
    """

    steps: tuple[tuple[int, int, int], ...]
    phys: int | None

    @property
    def level(self) -> int:
        """The level at which the walk ended."""
        return self.steps[-1][0]

    @property
    def entry_phys(self) -> int:
        """The physical address of the last descriptor read."""
        return self.steps[-1][1]

    @property
    def descriptor(self) -> int:
        """The last descriptor read, valid or not."""
        return self.steps[-1][2]


@shown()
@dataclass(frozen=True, slots=True)
class Leaf:
    """What one stretch of virtual addresses leads to: one leaf, or a hole (descriptor 0) of any size.

    A descriptor without its valid bit but not zero (a page whose mapping was taken away) is a leaf with valid
    False.
    """

    virt: int
    size: int
    level: int
    descriptor: int

    @property
    def valid(self) -> bool:
        """True if the MMU finds memory here."""
        return bool(self.descriptor & VALID)

    @property
    def contiguous(self) -> bool:
        """The contiguous bit."""
        return bool(self.descriptor & CONT)


@shown("root_phys", "fmt")
class TableReader:
    """Tables that somebody built, from the root at root_phys on.

    Virtual addresses may have their upper bits set (TTBR1) or clear (TTBR0): only the low va_bits count.
    """

    def __init__(self, ram: Ram, fmt: TableFormat, root_phys: int) -> None:
        self.ram = ram
        self.fmt = fmt
        self.root_phys = root_phys

    def _entries(self, phys: int, count: int) -> array[int]:
        """`count` descriptors from physical address `phys`."""
        entries = array("Q")
        entries.frombytes(self.ram.view(phys, count * ENTRY_SIZE))
        return entries

    def walk(self, virt: int) -> Walk:
        """Translate virt as the MMU does, from the root; permissions and the access flag play no part."""
        fmt = self.fmt
        table = self.root_phys
        steps: list[tuple[int, int, int]] = []
        for level in range(fmt.start_level, 4):
            entry_phys = table + ENTRY_SIZE * fmt.index(virt, level)
            descriptor = self.ram.read_u64(entry_phys)
            steps.append((level, entry_phys, descriptor))
            if fmt.is_leaf(descriptor, level):
                offset = virt & (fmt.entry_size(level) - 1)
                return Walk(tuple(steps), fmt.address(descriptor, level) | offset)
            if not fmt.is_table(descriptor, level):
                break
            table = fmt.table_address(descriptor)
        return Walk(tuple(steps), None)

    def leaves(self, start_virt: int, end_virt: int) -> Iterator[Leaf]:
        """All leaves and holes that touch [start_virt, end_virt), in order, each with its whole extent.

        Adjacent empty entries of one table make one hole. Addresses keep start_virt's upper bits.
        """
        if end_virt > start_virt:
            mask = (1 << self.fmt.va_bits) - 1
            last = end_virt - 1
            yield from self._leaves(
                self.fmt.start_level, self.root_phys, start_virt & ~mask, start_virt & mask, last & mask
            )

    def _leaves(self, level: int, table: int, base: int, first: int, last: int) -> Iterator[Leaf]:
        """The leaves of one table; first and last are the first and last address wanted below base."""
        fmt = self.fmt
        size = fmt.entry_size(level)
        low, high = fmt.index(first, level), fmt.index(last, level)
        start = (first & -size) + base
        hole = 0
        for number, descriptor in enumerate(self._entries(table + ENTRY_SIZE * low, high - low + 1)):
            virt = start + number * size
            if descriptor == 0:
                hole += size
                continue
            if hole:
                yield Leaf(virt - hole, hole, level, 0)
                hole = 0
            if fmt.is_table(descriptor, level):
                here = virt - base
                below = max(first, here), min(last, here + size - 1)
                yield from self._leaves(level + 1, fmt.table_address(descriptor), base, *below)
            else:
                yield Leaf(virt, size, level, descriptor)
        if hole:
            yield Leaf(start + (high - low + 1) * size - hole, hole, level, 0)
