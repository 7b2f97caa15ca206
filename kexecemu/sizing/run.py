"""One size of crash memory: the capture kernel is loaded and run in it, and what came of that is a row."""

from dataclasses import dataclass, replace

from kexecemu.crash.dump import Dump
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import KexecError, NothingReserved
from kexecemu.linux.capture import LinuxEnd
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.options import Setup
from kexecemu.scenario.runner import Result, crash
from kexecemu.shown import shown
from kexecemu.sizing.memory import Memory, memory_of

__all__ = ["NOT_LOADED", "NOT_RESERVED", "Asked", "Row", "run_size", "setup_for"]

_LAST_LINES = 12
NOT_RESERVED, NOT_LOADED = "not reserved", "not loaded"


@shown()
@dataclass(frozen=True, order=True)
class Asked:
    """A size of crash memory in bytes, and words that are added to the capture kernel's command line."""

    size: int
    more: str = ""


@shown()
@dataclass(frozen=True)
class Row:
    """What came of one size.

    outcome is a crash's, or "not reserved" or "not loaded"; dump as in any result. reason says it in words. region is
    what was reserved (physical); memory and last, the last lines of the kernel's log, are there where it was started.
    """

    asked: Asked
    outcome: str
    dump: str
    reason: str
    region: PhysRange | None = None
    end: str | None = None
    panic: str = ""
    release: str = ""
    instructions: int = 0
    memory: Memory | None = None
    last: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """It came up and had the dump: copied as memory was, or its headers read by an init that copies none."""
        copied = self.outcome == Outcome.CAPTURED and self.dump == Dump.TRUE
        return copied or self.end == LinuxEnd.HEADERS


def setup_for(setup: Setup, asked: Asked) -> Setup:
    """The setup with this size; its command line is the first kernel's own, without crashkernel=."""
    words = [*(setup.cmdline or "").split(), f"crashkernel={asked.size >> 10}K"]
    append = " ".join(filter(None, (setup.value("append"), asked.more)))
    return replace(setup, cmdline=" ".join(words), append=append, capture="linux")


def run_size(setup: Setup, asked: Asked) -> Row:
    """Load and run the capture kernel in one size. InputError for what no size makes good."""
    try:
        result = crash("a size of the crash kernel's memory", setup_for(setup, asked), [])
    except NothingReserved as error:
        return Row(asked, NOT_RESERVED, Dump.NONE.value, str(error))
    except KexecError as error:
        return Row(asked, NOT_LOADED, Dump.NONE.value, str(error))
    kernel = result.model
    assert kernel is not None
    with kernel:
        return _row(asked, result, kernel)


def _row(asked: Asked, result: Result, kernel: Kernel) -> Row:
    end = result.end
    region, low = kernel.crashk_res, kernel.crashk_low_res
    row = Row(asked, end.outcome.value, end.dump.value, end.reason, region)
    linux = end.capture.linux if end.capture is not None else None
    if linux is None:
        return row
    areas = [area for area in (region, low) if area is not None]
    log = linux.console + linux.unshown
    lines = [line for line in log.splitlines() if line.strip()]
    return replace(
        row,
        end=linux.end.value,
        panic=linux.panic,
        release=linux.release,
        instructions=linux.instructions,
        memory=memory_of(log, kernel.board.ram, areas),
        last=tuple(lines[-_LAST_LINES:]),
    )
