"""Boots of Debian's kernel on a board, without a capture: how they end, and what they leave."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.system import System, SystemEndKind

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


def boot_debian(
    kernel: Path,
    initramfs: Path,
    cpus: int = 1,
    slice_of: Callable[[int], int] | None = None,
    *,
    gic: int = 2,
    ram: int = 192 << 20,
) -> Boot:
    """Boot it to power off; slice_of as System has it."""
    with Board(ram, cpus, gic=gic) as board:
        archive = initramfs.read_bytes()
        tree = virt_device_tree(
            board.ram.banks,
            cpus,
            board.uart.base_phys,
            cmdline=CMDLINE,
            rtc=True,
            initrd=PhysRange.of(INITRD, len(archive)),
            rng_seed=bytes(range(32)),
            gic=gic,
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
