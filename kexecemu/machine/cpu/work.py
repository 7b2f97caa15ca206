"""What the host does for a guest beside running its instructions: counted in instructions, and charged to a budget.

A guest's time is the instructions that it retires, and nothing here changes it. But an engine that runs hundreds of
millions of them a second stops for microseconds where an exception, a device or a translation is this program's to
serve, and a guest that does nothing else would make a budget of instructions last for days. So whoever bounds a run
bounds instructions and work together. The prices are about what the host would have run meanwhile, to a factor of two;
they are constants, so that a run ends at the same instruction on every host, however its CPUs count.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from kexecemu.machine.cpu.blockcount import DOOMED, NO_DEADLINE, BlockCount
from kexecemu.shown import shown

__all__ = ["ACCESS", "EXCEPTION", "EXIT", "FREE", "MAINTENANCE", "TIMER", "HostWork", "charge"]

EXIT: Final = 20_000
"""A call to firmware, an external abort, a branch to nothing, and any exception that run() delivers."""
EXCEPTION: Final = 500
"""An exception of an operating system, a TLBI, and a read of a timer's register."""
TIMER: Final = 5_000
"""A write of a timer's register."""
ACCESS: Final = 1_000
"""A load or store of a device's register; one descriptor of a virtio request. A byte that a device moves is 1."""
FREE: Final = 2_000_000_000
"""The work that a run may cause which has a limit of instructions, and no bound of both: some seconds of the host's."""
MAINTENANCE: Final = 5_000
"""An IC of code that has changed: what was translated from it is dropped."""


def charge(state: BlockCount, cost: int) -> None:
    """Work for one CPU. Whoever runs it reckons anew what is left where its deadline is."""
    if state.stale & DOOMED:
        return  # what runs has come to its end already, and leaves no trace
    state.work += cost
    state.deadline = max(state.deadline - cost, 0)


@shown("spent", "allowed")
class HostWork:
    """The work of one board, and what its guest may still cause."""

    def __init__(self, of_cpus: Callable[[], int]) -> None:
        """of_cpus() is what its CPUs have caused."""
        self._of_cpus = of_cpus
        self.devices = 0
        """What its devices have moved, and their requests."""
        self.allowed: int | None = None
        """The board's time and all work together, at which a System's run ends; None for no bound."""

    @property
    def spent(self) -> int:
        """All work so far, in instructions."""
        return self._of_cpus() + self.devices

    @property
    def end(self) -> int:
        """The board's time at which a run ends if no more work comes."""
        return NO_DEADLINE if self.allowed is None else max(self.allowed - self.spent, 0)

    def allow(self, time: int, budget: int) -> None:
        """Let runs go on for so many instructions from the board's time on, work and all."""
        self.allowed = time + self.spent + budget

    @contextmanager
    def bounded(self, time: int, limit: int | None) -> Iterator[None]:
        """While it lasts there is a bound even where none was set, if there is a limit of instructions."""
        if self.allowed is not None or limit is None:
            yield
            return
        self.allow(time, limit + FREE)
        try:
            yield
        finally:
            self.allowed = None

    def take(self, cost: int) -> bool:
        """Charge a device's request before it is done; False for one that must not be done, which ends the run."""
        if self.allowed is not None and self.spent + cost > self.allowed:
            self.devices += self.allowed - min(self.spent, self.allowed)
            return False
        self.devices += cost
        return True
