"""The start-up code of a handed-over machine: it puts the registers in place and branches to the entry.

It lies in the flash of QEMU's virt and runs before anything of ours does. It is built here word by word, because what
it loads is a different machine each time, and installing kexecemu must not need an assembler.
"""

import struct
from collections.abc import Mapping

from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.cpu.sysregs import SYSREGS
from kexecemu.machine.virt import FLASH

__all__ = ["FLASH_LOW", "FLASH_START", "LOW_SIZE", "start_code"]

FLASH_START = FLASH.start + 0x1000
"""Physical address of the code, in the first flash (64 MiB from 0). QEMU takes an entry of 0 for none."""
FLASH_LOW = FLASH.start + 0x100000
"""Physical address in the flash of what belongs at the start of RAM."""
LOW_SIZE = 0x100000
"""Bytes that QEMU's own device tree takes at the start of RAM."""

# Written in this order; SCTLR_EL1 comes after them all. What is missing is read-only, or constant in these cores.
_WRITTEN = (
    "CPACR_EL1 TTBR0_EL1 TTBR1_EL1 TCR_EL1 SPSR_EL1 ELR_EL1 ESR_EL1 FAR_EL1 PAR_EL1 MAIR_EL1 AMAIR_EL1 VBAR_EL1 "
    "CONTEXTIDR_EL1 TPIDR_EL1 TPIDR_EL0 TPIDRRO_EL0 CNTKCTL_EL1 CSSELR_EL1 MDSCR_EL1"
)
_EL2_REGISTERS = {
    "SCTLR_EL2": (3, 4, 1, 0, 0),
    "HCR_EL2": (3, 4, 1, 1, 0),
    "CPTR_EL2": (3, 4, 1, 1, 2),
    "SP_EL1": (3, 4, 4, 1, 0),
}
_ENCODINGS = {**SYSREGS, **_EL2_REGISTERS}

_SCTLR_A = 1 << 1
_SCTLR_EL2_RES1 = 0x30C50830  # what Linux has there with the MMU off: INIT_SCTLR_EL2_MMU_OFF
_HCR_EL2_RW = 1 << 31  # EL1 is AArch64
_CPTR_EL2_RES1 = 0x33FF  # and nothing is trapped
_CPACR_FPEN = 3 << 20

_ISB = 0xD5033FDF
_DSB_SY = 0xD5033F9F
_SCRATCH = 9
_FALLBACK = 17  # IP1, free between any two functions


class _Code:
    """Instructions, and behind them the values that they load."""

    def __init__(self) -> None:
        self._words: list[int] = []
        self._loads: list[tuple[int, int, int]] = []  # index of the instruction, value, bytes

    def emit(self, *words: int) -> None:
        self._words += words

    def load(self, register: int, value: int) -> None:
        """ldr x<register>, =value"""
        self._loads.append((len(self._words), value, 8))
        self.emit(0x58000000 | register)

    def load_vector(self, register: int, value: int) -> None:
        """ldr q<register>, =value"""
        self._loads.append((len(self._words), value, 16))
        self.emit(0x9C000000 | register)

    def set_sysreg(self, name: str, value: int) -> None:
        self.load(_SCRATCH, value)
        op0, op1, crn, crm, op2 = _ENCODINGS[name]
        self.emit(0xD5000000 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | _SCRATCH)

    def bytes(self) -> bytes:
        """The code with its pool of values; each is aligned to its size."""
        position = -(-len(self._words) * 4 // 16) * 16
        pool = b""
        words = list(self._words)
        for index, value, size in sorted(self._loads, key=lambda load: -load[2]):
            words[index] |= (position + len(pool) - 4 * index) // 4 << 5
            pool += value.to_bytes(size, "little")
        return struct.pack(f"<{len(words)}I", *words).ljust(position, b"\0") + pool


def start_code(
    registers: Mapping[str, int], *, el: int, alignment_checks: bool, low_phys: int, copied: int, cleared: int
) -> bytes:
    """The code for FLASH_START. It runs at exception level `el`, with the MMU off.

    registers are a CPU's, by their names in Cpu.registers(). `cleared` bytes from physical low_phys become what lies
    at FLASH_LOW, as far as `copied` goes, and zeros behind it; both are multiples of 16.
    """
    code = _Code()
    _fill_low_memory(code, low_phys, copied, cleared)
    if el == 2:
        code.set_sysreg("HCR_EL2", _HCR_EL2_RW)
        code.set_sysreg("CPTR_EL2", _CPTR_EL2_RES1)
    code.set_sysreg("CPACR_EL1", _CPACR_FPEN)
    code.emit(_ISB)
    for number in range(32):
        code.load_vector(number, registers[f"v{number}"])
    for name in _WRITTEN.split():
        code.set_sysreg(name, registers[name])
    checks = _SCTLR_A if alignment_checks else 0
    code.set_sysreg("SCTLR_EL1", registers["SCTLR_EL1"] | (checks if el == 1 else 0))
    if el == 2:
        code.set_sysreg("SCTLR_EL2", _SCTLR_EL2_RES1 | checks)
    code.emit(_DSB_SY, _ISB)
    _set_stack_pointers(code, registers, el)
    pstate = registers["pstate"]
    code.load(_SCRATCH, pstate & Pstate.DAIF)
    code.emit(0xD51B4220 | _SCRATCH)  # msr daif, x9
    code.load(_SCRATCH, pstate & Pstate.NZCV)
    code.emit(0xD51B4200 | _SCRATCH)  # msr nzcv, x9
    # The branch needs a register, and the first kernel's own branch did, too: the entry is in one of them. (A kernel
    # that was made to return there has it in none; then the callee of an indirect call may not rely on x17.)
    entry = registers["pc"]
    through = next((number for number in range(31) if registers[f"x{number}"] == entry), _FALLBACK)
    for number in range(31):
        code.load(number, entry if number == through else registers[f"x{number}"])
    code.emit(0xD61F0000 | through << 5)  # br
    return code.bytes()


def _fill_low_memory(code: _Code, low_phys: int, copied: int, cleared: int) -> None:
    code.load(0, low_phys)
    code.load(1, low_phys + copied)
    code.load(2, low_phys + cleared)
    code.load(3, FLASH_LOW)
    code.emit(
        0xEB01001F,  # 0: cmp x0, x1
        0x54000082,  # b.hs 1f
        0xF8408464,  # ldr x4, [x3], #8
        0xF8008404,  # str x4, [x0], #8
        0x17FFFFFC,  # b 0b
        0xEB02001F,  # 1: cmp x0, x2
        0x54000062,  # b.hs 2f
        0xF800841F,  # str xzr, [x0], #8
        0x17FFFFFD,  # b 1b
    )  # 2:


def _set_stack_pointers(code: _Code, registers: Mapping[str, int], el: int) -> None:
    code.emit(0xD50041BF)  # msr spsel, #1
    code.set_sysreg("SP_EL0", registers["SP_EL0"])
    if el == 2:
        code.set_sysreg("SP_EL1", registers["SP_EL1"])
    code.load(_SCRATCH, registers["SP_EL1"])
    code.emit(0x9100013F)  # mov sp, x9
    if not registers["pstate"] & Pstate.SP_ELX:
        code.emit(0xD50040BF)  # msr spsel, #0
