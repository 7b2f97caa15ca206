"""Debian's kernel boots on the board: the same to the last bit however often it is stopped, and with several CPUs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from linux_boot import boot_debian

pytestmark = pytest.mark.real


def test_a_real_linux_boots_to_power_off_the_same_wherever_it_is_stopped(
    debian_kernel: Path, initramfs: Path
) -> None:
    whole = boot_debian(debian_kernel, initramfs)
    assert "init: up on 6.1" in whole.console
    chance = random.Random(1)
    stopped = boot_debian(debian_kernel, initramfs, slice_of=lambda cpus: chance.randrange(1, 200_000))
    assert stopped.console == whole.console
    assert stopped == whole


@pytest.mark.slow  # by the block in Python: most of a minute
def test_a_real_linux_boots_the_same_without_the_engine_s_inner_fields(
    debian_kernel: Path, initramfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = boot_debian(debian_kernel, initramfs)
    monkeypatch.setenv("KEXECEMU_NO_INTERNALS", "1")
    for native in ("0", "1"):
        monkeypatch.setenv("KEXECEMU_NO_NATIVE", native)
        with pytest.warns(RuntimeWarning, match="more slowly"):
            assert boot_debian(debian_kernel, initramfs) == whole


def test_a_real_linux_brings_two_cpus_up(debian_kernel: Path, initramfs: Path) -> None:
    result = boot_debian(debian_kernel, initramfs, cpus=2)
    assert "smp: Brought up 1 node, 2 CPUs" in result.console
    assert "init: up on 6.1" in result.console
