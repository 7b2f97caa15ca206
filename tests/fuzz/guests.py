#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Random guest programs, on the native engine and on the one in Python: alike in every state, and within their bounds.

    python tests/fuzz/guests.py [--count 1000000] [--seed 1] [--jobs 2]

A program is some ninety instructions over registers that point to RAM, its last bytes, code, page tables, devices,
virtqueues or nothing: loads and stores, branches to anywhere, calls, system registers with any value, maintenance,
exceptions, waits, and words at random. Half of them run as an operating system does, half as a purgatory. Each has a
bound of instructions and of the host's work together.

Counted are exceptions of the host, disagreements between the engines, runs over twice their bound, and the longest run.
Exit status 1 where any of the first three is not 0; each is told with the seed that has it again: --seed N --count 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from machine import system_guest as g  # noqa: E402

from kexecemu.errors import KexecemuError  # noqa: E402
from kexecemu.machine.board import Board  # noqa: E402
from kexecemu.machine.cpu.sysregs import SYSREGS  # noqa: E402
from kexecemu.machine.devices.disk import Disk  # noqa: E402
from kexecemu.machine.devices.virtio_block import VirtioBlock  # noqa: E402
from kexecemu.machine.system import System  # noqa: E402

RAM = 4 << 20
END = 0x40000000 + RAM
LIMIT = 60_000
"""Instructions of a run; one that calls and faults comes to its bound of work before."""
BOUND = 2_000_000

_VIRTIO = 0x0A000000 + 31 * 0x200
_PLACES = (
    *(
        g.STACK,
        g.STACK + 0x1000,
        g.STACK + 1,
        g.LOG,
        END - 8,
        END - 4,
        END - 2,
        END - 1,
        END,
        END - 0x1000 + 2,
    ),
    *(g.CODE, g.CODE + 2, g.CODE + 0xFFE, g.CODE + 0x1000, g.VECTORS, g.VECTORS + 0x200),
    *(0x09000000, 0x09000018, 0x09010000, g.GICD, g.GICD + 0x100, g.GICC, g.GICC + 0xC, 0x0A000000),
    *(_VIRTIO + offset for offset in (0, 0x20, 0x30, 0x38, 0x44, 0x50, 0x70, 0x80, 0x90, 0xA0)),
    *(0, 4, 0x1000, 0x20000000, 0x3FFFFFFC, 1 << 40, 1 << 48, (1 << 64) - 4, 0xFFFF000000000000),
)
_VALUES = (
    0,
    1,
    2,
    3,
    4,
    0xF,
    0x80,
    0x100,
    0xFF,
    256,
    0x84000000,
    0x84000001,
    0xC4000003,
    0x80000000,
    (1 << 64) - 1,
)
_CALLS = (g.HVC, g.SMC, g.svc(), g.svc(9), g.brk(), g.UDF, 0xD4400000, g.HVC | 5 << 5)
_OTHER_ACCESSES = (0xA9400000, 0xA9000000, 0x3D800000, 0x3DC00000, 0xF8008400, 0xC85F7C00)
_PLAIN = (
    g.NOP,
    g.ISB,
    g.DSB,
    g.ERET,
    g.DAIFSET_I,
    g.DAIFCLR_I,
    g.WFI,
    0xD503205F,
    g.RET,
    0xD50340FF,
    0xD50340BF,
)
_MAINTAINED = (
    g.IALLU,
    g.IALLUIS,
    g.TLBI,
    g.TLBI_IS,
    0xD5088720,
    0xD5088360,
    0xD50B7520,
    0xD50B7E20,
    0xD50B7420,
)
_TIMERS = (g.CNTV_TVAL, g.CNTV_CTL, g.CNTV_CVAL, g.CNTP_TVAL, g.CNTP_CTL, g.CNTP_CVAL, g.CNTPCT, g.CNTVCT)
_SYSTEM = tuple(
    0xD5100000 | op0 - 2 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
    for op0, op1, crn, crm, op2 in SYSREGS.values()
)


def program(chance: random.Random) -> list[int]:
    """The instructions of one guest."""
    words: list[int] = []
    if chance.random() < 0.4:
        words += g.GIC_ON
    for register in range(16):
        words += g.mov(register, chance.choice(_PLACES if chance.random() < 0.7 else _VALUES))
    for _ in range(chance.randint(20, 90)):
        words += _instruction(chance)
    return [*words, g.b(-chance.randint(1, 60))]


def _instruction(chance: random.Random) -> list[int]:
    one, other = chance.randrange(16), chance.randrange(16)
    kind = chance.random()
    if kind < 0.28:  # any load or store of a general register with an offset, of any size
        size, load = chance.randrange(4), chance.randrange(2)
        return [0x39000000 | size << 30 | load << 22 | chance.randrange(8) << 10 | other << 5 | one]
    if kind < 0.34:  # pairs, exclusives, vectors, post-indexed
        return [
            chance.choice((0xA9400000, 0xA9000000, 0x3D800000, 0x3DC00000, 0xF8008400, 0xC85F7C00))
            | other << 5
            | one
        ]
    if kind < 0.46:
        return g.mov(one, chance.choice(_PLACES if chance.random() < 0.5 else _VALUES))
    if kind < 0.56:
        return [
            chance.choice(
                (g.add(one, other, chance.randrange(4096)), g.sub(one, other, 4), g.add_reg(one, other, 3))
            )
        ]
    if kind < 0.68:
        far = chance.randint(-8, 12)
        return [chance.choice((g.b(far), g.cbz(one, far), g.cbnz(one, far), g.bl(far), g.br(one), g.br(30)))]
    if kind < 0.75:
        return [chance.choice(_CALLS)]
    if kind < 0.81:
        return [chance.choice(_PLAIN)]
    if kind < 0.86:
        return [chance.choice(_MAINTAINED) | (other if chance.random() < 0.7 else 31)]
    if kind < 0.91:
        return [chance.choice(_TIMERS) | chance.choice((0, g.READ)) | one]
    if kind < 0.96:
        return [chance.choice(_SYSTEM) | chance.choice((0, g.READ)) | one]
    return [chance.getrandbits(32)]


