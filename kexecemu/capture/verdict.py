"""What a purgatory found, read from the record that it leaves in memory (purgatory/purgatory.h)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from kexecemu.kernel.purgatory import LoadedPurgatory
from kexecemu.machine.ram import Ram

__all__ = ["Verdict", "VerdictState", "read_verdict"]

_MAGIC = b"PURGVRDT"
_RECORD = struct.Struct("<8sIIQ32s32s")


class VerdictState(enum.IntEnum):
    """enum purgatory_state: how far the check has come."""

    NOT_RUN = 0
    CHECKING = 1
    MATCH = 2
    MISMATCH = 3


@dataclass(frozen=True)
class Verdict:
    """struct purgatory_verdict: bytes hashed so far, the digest the loader stored and the one that was computed."""

    state: VerdictState
    bytes_hashed: int
    expected: bytes
    found: bytes


def read_verdict(ram: Ram, purgatory: LoadedPurgatory) -> Verdict | None:
    """The record in guest memory; None when this purgatory has none, or when the record itself was damaged."""
    if not purgatory.has_symbol("purgatory_verdict"):
        return None
    raw = ram.read(purgatory.symbol_phys("purgatory_verdict"), _RECORD.size)
    magic, version, state, hashed, expected, found = _RECORD.unpack(raw)
    if magic != _MAGIC or version != 1 or state not in iter(VerdictState):
        return None
    return Verdict(VerdictState(state), hashed, expected, found)
