"""What a stretch of guest code touched of a region of memory, and when: from one run with every access hooked.

Hooks see loads, stores and the start of each block. They do not see what the MMU reads of page tables, so nothing may
be concluded about memory that holds page tables in use.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag
from typing import Final

from unicorn.unicorn_const import UC_HOOK_BLOCK, UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE, UC_MEM_WRITE
from unicorn.unicorn_py3.unicorn import Uc

from kexecemu.machine.cpu.counter import BlockCounter
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["GRAIN", "LINE", "Accesses", "First", "recorded"]

GRAIN: Final = 8
"""Bytes that are told apart."""
LINE: Final = 64
"""Bytes for which the time of reads is kept."""


class First(IntFlag):
    """What happened to a grain of memory."""

    NOTHING = 0
    READ = 1  # loaded, or run as code
    WRITTEN_FIRST = 2  # wholly stored to before anything else


class Touched(ctypes.Structure):
    """struct touched of blockcount.c, field by field."""

    _fields_ = (
        ("start", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("grains", ctypes.c_void_p),
        ("first_reads", ctypes.c_void_p),
        ("last_reads", ctypes.c_void_p),
        ("bc", ctypes.c_void_p),
    )


@shown("region")
class Accesses:
    """All accesses to one physical region; the code must run with virtual addresses equal to physical ones."""

    def __init__(self, region: PhysRange) -> None:
        self.region = region
        self._grains = (ctypes.c_uint8 * -(-region.size // GRAIN))()
        lines = -(-region.size // LINE)
        # 1 + instructions of the CPU, 0 for never.
        self._first_reads = (ctypes.c_uint64 * lines)()
        self._last_reads = (ctypes.c_uint64 * lines)()

    def state(self, counter: BlockCounter) -> Touched:
        """For the native hooks; it points into this object and into the counter."""
        tables = [ctypes.addressof(one) for one in (self._grains, self._first_reads, self._last_reads)]
        return Touched(self.region.start, self.region.size, *tables, ctypes.addressof(counter.state))

    def _spans(self, area: PhysRange, unit: int) -> tuple[int, int]:
        start = max(area.start, self.region.start) - self.region.start
        end = min(area.end, self.region.end) - self.region.start
        return start // unit, -(-end // unit)

    # The hooks in Python. Keep them in step with blockcount.c.

    def note_read(self, phys: int, size: int, when: int) -> None:
        """A load, or code that runs."""
        area = PhysRange.of(phys, size)
        for grain in range(*self._spans(area, GRAIN)):
            if not self._grains[grain]:
                self._grains[grain] = First.READ
        for line in range(*self._spans(area, LINE)):
            self._last_reads[line] = when + 1
            if not self._first_reads[line]:
                self._first_reads[line] = when + 1

    def note_write(self, phys: int, size: int) -> None:
        """A store."""
        start = phys - self.region.start
        for grain in range(*self._spans(PhysRange.of(phys, size), GRAIN)):
            if not self._grains[grain]:
                # What is stored to in part is kept in part, and may be read in whole.
                whole = start <= grain * GRAIN and (grain + 1) * GRAIN <= start + size
                self._grains[grain] = First.WRITTEN_FIRST if whole else First.READ

    # What is asked.

    def of(self, area: PhysRange) -> First:
        """Everything that happened to an area, put together."""
        start, end = self._spans(area, GRAIN)
        seen = 0
        for grain in self._grains[start:end]:
            seen |= grain
        return First(seen)

    def untouched(self, area: PhysRange) -> bool:
        """Nothing read or wrote it."""
        start, end = self._spans(area, GRAIN)
        return not any(self._grains[start:end])

    def touched(self) -> list[PhysRange]:
        """What was touched at all, in order, in whole grains."""
        start = self.region.start
        runs = (run.span() for run in re.finditer(rb"[^\0]+", bytes(self._grains)))
        return [PhysRange(start + begin * GRAIN, start + end * GRAIN) for begin, end in runs]

    def first_read(self, area: PhysRange) -> int:
        """When the first byte of an area was first read, in instructions of the CPU; -1 if none ever was."""
        start, end = self._spans(area, LINE)
        return min((when for when in self._first_reads[start:end] if when), default=0) - 1

    def last_read(self, area: PhysRange) -> int:
        """When any byte of an area was last read, in instructions of the CPU; -1 if never."""
        start, end = self._spans(area, LINE)
        return max(self._last_reads[start:end]) - 1


@contextmanager
def recorded(cpu: Cpu, region: PhysRange) -> Iterator[Accesses]:
    """Record what a CPU does to a region of physical memory; slow, and without effect on what it does."""
    accesses = Accesses(region)
    counter = cpu.counter
    memory = UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE
    if counter.library is not None:
        touched = accesses.state(counter)
        hooks = [
            counter.hook(memory, counter.library.touched_memory, within=region, data=touched),
            counter.hook(UC_HOOK_BLOCK, counter.library.touched_block, data=touched),
        ]
    else:

        def on_memory(uc: Uc, kind: int, phys: int, size: int, value: int, _: object) -> None:
            if kind == UC_MEM_WRITE:
                accesses.note_write(phys, size)
            else:
                accesses.note_read(phys, size, counter.total)

        def on_block(uc: Uc, virt: int, size: int, _: object) -> None:
            if PhysRange.of(virt, size).overlaps(region):
                accesses.note_read(virt, size, counter.total)

        hooks = [
            cpu.uc.hook_add(memory, on_memory, begin=region.start, end=region.last),
            cpu.uc.hook_add(UC_HOOK_BLOCK, on_block),
        ]
    cpu.flush_code()  # code that is translated already asks no hook
    try:
        yield accesses
    finally:
        for hook in hooks:
            counter.unhook_one(hook)
        cpu.flush_code()
