"""Ranges of physical addresses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kexecemu.shown import shown

__all__ = ["PhysRange", "exact_size", "subtract"]


@shown()
@dataclass(frozen=True, order=True, slots=True)
class PhysRange:
    """A half-open range [start, end) of physical addresses, in bytes.

    The kernel's struct resource has an inclusive end; that is `last` here.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"not a range: {self.start:#x}..{self.end:#x}")

    @classmethod
    def of(cls, start: int, size: int) -> PhysRange:
        """The range of `size` bytes from `start`."""
        return cls(start, start + size)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start

    @property
    def last(self) -> int:
        """The last address inside (an inclusive end, as in struct resource); meaningless for an empty range."""
        return self.end - 1

    def __contains__(self, phys: object) -> bool:
        return isinstance(phys, int) and self.start <= phys < self.end

    def overlaps(self, other: PhysRange) -> bool:
        """True if the two ranges share at least one byte."""
        return self.start < other.end and other.start < self.end

    def covers(self, other: PhysRange) -> bool:
        """True if every byte of `other` is inside this range."""
        return self.start <= other.start and other.end <= self.end

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.last:#x}" if self.size else f"{self.start:#x} (empty)"


def exact_size(size: int) -> str:
    """A size in the largest unit of which it is a whole number: "1 GiB", "1536 MiB", "33336 KiB", "1 byte"."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} byte{'s' if size != 1 else ''}"


def subtract(ranges: Iterable[PhysRange], holes: Iterable[PhysRange]) -> list[PhysRange]:
    """`ranges` without every byte of `holes`, sorted; ranges must not overlap each other."""
    left = sorted(ranges)
    for hole in holes:
        cut: list[PhysRange] = []
        for piece in left:
            if not piece.overlaps(hole):
                cut.append(piece)
                continue
            if piece.start < hole.start:
                cut.append(PhysRange(piece.start, hole.start))
            if hole.end < piece.end:
                cut.append(PhysRange(hole.end, piece.end))
        left = cut
    return left
