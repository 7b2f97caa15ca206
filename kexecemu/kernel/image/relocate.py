"""Relocating the purgatory: arch_kexec_apply_relocations_add() as an arm64 kernel would have it.

Upstream has no such function; arch/arm64/kernel/module.c relocates modules and is the model for which values
fit. Where module.c silently drops low bits (a load from a misaligned symbol, a branch to one), this refuses,
since a purgatory with such a relocation would go wrong at the one moment when nobody can look.
"""

from collections.abc import Callable
from errno import ENOEXEC
from typing import NamedTuple

from kexecemu.errors import KexecError

__all__ = ["SUPPORTED_TYPES", "relocate"]

_STEP = "arch_kexec_apply_relocations_add"
_U64 = (1 << 64) - 1
_PAGE = ~0xFFF


class _Instruction(NamedTuple):
    """How a value goes into an instruction word: value >> shift, the low `width` bits, to bit `lsb`.

    bits is the width of the field for the overflow check, 0 for none; signed says how that field is read.
    """

    name: str
    value: Callable[[int, int], int]
    shift: int
    width: int
    lsb: int
    bits: int = 0
    signed: bool = True
    aligned: bool = False


class _Data(NamedTuple):
    """A data word of `size` bytes; low and high bound the value, None where it cannot overflow."""

    name: str
    value: Callable[[int, int], int]
    size: int
    low: int | None = None
    high: int | None = None


def _signed(value: int) -> int:
    value &= _U64
    return value - (1 << 64) if value >> 63 else value


def _absolute(target: int, place: int) -> int:
    return _signed(target)


def _relative(target: int, place: int) -> int:
    return _signed(target - place)


def _page_relative(target: int, place: int) -> int:
    return _signed((target & _PAGE) - (place & _PAGE))


def _low12(target: int, place: int) -> int:
    return target & 0xFFF


_NONE = (0, 256)
_ADR_LSB = -1  # the 21-bit immediate of ADR and ADRP is in two places

_DATA = {
    257: _Data("ABS64", _absolute, 8),
    # module.c reads a 32-bit absolute value as unsigned and a relative one as signed, and so does this.
    258: _Data("ABS32", _absolute, 4, 0, (1 << 32) - 1),
    260: _Data("PREL64", _relative, 8),
    261: _Data("PREL32", _relative, 4, -(1 << 31), (1 << 31) - 1),
}

_INSTRUCTIONS = {
    263: _Instruction("MOVW_UABS_G0", _absolute, 0, 16, 5, 16, signed=False),
    264: _Instruction("MOVW_UABS_G0_NC", _absolute, 0, 16, 5),
    265: _Instruction("MOVW_UABS_G1", _absolute, 16, 16, 5, 16, signed=False),
    266: _Instruction("MOVW_UABS_G1_NC", _absolute, 16, 16, 5),
    267: _Instruction("MOVW_UABS_G2", _absolute, 32, 16, 5, 16, signed=False),
    268: _Instruction("MOVW_UABS_G2_NC", _absolute, 32, 16, 5),
    269: _Instruction("MOVW_UABS_G3", _absolute, 48, 16, 5),
    273: _Instruction("LD_PREL_LO19", _relative, 2, 19, 5, 19, aligned=True),
    274: _Instruction("ADR_PREL_LO21", _relative, 0, 21, _ADR_LSB, 21),
    275: _Instruction("ADR_PREL_PG_HI21", _page_relative, 12, 21, _ADR_LSB, 21),
    276: _Instruction("ADR_PREL_PG_HI21_NC", _page_relative, 12, 21, _ADR_LSB),
    277: _Instruction("ADD_ABS_LO12_NC", _low12, 0, 12, 10),
    278: _Instruction("LDST8_ABS_LO12_NC", _low12, 0, 12, 10),
    279: _Instruction("TSTBR14", _relative, 2, 14, 5, 14, aligned=True),
    280: _Instruction("CONDBR19", _relative, 2, 19, 5, 19, aligned=True),
    282: _Instruction("JUMP26", _relative, 2, 26, 0, 26, aligned=True),
    283: _Instruction("CALL26", _relative, 2, 26, 0, 26, aligned=True),
    284: _Instruction("LDST16_ABS_LO12_NC", _low12, 1, 12, 10, aligned=True),
    285: _Instruction("LDST32_ABS_LO12_NC", _low12, 2, 12, 10, aligned=True),
    286: _Instruction("LDST64_ABS_LO12_NC", _low12, 3, 12, 10, aligned=True),
    299: _Instruction("LDST128_ABS_LO12_NC", _low12, 4, 12, 10, aligned=True),
}

_OF_A_GOT = range(300, 314)
"""R_AARCH64_MOVW_GOTOFF_G0 to R_AARCH64_LD64_GOTPAGE_LO15: what position-independent code has."""

SUPPORTED_TYPES = frozenset({*_NONE, *_DATA, *_INSTRUCTIONS})


def _overflow(kind: int, value: int) -> KexecError:
    return KexecError(ENOEXEC, _STEP, f"overflow in relocation type {kind} val {value & _U64:#x}")


def relocate(kind: int, place: bytearray | memoryview, offset: int, P: int, S: int, A: int) -> None:
    """Apply one relocation to the word at `offset` of `place`.

    P is the address at which that word will run, S the symbol's, A the addend. Whatever the field held
    before is cleared. Raises KexecError(ENOEXEC) for an unknown type, an overflow, a misaligned value or a
    word outside `place`.
    """
    if kind in _NONE:
        return
    target = (S + A) & _U64
    data = _DATA.get(kind)
    if data is not None:
        value = data.value(target, P)
        if data.low is not None and data.high is not None and not data.low <= value <= data.high:
            raise _overflow(kind, value)
        _check_place(kind, place, offset, data.size)
        place[offset : offset + data.size] = (value & _U64).to_bytes(8, "little")[: data.size]
        return
    instruction = _INSTRUCTIONS.get(kind)
    if instruction is None:
        why = ": by a GOT, which is not there (compile with -fno-pic)" if kind in _OF_A_GOT else ""
        raise KexecError(ENOEXEC, _STEP, f"Unknown rela relocation: {kind}{why}")
    value = instruction.value(target, P)
    if instruction.aligned and value & ((1 << instruction.shift) - 1):
        raise KexecError(ENOEXEC, _STEP, f"misaligned value {value & _U64:#x} in relocation type {kind}")
    field = value >> instruction.shift
    if instruction.bits:
        low = -(1 << instruction.bits - 1) if instruction.signed else 0
        if not low <= field < low + (1 << instruction.bits):
            raise _overflow(kind, value)
    _check_place(kind, place, offset, 4)
    word = int.from_bytes(place[offset : offset + 4], "little")
    place[offset : offset + 4] = _insert(word, instruction, field).to_bytes(4, "little")


def _insert(word: int, instruction: _Instruction, field: int) -> int:
    if instruction.lsb == _ADR_LSB:
        low, high = field & 3, field >> 2 & 0x7FFFF
        return word & ~(3 << 29 | 0x7FFFF << 5) | low << 29 | high << 5
    mask = (1 << instruction.width) - 1
    return word & ~(mask << instruction.lsb) | (field & mask) << instruction.lsb


def _check_place(kind: int, place: bytearray | memoryview, offset: int, size: int) -> None:
    if offset < 0 or offset + size > len(place):
        raise KexecError(ENOEXEC, _STEP, f"relocation type {kind} at {offset:#x} is outside its section")
