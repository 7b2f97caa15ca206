"""Accesses that pass here and fault on silicon: an instrument for code that runs with the MMU off.

While the MMU is off all data is Device memory. A real CPU then refuses an access that is not aligned to its element
size, and DC ZVA, whatever SCTLR_ELx.A says; exclusives have no monitor to rely on. The engine lets them all pass, and
FP and SIMD instructions that CPACR_EL1 traps as well, with the MMU on or off.

The hooks put every load and store on the engine's slow path, so an AccessChecker is attached to the runs that ask for
it and to no other. With KEXECEMU_CHECK_ACCESSES=1 in the environment, purgatories are run under it; see checked().
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self

import capstone  # type: ignore[import-untyped]
from unicorn.arm64_const import UC_ARM64_REG_PC
from unicorn.unicorn_const import UC_HOOK_BLOCK, UC_HOOK_INTR, UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE
from unicorn.unicorn_py3.unicorn import Uc, uclib

from kexecemu.errors import MachineError
from kexecemu.machine.cpu.blockcount import BlockStop
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.registers import BRANCH_TO_SELF
from kexecemu.shown import shown

__all__ = ["AccessChecker", "AccessKind", "Violation", "checked", "element_size"]

AccessKind = Literal["unaligned", "dc zva", "exclusive", "fp trap"]

CHECK_ACCESSES: Final = "KEXECEMU_CHECK_ACCESSES"
_SHOWN: Final = 3


@shown()
@dataclass(frozen=True)
class Violation:
    """The first time that an instruction did what silicon refuses.

    pc is the instruction's address; address is where its data is and size its element size in bytes (both 0 for
    "fp trap"). Both are what the CPU used: physical, with the MMU off. text is the instruction.
    """

    pc: int
    kind: AccessKind
    address: int
    size: int
    text: str

    def __str__(self) -> str:
        if self.kind == "fp trap":
            return f"{self.text} at {self.pc:#x}: FP and SIMD are trapped"
        words = {
            "unaligned": f"not aligned to {self.size} bytes",
            "dc zva": "DC ZVA of Device memory",
            "exclusive": "exclusive of Device memory",
        }
        return f"{self.text} at {self.pc:#x}: {words[self.kind]}, address {self.address:#x}"


class _Block(NamedTuple):
    """What of a translated block matters: some access needs a look at its instruction, the first FP instruction, and
    whether it can change the MMU or what is trapped."""

    special: bool
    fp_pc: int | None
    system: bool


_NOTHING: Final = _Block(False, None, True)


# -- instructions (Arm ARM, C4.1: the encoding's main groups) ------------------------------------------------------


def _is_load_store(word: int) -> bool:
    return word >> 27 & 1 == 1 and word >> 25 & 1 == 0


def _is_fp(word: int) -> bool:
    """FP or SIMD: data processing (bits 28:25 x111), or a load or store of a vector register."""
    return word >> 25 & 0b111 == 0b111 or (_is_load_store(word) and word >> 26 & 1 == 1)


def _is_system(word: int) -> bool:
    """MSR, SYS, barriers; SVC, HVC and their like; ERET."""
    return word >> 24 in (0xD4, 0xD5) or word & 0xFFFFF3FF == 0xD69F03E0


def _is_dc_zva(word: int) -> bool:
    return word & ~0x1F == 0xD50B7420


def _is_exclusive(word: int) -> bool:
    """LDXR, STXR, their acquiring and releasing kind and those of pairs; not LDAR and STLR, which are bit 23."""
    return word >> 24 & 0x3F == 0b001000 and word >> 23 & 1 == 0


def element_size(word: int) -> int | None:
    """What a load or store has to be aligned to on Device memory, in bytes; None for another instruction.

    That is one register of a pair, a whole q register, but one element of LD1 and its like.
    """
    if not _is_load_store(word):
        return None
    vector = word >> 26 & 1
    group = word >> 28 & 3
    upper = word >> 30
    if group == 0:
        if not vector:  # exclusive, ordered
            return 1 << upper if word >> 21 & 1 == 0 or word >> 23 & 1 else 4 << (upper & 1)
        if word >> 24 & 1 == 0:  # LD1 to LD4, whole registers
            return 1 << (word >> 10 & 3)
        scale = word >> 14 & 3  # one element; LD1R and its like
        return 1 << (word >> 10 & 3) if scale == 3 else 1 << (scale + (scale == 2 and word >> 10 & 1))
    if group == 1:  # literal
        return 4 << upper if vector else (4, 8, 4, 1)[upper]
    if group == 2:  # pair
        return 4 << upper if vector else 4 << (upper >> 1)
    return 16 if vector and upper == 0 and word >> 23 & 1 else 1 << upper


@shown("violations")
class AccessChecker:
    """Watches one CPU between entering and leaving it as a context manager. Nothing of the guest's state changes.

    with AccessChecker(cpu) as checker:
        cpu.run()
    checker.violations
    """

    def __init__(self, cpu: Cpu) -> None:
        self.violations: list[Violation] = []
        """In the order in which they happened, each instruction with each kind once."""
        self._cpu = cpu
        self._engine = cpu._engine
        self._seen: set[tuple[int, AccessKind]] = set()
        self._blocks: dict[tuple[int, int], _Block] = {}
        self._words: dict[int, int | None] = {}
        self._disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        self._hooks: list[int] = []
        self._watching = self._fp_trapped = self._special = False
        self._stale = True
        # The run of accesses that one q register is made of: the engine does 8 bytes at a time.
        self._pc = self._start = self._end = -1

    def __enter__(self) -> Self:
        uc = self._engine.uc
        self._hooks = [
            uc.hook_add(UC_HOOK_BLOCK, self._on_block),
            uc.hook_add(UC_HOOK_INTR, self._on_interrupt),
            uc.hook_add(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, self._on_access),
        ]
        self._stale = True
        self._engine.flush_code()  # code that is translated already asks no hook
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            self._engine.uc.hook_del(hook)
        self._hooks = []
        self._engine.flush_code()

    # -- what the CPU does -----------------------------------------------------------------------------------------

    def _on_interrupt(self, uc: Uc, number: int, _: object) -> None:
        self._stale = True

    def _on_block(self, uc: Uc, virt: int, size: int, _: object) -> None:
        # The counter was hooked first: it may have refused this block, which is then not executed.
        if self._engine.counter.state.why != BlockStop.NOTHING:
            return
        if size == 4 and self._word(virt) == BRANCH_TO_SELF:
            self._give_up()
            return
        if self._stale:
            self._look_at_mode()
        block = self._blocks.get((virt, size))
        if block is None:
            block = self._blocks[virt, size] = self._read_block(virt, size)
        self._special, self._stale = block.special, block.system
        if block.fp_pc is not None and self._fp_trapped:
            self._note(block.fp_pc, "fp trap", 0, 0)

    def _give_up(self) -> None:
        """The CPU is in an endless loop of one branch: let it be there at full speed, there is nothing more to see."""
        hook, self._hooks = self._hooks[0], self._hooks[1:]
        # Not by the binding, which would free the callback that is being called.
        if uclib.uc_hook_del(self._engine.uc._uch, hook):
            raise MachineError("the engine does not let go of a hook")

    def _on_access(self, uc: Uc, access: int, address: int, size: int, value: int, _: object) -> None:
        if not self._watching or not (self._special or address % size):
            return
        pc = self._engine.get(UC_ARM64_REG_PC)
        word = self._word(pc)
        if word is None:
            return
        if _is_dc_zva(word):
            self._note(pc, "dc zva", address, size)
            return
        element = element_size(word) or size
        if _is_exclusive(word):
            self._note(pc, "exclusive", address, element)
        if pc == self._pc and address == self._end and (address - self._start) % element:
            self._end += size
            return
        self._pc, self._start, self._end = pc, address, address + size
        if address % element:
            self._note(pc, "unaligned", address, element)

    def _look_at_mode(self) -> None:
        """Is the MMU off, and are FP and SIMD trapped? There is no EL2 on this machine: see Registers.pstate."""
        cpu = self._cpu
        self._watching = not cpu.sysreg("SCTLR_EL1") & 1
        fpen = cpu.sysreg("CPACR_EL1") >> 20 & 3
        self._fp_trapped = fpen in (0, 2) or (fpen == 1 and cpu.pstate >> 2 & 3 == 0)

    def _read_block(self, virt: int, size: int) -> _Block:
        special = system = False
        fp_pc = None
        for pc in range(virt, virt + size, 4):
            word = self._word(pc)
            if word is None:
                return _NOTHING
            special |= _is_dc_zva(word) or _is_exclusive(word) or element_size(word) == 16
            system |= _is_system(word)
            if fp_pc is None and _is_fp(word):
                fp_pc = pc
        return _Block(special, fp_pc, system)

    def _word(self, pc: int) -> int | None:
        """The instruction at pc; None where it cannot be read."""
        if pc not in self._words:
            self._words[pc] = self._cpu.word_at(pc)
        return self._words[pc]

    def _note(self, pc: int, kind: AccessKind, address: int, size: int) -> None:
        if (pc, kind) in self._seen:
            return
        self._seen.add((pc, kind))
        word = self._word(pc) or 0
        lines = list(self._disassembler.disasm_lite(word.to_bytes(4, "little"), pc))
        text = f"{lines[0][2]} {lines[0][3]}".strip() if lines else f".word {word:#010x}"
        self.violations.append(Violation(pc, kind, address, size, text))


@contextmanager
def checked(cpu: Cpu, *, intact: bool = True) -> Iterator[None]:
    """Run what is inside under an AccessChecker if KEXECEMU_CHECK_ACCESSES=1 is set, and as it is if not.

    Raises MachineError that names the first violations. intact says that the code is as it was loaded: what a damaged
    one does is no reproach to its author, and is not raised.
    """
    if os.environ.get(CHECK_ACCESSES) != "1" or not intact:
        yield
        return
    with AccessChecker(cpu) as checker:
        yield
    if checker.violations:
        found = "; ".join(str(one) for one in checker.violations[:_SHOWN])
        more = len(checker.violations) - _SHOWN
        raise MachineError(f"silicon refuses: {found}" + (f"; and {more} more" if more > 0 else ""))
