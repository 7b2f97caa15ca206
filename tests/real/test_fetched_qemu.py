"""The QEMU that is fetched and not installed: a newer one than most distributions have, for CPUs of today."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

SECONDS = 240


@pytest.fixture(scope="module")
def qemu(fetched: Callable[[str], Path]) -> Path:
    return fetched("qemu")


def test_it_is_new_enough_for_permission_indirection_at_el1(qemu: Path) -> None:
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    version = re.search(r"version (\d+)\.(\d+)", said)
    assert version is not None
    assert (int(version[1]), int(version[2])) >= (10, 2)  # FEAT_S1PIE in -cpu max


@pytest.mark.parametrize("name", ["kernel", "kernel-trixie", "kernel-backports"])
def test_real_kernels_boot_on_a_cpu_of_today(
    qemu: Path, fetched: Callable[[str], Path], initramfs: Path, name: str
) -> None:
    kernel = fetched(name)
    command = [qemu, "-M", "virt", "-cpu", "max", "-m", "512M", "-nic", "none", "-no-reboot"]
    command += ["-display", "none", "-serial", "stdio", "-monitor", "none"]
    command += ["-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyAMA0 quiet"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS
    )
    assert f"init: up on {kernel.name.removeprefix('vmlinuz-')}" in done.stdout, done.stderr
