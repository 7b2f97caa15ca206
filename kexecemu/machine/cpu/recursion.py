"""Tells an exception that leads to the same exception again, for ever, from a guest that gets on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kexecemu.machine.cpu import exceptions
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.cpu.registers import Registers
from kexecemu.shown import shown

__all__ = ["Recursion"]

NO_PROGRESS: Final = 32
"""An exception that recurs this often in a row, with little done in between, is an endless recursion."""
NO_PROGRESS_WITHIN: Final = 1000


@shown()
@dataclass
class Recursion:
    """What is remembered of one CPU's last exceptions. Counts are the CPU's instructions."""

    entered_at: int = -1
    """When the last exception was taken; negative if none was since the host has touched the CPU."""
    repeats: int = 0
    last_far: int = -1
    last_sp: int = -1

    def makes_progress(self, cpu: Registers, fault: GuestException, now: int) -> bool:
        """False when taking the fault would only lead to the same fault again."""
        since = now - self.entered_at
        if self.entered_at >= 0 and since == 0:
            return False  # the vector's very first instruction faults
        # A handler that faults always at the same place comes back with the ELR and ESR of the time before, and
        # deeper in its stack if it moved SP; one that returns to the cause without mending it, with the same FAR.
        # Demand paging at one instruction has another FAR each time, a handler that skips has moved ELR, and the
        # return address of an SVC is no fault at all.
        sp = cpu.sp
        again = (
            fault.ec != exceptions.EC_SVC64
            and fault.pc == cpu.sysreg("ELR_EL1")
            and fault.esr == cpu.sysreg("ESR_EL1")
            and (fault.far == self.last_far or sp < self.last_sp)
            and since < NO_PROGRESS_WITHIN
        )
        self.last_far, self.last_sp = fault.far, sp
        self.repeats = self.repeats + 1 if again else 0
        return self.repeats < NO_PROGRESS
