"""A dump is judged by each thing that it shows, the first that is wrong is told, and so is why there is none."""

from __future__ import annotations

import struct
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import CrashedMemory, Dump, judge_dump, taken_by_stub
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.stub import CaptureRecord, CaptureState, Violation
from kexecemu.crash.verdict import Verdict, VerdictState
from kexecemu.crash.vmcore import Vmcore, vmcore_of
from kexecemu.formats.elf import PT_LOAD, PT_NOTE, ProgramHeader
from kexecemu.formats.elfcore import build_elfcorehdr
from kexecemu.formats.elfnote import Note
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.linux.capture import DiskVmcore, LinuxCapture, LinuxEnd, LoadDigest
from kexecemu.machine.devices.disk import Disk
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

HDR, NOTES, FIRST, SECOND = 0x40001000, 0x40002000, 0x40004000, 0x40008000
TEXT = b"OSRELEASE=6.12.1\n"
LOADS = (PhysRange.of(FIRST, 0x2000), PhysRange.of(SECOND, 0x1000))
# Where in the core header each program header begins, and of its fields.
NOTE, LOAD0, LOAD1 = (64 + 56 * number for number in range(3))
FLAGS, OFFSET, VADDR, PADDR, FILESZ, MEMSZ, ALIGN = 4, 8, 16, 24, 32, 40, 48
RECORD = CaptureRecord(
    CaptureState.DONE, Violation(0), (0, 0, 0, 0), 0, 0, 0, 0, PhysRange.of(HDR, 0x1000), (0, 0),
    ((LOADS[0].end, 0x1000), (FIRST - 0x1000, 0x1000)), 0, 0, 0,
)  # fmt: skip
STUB = CaptureRun(CaptureEnd.DONE, 0, 9, RECORD)
ENTERED = CaptureRun(CaptureEnd.ENTERED, 0, 9, None)
NOT_RUN = "the capture kernel was not run past its first instruction"
WRONG, TRUE = "taken, not equal to the crashed memory", "taken, equal to the crashed memory"


class Machine:
    """A crashed one: a core header, a note, two loads. The dump is what is found there, or was copied to a disk."""

    def __init__(self) -> None:
        note = Note("VMCOREINFO", 0, TEXT + b"CRASHTIME=1\n").pack()
        headers = [ProgramHeader(PT_NOTE, 0, NOTES, 0, NOTES, 0x400, 0x400)]
        headers += [
            ProgramHeader(PT_LOAD, 7, one.start, one.start << 16, one.start, one.size, one.size)
            for one in LOADS
        ]
        self.ram = Ram([PhysRange.of(0x40000000, 0x10000)])
        core = build_elfcorehdr(headers, size=0x1000)
        self.ram.write(HDR, core)
        self.ram.write(NOTES, note)
        self.ram.write(FIRST, b"crashed")
        self.image = Kimage(0, [Segment("elfcorehdr", core, HDR, 0x1000)], vmcoreinfo=TEXT)
        self.crashed = CrashedMemory.of(self.ram, self.image)
        board: Any = SimpleNamespace(ram=self.ram)
        self.board, self.vmcore = board, Vmcore(board, 0, PhysRange.of(HDR, 0x1000))

    def on_disk(self) -> DiskVmcore:
        layout = self.vmcore.layout()
        disk = Disk(0x10000)
        disk.write(0, layout.header + layout.notes)
        for load in layout.loads:
            disk.write(load.file_offset, self.ram.read(load.phys, load.size))
        return DiskVmcore(disk, layout.size)

    def judged(self, capture: CaptureRun = STUB, *changed: PhysRange, disk: bool = False) -> tuple[Dump, str]:
        vmcore = self.on_disk() if disk else self.vmcore
        return judge_dump(self.crashed, None, capture, vmcore, changed)


def copied(read: list[LoadDigest] | None = None, **said: Any) -> CaptureRun:
    digests = [LoadDigest(one, "a" * 64) for one in LOADS]
    linux = LinuxCapture(
        LinuxEnd.DONE, "there", 9, read=digests if read is None else read, crashed=digests, **said
    )
    return CaptureRun(CaptureEnd.DONE, 0, 9, None, linux=linux)


