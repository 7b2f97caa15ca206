"""One CPU that runs an operating system: exceptions and timers are served on the way, and it stops at boundaries.

A *boundary* is where an interrupt can be taken: behind a branch, an exception, or a write to PSTATE.DAIF. Interrupts
at boundaries only are what makes a run the same whatever stops it on the way and however instructions are counted:
both forms here find the first boundary at which so many instructions have retired.
"""

from __future__ import annotations

import ctypes
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from unicorn.arm64_const import UC_ARM64_INS_MSR, UC_ARM64_INS_SYS, UC_ARM64_REG_PC, UC_ARM64_REG_PSTATE
from unicorn.unicorn_const import UC_HOOK_BLOCK, UC_HOOK_INSN
from unicorn.unicorn_py3.unicorn import uclib

from kexecemu.machine.cpu.blockcount import DOOMED, LINE_MARKS, LINE_SIZE, NO_DEADLINE, STALE_ALL, BlockStop
from kexecemu.machine.cpu.counter import function_address
from kexecemu.machine.cpu.engine import CpuEngine
from kexecemu.machine.cpu.engine_internals import between_blocks_of
from kexecemu.machine.cpu.exceptions import Pstate

if TYPE_CHECKING:
    from kexecemu.machine.cpu.system_cpu import SystemCpu

__all__ = ["BlockStepper", "StepEnd", "Stepper", "ends_block"]

PAGE_SIZE: Final = 0x1000


class StepEnd(Enum):
    """Why a stepper has come back."""

    BOUNDARY = "boundary"  # the deadline, or an interrupt that is not masked
    IDLE = "idle"  # WFI
    EVENT = "event"  # something for the CPU's owner: an exception or a call to firmware, in counter.state
    ERROR = "error"  # the engine's error number is in `error`


def ends_block(word: int) -> bool:
    """True for an instruction behind which there is a boundary: all branches, exceptions, and what can unmask IRQs."""
    return (
        word & 0x7C000000 == 0x14000000  # B, BL
        or word & 0xFE000000 in (0x54000000, 0xD6000000)  # B.cond; BR, BLR, RET, ERET
        or word & 0x7C000000 == 0x34000000  # CBZ, CBNZ, TBZ, TBNZ
        or word & 0xFF000000 == 0xD4000000  # SVC, HVC, SMC, BRK, HLT
        or word & 0xFFFFF0FF == 0xD50340FF  # MSR DAIFClr
        or word & 0xFFFFFFE0 == 0xD51B4220  # MSR DAIF
    )


class Stepper(Protocol):
    """Runs one engine from boundary to boundary. Counts are instructions that this CPU has retired."""

    error: int
    """Unicorn's error number after StepEnd.ERROR."""

    @property
    def now(self) -> int:
        """How many have retired, at any moment: in a callback of a timer's register, those before the MRS or MSR."""

    def set_irq(self, level: bool) -> None:
        """The interrupt signal's level; a running CPU comes back for it at its next boundary."""

    def reset(self) -> None:
        """The CPU has been switched on anew."""

    def shorten(self, deadline: int) -> None:
        """In a callback: the run under way is to end at this deadline if it would end later."""

    def run(self, deadline: int) -> StepEnd:
        """Run to the first boundary with `deadline` instructions retired, or at which an interrupt is to be taken."""


