"""One QEMU with a kernel of ours: what it is started with, its console, and its memory over the gdb stub."""

import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kexecemu.children import child
from kexecemu.errors import InputError, MachineError
from kexecemu.fetch.cache import cached
from kexecemu.folders import temporary_folder
from kexecemu.kbuild.gdbstub import GdbStub
from kexecemu.machine.devices.uart import CONSOLE_LIMIT, kept_of
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CPUS", "LEVELS", "Qemu", "QemuMachine", "find_qemu", "restored_words"]

CPUS = ("max", "neoverse-v1", "cortex-a57", "neoverse-v3")
# QEMU has none: max with its ID register, by which Linux 7.3 knows that it splits live blocks (BBML3).
_QEMU_NAMES = {"neoverse-v3": "max,midr=0x410fd842"}
LEVELS = ("el1", "el2", "vhe")
"""Where the kernel lives, and what of it: EL1 without EL2, EL1 with its hypervisor stub at EL2, EL2."""

_WITHOUT_VHE = ("cortex-a57",)
WITHOUT_16K = ("cortex-a57", "neoverse-v1")  # in QEMU
_CONNECT_SECONDS = 20
_STATE_SECONDS = 60  # to save or restore some hundred megabytes


@shown()
@dataclass(frozen=True)
class QemuMachine:
    """A machine: QEMU's name of the CPU, the level that the kernel lives at, number of CPUs, RAM in QEMU's words."""

    cpu: str = "max"
    el: str = "el1"
    cpus: int = 1
    ram: str = "512M"

    def __post_init__(self) -> None:
        if self.cpu not in CPUS:
            raise InputError(f"--cpu {self.cpu!r} is not one of {', '.join(CPUS)}")
        if self.el not in LEVELS:
            raise InputError(f"--el {self.el!r} is not one of {', '.join(LEVELS)}")
        if self.el == "vhe" and self.cpu in _WITHOUT_VHE:
            raise InputError(f"--el vhe: a {self.cpu} has no VHE")

    def check_pages(self, size: int) -> None:
        """InputError where the CPU has no pages of so many bytes: such a kernel says nothing at all."""
        if size == 16 << 10 and self.cpu in WITHOUT_16K:
            raise InputError(f"--cpu {self.cpu}: it has no pages of 16 KiB, and this kernel no others")

    @property
    def text(self) -> str:
        """For people."""
        return f"in QEMU, -cpu {self.cpu}, {self.el}, {self.cpus} CPU{'s' if self.cpus > 1 else ''}"

    @property
    def words(self) -> str:
        """What the kernel's command line needs for the level."""
        # A kernel that finds VHE moves to EL2; this takes the feature from it.
        return "id_aa64mmfr1.vh=0" if self.el == "el2" and self.cpu not in _WITHOUT_VHE else ""

    def command(self, qemu: Path) -> list[str]:
        """The first words of the command line."""
        machine = "virt,gic-version=3" + (",virtualization=on" if self.el != "el1" else "")
        words = [
            str(qemu),
            "-M",
            machine,
            "-cpu",
            _QEMU_NAMES.get(self.cpu, self.cpu),
            "-smp",
            str(self.cpus),
            "-m",
            self.ram,
        ]
        return [*words, "-nic", "none", "-display", "none", "-monitor", "none", "-no-reboot", "-no-shutdown"]


def find_qemu() -> Path:
    """The fetched QEMU, else the machine's own; InputError where there is none."""
    found = cached("qemu") or shutil.which("qemu-system-aarch64")
    if found is None:
        raise InputError("there is no qemu-system-aarch64: run kexecemu fetch qemu")
    return Path(found).absolute()


def restored_words(path: Path) -> list[str]:
    """More words for a command line, to go on from what save_state() has written; see wait_for_state()."""
    return ["-S", "-incoming", f"exec:cat {shlex.quote(str(path))}"]


