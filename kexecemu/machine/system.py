"""A board that runs an operating system: its CPUs in turn, its timers, its interrupts, up to the end of the machine.

One CPU at a time, each for a slice, in the order of their numbers; time is the instructions of all of them together
and what was skipped while all were idle. Nothing here looks at a clock, so a run repeats to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kexecemu.machine.board import Board
from kexecemu.machine.counter import INSTRUCTIONS_PER_TICK
from kexecemu.machine.stop import Stop, StopKind
from kexecemu.machine.system_cpu import SystemCpu

__all__ = ["System", "SystemEnd", "SystemEndKind"]

SLICE_ALONE: Final = 20_000_000
"""Instructions between two looks at Python's pending signals, and at the progress."""
SLICE_SHARED: Final = 50_000
"""Instructions of one CPU's turn where there are others."""

Progress = Callable[[int], object]


class SystemEndKind(StrEnum):
    """How a run of the system ended."""

    OFF = "off"
    RESET = "reset"
    IDLE = "idle"  # every CPU waits for an interrupt, and nothing is left that could raise one
    BUDGET = "budget"
    FAULT = "fault"  # an exception that cannot be taken


@dataclass(frozen=True, slots=True)
class SystemEnd:
    """The end of a run: which kind, on which CPU, and how that CPU stopped. time is the board's, in instructions."""

    kind: SystemEndKind
    cpu: int
    stop: Stop
    time: int

    def __str__(self) -> str:
        words = {
            SystemEndKind.OFF: "switched off",
            SystemEndKind.RESET: "reset",
            SystemEndKind.IDLE: "idle for good: no timer is set and no device has anything to say",
            SystemEndKind.BUDGET: "used up the budget",
            SystemEndKind.FAULT: f"lost: {self.stop.fault}",
        }
        return f"cpu{self.cpu} at pc {self.stop.pc:#x}, {self.time} instructions: {words[self.kind]}"


class System:
    """The scheduler of one board. run() may be called again after a BUDGET end, and goes on where it was."""

    def __init__(self, board: Board, *, slice_of: Callable[[int], int] | None = None) -> None:
        """slice_of(cpus) gives the instructions of a turn; with one CPU it changes nothing but how often we look."""
        self.board = board
        self._slice_of = slice_of or (lambda cpus: SLICE_ALONE if cpus == 1 else SLICE_SHARED)
        self._waiting: set[int] = set()

    def run(self, limit: int | None = None, *, progress: Progress | None = None) -> SystemEnd:
        """Run until the machine ends, or for `limit` instructions of board time; progress(time) now and then."""
        board = self.board
        end = None if limit is None else board.time + limit
        while True:
            cpus = [cpu for cpu in board.cpus if cpu.powered]
            awake = False
            for cpu in cpus:
                if not cpu.powered or (cpu.index in self._waiting and not self._woken(cpu)):
                    continue
                awake = True
                stop = self._turn(cpu, self._slice_of(len(cpus)), end)
                kind = self._ended(stop, end)
                if kind is not None:
                    return SystemEnd(kind, cpu.index, stop, board.time)
                self._tell_others(cpu, cpus)
            if progress is not None:
                progress(board.time)
            if not awake and not self._skip_idle(cpus, end):
                kind = SystemEndKind.IDLE if end is None or board.time < end else SystemEndKind.BUDGET
                at = cpus[0] if cpus else board.boot_cpu
                return SystemEnd(kind, at.index, Stop(StopKind.IDLE, at.pc, 0), board.time)

    def _woken(self, cpu: SystemCpu) -> bool:
        """A CPU that waits goes on with any interrupt, masked or not."""
        cpu.set_elsewhere()
        cpu.timer.update()
        if cpu.irq:
            self._waiting.discard(cpu.index)
        return cpu.irq

    def _turn(self, cpu: SystemCpu, length: int, end: int | None) -> Stop:
        """One slice of a CPU; ends early when it idles, ends the machine, or is lost."""
        board = self.board
        slice_end = board.time + length
        if end is not None:
            slice_end = min(slice_end, end)
        while True:
            cpu.set_elsewhere()
            cpu.timer.update()
            cpu.take_irq()
            stop = cpu.advance(slice_end)
            if stop.kind is StopKind.IDLE:
                self._waiting.add(cpu.index)
                return stop
            if stop.kind is not StopKind.DEADLINE or board.time >= slice_end:
                return stop

    def _ended(self, stop: Stop, end: int | None) -> SystemEndKind | None:
        if stop.kind is StopKind.POWER and stop.power != "cpu_off":
            return SystemEndKind.OFF if stop.power == "system_off" else SystemEndKind.RESET
        if stop.kind is StopKind.FAULT:
            return SystemEndKind.FAULT
        if end is not None and self.board.time >= end:
            return SystemEndKind.BUDGET
        return None

    def _tell_others(self, cpu: SystemCpu, cpus: list[SystemCpu]) -> None:
        maintenance = cpu.maintained()
        if maintenance:
            for other in cpus:
                if other is not cpu:
                    other.hear(maintenance)

    def _skip_idle(self, cpus: list[SystemCpu], end: int | None) -> bool:
        """Move time on to where a timer expires; False if none will (before the end)."""
        board = self.board
        for cpu in cpus:
            cpu.set_elsewhere()
        expiries = [expiry for cpu in cpus if (expiry := cpu.timer.expiry()) is not None]
        if not expiries:
            return False
        wake = min(expiries) * INSTRUCTIONS_PER_TICK
        if end is not None and wake >= end:
            board.skip(end - board.time)
            return False
        board.skip(wake - board.time)
        return True
