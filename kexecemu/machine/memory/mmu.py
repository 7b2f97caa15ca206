"""Builds, edits and walks stage 1 page tables in guest RAM: the very bytes that the emulated MMU walks.

map() makes the choices of Linux's __create_pgd_mapping() (arch/arm64/mm/mmu.c): from the top level down, a
block where virtual address, physical address and what is left all allow it, and the contiguous bit on whole
aligned runs. Nothing here knows what is mapped, and nothing invalidates a TLB: that is the caller's business,
as in a kernel.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from kexecemu.errors import MachineError
from kexecemu.machine.memory.descriptors import CONT, ENTRY_SIZE, VALID, TableFormat
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.memory.walk import TableReader, Walk
from kexecemu.shown import shown

__all__ = ["PageTables"]


@shown("root_phys", "tables", "entries_written")
class PageTables(TableReader):
    """One set of tables in `ram`: a root at root_phys, further tables from alloc().

    alloc() returns the physical address of a fresh, zeroed table of one granule. Virtual addresses may have
    their upper bits set (TTBR1) or clear (TTBR0): only the low va_bits count.
    """

    def __init__(self, ram: Ram, fmt: TableFormat, root_phys: int, alloc: Callable[[], int]) -> None:
        """Use the root table at root_phys as it is; the caller has zeroed it, or it is live already."""
        super().__init__(ram, fmt, root_phys)
        self.tables: list[int] = []
        """Physical addresses of the tables that alloc() gave, in order; the root is not among them."""
        self.entries_written = 0
        """Descriptors written so far by map(), update() and split(), tables and leaves alike."""
        self._alloc = alloc

    def map(
        self, virt: int, phys: int, size: int, attributes: int, *, blocks: bool, contiguous: bool
    ) -> None:
        """Map [virt, virt + size) to phys on, as __create_pgd_mapping() does; all in bytes, whole pages.

        attributes are a leaf's attribute bits without type and valid bits. blocks allows leaves above level
        3, contiguous the contiguous bit (at levels 2 and 3, as in Linux). A live leaf may be written again
        with other attributes; MachineError when that would change its address, its size, or a table: the
        architecture wants a break before such a make.
        """
        page = self.fmt.granule.size
        if virt % page or phys % page or size % page or size <= 0:
            raise MachineError(
                f"cannot map {size:#x} bytes at {virt:#x} to {phys:#x}: not whole pages of {page:#x}"
            )
        start = virt & ((1 << self.fmt.va_bits) - 1)
        if start + size > 1 << self.fmt.va_bits:
            raise MachineError(f"cannot map {size:#x} bytes at {virt:#x}: past {self.fmt.va_bits} bits")
        self._map(self.fmt.start_level, self.root_phys, start, phys, size, attributes, blocks, contiguous)

    def _map(
        self,
        level: int,
        table: int,
        virt: int,
        phys: int,
        size: int,
        attributes: int,
        blocks: bool,
        cont: bool,
    ) -> None:
        """Map a stretch that lies inside the one table at `level`."""
        fmt = self.fmt
        entry_size = fmt.entry_size(level)
        if level == 3:
            self._write_leaves(level, table, virt, phys, size, attributes, cont)
            return
        end = virt + size
        while virt < end:
            next_virt = min(end, (virt & -entry_size) + entry_size)
            if blocks and fmt.may_hold_leaf(level) and not (virt | phys | next_virt) & (entry_size - 1):
                # All whole entries up to the end at once; the alignment of phys holds for every one of them.
                stretch = (end & -entry_size) - virt
                self._write_leaves(level, table, virt, phys, stretch, attributes, cont and level > 1)
                next_virt = virt + stretch
            else:
                below = self._next_table(level, table, virt)
                self._map(level + 1, below, virt, phys, next_virt - virt, attributes, blocks, cont)
            phys += next_virt - virt
            virt = next_virt

    def _next_table(self, level: int, table: int, virt: int) -> int:
        """The table below virt's entry at `level`, made and linked if there is none."""
        entry_phys = table + ENTRY_SIZE * self.fmt.index(virt, level)
        descriptor = self.ram.read_u64(entry_phys)
        if self.fmt.is_table(descriptor, level):
            return self.fmt.table_address(descriptor)
        if descriptor & VALID:
            raise MachineError(
                f"break before make: a table would replace the block at {virt:#x}, level {level}"
            )
        below = self._new_table()
        self.ram.write_u64(entry_phys, self.fmt.table(below))
        self.entries_written += 1
        return below

    def _new_table(self) -> int:
        phys = self._alloc()
        if phys % self.fmt.granule.size:
            raise MachineError(f"a page table at {phys:#x} is not aligned to {self.fmt.granule.size:#x}")
        self.tables.append(phys)
        return phys

    def _write_leaves(
        self, level: int, table: int, virt: int, phys: int, size: int, attributes: int, contiguous: bool
    ) -> None:
        """Write the leaves for a stretch of whole entries in one table, in one go."""
        fmt = self.fmt
        step = fmt.entry_size(level)
        run = fmt.contiguous_size(level) if contiguous else 0
        # Whole aligned runs in the middle get the contiguous bit, if virt and phys are aligned alike.
        head = tail = size
        if run and not (virt ^ phys) & (run - 1):
            head = min(size, -virt % run)
            tail = head + (size - head) // run * run
        # The address goes up, the attributes stay: a range() gives all descriptors of a piece.
        fresh = array("Q")
        for first, last, extra in ((0, head, 0), (head, tail, CONT), (tail, size, 0)):
            base = fmt.leaf(level, phys, attributes | extra)
            fresh.extend(range(base + first, base + last, step))
        where = table + ENTRY_SIZE * fmt.index(virt, level)
        self._check_overwrite(level, where, virt, fresh)
        self.ram.write(where, fresh.tobytes())
        self.entries_written += len(fresh)

    def _check_overwrite(self, level: int, where: int, virt: int, fresh: array[int]) -> None:
        """Refuse to change a live entry where that needs a break first, as pgattr_change_is_safe() does."""
        old = self._entries(where, len(fresh))
        if not any(old):
            return
        fmt = self.fmt
        for number, (before, after) in enumerate(zip(old, fresh, strict=True)):
            if not before & VALID:
                continue
            same = fmt.is_leaf(before, level) and fmt.address(before, level) == fmt.address(after, level)
            if not same or (before ^ after) & CONT:
                at = virt + number * fmt.entry_size(level)
                raise MachineError(
                    f"break before make: the live entry {before:#x} at {at:#x}, level {level}, "
                    f"would become {after:#x} without an invalid one in between"
                )

    def update(
        self, virt: int, size: int, set_bits: int = 0, clear_bits: int = 0, *, blocks: bool = False
    ) -> None:
        """Clear, then set bits in the leaves of [virt, virt + size), walked as by apply_to_page_range().

        With blocks they may be of any size, as update_range_prot() has it. A leaf whose valid bit was cleared before
        is still one. Raises MachineError, with nothing changed, on a hole and on a block that is not to be changed, or
        not as a whole: it must be split first. TLBs are not invalidated.
        """
        for entry_phys, count in list(self._leaf_entries(virt, size, blocks)):
            entries = self._entries(entry_phys, count)
            changed = array("Q", [entry & ~clear_bits | set_bits for entry in entries])
            self.ram.write(entry_phys, changed.tobytes())
            self.entries_written += count

    def _leaf_entries(self, virt: int, size: int, blocks: bool) -> Iterator[tuple[int, int]]:
        """(physical address, count) of the leaves for a range: a block, or pages of one table after the other."""
        fmt = self.fmt
        page, table_span = fmt.granule.size, fmt.entry_size(2)
        if virt % page or size % page or size <= 0:
            raise MachineError(f"cannot update {size:#x} bytes at {virt:#x}: not whole pages of {page:#x}")
        end = virt + size
        while virt < end:
            walk = self.walk(virt)
            if walk.level != 3:
                block = fmt.entry_size(walk.level)
                if not walk.descriptor:
                    raise MachineError(f"{virt:#x} has no mapping (level {walk.level})")
                if not blocks or virt % block or virt + block > end:
                    what = "has a block mapping" if not blocks else "is inside of a block"
                    raise MachineError(
                        f"{virt:#x} {what} (level {walk.level}): only whole leaves are changed"
                    )
                yield walk.entry_phys, 1
                virt += block
                continue
            count = (min(end, (virt & -table_span) + table_span) - virt) // page
            entries = self._entries(walk.entry_phys, count)
            if 0 in entries:
                raise MachineError(f"{virt + entries.index(0) * page:#x} is not mapped (level 3)")
            yield walk.entry_phys, count
            virt += count * page

    def split(self, virt: int) -> None:
        """split_kernel_leaf_mapping_locked(): let a leaf, and a contiguous run, begin at virt (a whole page).

        A block that virt is inside of becomes leaves of the next size down in contiguous runs, and a run that it is
        inside of is dissolved; nothing else changes. A new table is filled before it is linked, so that at no time is
        there nothing; whether a CPU may see the change without a break is FEAT_BBM's affair. In a hole there is nothing
        to split. TLBs are not invalidated.
        """
        while True:
            walk = self.walk(virt)
            if walk.phys is None or not virt % self.fmt.contiguous_size(walk.level):
                return
            self._dissolve_run(walk)
            if not virt % self.fmt.entry_size(walk.level):
                return
            self._split_block(walk)

    def _dissolve_run(self, walk: Walk) -> None:
        """Take the contiguous bit off all entries of the run that the walk ended in: they must agree."""
        if not walk.descriptor & CONT:
            return
        count = self.fmt.contiguous_entries(walk.level)
        first = walk.entry_phys & -(count * ENTRY_SIZE)
        entries = array("Q", [entry & ~CONT for entry in self._entries(first, count)])
        self.ram.write(first, entries.tobytes())
        self.entries_written += count

    def _split_block(self, walk: Walk) -> None:
        """Replace one block by a table of contiguous leaves one level down that say the same."""
        fmt, level = self.fmt, walk.level
        phys = fmt.address(walk.descriptor, level)
        attributes = fmt.attributes(walk.descriptor, level) | CONT
        below = self._new_table()
        base = fmt.leaf(level + 1, phys, attributes)
        leaves = array("Q", range(base, base + fmt.entry_size(level), fmt.entry_size(level + 1)))
        self.ram.write(below, leaves.tobytes())
        self.ram.write_u64(walk.entry_phys, fmt.table(below))
        self.entries_written += len(leaves) + 1
