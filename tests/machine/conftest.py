"""A tiny A64 encoder and a board to run what it encodes; no assembler is needed to run the tests.

test_encoders.py has capstone read back what is encoded here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from kexecemu.machine.board import Board
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.sysregs import SYSREGS
from kexecemu.machine.memory.descriptors import AF, ATTR_IDX, PXN, SH_INNER, UXN, Granule, TableFormat
from kexecemu.machine.memory.mmu import PageTables

RAM_BASE = 0x40000000
CODE = RAM_BASE  # phys of guest programs
VECTORS = RAM_BASE + 0x8000  # phys of exception vectors
TABLES = RAM_BASE + 0x800000  # phys from which page tables are taken

NOP = 0xD503201F
WFI = 0xD503207F
ISB = 0xD5033FDF
DSB = 0xD5033F9F
ERET = 0xD69F03E0
RET = 0xD65F03C0
TLBI_VMALLE1 = 0xD508871F


def imm(value: int, bits: int) -> int:
    assert -(1 << bits - 1) <= value < 1 << bits
    return value & (1 << bits) - 1


def movz(rd: int, value: int, shift: int = 0) -> int:
    return 0xD2800000 | shift // 16 << 21 | imm(value, 16) << 5 | rd


def movk(rd: int, value: int, shift: int) -> int:
    return 0xF2800000 | shift // 16 << 21 | imm(value, 16) << 5 | rd


def mov(rd: int, value: int) -> list[int]:
    """A 64-bit constant in four instructions."""
    return [movz(rd, value & 0xFFFF), *(movk(rd, value >> s & 0xFFFF, s) for s in (16, 32, 48))]


def add(rd: int, rn: int, value: int) -> int:
    return 0x91000000 | imm(value, 12) << 10 | rn << 5 | rd


def sub(rd: int, rn: int, value: int) -> int:
    return 0xD1000000 | imm(value, 12) << 10 | rn << 5 | rd


def load(rt: int, rn: int, offset: int = 0) -> int:
    return 0xF9400000 | imm(offset // 8, 12) << 10 | rn << 5 | rt


def store(rt: int, rn: int, offset: int = 0) -> int:
    return 0xF9000000 | imm(offset // 8, 12) << 10 | rn << 5 | rt


def store_word(rt: int, rn: int, offset: int = 0) -> int:
    return 0xB9000000 | imm(offset // 4, 12) << 10 | rn << 5 | rt


def store_byte(rt: int, rn: int, offset: int = 0) -> int:
    return 0x39000000 | imm(offset, 12) << 10 | rn << 5 | rt


def b(offset: int) -> int:
    return 0x14000000 | imm(offset // 4, 26)


def bl(offset: int) -> int:
    return 0x94000000 | imm(offset // 4, 26)


def cbz(rt: int, offset: int) -> int:
    return 0xB4000000 | imm(offset // 4, 19) << 5 | rt


def cbnz(rt: int, offset: int) -> int:
    return 0xB5000000 | imm(offset // 4, 19) << 5 | rt


def br(rn: int) -> int:
    return 0xD61F0000 | rn << 5


def svc(number: int = 0) -> int:
    return 0xD4000001 | imm(number, 16) << 5


def hvc(number: int = 0) -> int:
    return 0xD4000002 | imm(number, 16) << 5


def smc(number: int = 0) -> int:
    return 0xD4000003 | imm(number, 16) << 5


def brk(number: int = 0) -> int:
    return 0xD4200000 | imm(number, 16) << 5


def _system(name: str) -> int:
    op0, op1, crn, crm, op2 = SYSREGS[name]
    return op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5


def mrs(rt: int, name: str) -> int:
    return 0xD5200000 | _system(name) | rt


def msr(name: str, rt: int) -> int:
    return 0xD5000000 | _system(name) | rt


def daifclr(bits: int) -> int:
    return 0xD50340FF | bits << 8


class Guest:
    """A board with 32 MiB of RAM and helpers to put programs and page tables into it."""

    def __init__(self, cpus: int = 1) -> None:
        self.board = Board("32M", cpus)
        self.ram = self.board.ram
        self.cpu = self.board.boot_cpu
        self._next_table = TABLES

    def words(self, phys: int, *words: int | list[int]) -> int:
        """Write instructions; the physical address behind them."""
        flat = [each for word in words for each in (word if isinstance(word, list) else [word])]
        self.ram.write(phys, struct.pack(f"<{len(flat)}I", *flat))
        return phys + 4 * len(flat)

    def start(self, *words: int | list[int], phys: int = CODE, cpu: Cpu | None = None) -> Cpu:
        """Put a program at phys and a CPU in front of it."""
        self.words(phys, *words)
        cpu = cpu or self.cpu
        cpu.reset(phys)
        return cpu

    def vector(self, offset: int, *words: int | list[int]) -> None:
        """Write one exception vector and point VBAR_EL1 to the table; call after start()."""
        self.words(VECTORS + offset, *words)
        self.cpu.set_sysreg("VBAR_EL1", VECTORS)

    def tables(self, fmt: TableFormat) -> PageTables:
        """Empty page tables."""
        return PageTables(self.ram, fmt, self._table(fmt.granule.size), lambda: self._table(fmt.granule.size))

    def _table(self, size: int) -> int:
        phys = -(-self._next_table // size) * size
        self._next_table = phys + size
        return phys

    def mmu_on(self, upper: PageTables, fmt: TableFormat) -> None:
        """Switch the MMU on from the host: RAM and UART identity mapped below, `upper` in TTBR1."""
        lower = self.tables(fmt)
        size = self.ram.size
        lower.map(RAM_BASE, RAM_BASE, size, NORMAL, blocks=False, contiguous=False)
        page = fmt.granule.size
        uart = self.board.uart.base_phys
        lower.map(uart, uart, page, AF | PXN | UXN | ATTR_IDX(1), blocks=False, contiguous=False)
        tg0, tg1 = {Granule.K4: (0, 2), Granule.K16: (2, 1), Granule.K64: (1, 3)}[fmt.granule]
        tsz = 64 - fmt.va_bits
        cpu = self.cpu
        cpu.set_sysreg("MAIR_EL1", 0x00FF)  # 0: normal write-back, 1: Device-nGnRnE
        cpu.set_sysreg("TCR_EL1", tsz | tsz << 16 | tg0 << 14 | tg1 << 30 | 5 << 32)
        cpu.set_sysreg("TTBR0_EL1", lower.root_phys)
        cpu.set_sysreg("TTBR1_EL1", upper.root_phys)
        cpu.set_sysreg("SCTLR_EL1", cpu.sysreg("SCTLR_EL1") | 1)


NORMAL = AF | SH_INNER | UXN | ATTR_IDX(0)
NORMAL_DATA = NORMAL | PXN


@pytest.fixture(scope="session")
def a64() -> SimpleNamespace:
    """The encoders and addresses of this file, for tests to use as a64.name."""
    return SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("_")})


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A board with one CPU."""
    yield Guest()


@pytest.fixture
def new_guest() -> Callable[..., Guest]:
    """Makes boards: new_guest(cpus)."""
    return Guest
