"""ELF notes: how a crashed kernel hands registers and VMCOREINFO to whoever reads its memory.

The sizes are those of an arm64 kernel with 4 KiB pages: the kernel writes into buffers of fixed size whose
physical addresses were put in the core header long before the crash.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kexecemu.errors import FormatError
from kexecemu.shown import shown

__all__ = ["Note", "crash_note", "iterate_notes", "vmcoreinfo_note"]

_NHDR = struct.Struct("<III")
NT_PRSTATUS = 1

PRSTATUS_REGS = 34  # x0..x30, sp, pc, pstate
_PRSTATUS = struct.Struct(f"<32x i 76x {PRSTATUS_REGS}Q 8x")  # pr_pid, pr_reg

# Room for the note and for the empty one that ends the list: two headers, the padded name, the descriptor.
CRASH_NOTE_BYTES = 2 * _NHDR.size + 8 + _PRSTATUS.size
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


def crash_note(pid: int, regs: Sequence[int]) -> bytes:
    """A CPU's whole crash_notes buffer (note_buf_t): the NT_PRSTATUS note and the empty note that ends it.

    Of the note's struct elf_prstatus all is zero but pr_pid and pr_reg, as crash_save_cpu() leaves it. regs are the 34
    registers x0..x30, sp, pc, pstate; another number is a ValueError.
    """
    if len(regs) != PRSTATUS_REGS:
        raise ValueError(f"{len(regs)} registers instead of {PRSTATUS_REGS}")
    return Note("CORE", NT_PRSTATUS, _PRSTATUS.pack(pid, *regs)).pack().ljust(CRASH_NOTE_BYTES, b"\0")


def vmcoreinfo_note(text: bytes) -> bytes:
    """The whole vmcoreinfo_note buffer around `text`, as update_vmcoreinfo_note() leaves it at first writing.

    More than VMCOREINFO_BYTES of text is a ValueError.
    """
    if len(text) > VMCOREINFO_BYTES:
        raise ValueError(f"{len(text)} bytes of VMCOREINFO, at most {VMCOREINFO_BYTES} fit")
    return Note("VMCOREINFO", 0, text).pack().ljust(VMCOREINFO_NOTE_SIZE, b"\0")
