"""A real Linux as the capture kernel: from its first instruction to power off, with its dump on a disk.

What it did is read from what it leaves: the machine's end, the lines that its init prints (inits/capture.sh), and the
disk. Every PT_LOAD of the dump is compared with the memory of the crashed machine, taken before the first instruction.
"""

import enum
import hashlib
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kexecemu.errors import BusError, FormatError, MachineError
from kexecemu.formats.elf import PT_LOAD, ProgramHeader
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.linux.initramfs import CAPTURE_DONE, HEADERS_READ, NO_VMCORE
from kexecemu.linux.printk_ring import kernel_log
from kexecemu.machine import virt
from kexecemu.machine.board import Board
from kexecemu.machine.devices.disk import Disk
from kexecemu.machine.devices.uart import ConsoleLines
from kexecemu.machine.devices.virtio_block import VirtioBlock
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.system import System, SystemEnd, SystemEndKind
from kexecemu.shown import shown

__all__ = ["DUMP_SLOT", "DiskVmcore", "LinuxCapture", "LinuxEnd", "LoadDigest", "linux_stage"]
__all__ += ["load_digests"]

DUMP_SLOT = virt.VIRTIO_SLOTS - 1
"""The virtio slot of the dump's disk on QEMU's virt: the last, which QEMU fills first and Linux calls vda."""

BUDGET = 20_000_000_000
"""Instructions of a boot that copies a dump: some ten times what Debian's take for 768 MiB."""
_BUDGET_PER_BYTE = 3  # of a dump beyond: 1 to move it, and some 0.4 for the program that copies

_LOOK = 1_000_000_000  # instructions without a word after which the kernel's log is looked at
_CHUNK = 4 << 20
_HEAD = 1 << 16  # bytes of a core within which its program headers are
_SECTOR = 512
_STAMP = re.compile(
    rb"^\[ *\d+\.\d+\](?:\[ *[CT]\d+\])? (?=kdump: )"
)  # of the kernel's log, through which init may speak
_STAMPS = re.compile(r"^(\[ *\d+\.\d+\]|\[ *[CT]\d+\])+ ?")
_PANIC = b"Kernel panic - not syncing"
_PANIC_END = b"---[ end Kernel panic"  # not printed with panic=SECONDS
_RESTART = b"reboot: Restarting system"  # asked for by a program
_END = "kdump: end: "  # how the line begins that says what came of the dump
_SIZE = re.compile(r", ([0-9]{1,19}) bytes to ")
_RELEASE = re.compile(r"kdump: Linux (\S+) is up")
_PANIC_TEXT = re.compile(r"(?<!end )Kernel panic - not syncing: (.*)")


class LinuxEnd(enum.StrEnum):
    """How a capture kernel ended that is a real Linux."""

    DONE = "done"  # its init said that the whole dump is on the disk
    NO_DUMP = "no dump"  # it came up without a /proc/vmcore
    # It had a /proc/vmcore, read its headers, and copied nothing: no disk, or told not to.
    HEADERS = "headers read"
    OFF = "off"  # switched off without having said any of these
    PANIC = "panic"
    STUCK = "stuck"  # idle for good, or in an endless loop
    LOST = "lost"  # an exception that cannot be taken
    BUDGET = "budget"


_LAST_WORDS = ((CAPTURE_DONE, LinuxEnd.DONE), (HEADERS_READ, LinuxEnd.HEADERS), (NO_VMCORE, LinuxEnd.NO_DUMP))


@shown()
@dataclass(frozen=True)
class LoadDigest:
    """One PT_LOAD: physical memory, and the SHA-256 of its bytes."""

    phys: PhysRange
    sha256: str


@shown()
@dataclass(frozen=True)
class DiskVmcore:
    """A dump as a capture kernel wrote it to a disk; size in bytes."""

    disk: Disk
    size: int

    def write(self, path: str | os.PathLike[str]) -> int:
        """Copy the dump to a file, sparse and atomically; returns its size in bytes."""
        self.disk.copy_to(path, self.size)
        return self.size

    def headers(self) -> tuple[bytes, Sequence[ProgramHeader]]:
        """The dump's first bytes and its program headers; FormatError if it is no core, or one that is cut off.

        What the disk holds is whatever a guest wrote there: no more is read of it than there is.
        """
        head = self.disk.read(0, min(_HEAD, self.size))
        headers = parse_core_header(head).program_headers
        named = sum(one.filesz for one in headers)
        if named > self.size:
            raise FormatError(f"the dump on the disk is cut off ({named:#x} bytes in one of {self.size:#x})")
        return head, headers

    def loads(self) -> list[LoadDigest]:
        """The dump's PT_LOADs with the digests of what was read; FormatError if it is no core."""
        _, headers = self.headers()
        read = self.disk.read
        return [
            LoadDigest(PhysRange.of(one.paddr, one.filesz), _sha256(read, one.offset, one.filesz))
            for one in headers
            if one.type == PT_LOAD
        ]


