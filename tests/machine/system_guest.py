"""Bare-metal guests for the tests of steppers and systems: encoders, vectors that log, and runs to compare.

The vectors keep x19 to x29 to themselves: x28 points to the log, x29 to the interrupt controller's CPU interface.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kexecemu.machine.board import Board
from kexecemu.machine.system import System, SystemEnd

CODE = 0x40010000
VECTORS = 0x40008000
STACK = 0x40100000  # phys of scratch data
LOG = 0x40200000
GICD, GICC = 0x08000000, 0x08010000

Words = int | Sequence[int]

NOP, WFI, ISB, DSB, ERET = 0xD503201F, 0xD503207F, 0xD5033FDF, 0xD5033F9F, 0xD69F03E0
DAIFSET_I, DAIFCLR_I = 0xD50342DF, 0xD50342FF
CNTV_TVAL, CNTV_CTL, CNTV_CVAL = 0xD51BE300, 0xD51BE320, 0xD51BE340  # as MSR; READ makes an MRS of it
CNTP_TVAL, CNTP_CTL, CNTP_CVAL = 0xD51BE200, 0xD51BE220, 0xD51BE240
CNTPCT, CNTVCT = 0xD51BE020, 0xD51BE040
DAIF, VBAR, ELR, SPSR, ESR, FAR = 0xD51B4220, 0xD518C000, 0xD5184020, 0xD5184000, 0xD5185200, 0xD5186000
TPIDR, CNTKCTL, MPIDR = 0xD518D080, 0xD518E100, 0xD51800A0
READ = 1 << 21
IALLU, IALLUIS, TLBI, TLBI_IS = 0xD508751F, 0xD508711F, 0xD508871F, 0xD508831F
XZR = 31


def ivau(rt: int) -> int:
    return 0xD50B7520 | rt


def mov(rd: int, value: int) -> list[int]:
    """A constant, in as few instructions as it takes."""
    parts = [(value >> shift & 0xFFFF, shift // 16) for shift in (0, 16, 32, 48)]
    used = [(part, hw) for part, hw in parts if part] or [(0, 0)]
    return [
        (0xF2800000 if index else 0xD2800000) | hw << 21 | part << 5 | rd
        for index, (part, hw) in enumerate(used)
    ]


def add(rd: int, rn: int, value: int) -> int:
    return 0x91000000 | value << 10 | rn << 5 | rd


def sub(rd: int, rn: int, value: int) -> int:
    return 0xD1000000 | value << 10 | rn << 5 | rd


def add_reg(rd: int, rn: int, rm: int) -> int:
    return 0x8B000000 | rm << 16 | rn << 5 | rd


def eor_ror(rd: int, rn: int, rm: int, ror: int) -> int:
    return 0xCAC00000 | rm << 16 | ror << 10 | rn << 5 | rd


def str_x(rt: int, rn: int, offset: int = 0) -> int:
    return 0xF9000000 | offset // 8 << 10 | rn << 5 | rt


def ldr_x(rt: int, rn: int, offset: int = 0) -> int:
    return 0xF9400000 | offset // 8 << 10 | rn << 5 | rt


def str_w(rt: int, rn: int, offset: int = 0) -> int:
    return 0xB9000000 | offset // 4 << 10 | rn << 5 | rt


def ldr_w(rt: int, rn: int, offset: int = 0) -> int:
    return 0xB9400000 | offset // 4 << 10 | rn << 5 | rt


def str_post(rt: int, rn: int) -> int:
    """str xt, [xn], #8"""
    return 0xF8008400 | rn << 5 | rt


def ldxr(rt: int, rn: int) -> int:
    return 0xC85F7C00 | rn << 5 | rt


def stxr(rs: int, rt: int, rn: int) -> int:
    return 0xC8007C00 | rs << 16 | rn << 5 | rt


def b(words: int) -> int:
    return 0x14000000 | words & 0x3FFFFFF


def bl(words: int) -> int:
    return 0x94000000 | words & 0x3FFFFFF


