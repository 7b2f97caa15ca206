"""A QEMU that goes on from a handoff, with its console in a file and its monitor on a socket."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from kexecemu.crash.handoff import Handoff
from kexecemu.machine.ranges import PhysRange

LIMIT_SECONDS = 20
SETTLE_SECONDS = 0.05


class Qemu:
    """One QEMU that goes on from a handoff; its console is a file, its monitor a socket."""

    def __init__(self, handoff: Handoff, *more: str) -> None:
        # A socket's path has room for about 100 characters, which a test's own folder may exceed.
        self._folder = tempfile.TemporaryDirectory(prefix="handoff-")
        self.folder = Path(self._folder.name)
        monitor = self.folder / "monitor"
        with open(self.folder / "console", "wb") as console, open(self.folder / "errors", "wb") as errors:
            self._process = subprocess.Popen(
                [*handoff.command, "-no-shutdown", "-monitor", f"unix:{monitor},server,nowait", *more],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=errors,
            )
        self._monitor = socket.socket(socket.AF_UNIX)
        self._monitor.settimeout(LIMIT_SECONDS)
        try:
            self._wait(lambda: self._connected(monitor), "monitor")
            self._answer()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._monitor.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    @property
    def console(self) -> bytes:
        return (self.folder / "console").read_bytes()

    def _connected(self, monitor: Path) -> bool:
        # The socket is there a moment before QEMU listens.
        return self._monitor.connect_ex(str(monitor)) == 0

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not done():
            if self._process.poll() is not None:
                pytest.fail(f"QEMU has ended: {(self.folder / 'errors').read_text()}")
            if time.monotonic() > end:
                pytest.fail(f"QEMU: no {what} within {LIMIT_SECONDS} s; console: {self.console!r}")
            time.sleep(0.01)

    def wait_for_console(self, text: bytes) -> None:
        """Until the console has as much as `text`, and then a little longer: it might go on."""
        self._wait(lambda: len(self.console) >= len(text), f"console like {text!r}")
        time.sleep(SETTLE_SECONDS)

    def wait_for_shutdown(self) -> None:
        self._wait(lambda: "shutdown" in self.monitor("info status"), "shutdown")

    def wait_for_pc(self, pc: int) -> None:
        self._wait(lambda: self.register("PC") == pc, f"PC {pc:#x}")

    def _answer(self) -> str:
        answer = b""
        while not answer.endswith(b"(qemu) "):
            piece = self._monitor.recv(1 << 16)
            assert piece, answer
            answer += piece
        return answer.decode(errors="replace")

    def monitor(self, command: str) -> str:
        self._monitor.sendall(command.encode() + b"\n")
        return self._answer()

    def register(self, name: str) -> int:
        words = self.monitor("info registers").replace("=", " ").split()
        return int(words[words.index(name) + 1], 16)

    def memory_once_it_is(self, ours: bytes, phys: int) -> bytes:
        """Memory, as soon as it is as here, or as it is in the end: a silent QEMU does not tell when it is done."""
        end = time.monotonic() + LIMIT_SECONDS
        while (theirs := self.memory(PhysRange.of(phys, len(ours)))) != ours and time.monotonic() < end:
            time.sleep(0.05)
        return theirs

    def memory(self, area: PhysRange) -> bytes:
        path = self.folder / "memory"
        self.monitor(f'pmemsave {area.start:#x} {area.size:#x} "{path}"')
        data = path.read_bytes()
        path.unlink()
        return data