class Qemu:
    """A running QEMU. console is what it has printed so far; hear() gets each piece of that."""

    def __init__(self, command: Sequence[str], hear: Callable[[bytes], object] = lambda data: None) -> None:
        self._running = ExitStack()
        self.folder = self._running.enter_context(temporary_folder("kexecemu-qemu-"))
        self._hear, self._output = hear, b""
        self._gdb: GdbStub | None = None
        with open(self.folder / "errors", "wb") as errors:
            self._process = self._running.enter_context(
                child(
                    # It lives in that folder, since its words for files take neither every character nor a long path.
                    [*command, "-serial", "stdio", "-gdb", "unix:gdb,server=on,wait=off"],
                    cwd=self.folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                )
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._gdb is not None:
            self._gdb.close()
        self._running.close()

    @property
    def console(self) -> str:
        """With plain line ends."""
        self.pump()
        return self._output.replace(b"\r", b"").decode(errors="replace")

    @property
    def ended(self) -> bool:
        """There is no such process any more."""
        return self._process.poll() is not None

    @property
    def trouble(self) -> str:
        """QEMU's own last words."""
        lines = (self.folder / "errors").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def check_running(self) -> None:
        """MachineError where it is not the guest that has ended, but QEMU."""
        if self.ended:
            raise MachineError(f"QEMU has ended: {self.trouble or 'without a word'}")

    def type(self, data: bytes) -> None:
        """On its console."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def pump(self, seconds: float = 0) -> None:
        """Take what is printed, and wait for that no longer than so many seconds."""
        pipe = self._process.stdout
        assert pipe is not None
        # No more at once than a console keeps: one that floods must not keep us from looking at the time.
        for _ in range(CONSOLE_LIMIT >> 16):
            if not select.select([pipe], [], [], seconds)[0]:
                return
            piece = os.read(pipe.fileno(), 1 << 16)
            if not piece:
                return
            self._output += kept_of(len(self._output), piece)
            self._hear(piece)
            seconds = 0

    def wait_for(self, words: Sequence[str], seconds: float, start: int = 0) -> str | None:
        """The first of these words that is on the console behind `start`; None where none comes in time.

        One that begins with a line feed is at the beginning of a line, the first one too.
        """
        end = time.monotonic() + seconds
        while True:
            self.pump(0.05)
            said = f"\n{self.console[start:]}"
            for word in words:
                if word in said:
                    return word
            if self.ended or time.monotonic() > end:
                return None

    @property
    def gdb(self) -> GdbStub:
        """The stub; the machine stops when it is asked for the first time."""
        end = time.monotonic() + _CONNECT_SECONDS
        while self._gdb is None:
            try:
                self._gdb = GdbStub(self.folder / "gdb", self.pump)
            except OSError as error:
                if self.ended or time.monotonic() > end:
                    raise MachineError(f"QEMU has no gdb stub: {self.trouble or error}") from error
                time.sleep(0.05)
        return self._gdb

    @contextmanager
    def saved_memory(self, area: PhysRange) -> Iterator[Path]:
        """Physical memory of the stopped machine, in a file that goes afterwards. MachineError where it is not."""
        path = self.folder / "memory"
        said = self.gdb.monitor(f"pmemsave {area.start:#x} {area.size:#x} {path.name}")
        if not path.exists() or path.stat().st_size != area.size:
            raise MachineError(f"QEMU does not save its memory at {area}: {said.strip()}")
        yield path
        path.unlink()

    def copy_memory(self, area: PhysRange, ram: Ram) -> None:
        """Physical memory of the stopped machine into the same place of a RAM of ours."""
        with self.saved_memory(area) as path:
            ram.write(area.start, path.read_bytes())

    def save_state(self, path: Path) -> None:
        """The stopped machine into a file. It does not go on afterwards. MachineError where QEMU cannot."""
        said = self.gdb.monitor('migrate -d "exec:cat > state"')
        end = time.monotonic() + _STATE_SECONDS
        while "completed" not in (told := self.gdb.monitor("info migrate")):
            if "failed" in told or said.startswith("Error") or time.monotonic() > end:
                raise MachineError(f"QEMU does not save its state: {' '.join((said + told).split())}")
            time.sleep(0.02)
        shutil.move(self.folder / "state", path)

    def wait_for_state(self) -> None:
        """Until what restored_words() names is here; the machine is stopped then."""
        end = time.monotonic() + _STATE_SECONDS
        while "inmigrate" in (said := self.gdb.monitor("info status")):
            if time.monotonic() > end:
                raise MachineError(f"QEMU does not restore its state: {said.strip()}")
            time.sleep(0.02)
