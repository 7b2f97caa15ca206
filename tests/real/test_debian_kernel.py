"""Debian's signed arm64 kernel as the crash image: loaded, hashed by guest code, and entered."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.machine.board import Board

if TYPE_CHECKING:
    from tests.real.conftest import Command

pytestmark = pytest.mark.real

SEED = 20261124
APPEND = "console=ttyAMA0 nr_cpus=1"
MIB2 = 2 << 20
PAGE = 0x1000


def image_size(kernel: bytes) -> int:
    """image_size of struct arm64_image_header, at offset 16 by the boot protocol."""
    assert kernel[56:60] == b"ARM\x64"
    size: int = struct.unpack_from("<Q", kernel, 16)[0]
    return size


def up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@pytest.fixture(scope="module")
def kernel_bytes(debian_kernel: Path) -> bytes:
    """The signed kernel's file."""
    return debian_kernel.read_bytes()


@pytest.fixture(scope="module")
def load(kernel_bytes: bytes, initramfs: Path) -> Callable[[], Kernel]:
    """Machines of two CPUs that have loaded the kernel and the initramfs of busybox."""

    def loaded() -> Kernel:
        booted = Kernel.boot(
            Board("1G", cpus=2), KernelConfig("6.4", purgatory=True), cmdline="crashkernel=256M"
        )
        booted.kexec_file_load(kernel_bytes, initramfs.read_bytes(), APPEND)
        return booted

    return loaded


@pytest.fixture(scope="module")
def crashed(load: Callable[[], Kernel]) -> tuple[Kernel, End]:
    """One crash with nothing written astray."""
    kernel = load()
    return kernel, kernel.panic()


def test_the_command_loads_it_where_a_real_kernel_would(
    command: Callable[..., Command], debian_kernel: Path, initramfs: Path, kernel_bytes: bytes, tmp_path: Path
) -> None:
    done = command(
        "load", "--kernel", debian_kernel, "--initrd", initramfs, "--dump-segments", tmp_path, "--json"
    )
    assert done.status == 0, done.stderr
    report = done.json
    start, last = report["crashkernel"]["start"], report["crashkernel"]["end"]
    assert (start % MIB2, last + 1 - start) == (0, 256 << 20)
    segments = {one["name"]: one for one in report["segments"]}
    assert list(segments) == ["kernel", "elfcorehdr", "initrd", "dtb", "purgatory"]

    kernel = segments["kernel"]
    assert (kernel["mem"], kernel["memsz"]) == (start, up(image_size(kernel_bytes), PAGE))
    assert kernel["bufsz"] == len(kernel_bytes)
    # Bottom up: right behind the kernel. Top down: the highest multiple of its alignment that has room.
    assert segments["initrd"]["mem"] == kernel["mem"] + kernel["memsz"]
    assert segments["elfcorehdr"]["mem"] == (last + 1 - segments["elfcorehdr"]["memsz"]) // 0x10000 * 0x10000
    assert segments["dtb"]["mem"] == (segments["elfcorehdr"]["mem"] - 1) // MIB2 * MIB2

    # What was loaded, segment by segment, against the files and hashlib.
    loaded = {name: (tmp_path / f"{name}.bin").read_bytes() for name in segments}
    assert loaded["kernel"] == kernel_bytes + bytes(kernel["memsz"] - len(kernel_bytes))
    assert loaded["initrd"].rstrip(b"\0") == initramfs.read_bytes().rstrip(b"\0")
    digest = hashlib.sha256(b"".join(loaded[name] for name in segments if name != "purgatory"))
    assert report["digest"] == digest.hexdigest()


def test_the_command_hashes_all_of_it_and_reaches_its_first_instruction(
    command: Callable[..., Command], debian_kernel: Path, initramfs: Path, tmp_path: Path
) -> None:
    timeline = tmp_path / "timeline.jsonl"
    done = command(
        "crash", "--kernel", debian_kernel, "--initrd", initramfs, "--json", "--timeline", timeline
    )
    assert done.status == 0, done.stderr
    report = done.json
    assert (report["outcome"], report["damage"]) == ("captured", [])
    assert "purgatory: digests match" in report["console"]
    covered = sum(one["memsz"] for one in report["segments"] if one["name"] != "purgatory")
    assert report["verdict"]["bytes_hashed"] == covered
    assert report["verdict"]["found"] == report["digest"]
    events = [json.loads(line) for line in timeline.read_text().splitlines()]
    assert any(event.get("end") == "entered" for event in events), events[-3:]


def test_the_digest_that_the_guest_found_is_hashlibs_over_memory(crashed: tuple[Kernel, End]) -> None:
    kernel, end = crashed
    image = kernel.image
    assert image is not None and end.verdict is not None
    memory = hashlib.sha256()
    for segment in image.segments:
        if segment.name != "purgatory":
            memory.update(kernel.ram.read(segment.mem, segment.memsz))
    assert end.verdict.found == end.verdict.expected == memory.digest()
    # A purgatory that hashed less could not have run this long: 64 rounds take 99 instructions even by the CPU's own.
    assert end.purgatory is not None and end.purgatory.instructions > 99 / 64 * end.verdict.bytes_hashed


