"""What a dying kernel leaves in system registers does not matter: by QEMU of today, with random values in all of them.

Unicorn is an engine of 2020, and most QEMUs that distributions have know nothing of permission indirection, guarded
control stacks or streaming mode at all: so this one is fetched.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kexecemu.data import purgatory_path
from tests.purgatory.conftest import SHIPPED, Bench, El, Mode, load
from tests.purgatory.hostile_state import ISB, HostileState, Places, encode, mov, put_char, write
from tests.purgatory.test_policies import Policy

pytestmark = pytest.mark.real

PHYS, DATA, KERNEL_ENTRY, DTB, RESUME, CODE, STOPPED = (
    0x48000000,
    0x44000000,
    0x46000000,
    0x45000000,
    0x45F00000,
    0x4A000000,
    0x49000000,
)
CORE = purgatory_path("core")
UART = 0x09000000
SECONDS = int(os.environ.get("KEXECEMU_HOSTILE_SECONDS", "120"))
TRIES = int(os.environ.get("KEXECEMU_HOSTILE_TRIES", "1000"))
CORE_TRIES = min(TRIES, 100)  # slower: a core has neither caches nor the instructions


@pytest.fixture(scope="module")
def qemu(fetched: Callable[[str], Path]) -> Path:
    return fetched("qemu")


CPUS = [
    pytest.param(el, cpu, id=f"{el.name}-{cpu}")
    for el in El
    for cpu in ("max", "neoverse-v1", "cortex-a57")
    if (el, cpu) != (El.VHE, "cortex-a57")
]


def enter(
    qemu: Path, folder: Path, el: El, cpu: str, *, early: bool = False, core: bool = False
) -> tuple[HostileState, str]:
    """Enter a purgatory in all of the states; the console, without what the purgatory itself says.

    The core does not return: its stop is made a branch to code that goes on.
    """
    loaded = load(CORE if core else SHIPPED, PHYS)
    if core:
        at = loaded.symbols["purgatory_stop"][0]
        branch = struct.pack("<I", 0x14000000 | (STOPPED - at) // 4)
        loaded = replace(loaded, image=loaded.image[: at - PHYS] + branch + loaded.image[at - PHYS + 4 :])
    bench = Bench(loaded, PHYS, mode=Mode(el))
    data = bytes([0]) + random.Random(1).randbytes(1_000 if core else 5_000)
    symbols = {
        "purgatory_no_mmu": bytes(8),
        "purgatory_no_crypto": bytes(8),
        "purgatory_gcs": struct.pack("<Q", cpu.startswith("max")),
        "purgatory_sme": struct.pack("<Q", cpu.startswith("max")),
        "purgatory_policy": struct.pack("<Q", Policy.RETURN),
        "purgatory_self_digest": b"",
    }
    if core:  # no instruction of its can trap for want of SMSTOP
        del symbols["purgatory_sme"]
    verdict = bench.loaded.symbols["purgatory_stop" if core else "purgatory_verdict"][0]
    entry = bench.loaded.symbols["purgatory_check" if early else "purgatory_start"][0]
    places = Places(entry, verdict + 12, DATA, KERNEL_ENTRY, DTB, RESUME, CODE)
    hostile = HostileState(el, places, CORE_TRIES if core else TRIES, seed=7, cpu=cpu, early=early)
    files = {
        PHYS: bench.image_with(
            [(DATA, len(data))], hashlib.sha256(data).digest(), KERNEL_ENTRY, UART, symbols
        ),
        DATA: data,
        KERNEL_ENTRY: hostile.kernel,
        CODE: hostile.code,
        STOPPED: hostile.stopped,
    }
    machine = "virt" if el is El.EL1 else "virt,virtualization=on"
    command = [str(qemu), "-M", machine, "-cpu", cpu, "-m", "512M", "-nic", "none", "-display", "none"]
    command += ["-no-reboot", "-serial", "stdio", "-monitor", "none"]
    for phys, content in files.items():
        path = folder / f"{phys:x}"
        path.write_bytes(content)
        command += ["-device", f"loader,file={path},addr={phys:#x},force-raw=on"]
    command += ["-device", f"loader,addr={CODE:#x},cpu-num=0"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
        console = done.stdout
    except subprocess.TimeoutExpired as hung:
        console = hung.stdout or b""
    text = console.decode(errors="replace").replace("\r", "")
    return hostile, re.sub(r"purgatory: [^\n]*\n", "", text)


def check(hostile: HostileState, console: str, expected: list[str]) -> None:
    said = re.findall(r"K|E|S|!?R.?", console)
    wrong = [
        f"{number}: {end} and not {right}: {hostile.values[number]}"
        for number, (end, right) in enumerate(zip(said, expected, strict=False))
        if end != right
    ]
    assert wrong[:1] == []
    assert said == [*expected, "E"], f"try {len(said)} did not end: {hostile.values[len(said)]}"


@pytest.mark.parametrize(("el", "cpu"), CPUS)
def test_any_state_that_a_dead_kernel_leaves_ends_as_its_image_deserves(
    qemu: Path, tmp_path: Path, el: El, cpu: str
) -> None:
    hostile, console = enter(qemu, tmp_path, el, cpu)
    check(hostile, console, ["R3" if damaged else "K" for damaged in hostile.damaged])


@pytest.mark.parametrize(("el", "cpu"), CPUS)
def test_the_early_check_gives_back_any_state_that_it_found(
    qemu: Path, tmp_path: Path, el: El, cpu: str
) -> None:
    hostile, console = enter(qemu, tmp_path, el, cpu, early=True)
    check(hostile, console, ["R3" if damaged else "R2" for damaged in hostile.damaged])


@pytest.mark.parametrize(("el", "cpu"), CPUS)
def test_the_core_alone_can_take_any_state_too(qemu: Path, tmp_path: Path, el: El, cpu: str) -> None:
    hostile, console = enter(qemu, tmp_path, el, cpu, core=True)
    check(hostile, console, ["S" if damaged else "K" for damaged in hostile.damaged])


# -- firmware above ----------------------------------------------------------------------------------------------------

SCR_EL3, HCRX_EL2, CPTR_EL3, VBAR_EL3 = (3, 6, 1, 1, 0), (3, 4, 1, 2, 2), (3, 6, 1, 1, 2), (3, 6, 12, 0, 0)
ELR_EL3, SPSR_EL3 = (3, 6, 4, 0, 1), (3, 6, 4, 0, 0)
# NS, HCE, RW, HXEn, TCR2En: what booting.rst of 6.12 asks for; and GCSEn, which that of 7.3 adds.
SCR_OF_612, SCR_GCSEN = 1 | 1 << 8 | 1 << 10 | 1 << 38 | 1 << 43, 1 << 39
ERET, HLT_SEMIHOSTING = 0xD69F03E0, 0xD45E0000
VECTORS, EXIT_BLOCK = 0x4B000000, 0x4C000000


def say_and_end(letter: str) -> bytes:
    """The letter, and QEMU's exit."""
    return encode([*put_char(letter), *mov(0, 0x18), *mov(1, EXIT_BLOCK), HLT_SEMIHOSTING])


