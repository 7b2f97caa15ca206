"""Whether there is a dump, and whether it is equal to the crashed memory: the second answer beside the outcome.

Equal means to the byte what /proc/vmcore would show had nothing gone astray after the load: the core header that was
loaded, and what it points at as it was when the first kernel was left. What was stamped on before that in memory that
is no crash memory is a part of what crashed, and a dump that shows it is a true one.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from kexecemu.crash.damage import Damage
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.vmcore import Vmcore
from kexecemu.errors import FormatError, MachineError
from kexecemu.formats.elf import EHDR_SIZE, PT_LOAD, PT_NOTE, ProgramHeader
from kexecemu.formats.elfcore import LoadRange, VmcoreLayout
from kexecemu.formats.elfnote import iterate_notes
from kexecemu.kernel.boot.vmcoreinfo import VMCOREINFO_BYTES
from kexecemu.kernel.image.kimage import COPY, PAGE_DIGESTS, Kimage
from kexecemu.linux.capture import DiskVmcore
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.snapshot import MemoryDigest
from kexecemu.shown import shown

__all__ = ["ONLY_FOR_THE_PURGATORY", "CrashedMemory", "Dump", "judge_dump", "taken_by_stub"]

ONLY_FOR_THE_PURGATORY = ("purgatory", PAGE_DIGESTS, COPY)
"""Segments that no capture kernel ever looks at: damage there harms nobody after the check."""

_NOT_RUN = "the capture kernel was not run past its first instruction"


class Dump(enum.StrEnum):
    """What became of the dump. The strings are relied on from outside."""

    TRUE = "true"
    WRONG = "wrong"
    NONE = "none"

    @property
    def meaning(self) -> str:
        """A few words for people."""
        return _MEANINGS[self]


_MEANINGS = {
    Dump.TRUE: "taken, equal to the crashed memory",
    Dump.WRONG: "taken, not equal to the crashed memory",
    Dump.NONE: "lost or refused",
}


@shown()
@dataclass(frozen=True)
class CrashedMemory:
    """What a dump has to show, noted when the first kernel was left.

    layout is /proc/vmcore by the core header as it was loaded, None where none was; memory what its loads held;
    vmcoreinfo what that text was at the load (b"": not known), to which a crash adds its time.
    """

    layout: VmcoreLayout | None
    memory: MemoryDigest
    vmcoreinfo: bytes = b""

    @classmethod
    def of(cls, ram: Ram, image: Kimage) -> CrashedMemory:
        """As it is now: the boot CPU stands at image.start."""
        segment = image.segment("elfcorehdr")
        try:
            layout = VmcoreLayout(segment.content(), ram.read) if segment is not None else None
        except FormatError:
            layout = None  # a user's own, loaded by kexec_load
        loads = layout.loads if layout is not None else []
        memory = MemoryDigest(ram, [PhysRange.of(load.phys, load.size) for load in loads])
        return cls(layout, memory, image.vmcoreinfo)

    @property
    def loads(self) -> list[PhysRange]:
        """The physical memory that a dump should hold, in the order of the core header."""
        headers = self.layout.program_headers if self.layout is not None else ()
        return [PhysRange.of(header.paddr, header.memsz) for header in headers if header.type == PT_LOAD]


def judge_dump(
    crashed: CrashedMemory,
    purgatory: PurgatoryRun | None,
    capture: CaptureRun | None,
    vmcore: Vmcore | DiskVmcore | None,
    changed: Sequence[PhysRange],
    damage: Sequence[Damage] = (),
) -> tuple[Dump, str]:
    """What became of the dump of a crash that left the first kernel, and why, in words.

    vmcore is what the capture kernel came to. changed is the dumped memory that is not as it was at the crash: when the
    stub is through, or when a Linux begins, whose own reading of it is in capture.linux. damage is an End's.
    """
    if capture is None or vmcore is None:
        return Dump.NONE, _why_none(purgatory, capture)
    if crashed.layout is None:
        return Dump.NONE, "none: the image was loaded with no core header that a kernel would take"
    try:
        wrong = _first_difference(crashed, capture, vmcore)
    except FormatError as error:
        if isinstance(vmcore, DiskVmcore):  # it was read and copied, whatever it is
            return Dump.WRONG, f"{_MEANINGS[Dump.WRONG]}: {error}"
        return Dump.NONE, f"none: there is no /proc/vmcore: {error}"
    if wrong is None and changed:
        wrong = f"memory at {changed[0]} has changed since the crash"
    seen = capture.end is CaptureEnd.DONE
    if wrong is not None:
        would = f"/proc/vmcore would not show the crashed memory ({_NOT_RUN})"
        said = _MEANINGS[Dump.WRONG] if seen else would
        return Dump.WRONG, f"{said}: {wrong}"
    if not seen:
        return Dump.TRUE, f"/proc/vmcore would show the crashed memory ({_NOT_RUN})"
    return Dump.TRUE, _MEANINGS[Dump.TRUE] if capture.linux is not None else taken_by_stub(damage)


def taken_by_stub(damage: Sequence[Damage]) -> str:
    """The reason of a true dump of the stub's, which uses little of what is loaded: a Linux boots from all of it."""
    if all(one.segment in ONLY_FOR_THE_PURGATORY for one in damage):
        return _MEANINGS[Dump.TRUE]
    return f"{_MEANINGS[Dump.TRUE]}, by a stub: a Linux would have had to boot from the damaged image first"


