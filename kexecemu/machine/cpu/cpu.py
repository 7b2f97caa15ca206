"""One CPU: registers, power, running to an exact stop, and exceptions delivered as the architecture does it.

Unicorn never delivers an exception; it calls a hook. Here the hook only stops the engine, and everything else
is done between two stretches of guest execution: no guest state is ever changed under running code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Final

from unicorn.unicorn_py3.unicorn import Uc, UcContext

from kexecemu.errors import MachineError
from kexecemu.machine.cpu import abort, exceptions
from kexecemu.machine.cpu.blockcount import NO_DEADLINE, BlockStop
from kexecemu.machine.cpu.counter import BlockCounter
from kexecemu.machine.cpu.exceptions import ExceptionKind, GuestException, Pstate, Recursion
from kexecemu.machine.cpu.registers import Registers
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.cpu.work import EXIT, FREE
from kexecemu.machine.memory.mmio import MmioDevice
from kexecemu.machine.memory.ram import Ram
from kexecemu.shown import shown

__all__ = ["Cpu"]

SLICE: Final = 50_000_000
"""Instructions between two looks at Python's pending signals: a fraction of a second."""

# Unicorn's exception numbers (QEMU's EXCP_*).
EXCP_UDEF, EXCP_SWI, EXCP_PREFETCH_ABORT, EXCP_DATA_ABORT, EXCP_HVC, EXCP_SMC = 1, 2, 3, 4, 11, 13
CONDUITS = {"hvc": EXCP_HVC, "smc": EXCP_SMC}
"""Instructions that call firmware, and what the engine takes them for."""

_MOST_EXCEPTIONS: Final = 1 << 16
PSCI_NOT_SUPPORTED: Final = (1 << 64) - 1

_ENDS: Final = {
    BlockStop.NOTHING: CpuStopKind.IDLE,
    BlockStop.STOP: CpuStopKind.BREAKPOINT,
    BlockStop.LEFT: CpuStopKind.LEFT,
}


@shown()
@dataclass(frozen=True)
class CpuState:
    """A CPU's registers and counts at one moment; exceptions is how many had been recorded."""

    context: UcContext
    powered: bool
    exceptions: int
    counts: tuple[int, int, int, int]
    recursion: Recursion


def _register(name: str) -> Callable[[Cpu], int | None]:
    """A register for people who look at a CPU; None for one that has none, or none any more."""
    return lambda cpu: getattr(cpu, name) if cpu._created is not None else None


_LIVE = {name: _register(name) for name in ("pc", "sp", "pstate")}


