"""A device as a CPU sees it: registers in a page of physical addresses."""

from __future__ import annotations

from typing import Protocol

from kexecemu.machine.ranges import PhysRange

__all__ = ["MmioDevice"]


class MmioDevice(Protocol):
    """Registers in a page of physical address space; offsets in bytes from phys.start, size 1 to 8 bytes."""

    @property
    def phys(self) -> PhysRange:
        """Where the device is: whole pages of 4 KiB, not in RAM."""

    def read(self, offset: int, size: int) -> int:
        """A load from the device."""

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the device."""
