#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast does a real Linux crash and capture here, beside QEMU? Two tables, everything measured in one run.

    python tests/benchmarks/bench_linux.py [--chain NAME ...] [--rounds 1] [--no-python] [--no-copy]

A chain is two kernels of Debian: the first one boots, its own kexec-tools load a crash kernel, sysrq crashes it, and
the second one boots and copies /proc/vmcore to a virtio disk. The same bytes run in qemu-system-aarch64 (cortex-a57,
GICv2), in kexecemu with its counter compiled ahead, and with the counter in pure Python. Each number is the median of
the rounds, and a round measures all three one after the other: by the clock, and by what processors spent, which is the
fairer number on a machine that has other things to do.

The second table is the copy alone: a dump of 512 MiB, its memory filled with bytes of a seeded generator.

Needs what cannot ship: kexecemu fetch kernel busybox kexec-tools
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kexecemu.fetch.cache import cached, fetched_folder, kernel_modules
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.linux.initramfs import (
    CAPTURE_CMDLINE,
    CAPTURE_DONE,
    capture_initramfs,
    first_kernel_initramfs,
)
from kexecemu.machine.board import Board
from kexecemu.machine.devices.disk import Disk
from kexecemu.machine.devices.virtio_block import VirtioBlock
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.system import System, SystemEndKind
from kexecemu.scenario.setup import Setup, prepare

MIB = 1 << 20
SEED = 1
RAM_MIB = 512
QEMU = shutil.which("qemu-system-aarch64")
QEMU_TIMEOUT_SECONDS = 300

# Where the first kernel starts and what it is given; the kernel's place is what QEMU's own loader chooses.
KERNEL_PHYS, INITRD_PHYS = 0x40200000, 0x48000000
DUMP_SLOT = 31
BUDGET = 60_000_000_000

STOCK = ("console=ttyAMA0 crashkernel=192M", "console=ttyAMA0 nr_cpus=1 reset_devices")
SHORT = ("console=ttyAMA0 crashkernel=192M cryptomgr.notests nokaslr mitigations=off", CAPTURE_CMDLINE)


@dataclass(frozen=True)
class Chain:
    """Two command lines, and whether kexec-tools and its purgatory take the time for digests."""

    name: str
    first: str
    capture: str
    options: tuple[str, ...] = ()

    @property
    def seeded(self) -> bool:
        """The device tree has seeds. kexec-tools hand on no device tree whose KASLR seed was left unused."""
        return "nokaslr" not in self.first


CHAINS = (
    Chain("stock, KASLR, digests", *STOCK),
    Chain("stock, KASLR, no checks", *STOCK, ("--no-checks",)),
    Chain("short, digests", *SHORT),
    Chain("short, no checks", *SHORT, ("--no-checks",)),
)


class Files:
    """What was fetched, and the initramfs of a chain made of it."""

    def __init__(self) -> None:
        found = {name: cached(name) for name in ("kernel", "busybox", "kexec-tools")}
        missing = [name for name, path in found.items() if path is None]
        if missing:
            raise SystemExit(f"bench_linux: not fetched: kexecemu fetch {' '.join(missing)}")
        self.kernel, self._busybox, self._kexec = (Path(str(path)) for path in found.values())
        packages, modules = fetched_folder("kexec-tools"), kernel_modules("kernel")
        assert packages is not None and modules is not None
        self._packages, self._modules = packages, modules

    def first_initrd(self, chain: Chain) -> bytes:
        """The first kernel's, with the crash kernel and its initrd inside."""
        return first_kernel_initramfs(
            busybox=self._busybox,
            kexec=self._kexec,
            packages=self._packages,
            image=self.kernel,
            initrd=capture_initramfs(busybox=self._busybox, modules_folder=self._modules),
            cmdline=chain.capture,
            options=("--kexec-syscall", *chain.options),
            modules_folder=self._modules,
        )


