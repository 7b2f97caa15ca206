"""A bank of interrupts in a GICv2: which there are, and the state of each."""

from __future__ import annotations

__all__ = ["FIRST_PPI", "FIRST_SPI", "IIDR", "PRIVATE", "SGIS", "Bank"]

FIRST_PPI = 16
FIRST_SPI = 32
SGIS = (1 << FIRST_PPI) - 1
PRIVATE = (1 << FIRST_SPI) - 1

IIDR = 0x43B  # the implementer: Arm


class Bank:
    """State of a set of interrupts: either the 32 that one CPU has for itself, or the SPIs."""

    STATE = ("level", "latch", "edge", "enabled", "group", "active")

    def __init__(self, valid: int) -> None:
        self.valid = valid
        """The interrupts that there are."""
        self.level = 0
        """What the lines are driven to."""
        self.reset()

    def reset(self) -> None:
        self.latch = 0  # pending by an edge, by a write of ISPENDR or as an SGI: until acknowledged
        self.edge = self.valid & SGIS
        self.enabled = self.valid & SGIS
        self.group = 0
        self.active = 0
        self.forwarded = 0  # enabled, and so is their group
        self.ready = 0  # what the CPU interfaces get to see: forwarded, pending, not active

    def pending(self) -> int:
        return self.latch | self.level & ~self.edge

    def refresh(self) -> None:
        self.ready = (self.latch | self.level & ~self.edge) & self.forwarded & ~self.active
