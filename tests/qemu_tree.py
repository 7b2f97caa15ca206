"""The device tree that QEMU's virt gives to its guests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def dump_tree(blob: Path, *, gic: int = 2, cpus: int = 1, ram: str = "512M") -> Path:
    """Write the tree of a virt with a GIC of that version to a file; skips where there is no QEMU."""
    qemu = shutil.which("qemu-system-aarch64")
    if qemu is None:
        pytest.skip("qemu-system-aarch64 is not installed")
    machine = f"virt,gic-version={gic},dumpdtb={blob}"
    options = ["-cpu", "cortex-a57", "-smp", str(cpus), "-m", ram, "-nic", "none", "-display", "none"]
    subprocess.run([qemu, "-machine", machine, *options], check=True, capture_output=True, timeout=60)
    return blob
