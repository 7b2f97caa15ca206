"""Where memory differs from what was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kexecemu.kernel.kimage import Kimage, Segment
from kexecemu.machine.ram import Ram

__all__ = ["Damage", "find_damage"]

_CHUNK = 4096


@dataclass(frozen=True)
class Damage:
    """A run of bytes of a segment that are not as loaded: offset from the segment's start and length, in bytes."""

    segment: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.segment}+{self.offset:#x}, {self.length} byte{'s' if self.length != 1 else ''}"


def find_damage(ram: Ram, image: Kimage, *, purgatory: bool) -> list[Damage]:
    """Compare the loaded segments with memory, in kimage order.

    The purgatory's own segment (purgatory=True) is comparable only until it runs: it writes to itself.
    """
    found: list[Damage] = []
    for segment in image.segments:
        if (segment.name == "purgatory") == purgatory:
            found += _compare(ram, segment)
    return found


def _compare(ram: Ram, segment: Segment) -> Iterator[Damage]:
    memory = ram.read(segment.mem, segment.memsz)
    loaded = segment.content()
    if memory == loaded:
        return
    start: int | None = None
    for at in range(0, segment.memsz, _CHUNK):
        now, then = memory[at : at + _CHUNK], loaded[at : at + _CHUNK]
        if now == then:
            if start is not None:
                yield Damage(segment.name, start, at - start)
                start = None
            continue
        for index, (left, right) in enumerate(zip(now, then, strict=True)):
            if left != right and start is None:
                start = at + index
            elif left == right and start is not None:
                yield Damage(segment.name, start, at + index - start)
                start = None
    if start is not None:
        yield Damage(segment.name, start, segment.memsz - start)
