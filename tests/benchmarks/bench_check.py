#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast is the guest's check of a crash image? One table, everything measured in one run.

    python tests/benchmarks/bench_check.py [--mib 32] [--rounds 3]

Rows: the shipped purgatory in its four ways of checking, and that of kexec-tools where its program has been fetched
(kexecemu fetch kexec-tools), each from its entry to the kernel's: in kexecemu, and in QEMU on the same bytes at the
same addresses; then hashlib over those bytes, and the whole command `kexecemu crash`. Each number is the median of the
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import kexecemu
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.running import run_purgatory
from kexecemu.crash.stages import PurgatoryEnd, PurgatoryRun
from kexecemu.fetch.cache import cached
from kexecemu.formats import image
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.board import Board

MIB = 1 << 20
SEED = 1
QEMU = shutil.which("qemu-system-aarch64")
QEMU_TIMEOUT_SECONDS = 60

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
        "<10I2Q",
        # Linux leaves FP and SIMD on, and kexec-tools' purgatory, printf and all, relies on that.
        0xD2A00609,  # mov x9, #3 << 20
        0xD5181049,  # msr cpacr_el1, x9
        0xD5033FDF,  # isb
        0xD503201F,  # nop, which aligns the addresses below
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
    header = struct.pack("<I12xQ32x4s4x", BRANCH_OVER_HEADER, size, image.IMAGE_MAGIC)
    head = header + POWER_OFF
    return head + random.Random(SEED).randbytes(size - len(head))


@dataclass(frozen=True)
class Way:
    """A purgatory and how it is told to check."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    purgatory: str | Path = "default"


def ways() -> list[Way]:
    """What there is to compare on this machine."""
    no_crypto, no_mmu = {"KEXEC_PURGATORY_CRYPTO": "n"}, {"KEXEC_PURGATORY_MMU": "n"}
    found = [
        Way("caches on, SHA-2 instructions"),
        Way("caches on, scalar", no_crypto),
        Way("caches off, SHA-2 instructions", no_mmu),
        Way("caches off, scalar", {**no_crypto, **no_mmu}),
    ]
    kexec = cached("kexec-tools")
    if kexec is not None:
        found.append(Way("kexec-tools' purgatory", purgatory=kexec))
    return found


@dataclass
class Load:
    """A machine after the load of a crash image; its purgatory's run is what is measured."""

    kernel: Kernel
    image: Kimage

    @classmethod
    def of(cls, size: int, way: Way) -> Load:
        config = KernelConfig("6.4", purgatory=way.purgatory, options=way.options)
        kernel = Kernel.boot(Board("1G"), config, cmdline="crashkernel=256M")
        loaded = kernel.kexec_file_load(crash_image(size), None, "console=ttyAMA0")
        assert loaded is not None
        return cls(kernel, loaded)

    def regions(self) -> list[bytes]:
        """The bytes that the purgatory hashes, region by region."""
        return [self.kernel.ram.read(area.start, area.size) for area in self.image.sha_regions]

    def run(self) -> tuple[float, PurgatoryRun]:
        """Panic, then time the purgatory alone."""
        self.kernel.crash()
        purgatory = self.image.purgatory
        assert purgatory is not None
        start = time.perf_counter()
        run = run_purgatory(self.kernel, self.image)
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
    if done.returncode or "NOT match" in done.stdout or "purgatory" not in done.stdout:
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
    with tempfile.TemporaryDirectory(prefix="bench-check-") as name:
        measure_all(options.mib, options.rounds, Path(name))
    return 0


def measure_all(mib: int, rounds: int, folder: Path) -> None:
    """Every row once a round, then the table."""
    size = mib * MIB
    compared = ways()
    instructions: dict[str, list[int]] = {}
    measures: dict[str, Callable[[], float]] = {}
    for way in compared:
        measures[way.name] = partial(time_kexecemu, size, way, instructions.setdefault(way.name, []))
        if QEMU:
            for label, bytes_ in (("qemu", size), ("qemu small", size // 4)):
                place = folder / str(len(measures))  # no comma in it: QEMU's options end there
                place.mkdir()
                measures[f"{way.name} {label}"] = partial(time_qemu, Load.of(bytes_, way).qemu_command(place))
    # Nothing of the host runs while the first kernel is loaded, so this is what every row hashes.
    loaded = Load.of(size, compared[0])
    regions, digest = loaded.regions(), loaded.image.digest
    assert digest is not None
    hashed = sum(len(region) for region in regions)
    kernel = folder / "Image"
    kernel.write_bytes(crash_image(size))
    measures["hashlib"] = lambda: time_hashlib(regions, digest)
    measures["command"] = lambda: time_command(kernel)
    samples: dict[str, list[float]] = {label: [] for label in measures}
    for _ in range(rounds):
        for label, measure in measures.items():
            samples[label].append(measure())
    seconds = {label: statistics.median(values) for label, values in samples.items()}

    print(
        f"{mib} MiB crash image, {hashed} bytes hashed, medians of {rounds} rounds; MB/s of the guest's check"
    )
    print(
        f"{'what':<34} {'kexecemu':>9} {'ratio':>6} {'QEMU':>7} {'kexecemu/QEMU':>14} {'instructions a byte':>20}"
    )
    first = hashed / seconds[compared[0].name] / 1e6
    for way in compared:
        speed = hashed / seconds[way.name] / 1e6
        qemu = other = "-"
        if QEMU:
            # Start-up, device tree and so on cost the same for both sizes, and the difference is without them.
            difference = seconds[f"{way.name} qemu"] - seconds[f"{way.name} qemu small"]
            if difference > 0:
                in_qemu = (size - size // 4) / difference / 1e6
                qemu, other = f"{in_qemu:.1f}", f"{speed / in_qemu:.2f}"
        per_byte = instructions[way.name][0] / hashed
        print(f"{way.name:<34} {speed:>9.1f} {speed / first:>6.2f} {qemu:>7} {other:>14} {per_byte:>20.2f}")
    for label, what in (("hashlib", "hashlib"), ("command", "kexecemu crash, the whole command")):
        speed = hashed / seconds[label] / 1e6
        print(f"{what:<34} {speed:>9.1f} {speed / first:>6.2f}")
    if not QEMU:
        print("QEMU: qemu-system-aarch64 is not installed")
    if compared[-1].purgatory == "default":
        print("kexec-tools' purgatory: not fetched (kexecemu fetch kexec-tools)")


def time_kexecemu(size: int, way: Way, instructions: list[int]) -> float:
    """Seconds of the purgatory alone; its instructions are appended."""
    seconds, run = Load.of(size, way).run()
    instructions.append(run.instructions)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