def _why_none(purgatory: PurgatoryRun | None, capture: CaptureRun | None) -> str:
    if capture is not None:
        linux = capture.linux
        panic = f": {linux.panic}" if linux is not None and linux.panic else ""
        said = f" (it said: {linux.last_word})" if linux is not None and linux.last_word else ""
        return "none: " + _NO_CAPTURE[capture.end].format(panic=panic, said=said)
    if purgatory is None:
        return "none: no capture kernel was started"
    end = purgatory.end
    if end is PurgatoryEnd.HUNG and purgatory.power is not None:
        end = PurgatoryEnd.MISMATCH  # it did come to an end, and to the same one
    elif end is PurgatoryEnd.HUNG and purgatory.content:
        return "none: the purgatory found the image as loaded and started no capture kernel"
    return "none: " + _NO_KERNEL[end].format(act=purgatory.act)


_NO_CAPTURE = {
    CaptureEnd.DONE: "the capture kernel has left none on its disk",
    CaptureEnd.ENTERED: _NOT_RUN,
    CaptureEnd.NO_DUMP: "device tree or core header led the capture kernel to no dump",
    CaptureEnd.BAD_ENTRY: "the capture kernel was entered against the boot protocol",
    CaptureEnd.TRAPPED: "an exception ended the capture kernel",
    CaptureEnd.ELSEWHERE: "control left the capture kernel's code",
    CaptureEnd.HUNG: "the capture kernel did not come to an end",
    CaptureEnd.HEADERS: "the capture kernel read the headers and copied nothing (no disk, or told not to)",
    CaptureEnd.OFF: "the capture kernel switched off without one{said}",
    CaptureEnd.PANIC: "the capture kernel panicked{panic}",
}
_NO_KERNEL = {
    PurgatoryEnd.KERNEL: "no capture kernel was started",
    PurgatoryEnd.MISMATCH: "the purgatory {act} and started no capture kernel",
    PurgatoryEnd.RETURNED: "the purgatory went back to the first kernel and started no capture kernel",
    PurgatoryEnd.ELSEWHERE: "the purgatory jumped to something that is not the capture kernel",
    PurgatoryEnd.TRAPPED: "an exception ended the purgatory before it started the capture kernel",
    PurgatoryEnd.HUNG: "the purgatory came to no end and started no capture kernel",
}


