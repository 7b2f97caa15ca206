"""A device as a CPU sees it: registers in a page of physical addresses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown

__all__ = ["AbsentDevice", "MmioDevice"]


class MmioDevice(Protocol):
    """Registers in a page of physical address space; offsets in bytes from phys.start, size 1 to 8 bytes."""

    @property
    def phys(self) -> PhysRange:
        """Where the device is: whole pages of 4 KiB, not in RAM."""

    def read(self, offset: int, size: int) -> int:
        """A load from the device."""

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the device."""


@shown("phys")
class AbsentDevice:
    """Physical addresses at which nothing answers, yet an access does not fault.

    Loads read the same bytes, whatever was stored. A guest that was told nothing of the device never comes
    here; one that looks by itself at the places of a virt machine finds nothing it would recognise.
    """

    def __init__(self, phys: PhysRange, value: int = 0, words: Mapping[int, int] | None = None) -> None:
        """value is one byte, which every byte of the range reads as; ValueError if it is none.

        words are registers of 32 bits that read as something else, by physical address.
        """
        if not 0 <= value <= 0xFF:
            raise ValueError(f"not a byte: {value:#x}")
        self.phys = phys
        self._byte = value
        self._words = words or {}

    def outside_of(self, taken: Iterable[PhysRange]) -> list[AbsentDevice]:
        """What is left of it between others."""
        return [AbsentDevice(left, self._byte, self._words) for left in subtract([self.phys], taken)]

    def read(self, offset: int, size: int) -> int:
        """A load of size bytes: a register of its own, or the constant in each of them."""
        if (word := self._words.get(self.phys.start + offset)) is not None:
            return word & (1 << 8 * size) - 1
        return int.from_bytes(bytes((self._byte,)) * size, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A store, which changes nothing."""
