"""A board that runs an operating system: its CPUs in turn, its timers, its interrupts, up to the end of the machine.

One CPU at a time, each for a slice, in the order of their numbers; time is the instructions of all of them together
and what was skipped while all were idle. Nothing here looks at a clock, so a run repeats to the last bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kexecemu.machine.board import Board
from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_TICK, NO_DEADLINE
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.cpu.system_cpu import SystemCpu
from kexecemu.shown import shown

__all__ = ["System", "SystemEnd", "SystemEndKind"]

SLICE_ALONE: Final = 20_000_000
"""Instructions between two looks at Python's pending signals, and at the progress."""
SLICE_SHARED: Final = 50_000
"""Instructions of one CPU's turn where there are others."""

OnProgress = Callable[[int], object]


class SystemEndKind(StrEnum):
    """How a run of the system ended."""

    OFF = "off"
    RESET = "reset"
    IDLE = "idle"  # every CPU waits for an interrupt, and nothing is left that could raise one
    STUCK = "stuck"  # every CPU that does not wait is in an endless loop, interrupts masked
    STOPPED = "stopped"  # request_stop() was called
    BUDGET = "budget"
    FAULT = "fault"  # an exception that cannot be taken


@shown()
@dataclass(frozen=True, slots=True)
class SystemEnd:
    """The end of a run: which kind, on which CPU, and how that CPU stopped. time is the board's, in instructions."""

    kind: SystemEndKind
    cpu: int
    stop: CpuStop
    time: int

    def __str__(self) -> str:
        words = {
            SystemEndKind.OFF: "switched off",
            SystemEndKind.RESET: "reset",
            SystemEndKind.IDLE: "idle for good: no timer is set and no device has anything to say",
            SystemEndKind.STUCK: "stuck in an endless loop, interrupts masked",
            SystemEndKind.STOPPED: "stopped as was asked for",
            SystemEndKind.BUDGET: "used up the budget",
            SystemEndKind.FAULT: f"lost: {self.stop.fault}",
        }
        return f"cpu{self.cpu} at pc {self.stop.pc:#x}, {self.time} instructions: {words[self.kind]}"