@contextmanager
def pure_python(wanted: bool) -> Iterator[None]:
    """Boards made meanwhile count in Python."""
    before = os.environ.pop("KEXECEMU_NO_NATIVE", None)
    if wanted:
        os.environ["KEXECEMU_NO_NATIVE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("KEXECEMU_NO_NATIVE", None)
        if before is not None:
            os.environ["KEXECEMU_NO_NATIVE"] = before


@dataclass(frozen=True)
class Seconds:
    """By the clock, and by the processors."""

    wall: float
    processor: float


class Watch:
    """Measures this process and the children that it has waited for."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> Seconds:
        return Seconds(time.perf_counter(), sum(os.times()[:4]))

    def seconds(self) -> Seconds:
        """Since it was made."""
        now = self._now()
        return Seconds(now.wall - self._start.wall, now.processor - self._start.processor)


def time_kexecemu(files: Files, chain: Chain, initrd: bytes, *, python: bool) -> tuple[Seconds, int]:
    """The whole chain: what it took, and instructions."""
    with pure_python(python), Board(f"{RAM_MIB}M") as board, Disk((RAM_MIB + 64) * MIB) as disk:
        board.attach(DUMP_SLOT, VirtioBlock(disk, "vmcore"))
        area = PhysRange.of(INITRD_PHYS, len(initrd))
        dtb = virt_device_tree(
            board.ram.banks,
            1,
            board.uart.base_phys,
            cmdline=chain.first,
            virtio_slots=[DUMP_SLOT],
            rtc=True,
            initrd=area,
            kaslr_seed=random.Random(SEED).getrandbits(64) if chain.seeded else None,
        )
        dtb_phys = -(-area.end // (2 * MIB)) * 2 * MIB
        board.ram.write(KERNEL_PHYS, files.kernel.read_bytes())
        board.ram.write(area.start, initrd)
        board.ram.write(dtb_phys, dtb)
        board.boot_cpu.reset(KERNEL_PHYS, dtb_phys)
        watch = Watch()
        end = System(board).run(BUDGET)
        seconds = watch.seconds()
        if end.kind is not SystemEndKind.OFF or CAPTURE_DONE not in board.uart.text:
            raise SystemExit(f"bench_linux: no dump in kexecemu ({end}): {board.uart.text[-1000:]}")
        return seconds, board.instructions


def time_qemu(files: Files, chain: Chain, initrd: bytes, folder: Path) -> Seconds:
    """The whole chain."""
    (folder / "initrd").write_bytes(initrd)
    disk = folder / "disk"
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate((RAM_MIB + 64) * MIB)
    machine = f"virt,gic-version=2,dtb-randomness={'on' if chain.seeded else 'off'}"
    command = [str(QEMU), "-M", machine, "-cpu", "cortex-a57", "-m", f"{RAM_MIB}M"]
    command += ["-nographic", "-no-reboot", "-nic", "none"]
    command += ["-kernel", str(files.kernel), "-initrd", str(folder / "initrd"), "-append", chain.first]
    command += ["-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=dump"]
    command += ["-drive", f"file={disk},format=raw,if=none,id=dump"]
    watch = Watch()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=QEMU_TIMEOUT_SECONDS
    )
    seconds = watch.seconds()
    if done.returncode or CAPTURE_DONE not in done.stdout:
        raise SystemExit(f"bench_linux: no dump in QEMU: {done.stdout[-1000:]}{done.stderr}")
    return seconds


def measure_chains(files: Files, chains: Sequence[Chain], rounds: int, folder: Path, *, python: bool) -> None:
    """Each chain in every machine, each round, then its two lines of the table."""
    print(f"two real kernels, {RAM_MIB} MiB; seconds and their ratio to QEMU's; medians of {rounds}")
    print(f"{'chain':<24} {'by':<9} {'QEMU':>6} {'kexecemu':>13} {'pure Python':>13} {'instructions':>14}")
    for chain in chains:
        initrd = files.first_initrd(chain)
        samples: dict[str, list[Seconds]] = {}
        counts = set()
        for _ in range(rounds):
            if QEMU:
                samples.setdefault("qemu", []).append(time_qemu(files, chain, initrd, folder))
            for name in ("native", "python") if python else ("native",):
                seconds, instructions = time_kexecemu(files, chain, initrd, python=name == "python")
                samples.setdefault(name, []).append(seconds)
                counts.add(instructions)
        if len(counts) != 1:
            raise SystemExit(f"bench_linux: {chain.name}: instructions differ: {sorted(counts)}")
        wall = {name: statistics.median(one.wall for one in each) for name, each in samples.items()}
        processor = {name: statistics.median(one.processor for one in each) for name, each in samples.items()}
        print(f"{chain.name:<24} {'clock':<9} {_row(wall)} {counts.pop():>14,}")
        print(f"{'':<24} {'processor':<9} {_row(processor)}", flush=True)
    if not QEMU:
        print("QEMU: qemu-system-aarch64 is not installed")


def _row(seconds: dict[str, float]) -> str:
    qemu = seconds.get("qemu")
    cells = [f"{qemu:.1f}" if qemu is not None else "-"]
    for name in ("native", "python"):
        cell = f"{seconds[name]:.1f}" if name in seconds else "-"
        cells.append(f"{cell} ({seconds[name] / qemu:.2f})" if qemu is not None and name in seconds else cell)
    return f"{cells[0]:>6} {cells[1]:>13} {cells[2]:>13}"


def time_copy(mib: int, *, python: bool) -> tuple[float, int]:
    """(seconds, bytes) from the disk's appearance in the capture kernel to its init's last word."""
    marks: dict[str, float] = {}
    tail = bytearray()

    def listen(data: bytes) -> None:
        tail.extend(data)
        for mark in ("[vda]", CAPTURE_DONE):
            if mark not in marks and mark.encode() in tail:
                marks[mark] = time.perf_counter()
        if b"\n" in data:
            tail.clear()

    reserved = 192
    setup = Setup(
        ram=f"{mib + reserved}M", cmdline=f"crashkernel={reserved}M", capture="linux", append=CAPTURE_CMDLINE
    )
    with pure_python(python):
        kernel, _ = prepare(setup, listen)
        region = kernel.crashk_res
        assert region is not None
        chance = random.Random(SEED)
        for bank in kernel.ram.banks:
            for phys in range(bank.start, bank.end, MIB):
                area = PhysRange.of(phys, MIB)
                if not area.overlaps(region) and not any(kernel.ram.read(phys, MIB)):
                    kernel.ram.write_dma(phys, chance.randbytes(MIB))
        end = kernel.panic(linux=True)
    linux = end.capture.linux if end.capture is not None else None
    if linux is None or linux.vmcore is None or linux.wrong_loads:
        raise SystemExit(f"bench_linux: no good dump: {linux.where if linux else end.reason}")
    size = linux.vmcore.size
    kernel.board.close()
    return marks[CAPTURE_DONE] - marks["[vda]"], size


def measure_copy(mib: int, *, python: bool) -> None:
    """The second table."""
    print("\nthe dump's copy by way of the block device, memory full of random bytes")
    print(f"{'counter':<24} {'bytes':>12} {'seconds':>8} {'MiB/s':>7}")
    for name in ("kexecemu", "pure Python") if python else ("kexecemu",):
        seconds, size = time_copy(mib, python=name == "pure Python")
        print(f"{name:<24} {size:>12,} {seconds:>8.2f} {size / MIB / seconds:>7.0f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    names = [chain.name for chain in CHAINS]
    parser = argparse.ArgumentParser(description="How fast does a real Linux crash and capture here?")
    parser.add_argument(
        "--chain",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only this one, repeatable; 'none' for none: {'; '.join(names)}",
    )
    parser.add_argument("--rounds", type=int, default=1, help="default: 1")
    parser.add_argument("--no-python", action="store_true", help="leave the pure Python counter out")
    parser.add_argument("--copy-mib", type=int, default=512, help="size of the dump (default: 512)")
    parser.add_argument("--no-copy", action="store_true", help="leave the second table out")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.copy_mib < 256:
        parser.error("at least one round, and a dump of 256 MiB")
    unknown = sorted(set(options.chain) - {*names, "none"})
    if unknown:
        parser.error(f"no chain {unknown[0]!r}; there are {'; '.join(names)}")
    files = Files()
    chains = [chain for chain in CHAINS if not options.chain or chain.name in options.chain]
    if chains:
        with tempfile.TemporaryDirectory(prefix="bench-linux-") as name:
            measure_chains(files, chains, options.rounds, Path(name), python=not options.no_python)
    if not options.no_copy:
        measure_copy(options.copy_mib, python=not options.no_python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
