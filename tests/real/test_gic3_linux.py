"""Debian's kernel boots on a board with a GICv3: the same in both forms and with any stops, and with many CPUs."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from kexecemu.kernel.virt_board import virt_device_tree
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.system import System, SystemEndKind

pytestmark = pytest.mark.real

KERNEL, INITRD, DTB = 0x40200000, 0x48000000, 0x47000000
BUDGET = 4_000_000_000
# What takes time and shows nothing: the mitigations' code, and self-tests of ciphers.
CMDLINE = "console=ttyAMA0 mitigations=off cryptomgr.notests random.trust_bootloader=on"


@dataclass(frozen=True)
class Boot:
    """The end of one, and what is left."""

    end: str
    console: str
    ram: str
    time: int


def boot(
    kernel: Path,
    initramfs: Path,
    cpus: int = 1,
    slice_of: Callable[[int], int] | None = None,
    cmdline: str = CMDLINE,
) -> Boot:
    with Board(192 << 20, cpus, gic=3) as board:
        archive = initramfs.read_bytes()
        tree = virt_device_tree(
            board.ram.banks,
            cpus,
            board.uart.base_phys,
            cmdline=cmdline,
            rtc=True,
            initrd=PhysRange.of(INITRD, len(archive)),
            rng_seed=bytes(range(32)),
            gic=3,
        )
        board.ram.write(KERNEL, kernel.read_bytes())
        board.ram.write(INITRD, archive)
        board.ram.write(DTB, tree)
        board.boot_cpu.reset(KERNEL, DTB)
        end = System(board, slice_of=slice_of).run(BUDGET)
        assert end.kind is SystemEndKind.OFF, board.uart.text[-2000:]
        digest = hashlib.sha256()
        for bank in board.ram.banks:
            digest.update(board.ram.view(bank.start, bank.size))
        return Boot(str(end), board.uart.text, digest.hexdigest(), board.time)


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


def test_debian_13_s_boots_with_three_cpus(fetch_module: ModuleType, initramfs: Path) -> None:
    kernel = fetch_module.cached("kernel-trixie")
    if kernel is None:
        pytest.skip(fetch_module.how_to("kernel-trixie"))
    result = boot(kernel, initramfs, cpus=3)
    assert "smp: Brought up 1 node, 3 CPUs" in result.console
    assert "init: up on 6.12" in result.console
