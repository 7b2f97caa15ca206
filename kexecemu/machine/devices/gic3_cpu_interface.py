"""The CPU interface of a GICv3: the system registers ICC_*_EL1 (ARM IHI 0069, 4.8 and 12.2).

With one security state Group 1 is signalled as IRQ and Group 0 as FIQ, which is wired to nothing here. As of a
Cortex-A57 in QEMU's virt, priorities have five bits, all of which can preempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kexecemu.machine.devices.gic_bank import PRIVATE, Bank
from kexecemu.machine.devices.gic_base import SPURIOUS, CpuInterfaceBase
from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.machine.devices.gic3 import Gic3

__all__ = ["CpuInterface3"]

INTIDS: Final = 0xFFFFFF

PRIORITY_BITS: Final = 5
PRIORITIES: Final = 0xFF << 8 - PRIORITY_BITS & 0xFF

CTLR_FIXED: Final = 1 << 15 | 1 << 11 | PRIORITY_BITS - 1 << 8
"""Four levels of affinity, interrupts' numbers of 24 bits, and how many bits a priority has."""
SRE: Final = 7
"""System registers are all there is."""


def _reg(op1: int, crn: int, crm: int, op2: int) -> int:
    """A system register as its instruction names it, in bits 18 to 5: op0 is 3."""
    return op1 << 11 | crn << 7 | crm << 3 | op2


PMR: Final = _reg(0, 4, 6, 0)
IAR0, EOIR0, HPPIR0, BPR0, AP0R0 = (_reg(0, 12, 8, op2) for op2 in range(5))
AP1R0: Final = _reg(0, 12, 9, 0)
DIR, RPR, SGI1R, ASGI1R, SGI0R = (_reg(0, 12, 11, op2) for op2 in (1, 3, 5, 6, 7))
IAR1, EOIR1, HPPIR1, BPR1, CTLR, SRE_EL1, IGRPEN0, IGRPEN1 = (_reg(0, 12, 12, op2) for op2 in range(8))


@shown("cpu", "affinity")
class CpuInterface3(CpuInterfaceBase):
    """One CPU's interface and its redistributor's state. affinity is Aff3.Aff2.Aff1.Aff0, a byte each."""

    _gic: Gic3
    least = 0xFF  # an interrupt of this priority is as good as disabled
    priority_shift = 8 - PRIORITY_BITS
    least_bpr = 7 - PRIORITY_BITS
    cbpr = 1
    eoimode = 2

    def __init__(self, gic: Gic3, cpu: int, affinity: int) -> None:
        self.affinity = affinity
        super().__init__(gic, cpu, Bank(PRIVATE))
        self.waker = 6
        self.targets = self._spis.valid if self.affinity == 0 else 0

    def reset_cpu(self) -> None:
        """The CPU is reset, and its system registers are. What the redistributor holds is kept."""
        self.reset_registers()
        self.settle()

    def state(self) -> tuple[Any, ...]:
        """What restore() takes."""
        return super().state(), *self.enabled, self.waker

    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to a state(); routes and the output are settled by the caller."""
        base, *self.enabled, self.waker = state
        super().restore(base)

    def _pending(self, group: int) -> int:
        return self._next if self.group_of(self._next) == group and self.enabled[group] else SPURIOUS

    def _acknowledge(self, group: int) -> int:
        if not self._takes_next or self.group_of(self._next) != group:
            return SPURIOUS
        intid = self._next
        self.activate_next()
        return intid

    def _end(self, group: int, intid: int) -> None:
        active = self.apr
        lowest = (active[0] | active[1]) & -(active[0] | active[1])
        # The highest active priority must be of this group.
        if self.exists(intid) and lowest and bool(active[0] & lowest) != bool(group):
            active[group] &= ~lowest
            self.end(intid)

    def read_sysreg(self, register: int) -> int | None:
        """An MRS at EL1; None for a register that there is not, or that cannot be read."""
        if register in (IAR0, IAR1):
            return self._acknowledge(int(register == IAR1))
        if register == PMR:
            return self.pmr
        if register == RPR:
            return min(self.running(), 0xFF)
        if register in (HPPIR0, HPPIR1):
            return self._pending(int(register == HPPIR1))
        if register in (BPR0, BPR1):
            shared = register == BPR1 and self.ctlr & self.cbpr
            return min(self.bpr[0] + 1, 7) if shared else self.bpr[register == BPR1]
        if register in (AP0R0, AP1R0):
            return self.apr[register == AP1R0]
        if register in (IGRPEN0, IGRPEN1):
            return self.enabled[register == IGRPEN1]
        if register == CTLR:
            return self.ctlr | CTLR_FIXED
        return SRE if register == SRE_EL1 else None

    def write_sysreg(self, register: int, value: int) -> bool:
        """An MSR at EL1; False for a register that there is not, or that cannot be written."""
        if register in (EOIR0, EOIR1):
            self._end(int(register == EOIR1), value & INTIDS)
        elif register in (SGI0R, SGI1R):
            self._gic.send_sgi(self.cpu, int(register == SGI1R), value)
        elif register == DIR:
            self.write_dir(value & INTIDS)
        elif register in (SRE_EL1, ASGI1R):
            pass  # fixed; the SGIs of another security state
        elif self._set(register, value):
            self.settle()
        else:
            return False
        return True

    def _set(self, register: int, value: int) -> bool:
        if register == PMR:
            self.pmr = value & PRIORITIES
        elif register == CTLR:
            self.ctlr = value & (self.cbpr | self.eoimode)
        elif register == BPR0:
            self.bpr[0] = max(value & 7, self.least_bpr)
        elif register == BPR1:
            if not self.ctlr & self.cbpr:
                self.bpr[1] = max(value & 7, self.least_bpr + 1)
        elif register in (AP0R0, AP1R0):
            self.apr[register == AP1R0] = value & 0xFFFFFFFF
        elif register in (IGRPEN0, IGRPEN1):
            self.enabled[register == IGRPEN1] = value & 1
        else:
            return False
        return True
