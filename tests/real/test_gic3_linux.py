"""Debian's kernel boots on a board with a GICv3: the same in both forms and with any stops, and with many CPUs."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from linux_boot import Boot, boot_debian
from qemu_tree import dump_tree

from kexecemu.crash.moments import crash as moments_of
from kexecemu.crash.moments import follow
from kexecemu.crash.outcome import Outcome
from kexecemu.linux.first import FirstLinux
from kexecemu.scenario.linux_setup import linux_setup
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import crash, scenario_setup

pytestmark = pytest.mark.real

boot = partial(boot_debian, gic=3)


@pytest.fixture(scope="module")
def alone(debian_kernel: Path, initramfs: Path) -> Boot:
    """A boot with one CPU."""
    return boot(debian_kernel, initramfs)


def test_it_is_a_gicv3_that_linux_finds(alone: Boot) -> None:
    assert "CPU features: detected: GIC system register CPU interface" in alone.console
    assert "GICv3: 256 SPIs implemented" in alone.console
    assert "GICv3: CPU0: found redistributor 0 region 0:0x00000000080a0000" in alone.console
    assert "init: up on 6.1" in alone.console


def test_it_boots_the_same_wherever_it_is_stopped(alone: Boot, debian_kernel: Path, initramfs: Path) -> None:
    chance = random.Random(1)
    stopped = boot(debian_kernel, initramfs, slice_of=lambda cpus: chance.randrange(1, 200_000))
    assert stopped.console == alone.console
    assert stopped == alone


def test_it_boots_the_same_in_python_alone(
    alone: Boot, debian_kernel: Path, initramfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEXECEMU_NO_NATIVE", "1")
    assert boot(debian_kernel, initramfs) == alone


def test_it_brings_more_cpus_up_than_a_gicv2_has(debian_kernel: Path, initramfs: Path) -> None:
    """The last two are in a cluster of their own, which no SGI reaches along with the first."""
    result = boot(debian_kernel, initramfs, cpus=18)
    assert "smp: Brought up 1 node, 18 CPUs" in result.console
    assert "GICv3: CPU17: found redistributor 101 region 0:0x00000000082c0000" in result.console
    assert "init: up on 6.1" in result.console


@pytest.mark.parametrize("dtb", [False, True], ids=["own tree", "QEMU's tree"])
def test_a_real_capture_kernel_writes_its_dump(debian_kernel: Path, tmp_path: Path, dtb: bool) -> None:
    """After the model kernel's crash; QEMU's device tree has an ITS, which the board has not."""
    path = find_scenario("debian-captures")
    setup = scenario_setup(read_scenario(path), path.parent)
    changes = {"ram": None, "dtb": dump_tree(tmp_path / "virt.dtb", gic=3)} if dtb else {"gic": 3}
    setup = replace(setup, **changes)
    result = crash("a crash of a test", setup, [])
    assert result.end.outcome is Outcome.CAPTURED
    console = result.kernel.board.uart.text
    assert "GICv3: CPU0: found redistributor 0 region 0:0x00000000080a0000" in console
    assert "kdump: end: status 0" in console


def test_a_real_first_kernel_crashes_into_a_real_capture_kernel(debian_kernel: Path) -> None:
    """Three CPUs, one of which no interrupt can stop."""
    path = find_scenario("linux-cpu-stuck")
    scenario = read_scenario(path)
    setup = replace(linux_setup(scenario_setup(scenario, path.parent)), cpus=3, gic=3)
    linux = FirstLinux(setup)
    with linux.board:
        linux.load()
        end = follow(moments_of(linux, linux=True), {})
        console = linux.board.uart.text
    assert end.outcome is Outcome.CAPTURED
    # On the console and in the log that init sends; then by the capture kernel, on whichever CPU has crashed.
    assert len(re.findall(r"GICv3: CPU0: found redistributor \d+ region 0:0x0000000008\w{6}\n", console)) == 3
    assert "smp: Brought up 1 node, 3 CPUs" in console
    assert "SMP: failed to stop secondary CPUs" in console
    assert "kdump: end: status 0" in console


@pytest.mark.parametrize("name", ["kernel-trixie", "kernel-backports"])
def test_newer_kernels_boot_with_three_cpus(
    fetched: Callable[[str], Path], initramfs: Path, name: str
) -> None:
    kernel = fetched(name)
    result = boot(kernel, initramfs, cpus=3)
    assert "smp: Brought up 1 node, 3 CPUs" in result.console
    assert f"init: up on {kernel.name.removeprefix('vmlinuz-')}" in result.console