def cbz(rt: int, words: int) -> int:
    return 0xB4000000 | (words & 0x7FFFF) << 5 | rt


def cbnz(rt: int, words: int) -> int:
    return 0xB5000000 | (words & 0x7FFFF) << 5 | rt


def adr(rd: int, offset: int) -> int:
    return 0x10000000 | (offset & 3) << 29 | (offset >> 2 & 0x7FFFF) << 5 | rd


def br(rn: int) -> int:
    return 0xD61F0000 | rn << 5


def svc(number: int = 0) -> int:
    return 0xD4000001 | number << 5


def brk(number: int = 0) -> int:
    return 0xD4200000 | number << 5


HVC, SMC, RET, UDF = 0xD4000002, 0xD4000003, 0xD65F03C0, 0


def flat(*words: Words) -> list[int]:
    return [each for word in words for each in ([word] if isinstance(word, int) else word)]


def psci(function: int) -> list[int]:
    return [*mov(0, function), HVC]


OFF = psci(0x84000008)
RESET = psci(0x84000009)
CPU_OFF = psci(0x84000002)


def store_word(phys: int, value: int) -> list[int]:
    return [*mov(9, phys), *mov(10, value), str_w(10, 9)]


GIC_ON = flat(
    store_word(GICD, 1),
    store_word(GICC, 1),
    store_word(GICC + 4, 0xF0),
    store_word(GICD + 0x100, 0xFFFFFFFF),
    store_word(GICD + 0x104, 0xFFFFFFFF),
    store_word(GICD + 0x820, 0x01010101),
    store_word(GICD + 0x828, 0x01010101),
)
"""Everything enabled, SPIs 32 to 35 and 40 to 43 to CPU 0."""

PROLOGUE = flat(mov(28, LOG), mov(29, GICC), mov(9, VECTORS), VBAR | 9, GIC_ON)

# A synchronous exception is logged: cause, place, address and the count. SVC from EL0 goes on at EL1 behind itself with
# interrupts masked as x27 says; any other instruction that faulted is skipped.
_LOG_SYNC = flat(
    ESR | READ | 20, str_post(20, 28), ELR | READ | 21, str_post(21, 28), FAR | READ | 22, str_post(22, 28),
    CNTVCT | READ | 22, str_post(22, 28),
)  # fmt: skip
_SYNC = flat(
    _LOG_SYNC,
    0xD35AFE94,  # lsr x20, x20, #26
    0xF1005694,  # subs x20, x20, #0x15
    cbz(20, 3),
    add(21, 21, 4),
    ELR | 21,
    ERET,
)
_SYNC_EL0 = flat(
    _LOG_SYNC, 0xD35AFE94, 0xF1005694, cbz(20, 4), add(21, 21, 4), ELR | 21, ERET, SPSR | 27, ERET
)
# An interrupt is acknowledged, logged with its place and the count, its timer switched off.
_IRQ = flat(
    ldr_w(20, 29, 0xC), str_post(20, 28), ELR | READ | 21, str_post(21, 28), CNTVCT | READ | 22, str_post(22, 28),
    sub(23, 20, 27), cbnz(23, 2), CNTV_CTL | XZR, sub(23, 20, 30), cbnz(23, 2), CNTP_CTL | XZR,
    str_w(20, 29, 0x10), ERET,
)  # fmt: skip


def vectors(irq: Sequence[int] = _IRQ) -> dict[int, list[int]]:
    """The handlers by their offsets in the table."""
    handlers = dict.fromkeys((0, 512), _SYNC) | {0x400: _SYNC_EL0}
    handlers |= {offset: list(irq) for offset in (128, 640, 1152)}
    assert all(len(handler) * 4 <= 0x80 for handler in handlers.values())
    return handlers


_SWITCHES = ("KEXECEMU_NO_NATIVE", "KEXECEMU_NO_INTERNALS")