@shown()
@dataclass(frozen=True)
class LinuxCapture:
    """One run of a real capture kernel.

    where says in words where it stood at the end, and what it printed last. release is what it calls itself, empty if
    it said nothing; console is all that it printed. vmcore is None without a dump. read and crashed are its PT_LOADs,
    as they were read and as memory was at the crash. last_word is what its init said of the dump in the end, panic the
    message of its panic, and unshown the lines that its log in memory has and its console has not shown; each is empty
    where there was none.
    """

    end: LinuxEnd
    where: str
    instructions: int
    release: str = ""
    console: str = field(default="", repr=False)
    vmcore: DiskVmcore | None = field(default=None, repr=False)
    read: list[LoadDigest] = field(default_factory=list)
    crashed: list[LoadDigest] = field(default_factory=list)
    last_word: str = ""
    panic: str = ""
    unshown: str = field(default="", repr=False)

    @property
    def wrong_loads(self) -> list[LoadDigest]:
        """What was read and is not what memory held."""
        return [load for load in self.read if load not in self.crashed]

    @property
    def wrong_text(self) -> str:
        """The same in words."""
        return ", ".join(str(load.phys) for load in self.wrong_loads) or "their number"

    @property
    def true_dump(self) -> bool:
        """A dump was taken, with every load that it should have, each as memory was at the crash.

        Headers and notes are not asked here: kexecemu.crash.dump has the whole judgement.
        """
        return bool(self.read) and self.read == self.crashed


def load_digests(ram: Ram, areas: list[PhysRange]) -> list[LoadDigest]:
    """The digests of physical memory as it is now, one for each area. BusError where there is no RAM."""
    return [LoadDigest(area, _sha256(ram.read, area.start, area.size)) for area in areas]


def _sha256(read: Callable[[int, int], bytes], start: int, size: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, size, _CHUNK):
        digest.update(read(start + offset, min(_CHUNK, size - offset)))
    return digest.hexdigest()


class _Console(ConsoleLines):
    """Keeps what init says, and stops the machine at a panic's end."""

    def __init__(self, stop: Callable[[], None]) -> None:
        super().__init__(self._hear)
        self.last = ""
        """What init has said last; empty if it has said nothing."""
        self.release = ""
        self.panicked = False  # to the end
        self.panics = self.restarts = False
        self._stop = stop

    def _hear(self, line: bytes) -> None:
        line = _STAMP.sub(b"", line, count=1)
        if line.startswith(b"kdump: "):
            self.last = line.decode(errors="replace").rstrip("\r")
            if not self.release and (up := _RELEASE.match(self.last)):
                self.release = up[1]
        elif _PANIC_END in line:
            self.panicked = True
            self._stop()
        elif _RESTART in line:
            self.restarts = True
        elif _PANIC in line:
            self.panics = True

    def read_from(self, disk: Disk) -> None:
        """Where it was not heard: what it has left in the disk's last sector, for want of a console."""
        if not self.last:
            for line in disk.read(disk.size - _SECTOR, _SECTOR).split(b"\n"):
                self._hear(line)


@contextmanager
def _watched(board: Board, system: System) -> Iterator[_Console]:
    console = _Console(system.request_stop)
    board.uart.listeners.append(console)
    try:
        yield console
    finally:
        board.uart.listeners.remove(console)


