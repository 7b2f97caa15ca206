"""Where a capture kernel's memory went: read from its own lines, and from which pages it has ever touched.

The lines are mm_init()'s, the CMA's, the bounce buffers' and show_mem()'s, as kernels from 6.1 to 7.3 print them.
"""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["Memory", "memory_of"]

_MEMORY = re.compile(
    r"Memory: (?P<available>\d+)K/(?P<total>\d+)K available \((?P<code>\d+)K kernel code, (?P<rwdata>\d+)K rwdata, "
    r"(?P<rodata>\d+)K rodata, (?P<init>\d+)K init, (?P<bss>\d+)K bss, (?P<reserved>\d+)K reserved"
)
_CMA = re.compile(r"cma: Reserved (\d+) (MiB|KiB) at (0x[0-9a-f]+)")
# Its end is no part of it.
_SWIOTLB = re.compile(r"software IO TLB: mapped \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]")
_INITRD = re.compile(r"Freeing initrd memory: (\d+)K")
_SLAB = re.compile(r"slab_reclaimable:(\d+) slab_unreclaimable:(\d+)")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}


@shown()
@dataclass(frozen=True)
class Memory:
    """One run's memory, in bytes; None where the kernel did not say so, or not come so far.

    unused is what was never touched, outside of cma: so much was free at the lowest. cma is what was set aside for
    DMA, of which cma_unused was never touched; what kernels allocate for themselves cannot lie there. kernel is code
    and data, total what the kernel manages, available what was free when its allocator came up. initrd is its archive,
    which is given back; slab is what its objects had when it ran out of memory.
    """

    unused: int
    total: int | None = None
    available: int | None = None
    kernel: int | None = None
    reserved: int | None = None
    cma: int = 0
    cma_unused: int = 0
    swiotlb: int = 0
    initrd: int | None = None
    slab: int | None = None

    @property
    def rest(self) -> int | None:
        """What is reserved and is not the kernel: the memory map, page tables, the initrd, CPUs' areas."""
        if self.reserved is None or self.kernel is None:
            return None
        return self.reserved - self.kernel if self.reserved > self.kernel else self.reserved


def memory_of(log: str, ram: Ram, areas: Iterable[PhysRange], page_size: int = 4096) -> Memory:
    """The account of a run by its log, and by its memory (areas of it, physical), in pages of the host.

    Of lines that a log has twice the last counts.
    """
    given = list(areas)
    cma = [area for area in map(_cma, _CMA.finditer(log)) if any(one.covers(area) for one in given)]
    unused = sum(_untouched(ram, area) for area in given)
    cma_unused = sum(_untouched(ram, area) for area in cma)
    found = {"unused": unused - cma_unused, "cma": sum(one.size for one in cma), "cma_unused": cma_unused}
    if said := _last(_MEMORY, log):
        sizes = {name: int(value) << 10 for name, value in said.groupdict().items()}
        found |= {name: sizes[name] for name in ("total", "available", "reserved")}
        found["kernel"] = sum(sizes[name] for name in ("code", "rwdata", "rodata", "init", "bss"))
    if said := _last(_SWIOTLB, log):
        found["swiotlb"] = max(int(said[2], 16) - int(said[1], 16), 0)
    if said := _last(_INITRD, log):
        found["initrd"] = int(said[1]) << 10
    if said := _last(_SLAB, log):
        found["slab"] = (int(said[1]) + int(said[2])) * page_size
    return Memory(**found)


def _last(pattern: re.Pattern[str], log: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(log), maxlen=1)), None)


def _cma(said: re.Match[str]) -> PhysRange:
    return PhysRange.of(int(said[3], 16), int(said[1]) * _UNITS[said[2]])


def _untouched(ram: Ram, area: PhysRange) -> int:
    return area.size - sum(one.size for one in ram.data_ranges(area))
