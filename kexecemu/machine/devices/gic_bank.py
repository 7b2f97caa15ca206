"""A bank of interrupts: which there are, the state of each, and the registers in which both versions show it."""

from kexecemu.machine.virt import FIRST_PPI, FIRST_SPI
from kexecemu.shown import shown

__all__ = ["Bank", "BankState"]

SGIS = (1 << FIRST_PPI) - 1
PRIVATE = (1 << FIRST_SPI) - 1

IIDR = 0x43B  # the implementer: Arm

# Offsets in a distributor, and in a redistributor's SGI frame: a bit for each interrupt, a byte, two bits.
IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER = range(0x080, 0x400, 0x80)
IPRIORITYR, IPRIORITYR_END = 0x400, 0x800
ICFGR, ICFGR_END = 0xC00, 0xD00

BankState = tuple[int, int, int, int, int, int, bytes]


@shown("valid")
class Bank:
    """State of a set of interrupts: either the 32 that one CPU has for itself, or the SPIs.

    Of the interrupts in `fixed` a driver can neither change the enable bit, which is set, nor the pending one.
    """

    def __init__(self, valid: int, fixed: int = 0) -> None:
        self.valid = valid
        """The interrupts that there are."""
        self.level = 0
        """What the lines are driven to."""
        self.priorities = bytearray(valid.bit_length())
        self._fixed = valid & fixed
        self.latch = 0  # pending by an edge, by a write of ISPENDR or as an SGI: until acknowledged
        self.edge = self.valid & SGIS
        self.enabled = self._fixed
        self.group = 0
        self.active = 0
        self.forwarded = 0  # enabled, and so is their group
        self.ready = 0  # what the CPU interfaces get to see: forwarded, pending, not active

    def refresh(self) -> None:
        """Work out `ready` again. A level is pending for as long as it is there."""
        self.ready = (self.latch | self.level & ~self.edge) & self.forwarded & ~self.active

    def state(self) -> BankState:
        """What restore() takes."""
        sets = (self.level, self.latch, self.edge, self.enabled, self.group, self.active)
        return (*sets, bytes(self.priorities))

    def restore(self, state: BankState) -> None:
        """Go back to a state(); what is derived from it is left to GicBase.refresh()."""
        self.level, self.latch, self.edge, self.enabled, self.group, self.active, self.priorities[:] = state

    def read_set(self, register: int) -> int:
        """The interrupts whose bit is set in the registers IGROUPR to ICACTIVER; active ones may be pending too."""
        if register == IGROUPR:
            return self.group
        if register in (ISENABLER, ICENABLER):
            return self.enabled
        if register in (ISPENDR, ICPENDR):
            return self.latch | self.level & ~self.edge
        return self.active

    def write_set(self, register: int, bits: int, lane: int) -> None:
        """A store of `bits` to those in `lane`. What is derived from them is left to GicBase.refresh()."""
        bits &= self.valid
        free = bits & ~self._fixed
        if register == IGROUPR:
            self.group = self.group & ~lane | bits
        elif register == ISENABLER:
            self.enabled |= free
        elif register == ICENABLER:
            self.enabled &= ~free
        elif register == ISPENDR:
            self.latch |= free
        elif register == ICPENDR:
            self.latch &= ~free
        elif register == ISACTIVER:
            self.active |= bits
        else:
            self.active &= ~bits

    def write_priority(self, intid: int, priority: int) -> None:
        """A store to IPRIORITYR; nothing for an interrupt that there is not."""
        if self.valid >> intid & 1:
            self.priorities[intid] = priority

    def read_config(self, first: int, count: int) -> int:
        """`count` interrupts' fields in ICFGR."""
        edge = self.edge >> first
        return sum((edge >> n & 1) << 2 * n + 1 for n in range(count))

    def write_config(self, first: int, count: int, value: int) -> None:
        """A store to these."""
        edge = sum((value >> 2 * n + 1 & 1) << first + n for n in range(count))
        # SGIs are edges for ever.
        lane = (1 << count) - 1 << first & self.valid & ~SGIS
        self.edge = self.edge & ~lane | edge & lane
