"""An initramfs of a real busybox, unpacked by that busybox and by a real kernel."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

QEMU = shutil.which("qemu-system-aarch64")


def test_busybox_itself_unpacks_the_archive_that_it_is_in(
    initramfs: Path, busybox: Path, arm64_program: list[str], tmp_path: Path
) -> None:
    cpio = [*arm64_program, str(busybox), "cpio"]
    with open(initramfs, "rb") as archive:
        listing = subprocess.run([*cpio, "-tv"], stdin=archive, capture_output=True, text=True, check=True)
    rows = {line.split()[-1]: line.split() for line in listing.stdout.splitlines() if "->" not in line}
    assert {"bin", "dev", "proc", "sys", "dev/console", "bin/busybox", "init"} == set(rows)
    assert rows["dev/console"][0] == "crw-------"
    with open(initramfs, "rb") as archive:
        subprocess.run(
            [*cpio, "-id", "bin/busybox", "bin/sh", "init"],
            stdin=archive,
            cwd=tmp_path,
            capture_output=True,
            check=True,
        )
    assert (tmp_path / "bin/busybox").read_bytes() == busybox.read_bytes()
    assert (tmp_path / "bin/sh").resolve() == (tmp_path / "bin/busybox").resolve()
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    done = subprocess.run(
        [*arm64_program, str(tmp_path / "bin/busybox"), "echo", "it runs"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "it runs\n"


@pytest.mark.skipif(QEMU is None, reason="qemu-system-aarch64 is not installed")
def test_a_real_kernel_boots_to_its_init_and_powers_off(initramfs: Path, debian_kernel: Path) -> None:
    machine = ["-M", "virt", "-cpu", "cortex-a57", "-m", "512M", "-nic", "none", "-no-reboot"]
    console = ["-display", "none", "-serial", "stdio", "-monitor", "none"]
    boot = [
        "-kernel",
        str(debian_kernel),
        "-initrd",
        str(initramfs),
        "-append",
        "console=ttyAMA0 quiet panic=-1",
    ]
    done = subprocess.run(
        [str(QEMU), *machine, *console, *boot],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    release = debian_kernel.name.removeprefix("vmlinuz-")
    assert f"init: up on {release}\n" in done.stdout.replace("\r", ""), done.stdout[-2000:]
    assert "Power down" in done.stdout
    assert "vmcore" not in done.stdout, "this is no capture kernel"
