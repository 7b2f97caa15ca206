"""What a linear map costs: table pages, bytes, entries written, and leaves per size.

Twice, by ways that have nothing in common: `measure_linear_map` reads the tables in guest RAM, `CountedTables` reckons
from the ranges alone, in a time that does not depend on how much RAM there is. The reckoning is exact, not an estimate:
it is what the tables would have been, up to the last entry.

Only the linear map counts. The kernel image's own mapping and the identity map are elsewhere (paging.py),
and swapper_pg_dir itself, the root, is static in the image; a table page is any table below it. An entry is a
descriptor that is written, for a table or for a leaf. Turning the text alias read-only afterwards
(mark_linear_text_alias_ro) writes its leaves again and is not counted.

What the series of April 2023 saved, as `kexecemu linear-map --cmdline "crashkernel=256M rodata=on"` tells (table pages
below the root; 4K pages, DMA zones, the kernel that ships):

    RAM          before (6.1)   after (6.4)
    1G                    514             3
    4G                  2,053             3
    256G              131,329             3
    4T              2,101,256            10

With rodata=full, which is the default, it saved nothing: that alone asks for base pages, before and after.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kexecemu.errors import MachineError
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.memory.memblock import merge
from kexecemu.machine.memory.descriptors import CONT, ENTRY_SIZE, TableFormat
from kexecemu.machine.memory.walk import TableReader
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CountedTables", "LinearMapPrice", "measure_linear_map"]


@shown()
@dataclass(frozen=True)
class LinearMapPrice:
    """What a linear map takes.

    table_pages counts the tables below the root, table_bytes is their size; entries counts the descriptors in them
    and in the root. leaves says how many leaves there are of each size in bytes, contiguous how many of these have
    the contiguous bit; sizes of which there is none are not in there.
    """

    table_pages: int
    table_bytes: int
    entries: int
    leaves: Mapping[int, int]
    contiguous: Mapping[int, int]


class _Tally:
    """Tables and leaves, as they are found."""

    def __init__(self, fmt: TableFormat) -> None:
        self._fmt = fmt
        self.tables = 0
        self._leaves: Counter[int] = Counter()  # by level
        self._contiguous: Counter[int] = Counter()

    def add_leaves(self, level: int, count: int, contiguous: int) -> None:
        self._leaves[level] += count
        self._contiguous[level] += contiguous

    def price(self) -> LinearMapPrice:
        return LinearMapPrice(
            table_pages=self.tables,
            table_bytes=self.tables * self._fmt.granule.size,
            # Each table below the root is linked by one descriptor.
            entries=self.tables + self._leaves.total(),
            leaves=self._by_size(self._leaves),
            contiguous=self._by_size(self._contiguous),
        )

    def _by_size(self, counts: Counter[int]) -> dict[int, int]:
        return {self._fmt.entry_size(level): counts[level] for level in (3, 2, 1) if counts[level]}


def measure_linear_map(tables: TableReader, space: AddressSpace) -> LinearMapPrice:
    """The price of the linear map that is in guest RAM, by reading every descriptor of it.

    tables is swapper_pg_dir. Whatever is not zero counts: a page whose valid bit was cleared is still an entry.
    """
    fmt, ram = tables.fmt, tables.ram
    tally = _Tally(fmt)
    root = fmt.start_level
    first, last = fmt.index(space.page_offset, root), fmt.index(space.page_end - 1, root)
    todo = [(root, tables.root_phys + ENTRY_SIZE * first, last - first + 1)]
    while todo:
        level, phys, count = todo.pop()
        entries = array("Q")
        entries.frombytes(ram.view(phys, ENTRY_SIZE * count))
        present = [entry for entry in entries if entry]
        if level < 3:
            below = [entry for entry in present if fmt.is_table(entry, level)]
            todo += [(level + 1, fmt.table_address(entry), fmt.entries(level + 1)) for entry in below]
            tally.tables += len(below)
            present = [entry for entry in present if not fmt.is_table(entry, level)]
        tally.add_leaves(level, len(present), sum(entry & CONT for entry in present) // CONT)
    return tally.price()


@shown("price")
class CountedTables:
    """Takes what PageTables takes and writes nothing: it knows how many tables and entries there would be.

    alloc(count) is told of every table that would have been allocated, so that memblock can give up as many pages.
    What is mapped must not have been mapped before. Follows __create_pgd_mapping() and what is below it, but for
    whole ranges instead of entry by entry.
    """

    def __init__(self, fmt: TableFormat, alloc: Callable[[int], None]) -> None:
        self.fmt = fmt
        self._alloc = alloc
        self._tally = _Tally(fmt)
        # By level: runs of entries, by their numbers, that point to a table; sorted, none touching another.
        self._opened: dict[int, list[PhysRange]] = {}

    @property
    def price(self) -> LinearMapPrice:
        """Of everything that was mapped so far."""
        return self._tally.price()

    def map(
        self, virt: int, phys: int, size: int, attributes: int, *, blocks: bool, contiguous: bool
    ) -> None:
        """Count what PageTables.map() would write; attributes do not matter."""
        page = self.fmt.granule.size
        start = virt & ((1 << self.fmt.va_bits) - 1)
        if virt % page or phys % page or size % page or size <= 0 or start + size > 1 << self.fmt.va_bits:
            raise MachineError(f"cannot map {size:#x} bytes at {virt:#x} to {phys:#x}")
        before = self._tally.tables
        self._map(self.fmt.start_level, start, start + size, phys - start, blocks, contiguous)
        self._alloc(self._tally.tables - before)

    def _map(self, level: int, start: int, end: int, offset: int, blocks: bool, contiguous: bool) -> None:
        """Count [start, end) from the tables at `level` down; offset is what is added to virt to get phys."""
        size = self.fmt.entry_size(level)
        first, last = -(-start // size) * size, end // size * size
        # As in the kernel a block must be aligned in both address spaces, so the offset between them must be, too.
        whole = level == 3 or (blocks and self.fmt.may_hold_leaf(level) and not offset % size)
        if not whole or first >= last:
            self._open(level, start, end, offset, blocks, contiguous)
            return
        self._add_leaves(level, first, last, offset, contiguous and level > 1)
        self._open(level, start, first, offset, blocks, contiguous)
        self._open(level, last, end, offset, blocks, contiguous)

    def _open(self, level: int, start: int, end: int, offset: int, blocks: bool, contiguous: bool) -> None:
        """Count [start, end) in the tables below `level`, and those tables where they are new."""
        if start == end:
            return
        size = self.fmt.entry_size(level)
        before = self._opened.get(level, [])
        self._opened[level] = opened = merge([*before, PhysRange(start // size, -(-end // size))])
        self._tally.tables += sum(run.size for run in opened) - sum(run.size for run in before)
        self._map(level + 1, start, end, offset, blocks, contiguous)

    def _add_leaves(self, level: int, start: int, end: int, offset: int, contiguous: bool) -> None:
        """Count leaves for whole entries, and those in whole aligned runs."""
        size, run = self.fmt.entry_size(level), self.fmt.contiguous_size(level)
        in_runs = 0
        if contiguous and run > size and not offset % run:
            in_runs = max(0, end // run - -(-start // run)) * (run // size)
        self._tally.add_leaves(level, (end - start) // size, in_runs)
