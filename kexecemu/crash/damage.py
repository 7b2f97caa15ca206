"""Where memory differs from what was loaded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kexecemu.crash.verdict import VerdictFlags, read_verdict
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["Damage", "differing", "find_damage", "written_by_early_check"]

_CHUNK = 4096  # bytes that are compared at a time: nearly all of an image is as loaded


@shown()
@dataclass(frozen=True)
class Damage:
    """A run of bytes of a segment that are not as loaded: offset from the segment's start and length, in bytes."""

    segment: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.segment}+{self.offset:#x}, {self.length} byte{'s' if self.length != 1 else ''}"


def find_damage(ram: Ram, image: Kimage, *, purgatory: bool, own: Sequence[PhysRange] = ()) -> list[Damage]:
    """Compare the loaded segments with memory, in kimage order.

    The purgatory's own segment (purgatory=True) is comparable only until it runs: it writes to itself. What it writes
    elsewhere, its verdict in the device tree, is no damage, and neither are changes in the physical ranges `own`.
    """
    found: list[Damage] = []
    record = [image.verdict_record] if image.verdict_record is not None else []
    for one in image.segments:
        if (one.name == "purgatory") == purgatory:
            loaded = one.content()
            memory = _except(ram.read(one.mem, one.memsz), loaded, one, [*own, *record])
            found += [Damage(one.name, start, end - start) for start, end in differing(memory, loaded)]
    return found


def written_by_early_check(ram: Ram, purgatory: LoadedPurgatory) -> list[PhysRange]:
    """What of the purgatory an early check of the old kernel has written (physical ranges); [] when there was none."""
    verdict = read_verdict(ram, purgatory)
    if verdict is None or VerdictFlags.EARLY not in verdict.flags:
        return []
    return purgatory.scratch()


def _except(memory: bytes, loaded: bytes, segment: Segment, own: Sequence[PhysRange]) -> bytes:
    """`memory` as if nothing had been written to the ranges."""
    for area in own:
        start, end = max(area.start - segment.mem, 0), min(area.end - segment.mem, len(memory))
        if start < end:
            memory = memory[:start] + loaded[start:end] + memory[end:]
    return memory


def differing(left: bytes, right: bytes) -> list[tuple[int, int]]:
    """The stretches of offsets, [start, end), at which two equally long pieces of memory are not the same."""
    found: list[tuple[int, int]] = []
    for at in range(0, len(left), _CHUNK):
        one, other = left[at : at + _CHUNK], right[at : at + _CHUNK]
        if one != other:
            mixed = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
            for run in re.finditer(rb"[^\0]+", mixed.to_bytes(len(one), "little")):
                start, end = at + run.start(), at + run.end()
                if found and found[-1][1] == start:
                    start = found.pop()[0]
                found.append((start, end))
    return found
