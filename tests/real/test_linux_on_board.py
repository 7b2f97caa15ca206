"""Debian's kernel boots on the board: the same to the last bit however often it is stopped, and with several CPUs."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    ram: int = 192 << 20,
) -> Boot:
    with Board(ram, cpus) as board:
        archive = initramfs.read_bytes()
        tree = virt_device_tree(
            board.ram.banks,
            cpus,
            board.uart.base_phys,
            cmdline=CMDLINE,
            rtc=True,
            initrd=PhysRange.of(INITRD, len(archive)),
            rng_seed=bytes(range(32)),
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


def test_a_real_linux_boots_to_power_off_the_same_wherever_it_is_stopped(
    debian_kernel: Path, initramfs: Path
) -> None:
    whole = boot(debian_kernel, initramfs)
    assert "init: up on 6.1" in whole.console
    chance = random.Random(1)
    stopped = boot(debian_kernel, initramfs, slice_of=lambda cpus: chance.randrange(1, 200_000))
    assert stopped.console == whole.console
    assert stopped == whole


def test_a_real_linux_brings_two_cpus_up(debian_kernel: Path, initramfs: Path) -> None:
    result = boot(debian_kernel, initramfs, cpus=2)
    assert "smp: Brought up 1 node, 2 CPUs" in result.console
    assert "init: up on 6.1" in result.console
