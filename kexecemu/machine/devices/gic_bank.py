"""A bank of interrupts in a GICv2: which there are, and the state of each."""

from __future__ import annotations

from kexecemu.machine.virt import FIRST_PPI, FIRST_SPI
from kexecemu.shown import shown

__all__ = ["IIDR", "PRIVATE", "SGIS", "Bank", "BankState"]

SGIS = (1 << FIRST_PPI) - 1
PRIVATE = (1 << FIRST_SPI) - 1

IIDR = 0x43B  # the implementer: Arm

BankState = tuple[int, ...]


@shown("valid")
class Bank:
    """State of a set of interrupts: either the 32 that one CPU has for itself, or the SPIs."""

    def __init__(self, valid: int) -> None:
        self.valid = valid
        """The interrupts that there are."""
        self.level = 0
        """What the lines are driven to."""
        self.reset()

    def reset(self) -> None:
        """The reset state. The lines keep their levels: those are their devices' to change."""
        self.latch = 0  # pending by an edge, by a write of ISPENDR or as an SGI: until acknowledged
        self.edge = self.valid & SGIS
        self.enabled = self.valid & SGIS
        self.group = 0
        self.active = 0
        self.forwarded = 0  # enabled, and so is their group
        self.ready = 0  # what the CPU interfaces get to see: forwarded, pending, not active

    def pending(self) -> int:
        """The interrupts that are pending, active ones included: a level counts for as long as it is there."""
        return self.latch | self.level & ~self.edge

    def refresh(self) -> None:
        """Work out `ready` again."""
        self.ready = (self.latch | self.level & ~self.edge) & self.forwarded & ~self.active

    def state(self) -> BankState:
        """What restore() takes."""
        return self.level, self.latch, self.edge, self.enabled, self.group, self.active

    def restore(self, state: BankState) -> None:
        """Go back to a state(); what is derived from it is left to Gic2.refresh()."""
        self.level, self.latch, self.edge, self.enabled, self.group, self.active = state
