"""A bus master beside the CPUs: a device that writes RAM behind the MMU's back."""

from __future__ import annotations

from kexecemu.machine.memory.ram import Ram
from kexecemu.shown import shown

__all__ = ["DmaMaster"]


@shown()
class DmaMaster:
    """A device with direct memory access and no IOMMU in front of it.

    Page tables and permissions do not exist for it, which is the point: no protection that lives in the CPU's
    page tables can stop what it writes.
    """

    def __init__(self, ram: Ram) -> None:
        self._ram = ram

    def write(self, phys: int, data: bytes) -> None:
        """Store `data` at physical address `phys`; BusError when any byte of it is outside RAM."""
        self._ram.write(phys, data)

    def read(self, phys: int, length: int) -> bytes:
        """`length` bytes from physical address `phys`; BusError when any byte of it is outside RAM."""
        return self._ram.read(phys, length)