@dataclass
class State:
    """What a run leaves, as far as both engines must agree on it."""

    end: str
    time: int
    work: int
    registers: dict[str, int]
    ram: str
    console: bytes
    seconds: float


def run(number: int, *, native: bool) -> State:
    """Run the program of a number once."""
    chance = random.Random(number)
    code = program(chance)
    system, deliver, gic = chance.random() < 0.6, chance.random() < 0.7, chance.choice((2, 2, 3))
    cpus = 2 if system and number % 7 == 3 else 1
    if cpus > 1:
        own = g.flat(g.mov(28, g.LOG), g.mov(29, g.GICC), g.mov(9, g.VECTORS), g.VBAR | 9)
        code = [*own, *g.flat(g.mov(0, 0xC4000003), g.mov(1, 1), g.mov(2, g.CODE), g.HVC), *code]
    begin = time.process_time()
    with g.form(native), Board("4M", cpus, gic=gic) as board, Disk(1 << 16) as disk:
        board.attach(31, VirtioBlock(disk, "fuzz"))
        for offset, handler in g.vectors().items():
            g.put(board, g.VECTORS + offset, handler)
        g.put(board, g.CODE, code)
        board.boot_cpu.reset(g.CODE)
        for cpu in reversed(board.cpus):
            for name, value in (("VBAR_EL1", g.VECTORS), ("CPACR_EL1", 3 << 20)):
                cpu.set_sysreg(name, value)
            cpu.set_x(28, g.LOG)
            cpu.set_x(29, g.GICC)
        if system:
            board.work.allow(board.time, BOUND)
            end = str(System(board).run(LIMIT))
        else:
            stop = cpu.run(limit=LIMIT, budget=BOUND, deliver=deliver)
            end = f"{stop.kind} at {stop.pc:#x} after {stop.instructions}: {stop.power} {stop.fault}"
        # What the engine sees of CNTKCTL_EL1 is not what the guest does.
        registers = {
            f"{name} of cpu{cpu.index}": value
            for cpu in board.cpus
            for name, value in cpu.registers().items()
            if name != "CNTKCTL_EL1"
        }
        ram = hashlib.sha256(board.ram.view(0x40000000, RAM)).hexdigest()
        console = bytes(board.uart.output)
        return State(end, board.time, board.work.spent, registers, ram, console, time.process_time() - begin)


def differences(one: State, other: State) -> list[str]:
    """In which they are not alike, in words."""
    found = [
        f"{name}: {getattr(one, name)!s} or {getattr(other, name)!s}"
        for name in ("end", "time", "work", "ram", "console")
        if getattr(one, name) != getattr(other, name)
    ]
    registers = [name for name in one.registers if one.registers[name] != other.registers[name]]
    return found + [f"{name}: {one.registers[name]:#x} or {other.registers[name]:#x}" for name in registers]


def judge(number: int) -> tuple[list[tuple[str, str]], float]:
    """What is wrong with the program of a number, as (kind, words), and the longer of its two runs in CPU seconds."""
    states = []
    for native in (True, False):
        try:
            states.append(run(number, native=native))
        except KexecemuError as error:
            return [("refused", f"{'native' if native else 'Python'}: {type(error).__name__}: {error}")], 0.0
        except Exception:
            return [("host exception", f"{'native' if native else 'Python'}: {traceback.format_exc()}")], 0.0
    wrong = [("disagreement", "; ".join(found))] if (found := differences(*states)) else []
    over = [one for one in states if one.time + one.work > 2 * BOUND]
    wrong += [("over its bound", f"{one.time} instructions, {one.work} of work") for one in over[:1]]
    return wrong, max(one.seconds for one in states)


def _judge_all(numbers: range) -> tuple[list[tuple[int, str, str]], float]:
    found, longest = [], 0.0
    for number in numbers:
        wrong, seconds = judge(number)
        found += [(number, *one) for one in wrong]
        longest = max(longest, seconds)
    return found, longest


def main() -> int:
    """Run them; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1, help="the number of the first program")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    last = given.seed + given.count
    pieces = [range(at, min(at + 200, last)) for at in range(given.seed, last, 200)]
    counts: Counter[str] = Counter()
    longest, done = 0.0, 0
    with ProcessPoolExecutor(given.jobs) as pool:
        for piece, (found, seconds) in zip(pieces, pool.map(_judge_all, pieces), strict=True):
            for number, kind, words in found:
                counts[kind] += 1
                print(f"--seed {number} --count 1: {kind}: {words}", flush=True)
            longest, done = max(longest, seconds), done + len(piece)
            if done % 20_000 == 0:
                print(f"{done:,} programs so far", file=sys.stderr, flush=True)
    kinds = ("host exception", "refused", "disagreement", "over its bound")
    told = ", ".join(f"{kind} {counts[kind]}" for kind in kinds)
    print(f"{given.count:,} guest programs: {told}; the longest run {longest:.2f} s")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main())