@shown("board")
class System:
    """The scheduler of one board. run() may be called again after a BUDGET end, and goes on where it was."""

    def __init__(self, board: Board, *, slice_of: Callable[[int], int] | None = None) -> None:
        """slice_of(cpus) gives the instructions of a turn; with one CPU it changes nothing but how often we look.

        cpus are those of the board, off or on: one that is switched on must not wait for the end of a long turn.
        """
        self.board = board
        self._slice_of = slice_of or (lambda cpus: SLICE_ALONE if cpus == 1 else SLICE_SHARED)
        self._waiting: set[int] = set()
        self._running: SystemCpu | None = None
        self._stop_requested = False
        # Where the budget has cut a run off, for the next one to go on just there: who has yet to have a turn in this
        # round of turns of `_length` each, whether anybody has had one, and the end of the first one's if it has begun.
        self._round: list[SystemCpu] = []
        self._length = 0
        self._awake = True
        self._turn_end: int | None = None

    def run(self, limit: int | None = None, *, progress: OnProgress | None = None) -> SystemEnd:
        """Run until the machine ends, or for `limit` instructions of board time; progress(time) now and then.

        It also ends (BUDGET) where time and the host's work come to what board.work.allowed says; see HostWork.
        """
        with self.board.work.bounded(self.board.time, limit):
            return self._run(limit, progress)

    def _run(self, limit: int | None, progress: OnProgress | None) -> SystemEnd:
        board = self.board
        limit_end = None if limit is None else board.time + limit
        while True:
            end = self._bound(limit_end)
            while self._round:
                cpu = self._round[0]
                if cpu.powered and (cpu.index not in self._waiting or self._woken(cpu)):
                    self._awake = True
                    stop = self._turn(cpu, end)
                    self._tell_others(cpu)
                    end = self._bound(limit_end)
                    kind = self._ended(stop, end) or self._stuck(cpu, stop)
                    if kind is not None:
                        return SystemEnd(kind, cpu.index, stop, board.time)
                else:
                    self._round.pop(0)
            if progress is not None:
                progress(board.time)
            if not self._awake and not self._skip_idle(end):
                self._awake = True  # the host may do something that wakes a CPU before it runs us again
                kind = SystemEndKind.IDLE if end is None or board.time < end else SystemEndKind.BUDGET
                at = next((cpu for cpu in board.cpus if cpu.powered), board.boot_cpu)
                return SystemEnd(kind, at.index, CpuStop(CpuStopKind.IDLE, at.pc, 0), board.time)
            self._round = self._powered()
            self._length = self._slice_of(len(board.cpus))
            self._awake = False

    def _bound(self, limit_end: int | None) -> int | None:
        """The time at which the run ends: the limit's, or where time and work have used up what is allowed."""
        work_end = self.board.work.end
        if work_end == NO_DEADLINE:
            return limit_end
        return work_end if limit_end is None else min(limit_end, work_end)

    def _powered(self) -> list[SystemCpu]:
        return [cpu for cpu in self.board.cpus if cpu.powered]

    def request_stop(self) -> None:
        """In a callback of a device: end run() at the next boundary, which is the same one in every run."""
        self._stop_requested = True
        if self._running is not None:
            self._running.stop_soon()

    def _woken(self, cpu: SystemCpu) -> bool:
        """A CPU that waits goes on with any interrupt, masked or not."""
        cpu.set_elsewhere()
        cpu.timer.update()
        if cpu.irq:
            self._waiting.discard(cpu.index)
        return cpu.irq

    def _turn(self, cpu: SystemCpu, end: int | None) -> CpuStop:
        """One slice of a CPU, or what is left of it; over early when it idles, ends the machine, or is lost."""
        board = self.board
        if self._turn_end is None:
            self._turn_end = board.time + self._length
        until = self._turn_end if end is None else min(self._turn_end, end)
        while True:
            cpu.set_elsewhere()
            cpu.timer.update()
            cpu.take_irq()
            self._running = cpu
            try:
                stop = cpu.advance(until)
            finally:
                self._running = None
            if stop.kind is CpuStopKind.IDLE:
                self._waiting.add(cpu.index)
            if stop.kind is not CpuStopKind.DEADLINE or board.time >= until or self._stop_requested:
                break
            if board.time >= board.work.end:
                break
        if stop.kind is not CpuStopKind.DEADLINE or board.time >= self._turn_end:
            self._turn_end = None
            self._round.pop(0)
        return stop

    def _ended(self, stop: CpuStop, end: int | None) -> SystemEndKind | None:
        if stop.kind is CpuStopKind.POWER and stop.power != "cpu_off":
            # All are off. Who switches one on again starts afresh.
            self._waiting.clear()
            self._round.clear()
            return SystemEndKind.OFF if stop.power == "system_off" else SystemEndKind.RESET
        if stop.kind is CpuStopKind.FAULT:
            return SystemEndKind.FAULT
        if self._stop_requested:
            self._stop_requested = False
            return SystemEndKind.STOPPED
        if end is not None and self.board.time >= end:
            return SystemEndKind.BUDGET
        return None

    def _stuck(self, cpu: SystemCpu, stop: CpuStop) -> SystemEndKind | None:
        if stop.kind is not CpuStopKind.DEADLINE or not cpu.spins():
            return None
        others = [other for other in self._powered() if other is not cpu]
        if all(self._waits_for_nothing(other) or other.spins() for other in others):
            return SystemEndKind.STUCK
        return None

    def _waits_for_nothing(self, cpu: SystemCpu) -> bool:
        """True for a CPU that waits, and that neither an interrupt nor its own timers will wake."""
        return cpu.index in self._waiting and not self._woken(cpu) and cpu.timer.expiry() is None

    def _tell_others(self, cpu: SystemCpu) -> None:
        maintenance = cpu.take_maintenance()
        if maintenance:
            for other in self._powered():
                if other is not cpu:
                    other.apply_maintenance(maintenance)

    def _skip_idle(self, end: int | None) -> bool:
        """Move time on to where a timer expires; False if none will (before the end)."""
        board = self.board
        cpus = self._powered()
        for cpu in cpus:
            cpu.set_elsewhere()
        expiries = [expiry for cpu in cpus if (expiry := cpu.timer.expiry()) is not None]
        if not expiries:
            return False
        wake = min(expiries) * INSTRUCTIONS_PER_TICK
        if end is not None and wake >= end:
            board.idle += max(end - board.time, 0)
            return False
        board.idle += wake - board.time
        return True
