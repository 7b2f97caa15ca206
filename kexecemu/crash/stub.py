"""The capture stub's own account of its run (fixtures/capture/capture.h)."""

import enum
import struct
from dataclasses import dataclass

from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CaptureRecord", "CaptureState", "Violation", "read_record"]

_OFFSET = 0x40
_MAGIC = b"CAPTURE1"
_RECORD = struct.Struct("<8sII4Q3QQQQQQ4QIIQ")


class CaptureState(enum.IntEnum):
    """enum capture_state: the last step that was reached."""

    NOT_RUN = 0
    ENTERED = 1
    CONTRACT_VIOLATED = 2
    NO_DUMP = 3
    DONE = 4
    TRAPPED = 5


class Violation(enum.IntFlag):
    """enum capture_violation: what of the boot protocol was not kept."""

    X0_UNALIGNED = 1
    X0_NO_DTB = 2
    X1_X3_NONZERO = 4
    MMU_ON = 8
    DAIF_UNMASKED = 16
    BAD_EL = 32
    MISPLACED = 64


@shown()
@dataclass(frozen=True)
class CaptureRecord:
    """struct capture_record: addresses are physical, sizes in bytes, usable as in linux,usable-memory-range."""

    state: CaptureState
    violations: Violation
    x: tuple[int, int, int, int]
    current_el: int
    daif: int
    sctlr: int
    dtb_phys: int
    elfcorehdr: PhysRange
    initrd: tuple[int, int]
    usable: tuple[tuple[int, int], tuple[int, int]]
    notes: int
    loads: int
    vmcore_bytes: int

    @staticmethod
    def magic_in(image: bytes | bytearray) -> bool:
        """True for an Image that carries the record, and so is the stub."""
        return bytes(image[_OFFSET : _OFFSET + 8]) == _MAGIC


def read_record(ram: Ram, kernel_phys: int) -> CaptureRecord | None:
    """The record of a stub that is loaded at kernel_phys; None when there is none, or nothing that can be one."""
    raw = ram.read(kernel_phys + _OFFSET, _RECORD.size)
    magic, state, violations, x0, x1, x2, x3, *values = _RECORD.unpack(raw)
    if magic != _MAGIC or state not in iter(CaptureState):
        return None
    el, daif, sctlr, dtb, core, core_size, start, end, *usable, notes, loads, size = values
    found, pairs = PhysRange.of(core, core_size), ((usable[0], usable[1]), (usable[2], usable[3]))
    cpu = CaptureState(state), Violation(violations), (x0, x1, x2, x3), el, daif, sctlr
    return CaptureRecord(*cpu, dtb, found, (start, end), pairs, notes, loads, size)
