"""The QEMU that is fetched and not installed: a newer one than most distributions have, for CPUs of today."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.boot.tree_board import gic_phys
from kexecemu.machine.board import Board

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


@pytest.mark.parametrize("cpus", [1, 8, 9, 123])
def test_a_board_of_so_many_cpus_has_the_interrupt_controller_that_it_has_there(
    qemu: Path, tmp_path: Path, cpus: int
) -> None:
    """Its own choice, and what it says to a GICv2 with too many."""

    def tree_of(machine: str) -> subprocess.CompletedProcess[str]:
        options = ["-cpu", "cortex-a57", "-smp", str(cpus), "-nic", "none", "-display", "none"]
        command = [qemu, "-M", f"{machine},dumpdtb={tmp_path / 'dtb'}", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert tree_of("virt").returncode == 0
    with Board("4M", cpus) as board:
        assert board.gic.version == gic_phys(Fdt((tmp_path / "dtb").read_bytes()))[0]
    asked = tree_of("virt,gic-version=2")
    if cpus <= 8:
        assert asked.returncode == 0
    else:
        assert "exceeds max CPUs supported by machine 'mach-virt' (8)" in asked.stderr
        with pytest.raises(InputError, match="1 to 8 CPUs"):
            Board("4M", cpus, gic=2)


@pytest.mark.parametrize("name", ["kernel", "kernel-trixie", "kernel-6.18", "kernel-backports"])
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
