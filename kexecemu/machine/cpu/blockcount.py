"""The state of a block hook: struct blockcount of blockcount.c, its numbers, and where the compiled hooks lie."""

import ctypes
import os
import platform
from enum import IntEnum
from pathlib import Path

from kexecemu.shown import shown

__all__ = ["BlockCount", "BlockStop", "library_path", "load_library"]

FILTER_BITS = 4096
STALE_LINES = 64
LINE_MARKS = 1 << 18
STALE_SOME, STALE_ALL, DOOMED = 1, 2, 4
"""In stale: the lines and pages named; everything; what is left of the block leaves no trace, see Engine."""
CODE, TLB = 1, 2
"""In maintenance: of instruction caches, whereupon other CPUs must translate code anew; of the TLBs of all CPUs."""
LINE_SIZE = 64
"""Of the instruction cache, in bytes: what one IC IVAU is about (CTR_EL0.IminLine of a Cortex-A57)."""
INSTRUCTIONS_PER_TICK = 2
"""Of CNTPCT_EL0 and CNTVCT_EL0; CNTFRQ_EL0 says 62.5 MHz, so a CPU does 125 million instructions a second."""
TICKS_PER_SECOND = 62_500_000
"""What CNTFRQ_EL0 says."""
INSTRUCTIONS_PER_SECOND = TICKS_PER_SECOND * INSTRUCTIONS_PER_TICK
NO_DEADLINE = (1 << 64) - 1


class BlockStop(IntEnum):
    """What ended the engine's last run; `enum why` of blockcount.c."""

    NOTHING = 0
    STOP = 1
    LEFT = 2
    DEADLINE = 3
    MISALIGNED = 4
    INTERRUPT = 5
    IRQ = 6
    STALE = 7


def _each(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


@shown("total", "deadline", "block")
class BlockCount(ctypes.Structure):
    """struct blockcount of blockcount.c, field by field."""

    _fields_ = (
        *_each(ctypes.c_uint64, "total deadline block block_size within within_size"),
        ("stops", ctypes.c_void_p),
        ("nr_stops", ctypes.c_uint64),
        *_each(ctypes.c_void_p, "emu_stop reg_write"),
        ("elsewhere", ctypes.c_uint64),
        *_each(ctypes.c_uint32, "why interrupt first system irq maintenance"),
        *_each(ctypes.c_uint32, "stale nr_stale nr_stale_pages user_ran"),
        ("settled_page", ctypes.c_uint64),
        *_each(ctypes.c_uint64 * STALE_LINES, "stale_lines stale_pages"),
        ("marks", ctypes.c_void_p),
        *_each(ctypes.c_uint64, "entered exceptions"),
        *_each(ctypes.c_void_p, "reg_read reg_write_batch context_save context exception timer"),
        *_each(ctypes.c_uint64, "id_aa64pfr0 work"),
        ("filter", ctypes.c_uint64 * (FILTER_BITS // 64)),
    )

    def ticks(self, pc_virt: int) -> int:
        """The generic timers' count in front of an instruction of the block that runs."""
        # total counts the whole block already, of which only what is before PC is done.
        to_come = self.block + self.block_size - pc_virt
        return int(self.elsewhere + self.total - to_come // 4) // INSTRUCTIONS_PER_TICK


def library_path() -> Path:
    """Where the native hook for this host's architecture lies, whether or not it is there."""
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    return Path(__file__).with_name(f"blockcount-{machine}.so")


def load_library() -> ctypes.CDLL | None:
    """The native hook, or None where it is switched off, missing or not for this host."""
    if os.environ.get("KEXECEMU_NO_NATIVE") == "1":
        return None
    try:
        return ctypes.CDLL(str(library_path()))
    except OSError:
        return None
