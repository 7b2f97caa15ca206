"""ELF notes: how a crashed kernel hands registers and VMCOREINFO to whoever reads its memory.

The sizes are those of an arm64 kernel with 4 KiB pages: the kernel writes into buffers of fixed size whose
physical addresses were put in the core header long before the crash.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kexecemu.errors import FormatError
from kexecemu.shown import shown

__all__ = ["Note", "Prstatus", "crash_note", "iterate_notes", "parse_prstatus", "prstatus", "vmcoreinfo_note"]

_NHDR = struct.Struct("<III")
NT_PRSTATUS = 1
CORE_NOTE_NAME = "CORE"
VMCOREINFO_NOTE_NAME = "VMCOREINFO"

PRSTATUS_SIZE = 392
PRSTATUS_REGS = 34  # x0..x30, sp, pc, pstate
_PR_PID_OFFSET = 32
_PR_REG_OFFSET = 112
_PR_REG = struct.Struct(f"<{PRSTATUS_REGS}Q")
_PR_PID = struct.Struct("<i")

# Room for the note and for the empty one that ends the list: two headers, the padded name, the descriptor.
CRASH_NOTE_BYTES = 2 * _NHDR.size + 8 + PRSTATUS_SIZE
VMCOREINFO_BYTES = 4096
VMCOREINFO_NOTE_SIZE = 2 * _NHDR.size + 12 + VMCOREINFO_BYTES


def _align4(size: int) -> int:
    return (size + 3) & ~3


@shown()
@dataclass(frozen=True, slots=True)
class Note:
    """One note; name without its terminating NUL."""

    name: str
    type: int
    desc: bytes

    def pack(self) -> bytes:
        """The note's bytes, name and descriptor each padded with zeros to 4 bytes."""
        name = self.name.encode("latin-1") + b"\0"
        return (
            _NHDR.pack(len(name), len(self.desc), self.type)
            + name.ljust(_align4(len(name)), b"\0")
            + self.desc.ljust(_align4(len(self.desc)), b"\0")
        )


def iterate_notes(data: bytes | bytearray | memoryview) -> Iterator[Note]:
    """The notes in `data`, until its end or a note with n_namesz == 0, where the kernel stops too.

    Raises FormatError, on reaching it, at a note that is longer than what is left of `data`.
    """
    view = memoryview(data)
    offset = 0
    while offset < len(view):
        if offset + _NHDR.size > len(view):
            raise FormatError(f"ELF note at offset {offset:#x}: header is truncated")
        namesz, descsz, kind = _NHDR.unpack_from(view, offset)
        if namesz == 0:
            return
        name_start = offset + _NHDR.size
        desc_start = name_start + _align4(namesz)
        # Padding behind the last descriptor may be missing from a file that ends there.
        if desc_start + descsz > len(view):
            raise FormatError(
                f"ELF note at offset {offset:#x}: namesz {namesz:#x}, descsz {descsz:#x} exceed the data"
            )
        name = bytes(view[name_start : name_start + namesz]).split(b"\0", 1)[0]
        yield Note(name.decode("latin-1"), kind, bytes(view[desc_start : desc_start + descsz]))
        offset = desc_start + _align4(descsz)


@shown()
@dataclass(frozen=True, slots=True)
class Prstatus:
    """What crash_save_cpu() keeps of a CPU: pid of the current task and x0..x30, sp, pc, pstate."""

    pid: int
    regs: tuple[int, ...]


def prstatus(pid: int, regs: Sequence[int]) -> bytes:
    """struct elf_prstatus of an arm64 kernel: all zero but pr_pid and pr_reg, as crash_save_cpu() leaves it.

    regs are the 34 registers x0..x30, sp, pc, pstate; another number is a ValueError.
    """
    if len(regs) != PRSTATUS_REGS:
        raise ValueError(f"{len(regs)} registers instead of {PRSTATUS_REGS}")
    desc = bytearray(PRSTATUS_SIZE)
    _PR_PID.pack_into(desc, _PR_PID_OFFSET, pid)
    _PR_REG.pack_into(desc, _PR_REG_OFFSET, *regs)
    return bytes(desc)


def parse_prstatus(desc: bytes | bytearray | memoryview) -> Prstatus:
    """The inverse of prstatus(). Raises FormatError if `desc` has another length."""
    if len(desc) != PRSTATUS_SIZE:
        raise FormatError(f"NT_PRSTATUS: descriptor of {len(desc)} bytes, not {PRSTATUS_SIZE}")
    return Prstatus(_PR_PID.unpack_from(desc, _PR_PID_OFFSET)[0], _PR_REG.unpack_from(desc, _PR_REG_OFFSET))


def crash_note(pid: int, regs: Sequence[int]) -> bytes:
    """A CPU's whole crash_notes buffer (note_buf_t): the NT_PRSTATUS note and the empty note that ends it."""
    return Note(CORE_NOTE_NAME, NT_PRSTATUS, prstatus(pid, regs)).pack().ljust(CRASH_NOTE_BYTES, b"\0")


def vmcoreinfo_note(text: bytes) -> bytes:
    """The whole vmcoreinfo_note buffer around `text`, as update_vmcoreinfo_note() leaves it at first writing.

    More than VMCOREINFO_BYTES of text is a ValueError.
    """
    if len(text) > VMCOREINFO_BYTES:
        raise ValueError(f"{len(text)} bytes of VMCOREINFO, at most {VMCOREINFO_BYTES} fit")
    return Note(VMCOREINFO_NOTE_NAME, 0, text).pack().ljust(VMCOREINFO_NOTE_SIZE, b"\0")
