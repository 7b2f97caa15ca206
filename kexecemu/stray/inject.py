"""The one place that writes astray: whoever a fault says writes, now, whatever kernel it is; the timeline says so."""

from typing import Protocol

from kexecemu.arguments import instance
from kexecemu.errors import BusError, MachineError
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, Injection, account

__all__ = ["Target", "inject"]


class Target(Protocol):
    """A machine with a first kernel, as far as a stray write needs it."""

    @property
    def board(self) -> Board:
        """The machine."""

    @property
    def injections(self) -> list[Injection]:
        """What was written astray so far."""

    @property
    def dying(self) -> bool:
        """An oops was fatal: no CPU of that kernel runs anything but the crash path any more."""

    def place(self, fault: Fault) -> PhysRange:
        """The physical bytes that a fault writes; InputError for a target that is not there."""

    def storing(self, by: By) -> int:
        """The number of the CPU that makes such a store now; InputError where there is none."""

    def store(self, phys: int, data: bytes, width: int, *, by: By) -> GuestException | None:
        """Let a CPU of that kernel store, width bytes at a time, at a physical address; the exception that ended it.

        InputError where no such CPU can.
        """


def inject(first: Target, fault: Fault, area: PhysRange | None = None) -> Injection:
    """Make the write happen now, in the physical bytes `area` where that is known; it is one of first.injections then.

    Raises InputError for a target that is not there, and for a writer that there is none of.
    """
    instance(fault, Fault, "fault")
    ram = first.board.ram
    area = area or first.place(fault)
    try:
        before = ram.read(area.start, area.size)
    except BusError as error:
        raise MachineError(f"no RAM at {area}") from error
    data = fault.data(before)
    exception = cpu = None
    happens = fault.by in (By.DMA, By.LATE_CPU) or not first.dying
    if fault.by is By.DMA:
        first.board.dma.write(area.start, data)
    elif happens:
        cpu = first.storing(fault.by)
        exception = first.store(area.start, data, fault.width, by=fault.by)
    injection = Injection(fault, area.start, before, ram.read(area.start, area.size), exception, cpu)
    first.injections.append(injection)
    first.board.timeline.record(
        "fault",
        account(injection, data) if happens else f"{fault.at}: no CPU stores any more, the kernel is dying",
        by=fault.by.value,
        cpu=cpu,
        at=fault.at,
        phys=area.start,
        length=area.size,
        changed=injection.changed,
        trapped=exception is not None,
    )
    return injection
