"""The purgatory on a machine that nobody here wrote: QEMU's virt board, with alignment checking on.

With the MMU off QEMU lets unaligned accesses pass; with SCTLR_ELx.A set they fault, as they do on silicon. Every
policy at EL1, EL2 and EL2 with VHE, with caches and without, by the SHA-2 instructions and without.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.purgatory.conftest import MODES, SHIPPED, Bench, El, Mode, load
from tests.purgatory.test_policies import Policy

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("qemu-system-aarch64") is None, reason="qemu-system-aarch64 is not installed"
    ),
]

PHYS, DATA, TABLE, COPY = 0x48000000, 0x44000000, 0x44100000, 0x44200000
KERNEL_ENTRY, START, DTB = 0x46000000, 0x47000000, 0x45000000
UART = 0x09000000
NO_MEMORY = 0x3F0000000
SECONDS = 20


def mov(register: int, value: int) -> list[int]:
    """movz and movk: a 64-bit constant."""
    parts = [(value >> 16 * i & 0xFFFF) << 5 | i << 21 | register for i in range(4)]
    return [0xD2800000 | parts[0], *(0xF2800000 | part for part in parts[1:])]


def call_firmware(mode: Mode, function: int) -> list[int]:
    """PSCI by what the board offers: HVC, or SMC where there is an EL2 to call from."""
    return [*mov(0, function), 0xD4000002 if mode.el is El.EL1 else 0xD4000003]


def print_and_power_off(mode: Mode, letter: str) -> bytes:
    """A kernel of one letter."""
    words = [*mov(9, UART), *mov(10, ord(letter)), 0xB900012A, *call_firmware(mode, 0x84000008)]
    return struct.pack(f"<{len(words)}I", *words)


def start_up(mode: Mode) -> bytes:
    """Alignment checking on, at the level wanted; x0 to x3 by contract; x30 leads behind it: there is power off."""
    read, write = (0xD5381009, 0xD5181009) if mode.el is El.EL1 else (0xD53C1009, 0xD51C1009)
    words = []
    if mode.el is El.VHE:
        # hcr_el2 = E2H | TGE | RW; from then on cptr_el2 has cpacr_el1's layout, and 0 traps.
        words += [*mov(9, 1 << 34 | 1 << 27 | 1 << 31), 0xD51C1109, 0xD5033FDF, 0xD51C115F, 0xD5033FDF]
    words += [read, 0xB27F0129, write, 0xD5033FDF]  # orr x9, x9, #2; isb
    words += [*mov(0, DTB), *mov(1, 0), *mov(2, 0), *mov(3, 0), *mov(9, PHYS), 0xD63F0120]  # blr x9
    return struct.pack(f"<{len(words)}I", *words) + print_and_power_off(mode, "R")


# With SME a CPU may be in streaming mode, and the purgatory then does without the SHA-2 instructions.
def qemu(mode: Mode, files: dict[int, bytes], folder: Path, until: str) -> str:
    """What QEMU prints until it ends, or until `until` has been printed."""
    machine = "virt" if mode.el is El.EL1 else "virt,virtualization=on"
    command = [
        "qemu-system-aarch64",
        "-M",
        machine,
        "-cpu",
        "max,sme=off" if mode.el is El.VHE else "cortex-a57",
    ]
    # No network card: its ROM is in a package of its own, which not everybody has.
    command += ["-m", "256M", "-nic", "none", "-display", "none", "-no-reboot"]
    command += ["-serial", "stdio", "-monitor", "none"]
    for phys, content in files.items():
        path = folder / f"{phys:x}"
        path.write_bytes(content)
        command += ["-device", f"loader,file={path},addr={phys:#x},force-raw=on"]
    command += ["-device", f"loader,addr={START:#x},cpu-num=0"]
    output = folder / "console"
    with (
        output.open("wb") as console,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
        ) as machine_process,
    ):
        deadline = time.monotonic() + SECONDS
        try:
            while machine_process.poll() is None and time.monotonic() < deadline:
                if until in output.read_text():
                    break
                time.sleep(0.02)
        finally:
            machine_process.kill()
    return output.read_text()


@pytest.mark.parametrize(
    ("start", "flip"), [(0, False), (3, False), (0, True)], ids=["match", "odd", "mismatch"]
)
def test_qemu_runs_it_with_alignment_checking(
    bench_at: Callable[[int], Bench], tmp_path: Path, start: int, flip: bool
) -> None:
    bench = bench_at(PHYS)
    mode = bench.mode
    data = random.Random(1).randbytes(100_001)
    digest = hashlib.sha256(data).digest()
    symbols = {
        "purgatory_no_mmu": struct.pack("<Q", not mode.mmu),
        "purgatory_no_crypto": struct.pack("<Q", not mode.crypto),
    }
    files = {
        PHYS: bench.image_with([(DATA + start, len(data))], digest, KERNEL_ENTRY, UART, symbols),
        DATA: bytes(start) + bytes([data[0] ^ flip]) + data[1:],
        KERNEL_ENTRY: print_and_power_off(mode, "K"),
        START: start_up(mode),
    }
    lines = qemu(mode, files, tmp_path, "stopped").replace("\r", "").splitlines()
    assert lines[0] == f"purgatory: checking 1 regions, {len(data):#x} bytes{mode.words}"
    if flip:
        assert lines[1:4:2] == [
            "purgatory: digests do NOT match",
            f"purgatory: found    {hashlib.sha256(files[DATA]).hexdigest()}",
        ]
        assert lines[-1] == "purgatory: stopped"
    else:
        assert lines[1:] == ["purgatory: digests match", "K"]


@pytest.mark.parametrize("mode", [Mode(el, mmu, mmu) for el in El for mmu in (True, False)], ids=str)
def test_an_exception_says_what_where_and_at_which_address(mode: Mode, tmp_path: Path) -> None:
    """A region where there is no memory, and no self digest that would notice it before."""
    bench = Bench(load(SHIPPED, PHYS), PHYS, mode=mode)
    symbols = {
        "purgatory_no_mmu": struct.pack("<Q", not mode.mmu),
        "purgatory_no_crypto": struct.pack("<Q", not mode.crypto),
    }
    files = {
        PHYS: bench.image_with([(NO_MEMORY, 0x1000)], bytes(32), KERNEL_ENTRY, UART, symbols),
        KERNEL_ENTRY: print_and_power_off(mode, "K"),
        START: start_up(mode),
    }
    lines = qemu(mode, files, tmp_path, "stopped").replace("\r", "").splitlines()
    told = re.fullmatch(r"purgatory: exception, ESR 0x(\w+) at 0x(\w+), FAR 0x(\w+)", lines[-2])
    assert told is not None and lines[-1] == "purgatory: stopped"
    esr, elr, far = (int(value, 16) for value in told.groups())
    assert (esr >> 26, far) == (0x25, NO_MEMORY)  # a data abort of the same level
    assert PHYS < elr < bench.loaded.symbols["purgatory_verdict"][0] and elr % 4 == 0


LAST = {
    Policy.STOP: "purgatory: stopped",
    Policy.RESET: "purgatory: resetting",
    Policy.OFF: "purgatory: switching off",
    Policy.RETURN: "R",
    Policy.BOOT_ANYWAY: "K",
    Policy.REPAIR: "K",
}


@pytest.mark.parametrize("policy", Policy, ids=lambda policy: policy.name)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_qemu_follows_every_policy_in_every_mode(mode: Mode, policy: Policy, tmp_path: Path) -> None:
    bench = Bench(load(SHIPPED, PHYS), PHYS)
    data = random.Random(2).randbytes(0x3000)
    table = b"".join(hashlib.sha256(data[at : at + 4096]).digest() for at in range(0, 0x3000, 4096))
    table = table.ljust(4096, b"\0")
    symbols = {
        "purgatory_no_mmu": struct.pack("<Q", not mode.mmu),
        "purgatory_no_crypto": struct.pack("<Q", not mode.crypto),
        "purgatory_policy": struct.pack("<Q", policy),
        "purgatory_psci_conduit": struct.pack("<Q", 1 if mode.el is El.EL1 else 2),
        "purgatory_dtb": struct.pack("<Q", DTB),
        "purgatory_region_digests": b"".join(hashlib.sha256(p).digest() for p in (data, table)).ljust(
            512, b"\0"
        ),
        "purgatory_page_digests": struct.pack("<Q", TABLE),
        "purgatory_copy": struct.pack("<Q", COPY if policy is Policy.REPAIR else 0),
        "purgatory_chosen": struct.pack("<Q", DTB + 0x104),
        "purgatory_self_digest": b"",
    }
    stamped = bytearray(data)
    stamped[0x1238] ^= 0x10
    digest = hashlib.sha256(data + table).digest()
    regions = [(DATA, len(data)), (TABLE, len(table))]
    files = {
        PHYS: bench.image_with(regions, digest, KERNEL_ENTRY, UART, symbols),
        DATA: bytes(stamped),
        TABLE: table,
        COPY: data,
        DTB: bytes(4096),
        KERNEL_ENTRY: print_and_power_off(mode, "K"),
        START: start_up(mode),
    }
    lines = qemu(mode, files, tmp_path, "stopped").replace("\r", "").splitlines()
    assert lines[0] == f"purgatory: checking 2 regions, 0x4000 bytes{mode.words}"
    assert lines[1] == "purgatory: digests do NOT match"
    assert lines[4] == f"purgatory: damaged: region 0, {DATA + 0x1000:#x}-{DATA + 0x1FFF:#x}"
    assert lines[-1] == LAST[policy]
    assert ("purgatory: repaired from the copy" in lines) == (policy is Policy.REPAIR)