# What is done to memory, by its address, and what is said of a dump that shows it; the first in this order.
CHANGES: list[tuple[int, bytes, str]] = [
    (HDR + LOAD1, b"\0", "the number of its loads is 1, not 2"),
    (HDR + LOAD0 + FLAGS, b"\x05", "load 0 is 0x2000 bytes at 0x40004000 (virt 0x400040000000, 0x2000 of them in the "
     "file, flags 5, align 0x0), not 0x2000 bytes at 0x40004000 (virt 0x400040000000, 0x2000 of them in the file, "
     "flags 7, align 0x0)"),
    (HDR + LOAD1 + VADDR, b"\1", "load 1 is 0x1000 bytes at 0x40008000 (virt 0x400080000001, 0x1000 of them in the "
     "file, flags 7, align 0x0), not 0x1000 bytes at 0x40008000 (virt 0x400080000000, 0x1000 of them in the file, "
     "flags 7, align 0x0)"),
    (HDR + LOAD0 + OFFSET, struct.pack("<Q", FIRST + 0x1000), "load 0 shows 0x2000 bytes from 0x40005000, not 0x2000 "
     "from 0x40004000"),
    (HDR + LOAD1 + OFFSET, struct.pack("<Q", SECOND + 1), "load 1 shows 0x2000 bytes from 0x40008000, not 0x1000 from "
     "0x40008000"),
    (HDR + 5, b"\2", "byte 0x5 of its file header is 0x02, not 0x01"),
    (HDR + 63, b"\1", "byte 0x3f of its file header is 0x01, not 0x00"),
    (NOTES + 24 + len(TEXT), b"?", "its notes are not those that the first kernel left"),
]  # fmt: skip


@pytest.mark.parametrize(("at", "data", "words"), CHANGES)
def test_what_a_dump_shows_otherwise_than_it_was_at_the_crash_makes_it_wrong(
    at: int, data: bytes, words: str
) -> None:
    machine = Machine()
    assert machine.judged() == machine.judged(copied(), disk=True) == (Dump.TRUE, TRUE)
    machine.ram.write(at, data)
    assert machine.judged() == (Dump.WRONG, f"{WRONG}: {words}")
    assert machine.judged(STUB, LOADS[0]) == (Dump.WRONG, f"{WRONG}: {words}")
    assert machine.judged(copied(), disk=True)[0] is (Dump.TRUE if "shows" in words else Dump.WRONG)
    entered = f"/proc/vmcore would not show the crashed memory ({NOT_RUN}): {words}"
    assert machine.judged(ENTERED) == (Dump.WRONG, entered)


@pytest.mark.parametrize("field", [VADDR, PADDR, FILESZ, MEMSZ, ALIGN])
@pytest.mark.parametrize("load", [LOAD0, LOAD1])
def test_every_field_of_a_load_but_its_offset_is_compared(load: int, field: int) -> None:
    for disk in (False, True):
        machine = Machine()
        at = HDR + load + field
        machine.ram.write(at, bytes([machine.ram.read(at, 1)[0] ^ 4]))
        what, why = machine.judged(STUB, disk=disk)
        assert what is Dump.WRONG and why.startswith(f"{WRONG}: load {load == LOAD1:d} is ")


def test_of_several_the_first_in_the_order_of_the_file_is_told() -> None:
    machine = Machine()
    for at, data, words in reversed(CHANGES):
        machine.ram.write(at, data)
        assert machine.judged()[1] == f"{WRONG}: {words}"


@pytest.mark.parametrize(
    ("note", "right"),
    [
        (Note("VMCOREINFO", 0, TEXT), True),
        (Note("VMCOREINFO", 0, TEXT[1:]), False),
        (Note("VMCOREINFO", 0, b"\0" + TEXT), False),
        (Note("CORE", 1, TEXT), False),
        (Note("VMCOREINFO", 0, TEXT + bytes(0x1000 - len(TEXT))), True),  # zeros may be padding of the file
        (Note("VMCOREINFO", 0, bytes(0x1800)), False),
    ],
)
def test_vmcoreinfo_is_what_it_was_at_the_load_and_perhaps_more(note: Note, right: bool) -> None:
    machine = Machine()
    machine.ram.write(NOTES, note.pack() + bytes(0x100))
    machine.ram.write(HDR + NOTE + FILESZ, struct.pack("<QQ", 0x1C00, 0x1C00))
    core = machine.ram.read(HDR, 0x1000)
    image = replace(machine.image, segments=[Segment("elfcorehdr", core, HDR, 0x1000)])
    machine.crashed = CrashedMemory.of(machine.ram, image)
    words = f"{WRONG}: vmcoreinfo in its notes is not what it was at the load"
    for disk in (False, True):
        assert machine.judged(disk=disk) == ((Dump.TRUE, TRUE) if right else (Dump.WRONG, words))
    machine.crashed = CrashedMemory.of(machine.ram, replace(image, vmcoreinfo=b""))  # it is not known
    assert machine.judged() == (Dump.TRUE, TRUE)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (
            [LoadDigest(LOADS[0], "a" * 64), LoadDigest(LOADS[1], "b" * 64)],
            "of what was read 0x40008000-0x40008fff differs",
        ),
        ([LoadDigest(LOADS[0], "a" * 64)], "of what was read their number differs"),
        ([], "of what was read their number differs"),
    ],
)
def test_what_a_linux_has_read_is_what_memory_held(read: list[LoadDigest], words: str) -> None:
    assert Machine().judged(copied(read), disk=True) == (Dump.WRONG, f"{WRONG}: {words}")


