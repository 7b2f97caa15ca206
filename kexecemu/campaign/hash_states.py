"""Whether a change to hashed memory changes the state of SHA-256 behind it: the answer to most faults of a campaign.

The purgatory's digest is SHA-256 over the regions, one after the other. Two inputs that differ in a few bytes and
whose hash state is different behind those have different digests at the end, unless SHA-256 collides: what follows is
equal. The state behind any point is known from checkpoints of the undamaged input, so a look costs one rung of hashing
and not all of it. The library's digest of everything up to a point stands for the state there.
"""

import bisect
import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["RUNG", "HashStates"]

RUNG: Final = 1024
"""Bytes between two checkpoints."""


@shown("input")
class HashStates:
    """The hash of a sequence of physical regions with known contents."""

    def __init__(self, regions: Sequence[PhysRange], contents: Sequence[bytes]) -> None:
        self.input = b"".join(contents)
        offsets = accumulate((region.size for region in regions), initial=0)
        self._places = sorted(zip(regions, offsets, strict=False))  # with where each begins in the input
        running = hashlib.sha256()
        self._rungs = [running.copy()]
        for start in range(0, len(self.input), RUNG):
            running.update(self.input[start : start + RUNG])
            self._rungs.append(running.copy())
        self._ends: dict[int, bytes] = {}

    @property
    def digest(self) -> bytes:
        """SHA-256 of everything, undamaged."""
        return self._rungs[-1].digest()

    def place(self, phys: int) -> int | None:
        """Where a physical byte is in the input; None if it is not hashed."""
        index = bisect.bisect_right(self._places, phys, key=lambda place: place[0].start) - 1
        if index < 0:
            return None
        region, offset = self._places[index]
        return offset + phys - region.start if phys in region else None

    def place_of(self, area: PhysRange) -> int | None:
        """Where a physical area begins in the input; None if it is not hashed throughout and in one piece."""
        start, last = self.place(area.start), self.place(area.last)
        return start if start is not None and last == start + area.size - 1 else None

    def differs(self, start: int, data: bytes) -> bool:
        """True if the state behind the rungs that hold [start, start + len(data)) is another one with `data` there."""
        first, last = start // RUNG, (start + len(data) - 1) // RUNG
        begin, end = first * RUNG, min((last + 1) * RUNG, len(self.input))
        state = self._rungs[first].copy()
        state.update(self.input[begin:start] + data + self.input[start + len(data) : end])
        expected = self._ends.get(last)
        if expected is None:
            expected = self._ends[last] = self._rungs[last + 1].digest()
        return state.digest() != expected
