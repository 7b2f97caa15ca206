#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast is the guest's check of a crash image? One table, everything measured in one run.

    python tests/benchmarks/bench_check.py [--mib 32] [--rounds 3]

Rows: the shipped purgatory in kexecemu from its entry to the kernel's; the same in QEMU, on the same bytes at the
same addresses; hashlib over those bytes; the whole command `kexecemu crash`. Each number is the median of the
rounds, and a round measures every row once, so that a machine that is busy for a while slows them all alike.

The crash image is a real arm64 Image as far as its header goes, filled with bytes of a seeded generator. Its code
switches the machine off, which is how QEMU ends: a purgatory that is content jumps to it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import kexecemu
from kexecemu.capture.second_stage import PurgatoryEnd, PurgatoryRun, run_purgatory
from kexecemu.formats import image
from kexecemu.kernel.config import KernelConfig
from kexecemu.kernel.kimage import Kimage
from kexecemu.machine.board import Board
from kexecemu.scenario.lab import Kernel

MIB = 1 << 20
SEED = 1
QEMU = shutil.which("qemu-system-aarch64")
QEMU_TIMEOUT_SECONDS = 300

# Where QEMU starts. Its virt board has a device tree of its own at the start of RAM; this is far from it, and far
# below the crash region.
START_PHYS = 0x48000000

# What is run behind the Image's header: PSCI SYSTEM_OFF, 0x84000008, by the conduit of both boards.
POWER_OFF = struct.pack(
    "<3I",
    0x52B08000,  # mov w0, #0x84000000
    0x321D0000,  # orr w0, w0, #8
    0xD4000002,  # hvc #0
)
BRANCH_OVER_HEADER = 0x14000000 | image.HEADER_SIZE // 4  # b . + 64


def enter(entry_phys: int, dtb_phys: int) -> bytes:
    """What machine_kexec() leaves: x0 the device tree, x1 to x3 zero, control at the purgatory's entry."""
    return struct.pack(
        "<6I2Q",
        0x580000C0,  # ldr x0, . + 24
        0xD2800001,  # mov x1, #0
        0xD2800002,  # mov x2, #0
        0xD2800003,  # mov x3, #0
        0x58000089,  # ldr x9, . + 16
        0xD61F0120,  # br  x9
        dtb_phys,
        entry_phys,
    )


def crash_image(size: int) -> bytes:
    """An arm64 Image of `size` bytes that powers off."""
    head = image.build(image_size=size, code0=BRANCH_OVER_HEADER) + POWER_OFF
    return head + random.Random(SEED).randbytes(size - len(head))


@dataclass
class Load:
    """A machine after the load of a crash image; its purgatory's run is what is measured."""

    kernel: Kernel
    image: Kimage

    @classmethod
    def of(cls, size: int) -> Load:
        kernel = Kernel.boot(Board("1G"), KernelConfig("6.4", purgatory=True), cmdline="crashkernel=256M")
        loaded = kernel.kexec_file_load(crash_image(size), None, "console=ttyAMA0")
        assert loaded is not None
        return cls(kernel, loaded)

    def regions(self) -> list[bytes]:
        """The bytes that the purgatory hashes, region by region."""
        return [self.kernel.ram.read(area.start, area.size) for area in self.image.sha_regions]

    def run(self) -> tuple[float, PurgatoryRun]:
        """Panic, then time the purgatory alone."""
        self.kernel.crash()
        purgatory = self.kernel.kexec.purgatory
        assert purgatory is not None
        start = time.perf_counter()
        run = run_purgatory(self.kernel, self.image, purgatory)
        seconds = time.perf_counter() - start
        assert run.end is PurgatoryEnd.KERNEL, run
        return seconds, run

    def qemu_command(self, folder: Path) -> list[str]:
        """QEMU with the same bytes in memory as the machine has after its load."""
        pieces = {
            segment.mem: self.kernel.ram.read(segment.mem, segment.memsz) for segment in self.image.segments
        }
        pieces[START_PHYS] = enter(self.image.start, self.image.dtb_mem)
        command = [str(QEMU), "-M", "virt", "-cpu", "cortex-a57", "-m", "1G", "-display", "none"]
        command += ["-serial", "stdio", "-monitor", "none", "-nic", "none"]
        for phys, data in pieces.items():
            path = folder / f"{phys:x}.bin"
            path.write_bytes(data)
            command += ["-device", f"loader,file={path},addr={phys:#x},force-raw=on"]
        return [*command, "-device", f"loader,addr={START_PHYS:#x},cpu-num=0"]


