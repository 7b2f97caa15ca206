"""A CPU that can also run an operating system: with a timer, interrupts, and no end but the machine's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kexecemu.machine.cpu.abort import is_fetch
from kexecemu.machine.cpu.blockcount import CODE, INSTRUCTIONS_PER_TICK, NO_DEADLINE, TLB, BlockStop
from kexecemu.machine.cpu.counting import CountingStepper
from kexecemu.machine.cpu.cpu import EXCP_SMC, EXCP_UDEF, Cpu
from kexecemu.machine.cpu.engine_internals import internals_of
from kexecemu.machine.cpu.exceptions import EC_PC_ALIGNMENT, ESR_IL, GuestException, Pstate
from kexecemu.machine.cpu.generic_timer import GenericTimer
from kexecemu.machine.cpu.stepper import BlockStepper, StepEnd, Stepper
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.cpu.work import EXCEPTION, EXIT, TIMER
from kexecemu.machine.memory.mmio import MmioDevice
from kexecemu.machine.memory.ram import Ram

if TYPE_CHECKING:
    from kexecemu.machine.devices.gic3_cpu_interface import CpuInterface3

__all__ = ["Line", "SystemCpu"]

# An MRS and an MSR, of a register with an op0 of 2 or 3; and which, in bits 18 to 5 where op0 is 3.
_ACCESS, _MRS, _MSR, _OP0_3 = 0xFFF00000, 0xD5300000, 0xD5100000, 1 << 19
_ID_AA64PFR0_GIC = 1 << 24

_ENDS = {StepEnd.BOUNDARY: CpuStopKind.DEADLINE, StepEnd.IDLE: CpuStopKind.IDLE}

Line = Callable[[bool], object]
"""Gives a signal its level."""


class SystemCpu(Cpu):
    """A CPU with a generic timer and an interrupt signal, which advance() heeds and run() does not.

    physical and virtual are the interrupt lines of its two timers. A GICv3 has its interface among the CPU's system
    registers: gic_registers, which the engine takes for undefined instructions, and ID_AA64PFR0_EL1 says so.
    """

    def __init__(
        self,
        index: int,
        ram: Ram,
        devices: Sequence[MmioDevice],
        *,
        clock: Callable[[], int],
        hypercall: Callable[[Cpu], str | None],
        conduit: str = "hvc",
        physical: Line,
        virtual: Line,
        work_end: Callable[[], int] = lambda: NO_DEADLINE,
        gic_registers: CpuInterface3 | None = None,
    ) -> None:
        """work_end() is HostWork.end of its board."""
        super().__init__(index, ram, devices, clock=clock, hypercall=hypercall, conduit=conduit)
        self.timer = GenericTimer(self._ticks, physical, virtual)
        self.irq = False
        self._gic_registers = gic_registers
        self._stepper: Stepper | None = None
        self._elsewhere = 0
        self._work_end = work_end

    def set_irq(self, level: bool) -> None:
        """The interrupt controller's signal; it may come while any CPU of the board runs."""
        self.irq = level
        if self._stepper is not None:
            self._stepper.set_irq(level)

    def close(self) -> None:
        """Let go of the engine."""
        self._stepper = None
        super().close()

    def leave_system(self) -> None:
        """Go on with an engine that has run no system, which run() needs for its `within`; the registers stay.

        For code that is no operating system any more: advance() makes a system of it again.
        """
        if self._stepper is not None:
            state, exceptions = self.save(), list(self.exceptions)
            pfr0 = self._engine.counter.state.id_aa64pfr0
            self.close()
            self.restore(state)
            self.exceptions[:] = exceptions
            self._engine.counter.state.id_aa64pfr0 = pfr0

    def reset(self, entry_phys: int, x0: int = 0) -> None:
        """Power on; the timers are off then."""
        super().reset(entry_phys, x0)
        self.timer.reset()
        if self._gic_registers is not None:
            self._gic_registers.reset_cpu()
            pfr0 = self._engine.read_sysreg("ID_AA64PFR0_EL1")
            self._engine.counter.state.id_aa64pfr0 = pfr0 | _ID_AA64PFR0_GIC
        if self._stepper is not None:
            self._stepper.reset()

    @property
    def now(self) -> int:
        """The board's time as this CPU sees it, in instructions; exact in a callback too."""
        return self._elsewhere + (self._stepper.now if self._stepper is not None else self.instructions)

    def _ticks(self) -> int:
        return self.now // INSTRUCTIONS_PER_TICK

    def system(self) -> Stepper:
        """The stepper, which is set up at first use and stays."""
        if self._stepper is None:
            engine = self._engine
            internals = None if engine.counter.native else internals_of(engine.uc)
            self._stepper = (
                BlockStepper(engine, self) if internals is None else CountingStepper(engine, self, internals)
            )
            self._stepper.set_irq(self.irq)
        return self._stepper

    def charge(self, cost: int) -> None:
        """See Cpu; an operating system's run ends at the next boundary where the board's allowance is used up."""
        if self._stepper is None:
            super().charge(cost)
            return
        if self._engine.aborting:
            return  # what is left of a block that has come to its end, and leaves no trace
        self._engine.counter.state.work += cost
        self._stepper.shorten(max(self._work_end() - self._elsewhere, 0))

    def _price(self, error: int) -> int:
        """What blockcount.c serves by itself is cheap, however this CPU counts."""
        state = self._engine.counter.state
        if self._stepper is None or error or self._engine.counter.why is BlockStop.MISALIGNED:
            return EXIT
        if state.interrupt == EXCP_SMC or (
            state.interrupt == EXCP_UDEF and state.id_aa64pfr0 and self._at_el1
        ):
            return EXIT
        return EXCEPTION

    @property
    def _at_el1(self) -> bool:
        return bool(self.pstate & Pstate.EL_MASK)

    def read_timer(self, crm: int, op2: int) -> int:
        """The guest reads a timer's register."""
        self.charge(EXCEPTION)
        return self.timer.read(crm, op2)

    def write_timer(self, crm: int, op2: int, value: int) -> None:
        """The guest writes a timer's register; a run under way must not miss what that sets."""
        self.timer.write(crm, op2, value)
        self.charge(TIMER)
        if self._stepper is not None:
            self._stepper.shorten(self._next_expiry() - self._elsewhere)

    def _next_expiry(self) -> int:
        """The board's time at which a timer of this CPU will raise its line."""
        expiry = self.timer.expiry()
        return NO_DEADLINE if expiry is None else expiry * INSTRUCTIONS_PER_TICK

    def advance(self, until: int) -> CpuStop:
        """Run to the first boundary at which time is `until`, a timer expires, or an interrupt can be taken.

        DEADLINE at a boundary, IDLE behind a WFI, POWER, and FAULT for an exception that cannot be taken. The CPU must
        stand at a boundary: where the last advance() ended, or at its reset.
        """
        stepper = self.system()
        counter = self._engine.counter
        begin = counter.total
        self.set_elsewhere()
        while True:
            if self._seen_generation != self.ram.generation:
                self._engine.flush_code()
                self._seen_generation = self.ram.generation
            self.timer.update()  # an event may have come when a timer had just expired
            deadline = min(until, self._next_expiry(), self._work_end())
            halt = stepper.run(deadline - self._elsewhere)
            if halt in _ENDS:
                return CpuStop(_ENDS[halt], self.pc, counter.total - begin)
            if halt is StepEnd.EVENT and self._accesses_gic():
                continue
            stop = self._serve(stepper.error, begin, True)
            if stop is not None:
                return stop

    def _makes_progress(self, fault: GuestException) -> bool:
        """An operating system may take one exception as often as it likes; only a vector that faults itself is lost."""
        if self._stepper is None:
            return super()._makes_progress(fault)
        counter = self._engine.counter
        return bool(counter.state.entered != counter.total)

    def _external_abort(self, error: int) -> GuestException:
        # That PC is misaligned comes first; what begins there has not been counted in any form.
        if self._stepper is not None and is_fetch(error) and self.pc & 3:
            return self._record("sync", EC_PC_ALIGNMENT << 26 | ESR_IL, self.pc)
        return super()._external_abort(error)

    def _take(self, fault: GuestException, deliver: bool) -> bool:
        taken = super()._take(fault, deliver)
        if taken and not fault.el:
            self._left_el0()
        if taken and self._stepper is not None:
            self._engine.counter.state.entered = self._engine.counter.total
        return taken

    def _left_el0(self) -> None:
        state = self._engine.counter.state
        state.user_ran = 1
        state.settled_page = 0

    def _accesses_gic(self) -> bool:
        """Do what the instruction at PC asks for if that is to read or write one of gic_registers; False if not."""
        registers, counter = self._gic_registers, self._engine.counter
        if registers is None or counter.why is BlockStop.MISALIGNED or counter.state.interrupt != EXCP_UDEF:
            return False
        pc = self.pc
        word = self.word_at(pc)
        if word is None or not word & _OP0_3 or not self.pstate & Pstate.EL_MASK:
            return False
        # Not the stack pointer: 31 reads as zero, and goes nowhere.
        number, register = word & 31, word >> 5 & 0x3FFF
        if word & _ACCESS == _MRS:
            value = registers.read_sysreg(register)
            if value is None:
                return False
            if number != 31:
                self.set_x(number, value)
        elif word & _ACCESS == _MSR:
            if not registers.write_sysreg(register, self.x(number) if number != 31 else 0):
                return False
        else:
            return False
        counter.uncount_from(pc)
        counter.state.total += 1
        self.charge(EXIT)
        self.pc = pc + 4
        return True

    def take_maintenance(self) -> int:
        """What maintenance this CPU has done for all since it was last asked: CODE and TLB."""
        state = self._engine.counter.state
        done = int(state.maintenance)
        state.maintenance = 0
        return done

    def apply_maintenance(self, maintenance: int) -> None:
        """Another CPU has done maintenance for all."""
        if maintenance & CODE:
            self._engine.flush_code()
        if maintenance & TLB:
            self._engine.flush_tlb()

    def stop_soon(self) -> None:
        """In a callback: end the advance() under way at the next boundary."""
        if self._stepper is not None:
            self._stepper.shorten(0)

    def set_elsewhere(self) -> None:
        """Take over the board's time, which other CPUs and idling have moved on."""
        assert self._clock is not None
        self._elsewhere = self._clock() - self.instructions
        self._engine.counter.state.elsewhere = self._elsewhere

    def take_irq(self) -> None:
        """Enter the interrupt's vector if the signal is up and not masked."""
        if not self.irq or (pstate := self.pstate) & Pstate.I:
            return
        if not pstate & Pstate.EL_MASK:
            self._left_el0()
        self.enter_exception("irq")
        # As where the engine takes it, see CountingStepper: no handler looks at flags that it has not set.
        self.pstate &= ~Pstate.NZCV