class _Shown:
    """A core as it is read: its file header, its program headers and its notes. places are a /proc/vmcore's.

    The notes are without the padding to whole pages, which is the file's and not theirs.
    """

    def __init__(
        self, head: bytes, headers: Sequence[ProgramHeader], notes: bytes, places: Sequence[LoadRange] = ()
    ) -> None:
        self.header, self.notes, self.places = head[:EHDR_SIZE], notes.rstrip(b"\0"), places
        self.loads = [header for header in headers if header.type == PT_LOAD]


def _shown(layout: VmcoreLayout) -> _Shown:
    return _Shown(layout.header, layout.program_headers, layout.notes, layout.loads)


def _read_back(dump: DiskVmcore) -> _Shown:
    try:
        head, headers = dump.headers()
        notes = b"".join(
            dump.disk.read(one.offset, one.filesz) for one in headers if one.type == PT_NOTE and one.filesz
        )
    except MachineError as error:  # beyond the disk's end
        raise FormatError(f"the dump on the disk is cut off ({error})") from error
    return _Shown(head, headers, notes)


def _first_difference(crashed: CrashedMemory, capture: CaptureRun, vmcore: Vmcore | DiskVmcore) -> str | None:
    """What of a dump is not as it should be, memory apart; None when all is. FormatError where it is no core."""
    assert crashed.layout is not None
    then = _shown(crashed.layout)
    now = _read_back(vmcore) if isinstance(vmcore, DiskVmcore) else _shown(vmcore.layout())
    if len(now.loads) != len(then.loads):
        return f"the number of its loads is {len(now.loads)}, not {len(then.loads)}"
    for number, (one, other) in enumerate(zip(now.loads, then.loads, strict=True)):
        if _names(one) != _names(other):
            return f"load {number} is {_in_words(one)}, not {_in_words(other)}"
    for number, (place, right) in enumerate(zip(now.places, then.places, strict=False)):
        if (place.phys, place.size) != (right.phys, right.size):
            shows = f"{place.size:#x} bytes from {place.phys:#x}"
            return f"load {number} shows {shows}, not {right.size:#x} from {right.phys:#x}"
    if now.header != then.header:
        pairs = enumerate(zip(now.header, then.header, strict=True))
        at = next(at for at, (one, other) in pairs if one != other)
        return f"byte {at:#x} of its file header is {now.header[at]:#04x}, not {then.header[at]:#04x}"
    if now.notes != then.notes:
        return "its notes are not those that the first kernel left"
    if crashed.vmcoreinfo and not _text_of(now.notes).startswith(crashed.vmcoreinfo):
        return "vmcoreinfo in its notes is not what it was at the load"
    linux = capture.linux
    if linux is not None and linux.read != linux.crashed:
        return f"of what was read {linux.wrong_text} differs"
    usable = capture.record.usable if capture.record is not None else ()
    for start, size in usable:
        if any(area.overlaps(PhysRange.of(start, size)) for area in crashed.loads):
            return f"the capture kernel was told to use {PhysRange.of(start, size)}, and that is what it should dump"
    return None


def _names(header: ProgramHeader) -> tuple[int, ...]:
    """What says which memory it is; the offset is another one in each file."""
    return header.flags, header.vaddr, header.paddr, header.filesz, header.memsz, header.align


def _in_words(header: ProgramHeader) -> str:
    more = f"virt {header.vaddr:#x}, {header.filesz:#x} of them in the file, flags {header.flags}"
    return f"{header.memsz:#x} bytes at {header.paddr:#x} ({more}, align {header.align:#x})"


def _text_of(notes: bytes) -> bytes:
    """The text of the VMCOREINFO note; b"" where there is none. It may have lost zeros at its end."""
    try:
        found = iterate_notes(notes + bytes(VMCOREINFO_BYTES))
        return next((note.desc for note in found if note.name == "VMCOREINFO"), b"")
    except FormatError:
        return b""