@pytest.mark.parametrize(
    ("start", "size", "wrong"),
    [(FIRST - 0x1000, 0x1001, True), (LOADS[0].end - 1, 1, True), (LOADS[0].end, SECOND - LOADS[0].end, False),
     (LOADS[0].end, SECOND - LOADS[0].end + 1, True), (FIRST + 8, 8, True), (0x40000000, 0x10000, True), (0, 0, False)],
)  # fmt: skip
@pytest.mark.parametrize("second", [False, True])
def test_memory_to_use_is_none_that_is_to_be_dumped(start: int, size: int, wrong: bool, second: bool) -> None:
    usable = ((0, 0), (start, size)) if second else ((start, size), (0, 0))
    capture = replace(STUB, record=replace(RECORD, usable=usable))
    area = PhysRange.of(start, size)
    words = f"{WRONG}: the capture kernel was told to use {area}, and that is what it should dump"
    assert Machine().judged(capture) == ((Dump.WRONG, words) if wrong else (Dump.TRUE, TRUE))


def test_memory_that_has_changed_since_makes_the_dump_wrong_and_the_first_of_it_is_told() -> None:
    machine = Machine()
    changed = [PhysRange.of(FIRST, 0x1000), PhysRange.of(SECOND, 0x1000)]
    words = f"{WRONG}: memory at 0x40004000-0x40004fff has changed since the crash"
    assert machine.judged(STUB, *changed) == machine.judged(copied(), *changed) == (Dump.WRONG, words)
    assert machine.judged(ENTERED) == (Dump.TRUE, f"/proc/vmcore would show the crashed memory ({NOT_RUN})")
    assert machine.crashed.memory.changed() == []
    machine.ram.write(SECOND, b"?")
    assert machine.crashed.memory.changed() == [changed[1]]


def test_what_is_no_core_any_more_is_no_dump_of_a_kernel_s_and_a_wrong_one_on_a_disk() -> None:
    machine = Machine()
    disk = machine.on_disk()
    machine.ram.write(HDR, b"\0")
    words = "Core image elf header not found: no ELF magic at offset 0"
    assert machine.judged() == (Dump.NONE, f"none: there is no /proc/vmcore: {words}")
    disk.disk.write(0, b"\0")
    judged = judge_dump(machine.crashed, None, copied(), disk, ())
    assert judged == (Dump.WRONG, f"{WRONG}: {words}")


def test_a_dump_on_a_disk_whose_notes_lie_beyond_the_disk_is_cut_off() -> None:
    machine = Machine()
    disk = machine.on_disk()
    disk.disk.write(64 + OFFSET, struct.pack("<Q", 0x10000))
    what, why = judge_dump(machine.crashed, None, copied(), disk, ())
    assert what is Dump.WRONG and why.startswith(f"{WRONG}: the dump on the disk is cut off (")
    disk.disk.write(64 + FILESZ, bytes(8))  # of none of them nothing is read
    assert judge_dump(machine.crashed, None, copied(), disk, ())[1].endswith(
        "those that the first kernel left"
    )


def test_a_core_header_that_no_kernel_takes_is_noted_as_none() -> None:
    machine = Machine()
    for segments in ([], [Segment("elfcorehdr", bytes(0x1000), HDR, 0x1000)]):
        crashed = CrashedMemory.of(machine.ram, replace(machine.image, segments=segments))
        assert (crashed.layout, crashed.loads) == (None, [])
        judged = judge_dump(crashed, None, STUB, machine.vmcore, ())
        assert judged == (
            Dump.NONE,
            "none: the image was loaded with no core header that a kernel would take",
        )
    assert machine.crashed.loads == list(LOADS) and machine.crashed.vmcoreinfo == TEXT


@pytest.mark.parametrize(
    "names", [[], ["purgatory", "copy", "page-digests"], ["copy", "initrd"], ["dtb", "copy"]]
)
def test_a_stub_s_dump_from_a_damaged_image_is_one_that_a_linux_had_to_boot_first_for(
    names: list[str],
) -> None:
    damage = [Damage(name, 0, 4) for name in names]
    more = ", by a stub: a Linux would have had to boot from the damaged image first"
    words = TRUE + more * bool({"initrd", "dtb"} & {*names})
    assert taken_by_stub(damage) == words
    machine = Machine()
    assert judge_dump(machine.crashed, None, STUB, machine.vmcore, (), damage)[1] == words
    assert judge_dump(machine.crashed, None, copied(), machine.vmcore, (), damage)[1] == TRUE


