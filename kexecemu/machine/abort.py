"""The virtual address of a load or store that hit no RAM and no device.

On such an access Unicorn reports the physical address only, but FAR_EL1 holds the virtual one. The registers
and the instruction give it: the access is precise, with no register written back yet.
"""

from __future__ import annotations

import functools
from typing import Any

import capstone  # type: ignore[import-untyped]
from capstone import arm64_const as cs64

from kexecemu.errors import BusError
from kexecemu.machine.registers import MASK64, Registers

__all__ = ["faulting_virt"]

PAGE = 0x1000
LONGEST_ACCESS = 64
"""Bytes: LD4/ST4 of four 16-byte registers."""


@functools.cache
def _decoder() -> Any:
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
    decoder.detail = True
    return decoder


def faulting_virt(cpu: Registers, phys: int) -> int | None:
    """The virtual address with which the instruction at PC reached `phys`; None if that is unclear."""
    if not cpu.sysreg("SCTLR_EL1") & 1:
        return phys
    code_phys = cpu.translate(cpu.pc)
    if code_phys is None:
        return None
    try:
        code = cpu.ram.read(code_phys, 4)
    except BusError:
        return None
    for instruction in _decoder().disasm(code, cpu.pc, 1):
        if instruction.mnemonic == "dc":  # cache maintenance: the address is the operand itself
            base = _value(cpu, instruction.operands[-1].reg)
            return None if base is None else base & ~(PAGE - 1) | phys & PAGE - 1
        for operand in instruction.operands:
            if operand.type == cs64.ARM64_OP_MEM:
                start = _address(cpu, operand)
                # A long access may have failed in its second part; then that part's address is reported.
                into = None if start is None else phys - start & PAGE - 1
                return (
                    None if start is None or into is None or into >= LONGEST_ACCESS else start + into & MASK64
                )
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