class BlockStepper:
    """The stepper that sees every block begin, in blockcount.c's hooks or in those of Python."""

    def __init__(self, engine: CpuEngine, owner: SystemCpu) -> None:
        self._engine = engine
        self._counter = counter = engine.counter
        self._owner = owner
        self._running = False
        self._raised: BaseException | None = None
        self.error = 0
        state = counter.state
        self._marks = (ctypes.c_uint8 * LINE_MARKS)()
        state.entered = NO_DEADLINE
        if counter.python is not None:
            counter.python.serve_system(self._on_timer)
        else:
            self._hook_native()
        # Every stop is before a block's first instruction: nothing needs to look for one behind each load and store.
        between_blocks = between_blocks_of(engine.uc)
        if between_blocks is not None:
            between_blocks.value = engine.between_blocks = True
        engine.on_abort = self._on_abort
        engine.flush_code()

    def _hook_native(self) -> None:
        counter = self._counter
        library, state = counter.library, counter.state
        assert library is not None
        self._callback = _TIMER(self._on_timer)  # must live as long as the engine may call it
        state.timer = function_address(self._callback)
        state.reg_write_batch = function_address(uclib.uc_reg_write_batch)
        state.context_save = function_address(uclib.uc_context_save)
        state.context, state.exception = self._engine.exception_context
        state.marks = ctypes.addressof(self._marks)
        state.system = 1
        # One block hook and no more: with two, the engine does not inline the calls.
        counter.unhook_one(counter.block_hook)
        counter.hook(UC_HOOK_BLOCK, library.blockcount_system_block)
        counter.hook(UC_HOOK_INSN, library.blockcount_msr, UC_ARM64_INS_MSR)
        counter.hook(UC_HOOK_INSN, library.blockcount_sys, UC_ARM64_INS_SYS)

    @property
    def now(self) -> int:
        """Instructions retired; see Stepper."""
        state = self._counter.state
        if not self._running:
            return int(state.total)
        to_come = state.block + state.block_size - self._engine.get(UC_ARM64_REG_PC)
        return int(state.total - to_come // 4)

    def set_irq(self, level: bool) -> None:
        """See Stepper."""
        self._counter.state.irq = level

    def reset(self) -> None:
        """See Stepper."""
        self._counter.state.entered = NO_DEADLINE

    def shorten(self, deadline: int) -> None:
        """See Stepper."""
        state = self._counter.state
        state.deadline = min(state.deadline, deadline)

    def run(self, deadline: int) -> StepEnd:
        """See Stepper."""
        counter = self._counter
        state = counter.state
        goal = deadline
        if state.total >= goal or (state.irq and not self._engine.get(UC_ARM64_REG_PSTATE) & Pstate.I):
            return StepEnd.BOUNDARY
        while True:
            counter.start(goal)
            state.first = 1  # an interrupt is not looked for at the first block: the owner has done that
            self._running = True
            try:
                self.error = self._engine.run()
            finally:
                self._running = False
            goal = min(goal, state.deadline)
            if self._raised is not None:
                raised, self._raised = self._raised, None
                raise raised
            if self.error:
                state.stale &= ~DOOMED
                return StepEnd.ERROR
            why = state.why
            if why == BlockStop.NOTHING:
                if not state.irq:
                    return StepEnd.IDLE
                # An interrupt waits, masked or not: WFI does not.
                goal = max(goal, state.total + 1)
            elif why == BlockStop.STALE:
                self._drop_stale()
            elif why not in (BlockStop.DEADLINE, BlockStop.IRQ):
                return StepEnd.EVENT
            elif self._at_boundary():
                return StepEnd.BOUNDARY
            else:
                # A block that only the page's end or the engine's limits cut off: on to the next one.
                goal = state.total + 1

    def _drop_stale(self) -> None:
        """Drop the translations of code that the guest has changed and, by IC, said so."""
        state = self._counter.state
        lines = {self._owner.code_phys(virt) for virt in state.stale_lines[: state.nr_stale]}
        pages = {self._owner.code_phys(virt) for virt in state.stale_pages[: state.nr_stale_pages]}
        if state.stale & STALE_ALL or None in lines | pages:
            self._engine.flush_code()
            ctypes.memset(self._marks, 0, LINE_MARKS)
            state.user_ran = 0
        else:
            self._engine.drop_code_phys([line for line in lines if line is not None], LINE_SIZE)
            self._engine.drop_code_phys([page for page in pages if page is not None], PAGE_SIZE)
        state.stale = state.nr_stale = state.nr_stale_pages = 0

    def _at_boundary(self) -> bool:
        state = self._counter.state
        end = state.block + state.block_size
        if self._engine.get(UC_ARM64_REG_PC) != end:
            return True
        word = self._owner.word_at(end - 4)
        return word is not None and ends_block(word)

    def _on_abort(self) -> None:
        self._counter.state.stale |= DOOMED

    def _on_timer(self, crm: int, op2: int, write: int, value: int) -> int:
        if self._engine.aborting:
            return 0
        # ctypes would print whatever is raised here and go on.
        try:
            if not write:
                return self._owner.read_timer(int(crm), int(op2))
            self._owner.write_timer(int(crm), int(op2), int(value))
        except BaseException as error:
            self._raised = error
            self._counter.state.deadline = 0
        return 0


_TIMER = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64)