# -- none ----------------------------------------------------------------------------------------------------------

NO_CAPTURE = {
    CaptureEnd.DONE: "the capture kernel has left none on its disk",
    CaptureEnd.ENTERED: NOT_RUN,
    CaptureEnd.NO_DUMP: "device tree or core header led the capture kernel to no dump",
    CaptureEnd.BAD_ENTRY: "the capture kernel was entered against the boot protocol",
    CaptureEnd.TRAPPED: "an exception ended the capture kernel",
    CaptureEnd.ELSEWHERE: "control left the capture kernel's code",
    CaptureEnd.HUNG: "the capture kernel did not come to an end",
    CaptureEnd.HEADERS: "the capture kernel read the headers and copied nothing (no disk, or told not to)",
    CaptureEnd.OFF: "the capture kernel switched off without one",
    CaptureEnd.PANIC: "the capture kernel panicked",
}
NO_KERNEL = {
    PurgatoryEnd.KERNEL: "no capture kernel was started",
    PurgatoryEnd.MISMATCH: "the purgatory stopped and started no capture kernel",
    PurgatoryEnd.RETURNED: "the purgatory went back to the first kernel and started no capture kernel",
    PurgatoryEnd.ELSEWHERE: "the purgatory jumped to something that is not the capture kernel",
    PurgatoryEnd.TRAPPED: "an exception ended the purgatory before it started the capture kernel",
    PurgatoryEnd.HUNG: "the purgatory came to no end and started no capture kernel",
}
OFF = "the purgatory switched the machine off and started no capture kernel"
CONTENT = "the purgatory found the image as loaded and started no capture kernel"


@pytest.mark.parametrize("end", CaptureEnd)
def test_why_a_capture_kernel_has_taken_none_is_told(end: CaptureEnd) -> None:
    crashed = Machine().crashed
    off, panic = ("OFF", " (it said: no)", {"last_word": "no"}), ("PANIC", ": oom", {"panic": "oom"})
    for name, words, said in (("", "", {}), off, panic):
        linux = LinuxCapture(LinuxEnd.OFF, "there", 9, **said)  # type: ignore[arg-type]
        run = CaptureRun(end, 0, 9, RECORD, linux=linux if said else None)
        told = f"none: {NO_CAPTURE[end]}{words if end.name == name else ''}"
        assert judge_dump(crashed, None, run, None, ()) == (Dump.NONE, told)


@pytest.mark.parametrize("end", PurgatoryEnd)
def test_why_a_purgatory_started_no_kernel_to_take_one_is_told(end: PurgatoryEnd) -> None:
    machine, hung = Machine(), end is PurgatoryEnd.HUNG
    match = Verdict(VerdictState.MATCH, 0, b"", b"")
    for power, verdict, words in (
        (None, None, NO_KERNEL[end]),
        ("system_off", None, OFF if hung or end is PurgatoryEnd.MISMATCH else NO_KERNEL[end]),
        (None, match, CONTENT if hung else NO_KERNEL[end]),
    ):
        run = PurgatoryRun(end, 0, 9, verdict, power=power)
        assert judge_dump(machine.crashed, run, None, machine.vmcore, ()) == (Dump.NONE, f"none: {words}")
    assert judge_dump(machine.crashed, None, None, None, ())[1] == "none: no capture kernel was started"


# -- where it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "align"),
    [(b"", 0), (b"OSRELEASE=6.1.176\n", 0), (b"OSRELEASE=6.12.117\n", 4), (b"\nOSRELEASE=6.12.117\n", 0)],
)
def test_a_dump_is_found_where_the_capture_kernel_came_to_it(text: bytes, align: int) -> None:
    machine = Machine()
    image = replace(machine.image, dtb_mem=0x4000F000, vmcoreinfo=text)
    found = {end: vmcore_of(machine.board, image, CaptureRun(end, 0, 9, RECORD)) for end in CaptureEnd}
    assert found.pop(CaptureEnd.DONE) == Vmcore(machine.board, 0x4000F000, RECORD.elfcorehdr, align)
    assert found.pop(CaptureEnd.ENTERED) == Vmcore(machine.board, 0x4000F000, None, align)
    assert set(found.values()) == {None}
    assert vmcore_of(machine.board, image, replace(STUB, record=None)) is None
    disk = machine.on_disk()
    assert vmcore_of(machine.board, image, copied(vmcore=disk)) is disk
    assert vmcore_of(machine.board, image, copied()) is None