@contextmanager
def form(is_native: bool, internals: bool = True) -> Iterator[None]:
    """CPUs created meanwhile count natively or in Python, with the engine's inner fields or without."""
    before = {name: os.environ.pop(name, None) for name in _SWITCHES}
    os.environ |= {name: "1" for name, on in zip(_SWITCHES, (is_native, internals), strict=True) if not on}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "an operating system runs more slowly")
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@dataclass
class Result:
    """What can be compared of a run."""

    end: str
    time: int
    instructions: list[int]
    registers: list[dict[str, int]]
    ram: bytes
    log: list[int] = field(default_factory=list)


def put(board: Board, phys: int, *words: Words) -> None:
    code = flat(*words)
    board.ram.write(phys, struct.pack(f"<{len(code)}I", *code))


def run(
    program: Sequence[Words],
    *,
    is_native: bool = True,
    internals: bool = True,
    seed: int | None = None,
    cpus: int = 1,
    entry: int = CODE,
    limit: int = 3_000_000,
    prepare: Callable[[Board], object] = lambda board: None,
    slice_of: Callable[[int], int] | None = None,
    pieces: Callable[[], int] | None = None,
    gic: int = 2,
    irq: Sequence[int] = _IRQ,
) -> Result:
    """Run a program on a board of its own; with a seed, with extra stops at random. irq handles interrupts."""
    with form(is_native, internals), Board("4M", cpus, gic=gic) as board:
        for offset, handler in vectors(irq).items():
            put(board, VECTORS + offset, handler)
        put(board, entry, *program)
        prepare(board)
        board.boot_cpu.reset(entry)
        if seed is not None:
            chance = random.Random(seed)
            slice_of = lambda cpus: chance.choice((1, 2, 3, 7, 40, 1000))  # noqa: E731
        system = System(board, slice_of=slice_of)
        end = _run(system, limit, pieces)
        registers = [cpu.registers() for cpu in board.cpus]
        for each in registers:
            # What the engine gets to see of this register is not what the guest does, see CountingStepper.
            del each["CNTKCTL_EL1"]
        ram = board.ram.read(0x40000000, 4 << 20)
        top = registers[0]["x28"]
        log = (
            list(struct.unpack(f"<{(top - LOG) // 8}Q", board.ram.read(LOG, top - LOG))) if top > LOG else []
        )
        return Result(str(end), board.time, [cpu.instructions for cpu in board.cpus], registers, ram, log)


def _run(system: System, limit: int, pieces: Callable[[], int] | None) -> SystemEnd:
    if pieces is None:
        return system.run(limit)
    stop = system.board.time + limit
    while True:
        end = system.run(min(pieces(), stop - system.board.time))
        if end.kind != "budget" or system.board.time >= stop:
            return end


def same(program: Sequence[Words], *, seeds: Sequence[int] = (1,), **options: object) -> Result:
    """Run it in each form, and with extra stops; all must end alike. Gives the native one's result."""
    first = run(program, **options)  # type: ignore[arg-type]
    for is_native, internals in itertools.product((True, False), repeat=2):
        for seed in (None, *seeds):
            if is_native and internals and seed is None:
                continue
            which = {"is_native": is_native, "internals": internals, "seed": seed}
            other = run(program, **which, **options)  # type: ignore[arg-type]
            for name in ("log", "end", "time", "instructions", "registers"):
                if getattr(first, name) != getattr(other, name):
                    raise AssertionError(
                        f"{which}: {name}\n{_differences(getattr(first, name), getattr(other, name))}"
                    )
            assert first.ram == other.ram, f"{which}: RAM"
    return first


def _differences(one: object, other: object) -> str:
    if isinstance(one, list) and one and isinstance(one[0], dict) and isinstance(other, list):
        return "\n".join(
            f"cpu{n} {name}: {a[name]:#x} {b[name]:#x}"
            for n, (a, b) in enumerate(zip(one, other, strict=True))
            for name in a
            if a[name] != b[name]
        )
    if isinstance(one, list) and isinstance(other, list):
        at = next(
            (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        ahead = [[hex(each) for each in words[at : at + 8]] for words in (one, other)]
        return f"from {at} of {len(one)}, {len(other)}: {ahead}"
    return f"{one}\n{other}"
