"""The stepper for hosts without the native hook: pure Python, exact, and fast enough to boot a Linux.

A Python function at every block would be some fifty times slower than the engine. Here the engine counts by itself
(count=). Far from a deadline it does so in code that stops between blocks only, a sprint; near it in code that stops
anywhere, and the way to the next boundary is found by reading the guest's code. Where it is in its count, and how far
it may go, is read and changed in the engine's own two counters while it runs. An interrupt that waits for the guest to
unmask it is left to the engine, which takes it just there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from unicorn.arm64_const import UC_ARM64_REG_PC, UC_ARM64_REG_PSTATE
from unicorn.unicorn_const import (
    UC_ERR_FETCH_PROT,
    UC_ERR_FETCH_UNMAPPED,
    UC_HOOK_EDGE_GENERATED,
    UC_HOOK_INTR,
)
from unicorn.unicorn_py3.unicorn import Uc

from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_TICK, NO_DEADLINE, TLB, BlockStop
from kexecemu.machine.cpu.cpu import EXCP_HVC, EXCP_PREFETCH_ABORT, EXCP_SMC, EXCP_SWI
from kexecemu.machine.cpu.engine import CpuEngine
from kexecemu.machine.cpu.engine_internals import Internals
from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.cpu.guest_code import GuestCode, StaleCode
from kexecemu.machine.cpu.registers import X_REGISTERS
from kexecemu.machine.cpu.stepper import StepEnd
from kexecemu.machine.cpu.system_hooks import EL0PCTEN, EL0VCTEN, SystemHooks

if TYPE_CHECKING:
    from kexecemu.machine.cpu.system_cpu import SystemCpu

__all__ = ["CountingStepper"]

_LONGEST_BLOCK: Final = 512
"""Instructions that the engine translates as one, at most (TCG_MAX_INSNS)."""
_EC_TRAPPED_MRS: Final = 0x18

_MRS_CNTPCT, _MRS_CNTVCT = 0xD53BE020, 0xD53BE040


class CountingStepper:
    """See Stepper."""

    def __init__(self, engine: CpuEngine, owner: SystemCpu, internals: Internals) -> None:
        self._engine = engine
        self._uc = engine.uc
        self._state = engine.counter.state
        self._owner = owner
        self._inside = internals
        self._done, self._limit = self._inside.done, self._inside.limit
        self._sprinting = False
        self._aborting_count: int | None = None  # what had been counted when the rest of a block was aborted
        self._cuts: list[tuple[int, int]] = []  # where a sprint has been cut short: PC, and the count with it
        self._running = False
        self._finishing = False
        self._irq = False
        self._deadline = 0
        self._at_boundary = True
        self._code = GuestCode(owner)
        self._stale = StaleCode(engine, self._code)
        self._pc = self._pstate = 0  # where the engine has stopped last
        self._astray: int | None = None  # the misaligned address that a block would begin at
        self.error = 0
        self._state.entered = NO_DEADLINE
        self._inside.variant.value = 0
        engine.on_abort = self._on_abort
        engine.between_blocks = True  # DC ZVA goes on behind what it has no place for, in any code
        assert engine.counter.python is not None
        engine.counter.python.unhook()
        self._uc.hook_add(UC_HOOK_INTR, self._on_interrupt)
        self._uc.hook_add(UC_HOOK_EDGE_GENERATED, self._on_translated)
        self._hooks = SystemHooks(engine, owner, self, self._code, self._stale)

    @property
    def now(self) -> int:
        """Instructions retired; see Stepper."""
        total = int(self._state.total)
        return total + self._done.value - 1 if self._running else total

    def reset(self) -> None:
        """See Stepper."""
        self._state.entered = NO_DEADLINE
        self._hooks.reset()

    def set_irq(self, level: bool) -> None:
        """See Stepper."""
        self._irq = level
        if not level:
            self._inside.interrupt_request.value = 0
        elif self._running and self._engine.get(UC_ARM64_REG_PSTATE) & Pstate.I:
            self._inside.interrupt_request.value = Internals.INTERRUPT_IRQ
        else:
            self.cut()

    def shorten(self, deadline: int) -> None:
        """See Stepper."""
        if deadline < self._deadline:
            self._deadline = deadline
            self.cut()

    def cut(self) -> None:
        """End the stretch under way behind this instruction, unless it only goes to the next boundary anyway."""
        if not self._finishing:
            self.cut_here()

    def cut_here(self) -> None:
        """End the stretch under way behind this instruction."""
        if not self._running:
            return
        if self._sprinting:
            self._cuts.append((self._engine.get(UC_ARM64_REG_PC), self._done.value))
            self._uc.emu_stop()
        else:
            self._limit.value = self._done.value

    def run(self, deadline: int) -> StepEnd:
        """See Stepper."""
        self._deadline = deadline
        self._at_boundary = True
        self._pc, self._pstate = self._engine.where()
        while True:
            masked = bool(self._pstate & Pstate.I)
            due = self._state.total >= self._deadline or (self._irq and not masked)
            if self._at_boundary and due:
                return StepEnd.BOUNDARY
            # The engine itself takes an interrupt at the boundary at which it is unmasked.
            self._inside.interrupt_request.value = Internals.INTERRUPT_IRQ if self._irq and masked else 0
            # The last instruction before the deadline, and where an interrupt waits any, may end a block or not.
            before = self._deadline - 1 - self._state.total
            if before <= 0 or (self._irq and not masked):
                halt = self._finish()
            elif before > 2 * _LONGEST_BLOCK:
                halt = self._stretch(before - _LONGEST_BLOCK, sprint=True)
            else:
                halt = self._stretch(before)
            if self._hooks.kernel_moves:
                self._hooks.follow_kernel()
            if self._stale:
                self._stale.drop()
            if halt is not None:
                return halt

    def _finish(self) -> StepEnd | None:
        """Run to the next boundary; None if it was reached."""
        self._finishing = True
        try:
            while True:
                distance, ends = self._code.distance(self._pc)
                goal = self._state.total + distance
                halt = self._stretch(distance)
                if halt is not None:
                    return halt
                if self._stale:
                    self._stale.drop()
                # An IC ends the stretch: what lies ahead may be other code now.
                if ends and self._state.total == goal:
                    self._at_boundary = True
                    return None
        finally:
            self._finishing = False

    def _stretch(self, count: int, *, sprint: bool = False) -> StepEnd | None:
        """Run `count` instructions, or less if something cuts them short; None if nothing else came in between.

        A sprint is faster, and goes on to the end of the block that it is in when its count or a cut ends it.
        """
        state = self._state
        state.block_size = 0
        if self._pc & 3:
            state.why = BlockStop.MISALIGNED  # of a single instruction there the engine makes something
            return StepEnd.EVENT
        self._select(sprint)
        self._at_boundary = False
        goal = state.total + count
        while state.total < goal:
            done = self._run_engine(goal - state.total)
            if self._astray is not None:
                return self._misaligned()
            if self.error:
                # What could not be loaded or stored has not retired; what could not be fetched was not counted.
                if self.error not in (UC_ERR_FETCH_UNMAPPED, UC_ERR_FETCH_PROT):
                    state.total -= 1
                return StepEnd.ERROR
            if state.why == BlockStop.INTERRUPT:
                if state.interrupt not in (EXCP_SWI, EXCP_HVC, EXCP_SMC, EXCP_PREFETCH_ABORT):
                    state.total -= 1
                if self._pc & 3:
                    state.why = BlockStop.MISALIGNED  # which the engine takes for an undefined instruction
                if not self._serve_counter():
                    return StepEnd.EVENT
                if self._cuts:
                    break
            elif self._inside.halted.value:
                if not self._irq:
                    return StepEnd.IDLE
                break  # an interrupt waits, masked or not: WFI does not
            else:
                if self._cuts:
                    self._at_boundary = self._ends_block_behind(*self._cuts[-1], done)
                break
        return None

    def _run_engine(self, count: int) -> int:
        """Run `count` instructions, or less; how many have been started. self.error is the engine's."""
        state = self._state
        state.why = BlockStop.NOTHING
        state.maintenance |= TLB  # not looked at one by one
        self._cuts.clear()
        self._running = True
        try:
            self.error = self._engine.run(count)
        finally:
            self._running = False
            done, limit = self._done.value, self._limit.value
        if self._hooks.raised is not None:
            raised, self._hooks.raised = self._hooks.raised, None
            raise raised
        if self._aborting_count is not None:
            done, self._aborting_count = self._aborting_count, None
        state.total += done if self._sprinting else min(done, limit)
        self._pc, self._pstate = self._engine.where()
        if not self._pstate & Pstate.EL_MASK:
            self._stale.el0_ran = True
        return done

    def _select(self, sprint: bool) -> None:
        """Choose the translations that stop between blocks only, or those that stop anywhere."""
        if sprint is not self._sprinting:
            self._sprinting = sprint
            self._inside.between_blocks.value = sprint
            self._inside.variant.value = sprint

    def _ends_block_behind(self, pc: int, counted: int, done: int) -> bool:
        """True if the block in which a sprint was cut is one of those behind which there is a boundary."""
        distance, ends = self._code.distance(pc)
        return ends and done - counted == distance - 1

    def _serve_counter(self) -> bool:
        """Answer an EL0 program's read of the counter, which the engine has refused in place of the hook."""
        engine = self._engine
        if self._pstate & Pstate.EL_MASK or engine.syndrome().esr >> 26 != _EC_TRAPPED_MRS:
            return False
        pc = engine.get(UC_ARM64_REG_PC)
        word = self._owner.word_at(pc) or 0
        allowed = {_MRS_CNTPCT: EL0PCTEN, _MRS_CNTVCT: EL0VCTEN}.get(word & ~31, 0)
        if not self._hooks.cntkctl & allowed:
            return False
        if word & 31 != 31:
            ticks = (self._state.elsewhere + self._state.total) // INSTRUCTIONS_PER_TICK
            engine.put(X_REGISTERS[word & 31], ticks)
        engine.put(UC_ARM64_REG_PC, pc + 4)
        self._state.total += 1
        return True

    def _on_interrupt(self, uc: Uc, number: int, _: object) -> None:
        self._state.interrupt = number
        self._state.why = BlockStop.INTERRUPT
        uc.emu_stop()

    def _on_translated(self, uc: Uc, block: Any, _before: object, _: object) -> None:
        """A block that has never run is about to: from a misaligned PC the engine would run something."""
        if block.pc & 3 and not self._engine.aborting:
            self._astray = int(block.pc)
            uc.emu_stop()

    def _misaligned(self) -> StepEnd:
        """It did not begin, and is forgotten, so that it is translated anew each time."""
        self._astray = None
        self._state.why = BlockStop.MISALIGNED
        self._engine.flush_code()
        return StepEnd.EVENT

    def _on_abort(self) -> None:
        self._aborting_count = self._done.value
