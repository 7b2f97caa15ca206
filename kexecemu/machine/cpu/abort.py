"""The syndrome of an access that hit no RAM and no device: an external abort.

On a load or store of that kind Unicorn reports the physical address only, but FAR_EL1 holds the virtual one. The
registers and the instruction give it: the access is precise, with no register written back yet.
"""

import functools
from typing import Any

import capstone  # type: ignore[import-untyped]
from capstone import arm64_const as cs64
from unicorn import unicorn_const as const
from unicorn.unicorn_py3.unicorn import uclib

from kexecemu.errors import MachineError
from kexecemu.machine.cpu import exceptions
from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.cpu.registers import MASK64, Registers

__all__ = ["external_abort", "faulting_virt", "is_fetch"]

PAGE = 0x1000
LONGEST_ACCESS = 64
"""Bytes: LD4/ST4 of four 16-byte registers."""


@functools.cache
def _decoder() -> Any:
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
    decoder.detail = True
    return decoder


def is_fetch(error: int) -> bool:
    """True for the engine's errors of a fetch: nothing of the block has begun."""
    return error in (const.UC_ERR_FETCH_UNMAPPED, const.UC_ERR_FETCH_PROT)


def external_abort(cpu: Registers, error: int, phys: int) -> tuple[int, int]:
    """ESR and FAR for an error of the engine, at physical address phys if it is no fetch; far 0 where it is not known.

    Raises MachineError for an error that is no access to nothing.
    """
    same_el = 1 if cpu.pstate & Pstate.EL_MASK else 0
    if is_fetch(error):
        ec = exceptions.EC_IABT_LOWER + same_el
        return ec << 26 | exceptions.ESR_IL | exceptions.FSC_EXTERNAL, cpu.pc
    if error not in (const.UC_ERR_READ_UNMAPPED, const.UC_ERR_WRITE_UNMAPPED):
        text = uclib.uc_strerror(error).decode("ascii")
        raise MachineError(
            f"the engine failed on cpu{cpu.index} at pc {cpu.pc:#x}: {text} (Unicorn error {error})"
        )
    esr = (exceptions.EC_DABT_LOWER + same_el) << 26 | exceptions.ESR_IL | exceptions.FSC_EXTERNAL
    if error == const.UC_ERR_WRITE_UNMAPPED:
        esr |= exceptions.ISS_WNR
    # The engine gives the physical address; FAR wants the virtual one, which only the instruction knows.
    far = faulting_virt(cpu, phys)
    return (esr | exceptions.ISS_FNV, 0) if far is None else (esr, far)


def faulting_virt(cpu: Registers, phys: int) -> int | None:
    """The virtual address with which the instruction at PC reached `phys`; None if that is unclear."""
    if not cpu.sysreg("SCTLR_EL1") & 1:
        return phys
    word = cpu.word_at(cpu.pc)
    if word is None:
        return None
    for instruction in _decoder().disasm(word.to_bytes(4, "little"), cpu.pc, 1):
        if instruction.mnemonic == "dc":  # cache maintenance: the address is the operand itself
            base = _value(cpu, instruction.operands[-1].reg)
            return None if base is None else base & ~(PAGE - 1) | phys & PAGE - 1
        for operand in instruction.operands:
            if operand.type == cs64.ARM64_OP_MEM:
                start = _address(cpu, operand)
                if start is None:
                    return None
                # A long access may have failed in its second part; then that part's address is reported.
                into = phys - start & PAGE - 1
                return start + into & MASK64 if into < LONGEST_ACCESS else None
    return None


def _address(cpu: Registers, operand: Any) -> int | None:
    """Where the memory operand points: base, displacement, and an index shifted and extended."""
    base = _value(cpu, operand.mem.base)
    if base is None:
        return None
    address = base + int(operand.mem.disp)
    if operand.mem.index:
        index = _value(cpu, operand.mem.index)
        if index is None:
            return None
        if operand.ext == cs64.ARM64_EXT_SXTW:
            index = (index & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)
        elif operand.ext == cs64.ARM64_EXT_UXTW:
            index &= 0xFFFFFFFF
        address += index << int(operand.shift.value)
    return address & MASK64


def _value(cpu: Registers, register: int) -> int | None:
    name = _decoder().reg_name(register)
    if name == "sp":
        return cpu.sp
    if name in ("xzr", "wzr"):
        return 0
    name = {"fp": "x29", "lr": "x30"}.get(name, name)
    return cpu.x(int(name[1:])) if name and name[0] in "xw" and name[1:].isdigit() else None
