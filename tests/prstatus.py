"""struct elf_prstatus of an arm64 kernel, read (include/uapi/linux/elfcore.h)."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["Prstatus", "parse_prstatus"]


class Prstatus(NamedTuple):
    """pid of the current task and x0..x30, sp, pc, pstate."""

    pid: int
    regs: tuple[int, ...]


def parse_prstatus(desc: bytes) -> Prstatus:
    """The two fields that crash_save_cpu() sets."""
    assert len(desc) == 392
    return Prstatus(struct.unpack_from("<i", desc, 32)[0], struct.unpack_from("<34Q", desc, 112))
