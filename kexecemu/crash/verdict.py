"""What a purgatory found, read from the record that it leaves in memory (purgatory/purgatory.h)."""

import enum
import struct
from dataclasses import dataclass

from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["Damaged", "Verdict", "VerdictFlags", "VerdictState", "describe_damage", "read_verdict"]

_MAGIC = b"PURGVRDT"
# Version 1 ends behind found[].
_FIRST = struct.Struct("<8sIIQ32s32s")
_SECOND = struct.Struct("<IIQQQQII")
_RANGE = struct.Struct("<QQ")
_DAMAGE_MAX = 16
_SIZES = {1: _FIRST.size, 2: _FIRST.size + _SECOND.size + _DAMAGE_MAX * _RANGE.size}
_REGIONS = 16


class VerdictState(enum.IntEnum):
    """enum purgatory_state: how far the check has come."""

    NOT_RUN = 0
    CHECKING = 1
    MATCH = 2
    MISMATCH = 3
    TRAPPED = 4


class VerdictFlags(enum.IntFlag):
    """How the check was done, and by whom."""

    MMU_ON = 1
    CRYPTO = 1 << 1
    SELF_CHECKED = 1 << 2
    AT_EL2 = 1 << 3
    REPAIRED = 1 << 4
    EARLY = 1 << 5


_NO_FLAGS = VerdictFlags(0)


class Damaged(enum.IntFlag):
    """What is damaged besides the regions, whose bits are 0 to 15."""

    PURGATORY = 1 << 16
    DTB_POINTER = 1 << 17


@shown()
@dataclass(frozen=True)
class Verdict:
    """struct purgatory_verdict: bytes hashed so far, the digest the loader stored and the one that was computed.

    What follows these is of version 2, and 0 or empty in version 1. damaged has a bit for each region by its number,
    and the bits of Damaged; damage are the first damaged physical ranges, in kimage order. damaged_pages is 0 without a
    table of page digests. esr, elr and far mean something in state TRAPPED.
    """

    state: VerdictState
    bytes_hashed: int
    expected: bytes
    found: bytes
    flags: VerdictFlags = _NO_FLAGS
    damaged: int = 0
    damaged_pages: int = 0
    esr: int = 0
    elr: int = 0
    far: int = 0
    damage: tuple[PhysRange, ...] = ()
    version: int = 1

    @property
    def damaged_regions(self) -> list[int]:
        """The numbers of the hashed regions that are damaged, as far as the purgatory could tell."""
        return [number for number in range(_REGIONS) if self.damaged >> number & 1]

    @property
    def compared(self) -> bool:
        """Both digests are there: the purgatory got as far as comparing the regions with what was stored."""
        early = self.damaged & (Damaged.PURGATORY | Damaged.DTB_POINTER)
        return self.state in (VerdictState.MATCH, VerdictState.MISMATCH) and not early

    @property
    def objects(self) -> bool:
        """Something is wrong, whatever was done about it: digests that differ, or an exception in the check."""
        wrong = self.state in (VerdictState.MISMATCH, VerdictState.TRAPPED)
        return wrong or VerdictFlags.REPAIRED in self.flags


def read_verdict(ram: Ram, purgatory: LoadedPurgatory) -> Verdict | None:
    """The record in guest memory; None when this purgatory has none, or when the record itself was damaged."""
    size = purgatory.symbol_size("purgatory_verdict")
    if size < _FIRST.size:
        return None
    raw = ram.read(purgatory.symbol_phys("purgatory_verdict"), size)
    magic, version, state, hashed, expected, found = _FIRST.unpack_from(raw)
    # The size is that of the object in the file, so that a damaged version is not believed.
    if magic != _MAGIC or _SIZES.get(version) != size or state not in iter(VerdictState):
        return None
    first = VerdictState(state), hashed, expected, found
    if version == 1:
        return Verdict(*first)
    flags, damaged, pages, esr, elr, far, ranges, _ = _SECOND.unpack_from(raw, _FIRST.size)
    pairs = _RANGE.iter_unpack(raw[_FIRST.size + _SECOND.size :])
    damage = tuple(PhysRange.of(start, length) for start, length in list(pairs)[:ranges])
    return Verdict(*first, VerdictFlags(flags), damaged, pages, esr, elr, far, damage, version)


def describe_damage(verdict: Verdict, image: Kimage) -> str | None:
    """What the purgatory says is damaged, by the segments' names; None when it names nothing.

    For example "initrd, 1 page", or "kernel and initrd" without a table of page digests.
    """
    names = []
    for number in verdict.damaged_regions:
        # The record is guest memory: it may name a region that was never loaded.
        known = number < len(image.sha_regions)
        segment = image.segment_at(image.sha_regions[number].start) if known else None
        names.append(segment.name if segment is not None else f"region {number}")
    if verdict.damaged & Damaged.PURGATORY:
        names.append("the purgatory itself")
    if verdict.damaged & Damaged.DTB_POINTER:
        names.append("x0 (not the device tree's address)")
    if not names:
        return None
    text = " and ".join(names)
    if verdict.damaged_pages:
        text += f", {verdict.damaged_pages} page{'s' if verdict.damaged_pages != 1 else ''}"
    return text