def test_an_untouched_kernel_is_entered_as_the_boot_protocol_asks(
    crashed: tuple[Kernel, End], kernel_bytes: bytes
) -> None:
    kernel, end = crashed
    image, cpu = kernel.image, kernel.board.boot_cpu
    assert image is not None and end.purgatory is not None and end.capture is not None
    assert (end.outcome, end.purgatory.end) == (Outcome.CAPTURED, PurgatoryEnd.KERNEL)
    assert end.capture.end is CaptureEnd.ENTERED
    # Where the CPU stands, from its registers and nothing else.
    assert cpu.ram.read(cpu.pc, 8) == kernel_bytes[:8]
    assert cpu.pc % MIB2 == 0
    assert [cpu.x(number) for number in (1, 2, 3)] == [0, 0, 0]
    assert cpu.sysreg("SCTLR_EL1") & 0b101 == 0, "MMU or data cache is on"
    assert cpu.pstate & 0x3C0 == 0x3C0, "D, A, I and F are not all masked"
    assert cpu.pstate & 0xF == 0x5, "not EL1h"
    # x0: a device tree, 8-byte aligned, that ends within the 2 MiB that the boot protocol allows it.
    magic, size = struct.unpack(">II", kernel.ram.read(cpu.x(0), 8))
    assert (magic, cpu.x(0) % 8) == (0xD00DFEED, 0)
    assert cpu.x(0) // MIB2 == (cpu.x(0) + size - 1) // MIB2


@pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")
def test_the_device_tree_at_its_entry_leads_to_initrd_dump_and_its_own_memory(
    crashed: tuple[Kernel, End], tmp_path: Path
) -> None:
    kernel, _ = crashed
    image, phys = kernel.image, kernel.board.boot_cpu.x(0)
    assert image is not None
    blob = tmp_path / "entry.dtb"
    blob.write_bytes(kernel.ram.read(phys, struct.unpack(">I", kernel.ram.read(phys + 4, 4))[0]))
    done = subprocess.run(["dtc", "-q", "-I", "dtb", "-O", "dts", str(blob)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chosen = re.search(r"chosen \{(.*?)\};", done.stdout, re.DOTALL)
    assert chosen is not None
    values = dict(re.findall(r"([\w,#-]+) = (.*);", chosen[1]))

    def number(text: str) -> int:
        return int("".join(f"{int(cell, 16):08x}" for cell in text.strip("<>").split()), 16)

    def pair(text: str) -> tuple[int, int]:
        both = number(text)
        return both >> 64, both & (1 << 64) - 1

    initrd, header, region = image.segment("initrd"), image.segment("elfcorehdr"), kernel.crashk_res
    assert initrd is not None and header is not None and region is not None
    assert values["bootargs"] == f'"{APPEND}"'
    assert number(values["linux,initrd-start"]) == initrd.mem
    assert number(values["linux,initrd-end"]) == initrd.mem + initrd.bufsz
    assert pair(values["linux,elfcorehdr"]) == (header.mem, header.memsz)
    assert pair(values["linux,usable-memory-range"]) == (region.start, region.size)


def flips() -> list[tuple[str, int]]:
    """(where, bit): the first and the last byte of the file, and bytes and bits by a seeded generator."""
    random_ = random.Random(SEED)
    places = ["first", "last", "padding", *(f"{random_.random():.6f}" for _ in range(3))]
    return [(place, random_.randrange(8)) for place in places]


@pytest.mark.parametrize(("where", "bit"), flips())
def test_one_flipped_bit_in_it_is_detected(
    load: Callable[[], Kernel], kernel_bytes: bytes, where: str, bit: int
) -> None:
    kernel = load()
    image = kernel.image
    assert image is not None
    segment = image.segment("kernel")
    assert segment is not None
    # The last byte in memory lies behind the file, in what becomes the kernel's BSS.
    named = {"first": 0, "last": len(kernel_bytes) - 1, "padding": segment.memsz - 1}
    offset = named[where] if where in named else int(float(where) * len(kernel_bytes))
    kernel.flip(f"kernel+{offset:#x}", 1 << bit)
    end = kernel.panic()
    assert end.outcome is Outcome.DETECTED
    assert [(one.segment, one.offset, one.length) for one in end.damage] == [("kernel", offset, 1)]
    # The digest that it reports is the one of the memory as it is now, bit and all.
    memory = hashlib.sha256()
    for one in image.segments:
        if one.name != "purgatory":
            memory.update(kernel.ram.read(one.mem, one.memsz))
    assert end.verdict is not None
    assert end.verdict.found == memory.digest() != end.verdict.expected
    assert memory.hexdigest() in end.console


def test_the_same_bit_goes_unnoticed_without_a_purgatory(kernel_bytes: bytes, initramfs: Path) -> None:
    kernel = Kernel.boot(Board("1G"), KernelConfig("6.4", purgatory=False), cmdline="crashkernel=256M")
    kernel.kexec_file_load(kernel_bytes, initramfs.read_bytes(), APPEND)
    kernel.flip(f"kernel+{len(kernel_bytes) - 1:#x}")
    end = kernel.panic()
    assert end.outcome is Outcome.SILENT
    assert kernel.board.boot_cpu.ram.read(kernel.board.boot_cpu.pc, 8) == kernel_bytes[:8]


def test_a_reservation_that_is_too_small_for_it_is_refused_in_one_line(
    command: Callable[..., Command], debian_kernel: Path
) -> None:
    done = command("crash", "--kernel", debian_kernel, "--cmdline", "crashkernel=16M")
    assert (done.status, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("kexecemu: ") and "EADDRNOTAVAIL" in line


@pytest.mark.parametrize("syscall", ["kexec_load", "kexec_file_load"])
def test_a_truncated_one_is_loaded_with_a_line_that_names_it(
    syscall: str, command: Callable[..., Command], kernel_bytes: bytes, tmp_path: Path
) -> None:
    cut = tmp_path / "vmlinuz"
    cut.write_bytes(kernel_bytes[: 1 << 20])
    done = command("load", "--kernel", cut, "--json", "--syscall", syscall)
    assert done.status == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kexecemu: kernel {cut}: truncated: at least 0x")
    assert json.loads(done.stdout)["warnings"] == [line.removeprefix("kexecemu: ")]
