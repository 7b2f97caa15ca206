"""Files and tools from outside: each fixture skips where its own is missing, and says how to get it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import kexecemu
from kexecemu.errors import NotFetched
from kexecemu.fetch import cache
from kexecemu.formats.cpio import CpioEntry, build

PACKAGES = str(Path(kexecemu.__file__).parents[1])

INIT = b"""#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
echo "init: up on $(/bin/busybox uname -r)"
if [ -e /proc/vmcore ]; then
    echo "init: vmcore of $(/bin/busybox stat -c %s /proc/vmcore) bytes"
fi
/bin/busybox poweroff -f
"""


def _fetched(what: str) -> Path:
    try:
        return cache.fetched(what)
    except NotFetched as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def fetched() -> Callable[[str], Path]:
    """The file of something that `kexecemu fetch` knows; the test skips where it has not been fetched."""
    return _fetched


@pytest.fixture(scope="session")
def debian_kernel() -> Path:
    """Debian's signed arm64 cloud kernel."""
    return _fetched("kernel")


@pytest.fixture(scope="session")
def busybox() -> Path:
    """A static arm64 busybox."""
    return _fetched("busybox")


@pytest.fixture(scope="session")
def initramfs(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initramfs that boots to an init script: says that it is up, looks for /proc/vmcore, powers off."""
    path = tmp_path_factory.mktemp("initramfs") / "initramfs.cpio"
    path.write_bytes(
        build(
            [
                *(CpioEntry.directory(name) for name in ("bin", "dev", "proc", "sys")),
                # The kernel opens it before init can mount anything.
                CpioEntry.device("dev/console", 5, 1),
                CpioEntry.file("bin/busybox", busybox.read_bytes(), executable=True),
                CpioEntry.link("bin/sh", "busybox"),
                CpioEntry.file("init", INIT, executable=True),
            ]
        )
    )
    return path


def _qemu_user() -> list[str]:
    """The words before a program for arm64 Linux on this machine, none where it runs by itself."""
    if os.uname().machine == "aarch64":
        return []
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if program := shutil.which(name):
            return [program]
    pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user-static)")


@pytest.fixture(scope="session")
def arm64_program() -> list[str]:
    """How this machine runs a static program for arm64 Linux."""
    return _qemu_user()


@dataclass(frozen=True)
class DumpTools:
    """crash, makedumpfile and vmcore-dmesg, run in a folder."""

    root: Path
    prefix: Sequence[str]

    def run(self, name: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a tool; it may fail."""
        program = next(path for path in sorted(self.root.glob(f"**/{name}")) if path.is_file())
        return subprocess.run(
            [*self.prefix, str(program), *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "TERM": "dumb", "HOME": str(cwd)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="session")
def dumptools() -> DumpTools:
    """The arm64 builds: those for other machines read no arm64 dump."""
    root = _fetched("dumptools")
    # By their own loader and libraries: this machine's may be of another release, or for another processor.
    (loader, *_) = sorted(root.glob("**/ld-linux-aarch64.so.1"))
    folders = sorted(str(path) for path in root.glob("**/aarch64-linux-gnu") if path.is_dir())
    return DumpTools(root, [*_qemu_user(), str(loader), "--library-path", ":".join(folders)])


@dataclass(frozen=True)
class Command:
    """One finished kexecemu: status and the two outputs."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """What --json printed."""
        value: dict[str, Any] = json.loads(self.stdout)
        return value


@pytest.fixture(scope="session")
def command() -> Callable[..., Command]:
    """Run kexecemu as a shell would."""

    def run(*arguments: str | Path) -> Command:
        done = subprocess.run(
            [sys.executable, "-m", "kexecemu.cli", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": PACKAGES},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Command(done.returncode, done.stdout, done.stderr)

    return run