def time_qemu(command: Sequence[str]) -> float:
    """Seconds of one whole QEMU, which has to end with the purgatory content."""
    start = time.perf_counter()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=QEMU_TIMEOUT_SECONDS
    )
    seconds = time.perf_counter() - start
    if done.returncode or "digests match" not in done.stdout:
        raise SystemExit(f"bench_check: QEMU did not check the image: {done.stdout}{done.stderr}")
    return seconds


def time_hashlib(regions: Sequence[bytes], expected: bytes) -> float:
    """Seconds of SHA-256 by hashlib over the regions."""
    start = time.perf_counter()
    digest = hashlib.sha256()
    for region in regions:
        digest.update(region)
    found = digest.digest()
    seconds = time.perf_counter() - start
    assert found == expected
    return seconds


def time_command(kernel: Path) -> float:
    """Seconds of `kexecemu crash` from the shell."""
    packages = str(Path(kexecemu.__file__).parents[1])
    command = [
        sys.executable,
        "-m",
        "kexecemu.cli",
        "crash",
        "--kernel",
        str(kernel),
        "--initrd",
        "none",
        "--json",
    ]
    start = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": packages},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode or json.loads(done.stdout)["outcome"] != "captured":
        raise SystemExit(f"bench_check: kexecemu crash failed: {done.stderr}{done.stdout[-500:]}")
    return seconds


def row(name: str, size: int, seconds: float, first: float) -> str:
    """One line of the table: speed, speed as a ratio to the first row's, and seconds."""
    speed = size / seconds / 1e6
    return f"{name:<44} {speed:>10.1f} {speed / first:>9.2f} {seconds:>9.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How fast is the guest's check of a crash image?")
    parser.add_argument(
        "--mib", type=int, default=32, help="size of the crash image, at least 2 (default: 32)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    options = parser.parse_args(arguments)
    if options.mib < 2 or options.rounds < 1:
        parser.error("at least 2 MiB and one round")
    size = options.mib * MIB
    small = Load.of(size // 4)
    large = Load.of(size)
    # Nothing of the host runs while the first kernel is loaded, so this is what every row hashes.
    regions, digest = large.regions(), large.image.digest
    assert digest is not None
    hashed = sum(len(region) for region in regions)
    less = hashed - sum(len(region) for region in small.regions())

    with tempfile.TemporaryDirectory(prefix="bench-check-") as name:
        folder = Path(name)
        kernel = folder / "Image"
        kernel.write_bytes(crash_image(size))
        runs: list[PurgatoryRun] = []

        def in_kexecemu() -> float:
            seconds, run = Load.of(size).run()
            runs.append(run)
            return seconds

        measures: dict[str, Callable[[], float]] = {
            "kexecemu": in_kexecemu,
            "hashlib": lambda: time_hashlib(regions, digest),
            "command": lambda: time_command(kernel),
        }
        if QEMU:
            for label, load in (("qemu", large), ("qemu small", small)):
                (folder / label).mkdir()
                command = load.qemu_command(folder / label)
                measures[label] = partial(time_qemu, command)
        samples: dict[str, list[float]] = {label: [] for label in measures}
        for _ in range(options.rounds):
            for label, measure in measures.items():
                samples[label].append(measure())

    seconds = {label: statistics.median(values) for label, values in samples.items()}
    first = hashed / seconds["kexecemu"] / 1e6
    print(f"{options.mib} MiB crash image, {hashed} bytes hashed, medians of {options.rounds} rounds")
    print(f"{'what':<44} {'MB/s':>10} {'ratio':>9} {'seconds':>9}")
    print(row("guest's check in kexecemu", hashed, seconds["kexecemu"], first))
    if QEMU:
        # Start-up, device tree and so on cost the same for both sizes, and the difference is without them.
        difference = seconds["qemu"] - seconds["qemu small"]
        if difference > 0:
            print(row("guest's check in QEMU (start-up subtracted)", less, difference, first))
        else:
            print("guest's check in QEMU: too short to tell from its start-up; take a larger --mib")
        print(row("QEMU from start to power off", hashed, seconds["qemu"], first))
    else:
        print("guest's check in QEMU: qemu-system-aarch64 is not installed")
    print(row("hashlib", hashed, seconds["hashlib"], first))
    print(row("kexecemu crash, the whole command", hashed, seconds["command"], first))
    print(f"instructions per byte of the check: {runs[0].instructions / hashed:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