def linux_stage(
    board: Board,
    *,
    areas: list[PhysRange],
    image: PhysRange | None = None,
    steps: Sequence[int] = (),
    budget: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Generator[int, None, LinuxCapture]:
    """Run the Linux at whose entry the boot CPU stands to its end; it finds an empty disk for the dump.

    areas are the PT_LOADs that the dump should have, image is where the kernel lies with its bss (physical): its log is
    looked for there where its console has not shown the end. progress(instructions) is called now and then. It stops
    after each number of instructions in steps, ascending, that it comes to, and gives up after budget of them and of
    the host's work; None is enough for a dump of all RAM. Only the boot CPU runs: the others are as the crash has left
    them, and a capture kernel does not wake them.
    """
    disk = Disk((board.ram.size + (64 << 20)) // _SECTOR * _SECTOR)
    board.attach(DUMP_SLOT, VirtioBlock(disk, "vmcore"))
    try:
        crashed = load_digests(board.ram, areas)
    except BusError:
        crashed = []  # a damaged header: nothing that could be compared
    system = System(board)
    if budget is None:
        budget = BUDGET + _BUDGET_PER_BYTE * board.ram.size
    begin, printed = board.time, len(board.uart.text)
    board.work.allow(begin, budget)
    tell = None if progress is None else lambda time: progress(time - begin)
    end: SystemEnd | None = None
    with _watched(board, system) as console:
        for step in steps:
            if board.time - begin < step:
                end = system.run(step - (board.time - begin))
                if end.kind is not SystemEndKind.BUDGET:
                    break
                end = None
            yield step
        while end is None:
            heard = len(board.uart.output)
            end = system.run(min(budget - (board.time - begin), _LOOK), progress=tell)
            over = board.time - begin >= budget or board.work.end <= board.time
            mute = len(board.uart.output) == heard and _PANIC_END in _unshown(board, image, printed).encode()
            if end.kind is SystemEndKind.BUDGET and not over and not mute:
                end = None
    console.read_from(disk)
    said, time = board.uart.text[printed:], board.time - begin
    unshown = "" if _kind(end, console) is LinuxEnd.DONE else _unshown(board, image, printed)
    console.panicked |= _PANIC_END in unshown.encode()
    console.panics |= _PANIC in unshown.encode()
    return _account(
        _kind(end, console), _where(end, said, unshown), time, said, console, disk, crashed, unshown
    )


def _unshown(board: Board, image: PhysRange | None, printed: int) -> str:
    """The end of the log in the kernel's memory, from where its console has stopped; each line has its line feed."""
    records = [] if image is None else kernel_log(board.ram, image, board.boot_cpu.translate)
    shown = {_STAMPS.sub("", line.rstrip()) for line in board.uart.text[printed:].splitlines()}
    first = len(records)
    while first and records[first - 1].text.split("\n")[-1].rstrip() not in shown:
        first -= 1
    return "".join(f"{line}\n" for one in records[first:] for line in one.lines)


def _account(
    kind: LinuxEnd,
    where: str,
    instructions: int,
    said: str,
    console: _Console,
    disk: Disk,
    crashed: list[LoadDigest],
    unshown: str = "",
) -> LinuxCapture:
    vmcore = _dump(disk, console) if kind is LinuxEnd.DONE else None
    try:
        read = vmcore.loads() if vmcore is not None else []
    except (FormatError, MachineError):
        read = []
    panics = _PANIC_TEXT.findall(said + unshown) if kind is LinuxEnd.PANIC else []
    panic = panics[-1].strip() if panics else ""
    word = console.last.removeprefix(_END) if console.last.startswith(_END) else ""
    return LinuxCapture(
        kind, where, instructions, console.release, said, vmcore, read, crashed, word, panic, unshown
    )


def _where(end: SystemEnd, said: str, unshown: str) -> str:
    """Where the machine stood; the last line that means anything to people is the console's, or its log's."""
    if unshown:
        return f"{end}; its console has not shown the end of its log: {unshown.splitlines()[-1].strip()}"
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
    nothing = (
        "it has printed nothing: it has no driver for the console, or has not come so far (earlycon helps)"
    )
    return f"{end}; the last line on the console: {last}" if last else f"{end}; {nothing}"


def _kind(end: SystemEnd, console: _Console) -> LinuxEnd:
    # An init may show the log of the kernel that crashed; a reset that nobody asked for tells its panic from another.
    reset = end.kind is SystemEndKind.RESET
    if console.panicked or (reset and console.panics and not console.restarts):
        return LinuxEnd.PANIC
    # A machine that nobody can switch off is halted, or waits, once init has said how it ends.
    halted = console.last.startswith(_END) and end.kind is not SystemEndKind.FAULT
    if halted or end.kind in (SystemEndKind.OFF, SystemEndKind.RESET):
        return next((kind for word, kind in _LAST_WORDS if console.last.startswith(word)), LinuxEnd.OFF)
    if end.kind is SystemEndKind.FAULT:
        return LinuxEnd.LOST
    return LinuxEnd.BUDGET if end.kind is SystemEndKind.BUDGET else LinuxEnd.STUCK


def _dump(disk: Disk, console: _Console) -> DiskVmcore | None:
    """The dump that init says is on the disk; None for one of which the disk cannot hold so much."""
    match = _SIZE.search(console.last)
    return DiskVmcore(disk, int(match[1])) if match and int(match[1]) <= disk.size else None
