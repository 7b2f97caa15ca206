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
from tests.purgatory.hostile_state import HostileState, Places
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
