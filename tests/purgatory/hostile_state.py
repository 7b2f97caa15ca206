"""Guest code that enters a purgatory again and again, each time with another state of the CPU.

Each try writes seeded random values to every system register that a dying kernel could have left set, then enters as
cpu_soft_restart() does: MMU off, everything masked, x0 the device tree. What cannot be drawn is said at the register.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from tests.purgatory.conftest import El

Encoding = tuple[int, int, int, int, int]  # op0, op1, CRn, CRm, op2


@dataclass(frozen=True)
class Register:
    """A register and the bits of it that are drawn; `fixed` are set in any case."""

    encoding: Encoding
    drawn: int = (1 << 64) - 1
    fixed: int = 0
    today: bool = False  # only a CPU of today has it: QEMU's "max"


SCTLR_M = 1 << 0
HCR_E2H = 1 << 34
GCSCR_PCRSEL = 1 << 0

# The order counts: what decides how the next writes are done comes last. QEMU 11.1 has no POR_ELx; TFSR_ELx and the
# rest of MTE are only there with memory for tags.
EL1 = {
    "TTBR0_EL1": Register((3, 0, 2, 0, 0)),
    "TTBR1_EL1": Register((3, 0, 2, 0, 1)),
    "TCR_EL1": Register((3, 0, 2, 0, 2)),
    "TCR2_EL1": Register((3, 0, 2, 0, 3), today=True),
    "MAIR_EL1": Register((3, 0, 10, 2, 0)),
    "MAIR2_EL1": Register((3, 0, 10, 2, 1), today=True),
    "PIRE0_EL1": Register((3, 0, 10, 2, 2), today=True),
    "PIR_EL1": Register((3, 0, 10, 2, 3), today=True),
    "AMAIR_EL1": Register((3, 0, 10, 3, 0)),
    "LORC_EL1": Register((3, 0, 10, 4, 3), today=True),
    "CONTEXTIDR_EL1": Register((3, 0, 13, 0, 1)),
    "VBAR_EL1": Register((3, 0, 12, 0, 0)),
    "ELR_EL1": Register((3, 0, 4, 0, 1)),
    "SPSR_EL1": Register((3, 0, 4, 0, 0)),
    "ESR_EL1": Register((3, 0, 5, 2, 0)),
    "FAR_EL1": Register((3, 0, 6, 0, 0)),
    "PAR_EL1": Register((3, 0, 7, 4, 0)),
    "TPIDR_EL1": Register((3, 0, 13, 0, 4)),
    "CNTKCTL_EL1": Register((3, 0, 14, 1, 0)),
    "MDSCR_EL1": Register((2, 0, 0, 2, 2)),
    "DBGBVR0_EL1": Register((2, 0, 0, 0, 4)),
    "DBGBCR0_EL1": Register((2, 0, 0, 0, 5)),
    "DBGWVR0_EL1": Register((2, 0, 0, 0, 6)),
    "DBGWCR0_EL1": Register((2, 0, 0, 0, 7)),
    "OSLAR_EL1": Register((2, 0, 1, 0, 4), drawn=1),
    "PMCR_EL0": Register((3, 3, 9, 12, 0)),
    "PMCNTENSET_EL0": Register((3, 3, 9, 12, 1)),
    "PMINTENSET_EL1": Register((3, 0, 9, 14, 1)),
    "FPCR": Register((3, 3, 4, 4, 0)),
    "ZCR_EL1": Register((3, 0, 1, 2, 0), today=True),
    "SMCR_EL1": Register((3, 0, 1, 2, 6), today=True),
    "SCTLR2_EL1": Register((3, 0, 1, 0, 3), today=True),
    "GCSPR_EL1": Register((3, 0, 2, 5, 1), today=True),
    "GCSCR_EL1": Register((3, 0, 2, 5, 0), today=True),
}
LAST_EL1 = {
    "CPACR_EL1": Register((3, 0, 1, 0, 2)),
    # The contract says that the MMU is off. All else may be as it likes, byte order and alignment checks too.
    "SCTLR_EL1": Register((3, 0, 1, 0, 0), drawn=~SCTLR_M),
}
EL2 = {
    "TTBR0_EL2": Register((3, 4, 2, 0, 0)),
    "TCR_EL2": Register((3, 4, 2, 0, 2)),
    "TCR2_EL2": Register((3, 4, 2, 0, 3), today=True),
    "MAIR_EL2": Register((3, 4, 10, 2, 0)),
    "MAIR2_EL2": Register((3, 4, 10, 1, 1), today=True),
    "PIR_EL2": Register((3, 4, 10, 2, 3), today=True),
    "AMAIR_EL2": Register((3, 4, 10, 3, 0)),
    "VBAR_EL2": Register((3, 4, 12, 0, 0)),
    "ELR_EL2": Register((3, 4, 4, 0, 1)),
    "SPSR_EL2": Register((3, 4, 4, 0, 0)),
    "ESR_EL2": Register((3, 4, 5, 2, 0)),
    "FAR_EL2": Register((3, 4, 6, 0, 0)),
    "HPFAR_EL2": Register((3, 4, 6, 0, 4)),
    "VTTBR_EL2": Register((3, 4, 2, 1, 0)),
    "VTCR_EL2": Register((3, 4, 2, 1, 2)),
    "HSTR_EL2": Register((3, 4, 1, 1, 3)),
    "HFGRTR_EL2": Register((3, 4, 1, 1, 4), today=True),
    "HFGWTR_EL2": Register((3, 4, 1, 1, 5), today=True),
    "HFGITR_EL2": Register((3, 4, 1, 1, 6), today=True),
    "HCRX_EL2": Register((3, 4, 1, 2, 2), today=True),
    "ZCR_EL2": Register((3, 4, 1, 2, 0), today=True),
    "SMCR_EL2": Register((3, 4, 1, 2, 6), today=True),
    "MDCR_EL2": Register((3, 4, 1, 1, 1)),
    "CNTHCTL_EL2": Register((3, 4, 14, 1, 0)),
    "SCTLR2_EL2": Register((3, 4, 1, 0, 3), today=True),
    "GCSPR_EL2": Register((3, 4, 2, 5, 1), today=True),
    "GCSCR_EL2": Register((3, 4, 2, 5, 0), today=True),
    "CPTR_EL2": Register((3, 4, 1, 1, 2)),
}
# Which registers a name means is what E2H says, and each mode tries one of the two.
HCR = (3, 4, 1, 1, 0)
LAST_EL2 = {
    "HCR_EL2": Register(HCR, drawn=~HCR_E2H),
    "SCTLR_EL2": Register((3, 4, 1, 0, 0), drawn=~SCTLR_M),
}
LAST_VHE = {"HCR_EL2": Register(HCR, drawn=~HCR_E2H, fixed=HCR_E2H), **LAST_EL1}

# PSTATE, by MSR (immediate): op1, op2 and the values of CRm to draw from. DAIF stays masked, as the contract has it.
PSTATE = {
    "SPSel": (0, 5, (0, 1)),
    "PAN": (0, 4, (0, 1)),
    "UAO": (0, 3, (0, 1)),
    "SSBS": (3, 1, (0, 1)),
    "DIT": (3, 2, (0, 1)),
    "TCO": (3, 4, (0, 1)),
    "ALLINT": (1, 0, (0, 1)),
}
OLD_PSTATE = ("SPSel",)
# CRm of MSR SVCRSM, SVCRZA and both, off and on.
SVCR = (0b0010, 0b0011, 0b0100, 0b0101, 0b0110, 0b0111)

SANE_SCTLR = {El.EL1: 0x30C50830, El.EL2: 0x30C50830, El.VHE: 0x30C50830}
UART = 0x09000000
ISB = 0xD5033FDF


def mov(register: int, value: int) -> list[int]:
    """movz, and movk for what else is not 0."""
    parts = [(at, value >> 16 * at & 0xFFFF) for at in range(4)]
    rest = [(at, part) for at, part in parts if part] or [(0, 0)]
    (at, part), *more = rest
    return [
        0xD2800000 | at << 21 | part << 5 | register,
        *(0xF2800000 | at << 21 | part << 5 | register for at, part in more),
    ]


def msr(encoding: Encoding, register: int) -> int:
    op0, op1, crn, crm, op2 = encoding
    return 0xD5000000 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | register


def msr_immediate(op1: int, op2: int, crm: int) -> int:
    return 0xD500401F | op1 << 16 | crm << 8 | op2 << 5


def write(encoding: Encoding, value: int) -> list[int]:
    return [*mov(9, value & (1 << 64) - 1), msr(encoding, 9)]


def put_char(letter: str) -> list[int]:
    return [*mov(9, UART), *mov(10, ord(letter)), 0xB900012A]  # str w10, [x9]


def encode(words: list[int]) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


@dataclass(frozen=True)
class Places:
    """Physical addresses: the purgatory's entry, its record's state, a hashed byte, and what it starts."""

    entry: int
    state: int
    byte: int
    kernel: int
    dtb: int
    resume: int  # 8 bytes for ourselves
    code: int  # where this is


class HostileState:
    """The code of many tries. A try prints what the purgatory does, then K if the kernel was entered, or R and a digit.

    The digit is the state in the record. After the last try comes "E", and the power goes off. With `early` the
    registers that the purgatory changes, SP and x19 to x28 are compared with what they were before, and "!" is printed
    where one differs.
    """

    def __init__(
        self, el: El, places: Places, tries: int, seed: int, cpu: str, *, early: bool = False
    ) -> None:
        self.el, self.places, self.cpu, self.early = el, places, cpu, early
        self.generator = random.Random(seed)
        last = {El.EL1: LAST_EL1, El.EL2: LAST_EL2, El.VHE: LAST_VHE}[el]
        first = EL1 if el is El.EL1 else {**EL1, **EL2}
        if el is not El.EL1:
            first = {name: one for name, one in first.items() if name not in last}
        self.registers = {
            name: one for name, one in {**first, **last}.items() if cpu == "max" or not one.today
        }
        self.damaged = [self.generator.random() < 0.5 for _ in range(tries)]
        self.values: list[dict[str, int]] = []
        words: list[int] = []
        for damaged in self.damaged:
            words += self._one(damaged, places.code + 4 * len(words))
        words += [*self._sane(), *put_char("E"), *self._off()]
        self.code = encode(words)
        resume = [*mov(9, places.resume), 0xF9400129, 0xD61F0120]
        self.kernel = encode([*self._sane(), *put_char("K"), *resume])
        # In place of purgatory_stop, for a purgatory that does not return.
        self.stopped = encode([*self._sane(), *put_char("S"), *resume])

    def _off(self) -> list[int]:
        return [*mov(0, 0x84000008), 0xD4000002 if self.el is El.EL1 else 0xD4000003, 0x14000000]

    def _sane(self) -> list[int]:
        """So that code of ours can run: byte order, no stack of return addresses."""
        words = []
        if self.el is not El.EL1:
            words += write(HCR, 1 << 31 | (HCR_E2H | 1 << 27 if self.el is El.VHE else 0))
            words.append(ISB)
        sctlr = (3, 4, 1, 0, 0) if self.el is El.EL2 else (3, 0, 1, 0, 0)
        words += write(sctlr, SANE_SCTLR[self.el])
        if self.cpu == "max":
            words += write((3, 4, 2, 5, 0) if self.el is El.EL2 else (3, 0, 2, 5, 0), 0)
            # What a dead kernel could not have done either: be trapped by what it has above or beside it.
            if self.el is not El.EL1:
                words += write((3, 4, 1, 2, 2), (1 << 64) - 1)
        return [*words, ISB]

    def _streaming(self) -> list[int]:
        """The registers of FP, SVE and SME can be written from here on; into streaming mode, or out of it."""
        allow = write((3, 4, 1, 1, 2), 0) if self.el is El.EL2 else []
        allow += write((3, 0, 1, 0, 2), 3 << 24 | 3 << 20 | 3 << 16)
        svcr = [msr_immediate(3, 3, self.generator.choice(SVCR))] if self.cpu == "max" else []
        return [*allow, ISB, *svcr, ISB]

    def _one(self, damaged: bool, at: int) -> list[int]:
        places, values = self.places, {}
        words = [*self._sane(), *mov(9, places.byte), *mov(10, damaged), 0x3900012A]  # strb w10, [x9]
        words += self._streaming()
        pstate = PSTATE if self.cpu == "max" else {name: PSTATE[name] for name in OLD_PSTATE}
        hostile = []
        for op1, op2, choices in pstate.values():
            hostile.append(msr_immediate(op1, op2, self.generator.choice(choices)))
        for name, one in self.registers.items():
            # The early check returns: a stack of return addresses would have to have its own.
            drawn = one.drawn & ~GCSCR_PCRSEL if self.early and name.startswith("GCSCR") else one.drawn
            values[name] = (self._draw() & drawn | one.fixed) & (1 << 64) - 1
            hostile += write(one.encoding, values[name])
        # x4 is the stack's address: SP cannot be written by MSR where it is in use.
        hostile += [ISB, *mov(4, self._draw()), 0x9100009F, *mov(0, places.dtb)]  # mov sp, x4
        hostile += [*mov(1, 0), *mov(2, 0), *mov(3, 0), *mov(9, places.entry)]
        back = []
        if self.early:
            hostile += self._look(19)
            back += [*mov(12, 0), *self._compare(19)]
        back += [*self._sane(), *put_char("R"), *mov(11, places.state), 0xB940016A]  # ldr w10, [x11]
        back += [0x1100C14A, *mov(9, UART), 0xB900012A]  # add w10, w10, #'0'; str w10, [x9]
        # Both addresses are known once their own length is, which is that of any address here: movz and movk.
        length = len(words) + 2 * 2 + len(mov(9, places.resume)) + 1 + len(hostile) + 1
        returned, following = at + 4 * length, at + 4 * (length + len(back))
        words += [*mov(9, places.resume), *self._address(10, following), 0xF900012A]  # str x10, [x9]
        words += [*self._address(30, returned), *hostile, 0xD61F0120]  # br x9
        assert len(words) == length
        self.values.append(values)
        return [*words, *back]

    def _kept(self) -> list[Encoding]:
        names = ["SCTLR", "VBAR", "TCR", "TTBR0", "MAIR", *(["TCR2", "GCSCR"] if self.cpu == "max" else [])]
        if self.el is El.EL2:
            every = {**EL2, **LAST_EL2}
            return [every[f"{name}_EL2"].encoding for name in [*names, "CPTR"]]
        every = {**EL1, **LAST_EL1}
        return [every[f"{name}_EL1"].encoding for name in [*names, "CPACR"]]

    def _look(self, register: int) -> list[int]:
        """Into that register and those behind it: what the purgatory changes, and SP."""
        words = [0x910003E0 | register]  # mov xN, sp
        for number, one in enumerate(self._kept(), register + 1):
            words.append(msr(one, number) | 1 << 21)  # mrs
        return words

    def _compare(self, register: int) -> list[int]:
        """x12 is 0 if all is as it was."""
        words = [
            0x910003E9,
            0xCA000129 | register << 16,
            0xAA09018C,
        ]  # mov x9, sp; eor x9, x9, xN; orr x12, x12, x9
        for number, one in enumerate(self._kept(), register + 1):
            words += [msr(one, 9) | 1 << 21, 0xCA000129 | number << 16, 0xAA09018C]
        # cbz x12, over what prints
        told = [*self._sane(), *put_char("!")]
        return [*words, 0xB400000C | len(told) + 1 << 5, *told]

    @staticmethod
    def _address(register: int, phys: int) -> list[int]:
        assert phys < 1 << 32
        return [
            0xD2800000 | (phys & 0xFFFF) << 5 | register,
            0xF2A00000 | (phys >> 16) << 5 | register,
        ]

    def _draw(self) -> int:
        """All bits alike, or few, or nearly all: a register in which each is set half of the time is soon useless."""
        kind = self.generator.randrange(4)
        value = self.generator.getrandbits(64)
        if kind == 0:
            return value & self.generator.getrandbits(64) & self.generator.getrandbits(64)
        if kind == 1:
            return value | self.generator.getrandbits(64) | self.generator.getrandbits(64)
        return value