@pytest.mark.parametrize("core", [False, True], ids=["", "core"])
@pytest.mark.parametrize(
    ("gcsen", "used", "end"), [(0, 0, "K"), (0, 1, "T"), (SCR_GCSEN, 0, "K"), (SCR_GCSEN, 1, "K")]
)
@pytest.mark.parametrize("el", [El.EL1, El.EL2], ids=lambda el: el.name)
def test_where_linux_uses_no_gcs_firmware_need_not_let_anybody_touch_it(
    qemu: Path, tmp_path: Path, el: El, gcsen: int, used: int, end: str, core: bool
) -> None:
    """With FEAT_GCS, and EL3: a purgatory that is told of a use that there is not is what traps ("T")."""
    bench = Bench(load(CORE if core else SHIPPED, PHYS), PHYS, mode=Mode(el))
    symbols = {"purgatory_gcs": struct.pack("<Q", used), "purgatory_self_digest": b""}
    code = [
        *write(SCR_EL3, SCR_OF_612 | gcsen),
        *write(CPTR_EL3, 1 << 8 | 1 << 12),
        *write(VBAR_EL3, VECTORS),
    ]
    code += [*write((3, 4, 1, 1, 0), 1 << 31), *write(HCRX_EL2, 1 << 14 | 1 << 22)]
    code += [*write(ELR_EL3, bench.loaded.symbols["purgatory_start"][0])]
    code += [*write(SPSR_EL3, 0x3C5 if el is El.EL1 else 0x3C9), ISB]
    code += [*mov(0, DTB), *mov(1, 0), *mov(2, 0), *mov(3, 0), ERET]
    data = bytes(1000)
    files = {
        PHYS: bench.image_with([(DATA, len(data))], hashlib.sha256(data).digest(), KERNEL_ENTRY, 0, symbols),
        DATA: data,
        KERNEL_ENTRY: say_and_end("K"),
        CODE: encode(code),
        VECTORS: say_and_end("T").rjust(0x400 + len(say_and_end("T")), b"\0"),
        EXIT_BLOCK: struct.pack("<2Q", 0x20026, 0),
    }
    command = [
        str(qemu),
        "-M",
        "virt,secure=on,virtualization=on",
        "-cpu",
        "max",
        "-m",
        "512M",
        "-nic",
        "none",
    ]
    command += ["-display", "none", "-serial", "stdio", "-monitor", "none"]
    command += ["-semihosting-config", "enable=on,target=native"]
    for phys, content in files.items():
        path = tmp_path / f"{phys:x}"
        path.write_bytes(content)
        command += ["-device", f"loader,file={path},addr={phys:#x},force-raw=on"]
    command += ["-device", f"loader,addr={CODE:#x},cpu-num=0"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=True)
    assert done.stdout.decode() == end