@shown("index", "mpidr", "powered", "instructions", **_LIVE)
class Cpu(Registers):
    """A CPU of a board, off until reset() is called (by the board's owner, or by PSCI CPU_ON).

    clock() gives the board's time for the faults recorded; hypercall(cpu) answers a call of firmware whose arguments
    are in x0 to x7 and returns what power event it was, if any. conduit is the instruction that calls it, "hvc" or
    "smc"; the other one is undefined.
    """

    def __init__(
        self,
        index: int,
        ram: Ram,
        devices: Sequence[MmioDevice] = (),
        *,
        clock: Callable[[], int] | None = None,
        hypercall: Callable[[Cpu], str | None] | None = None,
        conduit: str = "hvc",
    ) -> None:
        super().__init__(index, ram, devices)
        self._firmware = CONDUITS[conduit]
        self.powered = False
        self.exceptions: list[GuestException] = []
        """Every exception taken or reported, in order, without supervisor calls; of a flood the first, and the last."""
        self._clock = clock
        self._hypercall = hypercall
        self._seen_generation = -1
        self._recursion = Recursion()

    @property
    def instructions(self) -> int:
        """Instructions retired by this CPU in all its runs; another thread may read it while the CPU runs."""
        return self._engine.counter.total if self._created is not None else 0

    def reset(self, entry_phys: int, x0: int = 0) -> None:
        """Power on as PSCI CPU_ON does: EL1h, interrupts masked, MMU and caches off, PC at physical entry_phys.

        Every other register is zero or at its reset value; what was retired and recorded so far is kept.
        """
        self._engine.reset()
        self.set_sysreg("VMPIDR_EL2", self.mpidr)
        self.pstate = Pstate.EL1H | Pstate.DAIF
        self.set_x(0, x0)
        self.pc = entry_phys
        self.powered = True
        self._recursion = Recursion()

    def power_off(self) -> None:
        """Stop for good until the next reset(); registers can still be read."""
        self.powered = False

    def save(self) -> CpuState | None:
        """Everything that a restore() needs to go on from here; None for a CPU that has never been used."""
        if self._created is None:
            return None
        counter = self._engine.counter.state
        return CpuState(
            self._engine.save(),
            self.powered,
            len(self.exceptions),
            (counter.total, counter.block, counter.block_size, counter.work),
            copy(self._recursion),
        )

    def restore(self, state: CpuState | None) -> None:
        """Go back to a save(). Translated code is kept, address translations are not."""
        if state is None:
            if self._created is not None:
                self.close()
            self.powered = False
            return
        self._engine.restore(state.context)
        self.powered = state.powered
        del self.exceptions[state.exceptions :]
        counter = self._engine.counter.state
        counter.total, counter.block, counter.block_size, counter.work = state.counts
        self._recursion = copy(state.recursion)

    @property
    def counter(self) -> BlockCounter:
        """What counts this CPU's instructions, for instruments that hook native functions."""
        return self._engine.counter

    @property
    def uc(self) -> Uc:
        """The engine behind this CPU, for instruments that hook it."""
        return self._engine.uc

    def flush_code(self) -> None:
        """Drop translated code: for the host that has put other code into memory than what ran."""
        self._engine.flush_code()

    def run(
        self,
        *,
        stops: Collection[int] = (),
        within: range | None = None,
        limit: int | None = None,
        budget: int | None = None,
        deliver: bool = True,
    ) -> CpuStop:
        """Run until something exact ends it. See CpuStopKind; all addresses are virtual.

        stops: a block that starts at one of these ends the run before it is executed (BREAKPOINT), except for the
            first block of this run, so that a run can go on from a stop. A block starts after a branch, at a page
            boundary and after an exception; an address in the middle of straight code is not a stop.
        within: a block that starts outside it, the first one too, is not executed (LEFT). A branch to where nothing
            can be fetched is a fault first, and leaves at the vector.
        limit: no block is started once so many instructions have retired in this run (DEADLINE).
        budget: nor once these, and what the host has done for them, are so many; with a limit alone, see work.FREE.
        deliver: exceptions enter the guest's own vectors; with False the first one ends the run (FAULT), with PC at
            the return address and no exception register changed. One that cannot be delivered, or that comes again
            and again without progress, ends the run either way.

        WFI ends it (IDLE) with PC behind the WFI, and so does an HVC that switches power (POWER).
        Raises MachineError when the CPU is off or the engine fails, and whatever a device's code raises.
        """
        if not self.powered:
            raise MachineError(f"cpu{self.index} is off: reset() it first")
        counter = self._engine.counter
        counter.arm(stops, within)
        if self._clock is not None:
            counter.state.elsewhere = self._clock() - counter.total
        self._recursion.entered_at = -1  # the host may have put PC anywhere since the last run
        begin = counter.total
        end = NO_DEADLINE if limit is None else begin + limit
        if budget is None and limit is not None:
            budget = limit + FREE
        all_used = NO_DEADLINE if budget is None else begin + self.work + budget
        while True:
            self._see_foreign_writes()
            counter.start(min(end, max(all_used - self.work, 0), counter.total + SLICE))
            error = self._engine.run()
            why = counter.why
            if not error and why in _ENDS:
                return CpuStop(_ENDS[why], self.pc, counter.total - begin)
            if not error and why is BlockStop.DEADLINE:
                if counter.total >= min(end, all_used - self.work):
                    return CpuStop(CpuStopKind.DEADLINE, self.pc, counter.total - begin)
                continue
            # A block at the vector or behind a mended fault is not the first of this run any more.
            counter.state.first = 0
            stop = self._serve(error, begin, deliver)
            if stop is not None:
                return stop

    def _serve(self, error: int, begin: int, deliver: bool) -> CpuStop | None:
        """An error, a call to firmware or an exception, in a run since `begin`; None if it goes on."""
        counter = self._engine.counter
        if not error and counter.why is BlockStop.INTERRUPT and counter.state.interrupt == self._firmware:
            self.charge(EXIT)
            power = self._call_firmware()
            if power is None:
                return None
            return CpuStop(CpuStopKind.POWER, self.pc, counter.total - begin, power=power)
        self.charge(self._price(error))
        if self._take(self._external_abort(error) if error else self._event(), deliver):
            return None
        return CpuStop(CpuStopKind.FAULT, self.pc, counter.total - begin, self.exceptions[-1])

    def _price(self, error: int) -> int:
        """What it costs the host to serve what a stretch has ended with."""
        return EXIT

    def deliver_irq(self) -> bool:
        """Take an interrupt now if PSTATE.I allows it; False, and nothing changed, when it is masked."""
        if not self.powered:
            raise MachineError(f"cpu{self.index} is off: no interrupt can be delivered to it")
        if self.pstate & Pstate.I:
            return False
        self.exceptions.append(self._record("irq", 0, 0))
        self.enter_exception("irq")
        return True

    def _see_foreign_writes(self) -> None:
        """Drop translated code when the host, DMA or another CPU may have written it."""
        ram = self.ram
        if self._seen_generation != ram.generation or ram.last_runner is not self:
            self._engine.flush_code()
            self._seen_generation = ram.generation
            ram.last_runner = self

    def _event(self) -> GuestException:
        """What a run ended with that is no call to firmware."""
        counter = self._engine.counter
        if counter.why is BlockStop.MISALIGNED:
            return self._record("sync", exceptions.EC_PC_ALIGNMENT << 26 | exceptions.ESR_IL, self.pc)
        return self._exception(counter.state.interrupt)

    def _call_firmware(self) -> str | None:
        if self._hypercall is None:
            self.set_x(0, PSCI_NOT_SUPPORTED)
            return None
        return self._hypercall(self)

    def _record(self, kind: ExceptionKind, esr: int, far: int) -> GuestException:
        when = self._clock() if self._clock is not None else self.instructions
        pstate = self.pstate
        return GuestException(self.index, when, kind, esr, far, self.pc, pstate >> 2 & 3, pstate)

    def _exception(self, number: int) -> GuestException:
        """The synchronous exception that the engine just met, with the instruction count put right."""
        esr, far = self._engine.syndrome()
        if number in CONDUITS.values():
            # Nobody is behind the other conduit: it is undefined. Unicorn leaves PC behind it, and a stepper, which
            # keeps no block, has counted it.
            self.pc -= 4
            self._engine.counter.state.total -= not self._engine.counter.state.block_size
            esr = exceptions.EC_UNKNOWN << 26
        # A fetch that fails has started no block, and the last one is complete.
        if number != EXCP_PREFETCH_ABORT:
            self._engine.counter.uncount_from(self.pc)
        if esr >> 26 == exceptions.EC_UNKNOWN:
            esr = exceptions.ESR_IL  # Unicorn forgets IL for some trapped system register accesses
        return self._record("sync", esr, far if number in (EXCP_PREFETCH_ABORT, EXCP_DATA_ABORT) else 0)

    def _external_abort(self, error: int) -> GuestException:
        """A load, store or fetch of a physical address where nothing is."""
        esr, far = abort.external_abort(self, error, self._engine.unmapped_phys)
        if not abort.is_fetch(error):
            self._engine.counter.uncount_from(self.pc)
        return self._record("sync", esr, far)

    def _take(self, fault: GuestException, deliver: bool) -> bool:
        """Deliver the fault to the guest's vectors and record it; False when it ends the run instead."""
        delivered = deliver and self._makes_progress(fault)
        if not delivered:
            fault = replace(fault, delivered=False)
        if not (delivered and fault.ec == exceptions.EC_SVC64):
            del self.exceptions[_MOST_EXCEPTIONS - 1 :]
            self.exceptions.append(fault)
        if delivered:
            self.enter_exception("sync", fault.esr, fault.far if fault.has_far else None)
            self._recursion.entered_at = self._engine.counter.total
        return delivered

    def _makes_progress(self, fault: GuestException) -> bool:
        """False when taking the fault would only lead to the same fault again."""
        return self._recursion.makes_progress(self, fault, self._engine.counter.total)
