"""QEMU's virt machine as a set of devices: registers and lines are worked over qtest's protocol, no CPU runs."""

from __future__ import annotations

import shutil
import subprocess
from types import TracebackType
from typing import Self

import pytest

CPU = "/machine/unattached/device[0]"


class Qtest:
    """A QEMU whose devices are read and written from here; skips the test where there is no QEMU."""

    def __init__(self, *more: str) -> None:
        qemu = shutil.which("qemu-system-aarch64")
        if qemu is None:
            pytest.skip("qemu-system-aarch64 is not installed")
        command = [qemu, "-machine", "virt,gic-version=2", "-cpu", "cortex-a57", "-m", "64M", "-nodefaults"]
        command += ["-S", "-display", "none", "-qtest", "stdio", "-qtest-log", "none", *more]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.inputs: dict[int, bool] = {}
        """The levels of the CPU's inputs that have changed: 0 is IRQ, 1 is FIQ."""
        self.command(f"irq_intercept_in {CPU}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def command(self, line: str) -> str:
        """What QEMU answers; changes of the CPU's inputs that it tells of first are noted."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        while True:
            word, *rest = self._process.stdout.readline().split()
            if word != "IRQ":
                assert word == "OK", (line, word, rest)
                return " ".join(rest)
            self.inputs[int(rest[1])] = rest[0] == "raise"

    def read(self, phys: int, size: int = 4) -> int:
        return int(self.command(f"read{'bwlq'[size.bit_length() - 1]} {phys:#x}"), 16)

    def write(self, phys: int, value: int, size: int = 4) -> None:
        self.command(f"write{'bwlq'[size.bit_length() - 1]} {phys:#x} {value:#x}")

    def drive(self, device: str, number: int, level: bool) -> None:
        """Drive an input of a device, named by its path in QEMU's object model."""
        self.command(f"set_irq_in {device} unnamed-gpio-in {number} {int(level)}")
