"""The CPU interface of a GICv3: the system registers ICC_*_EL1 (ARM IHI 0069, 4.8 and 12.2).

With one security state Group 1 is signalled as IRQ and Group 0 as FIQ, which is wired to nothing here. As of a
Cortex-A57 in QEMU's virt, priorities have five bits, all of which can preempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kexecemu.machine.devices.gic3_bank import Bank3, Bank3State
from kexecemu.machine.devices.gic_bank import PRIVATE
from kexecemu.machine.virt import FIRST_SPI
from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.machine.devices.gic3 import Gic3

__all__ = ["SPURIOUS", "CpuInterface3", "CpuInterface3State"]

SPURIOUS: Final = 1023
INTIDS: Final = 0xFFFFFF

PRIORITY_BITS: Final = 5
PRIORITIES: Final = 0xFF << 8 - PRIORITY_BITS & 0xFF
LEAST_BPR: Final = 7 - PRIORITY_BITS
IDLE_PRIORITY: Final = 0x100
"""Less urgent than any priority that an interrupt can have."""
NEVER: Final = 0xFF
"""An interrupt of this priority is as good as disabled."""

CTLR_CBPR: Final = 1
CTLR_EOIMODE: Final = 2
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

CpuInterface3State = tuple[tuple[int, ...], Bank3State]


@shown("cpu", "affinity")
class CpuInterface3:
    """One CPU's interface and its redistributor's state. affinity is Aff3.Aff2.Aff1.Aff0, a byte each."""

    def __init__(self, gic: Gic3, cpu: int, affinity: int) -> None:
        self.cpu = cpu
        self.affinity = affinity
        self.bank = Bank3(PRIVATE)
        self.output = False
        """The level of the CPU's IRQ input."""
        self._gic = gic
        self._spis = gic.spis
        self.reset()

    def reset(self) -> None:
        """The reset state of all; the output is settled by the caller."""
        self.bank.reset()
        self.waker = 6
        self.targets = self._spis.valid if self.affinity == 0 else 0
        """The SPIs that are routed to this CPU."""
        self._reset_registers()

    def _reset_registers(self) -> None:
        self._pmr = self._ctlr = 0
        self._bpr = [LEAST_BPR, LEAST_BPR + 1]
        self._apr = [0, 0]
        self._enabled = [0, 0]
        self._next = SPURIOUS
        self._next_priority = IDLE_PRIORITY
        self._next_group = 0
        self._takes_next = False

    def reset_cpu(self) -> None:
        """The CPU is reset, and its system registers are. What the redistributor holds is kept."""
        self._reset_registers()
        self.settle()

    def state(self) -> CpuInterface3State:
        """What restore() takes."""
        registers = (self._pmr, self._ctlr, *self._bpr, *self._apr, *self._enabled, self.waker)
        return registers, self.bank.saved()

    def restore(self, state: CpuInterface3State) -> None:
        """Go back to a state(); routes and the output are settled by the caller."""
        registers, bank = state
        self._pmr, self._ctlr, *rest, self.waker = registers
        self._bpr, self._apr, self._enabled = rest[:2], rest[2:4], rest[4:]
        self.bank.go_back(bank)

    # -- which interrupt is next ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Find the most urgent pending interrupt and drive the output accordingly."""
        ready = self.bank.ready | self._spis.ready & self.targets
        best, best_priority = SPURIOUS, NEVER
        own, shared = self.bank.priorities, self._spis.priorities
        while ready:
            lowest = ready & -ready
            ready ^= lowest
            intid = lowest.bit_length() - 1
            priority = (own if intid < FIRST_SPI else shared)[intid]
            # Of equals the one with the lowest number wins.
            if priority < best_priority:
                best, best_priority = intid, priority
        self._next, self._next_priority = best, best_priority
        bank = self.bank if best < FIRST_SPI else self._spis
        group = self._next_group = bank.group >> best & 1
        self._takes_next = False
        if best_priority < self._pmr and self._enabled[group]:
            mask = self._group_priority_mask(group)
            self._takes_next = best_priority & mask < self._running() & mask
        output = bool(self._takes_next and group)
        if output != self.output:
            self.output = output
            self._gic.on_output(self.cpu, output)

    def _group_priority_mask(self, group: int) -> int:
        """The part of a priority that decides on preemption; being idle is below all of them."""
        # Group 1's binary point counts from one: the same value splits one bit further down.
        point = self._bpr[1] - 1 if group and not self._ctlr & CTLR_CBPR else self._bpr[0]
        return 0xFE << point & 0xFF | IDLE_PRIORITY

    def _running(self) -> int:
        """The running priority, IDLE_PRIORITY when nothing is being handled."""
        active = self._apr[0] | self._apr[1]
        return (active & -active).bit_length() - 1 << 8 - PRIORITY_BITS if active else IDLE_PRIORITY

    # -- handling it ----------------------------------------------------------------------------------------------

    def _pending(self, group: int) -> int:
        return self._next if self._next_group == group and self._enabled[group] else SPURIOUS

    def _acknowledge(self, group: int) -> int:
        if not self._takes_next or self._next_group != group:
            return SPURIOUS
        intid = self._next
        level = (self._next_priority & self._group_priority_mask(group)) >> 8 - PRIORITY_BITS
        self._apr[group] |= 1 << level
        bit = 1 << intid
        bank = self.bank if intid < FIRST_SPI else self._spis
        bank.active |= bit
        bank.latch &= ~bit
        bank.ready &= ~bit
        self.settle()
        return intid

    def _end(self, group: int, intid: int) -> None:
        active = self._apr
        lowest = (active[0] | active[1]) & -(active[0] | active[1])
        # The highest active priority must be of this group.
        if not self._exists(intid) or not lowest or bool(active[0] & lowest) == bool(group):
            return
        active[group] &= ~lowest
        if self._ctlr & CTLR_EOIMODE:
            self.settle()
        else:
            self._deactivate(intid)

    def _exists(self, intid: int) -> bool:
        return bool((PRIVATE | self._spis.valid) >> intid & 1)

    def _deactivate(self, intid: int) -> None:
        bit = 1 << intid
        bank = self.bank if intid < FIRST_SPI else self._spis
        bank.active &= ~bit
        bank.refresh()
        if intid >= FIRST_SPI:
            self._gic.settle_targets(bit)
        self.settle()

    # -- system registers -----------------------------------------------------------------------------------------

    def read_sysreg(self, register: int) -> int | None:
        """An MRS at EL1; None for a register that there is not, or that cannot be read."""
        if register == IAR1:
            return self._acknowledge(1)
        if register == IAR0:
            return self._acknowledge(0)
        if register == PMR:
            return self._pmr
        if register == RPR:
            return min(self._running(), 0xFF)
        if register in (HPPIR0, HPPIR1):
            return self._pending(int(register == HPPIR1))
        if register == BPR1:
            return min(self._bpr[0] + 1, 7) if self._ctlr & CTLR_CBPR else self._bpr[1]
        if register == BPR0:
            return self._bpr[0]
        if register in (AP0R0, AP1R0):
            return self._apr[register == AP1R0]
        if register in (IGRPEN0, IGRPEN1):
            return self._enabled[register == IGRPEN1]
        if register == CTLR:
            return self._ctlr | CTLR_FIXED
        return SRE if register == SRE_EL1 else None

    def write_sysreg(self, register: int, value: int) -> bool:
        """An MSR at EL1; False for a register that there is not, or that cannot be written."""
        if register in (EOIR0, EOIR1):
            self._end(int(register == EOIR1), value & INTIDS)
        elif register in (SGI0R, SGI1R):
            self._gic.send_sgi(self.cpu, int(register == SGI1R), value)
        elif register == DIR:
            # Without EOImode this is unpredictable; the interrupt then stays as it is.
            if self._ctlr & CTLR_EOIMODE and self._exists(value & INTIDS):
                self._deactivate(value & INTIDS)
        elif register in (SRE_EL1, ASGI1R):
            pass  # fixed; the SGIs of another security state
        elif self._set(register, value):
            self.settle()
        else:
            return False
        return True

    def _set(self, register: int, value: int) -> bool:
        if register == PMR:
            self._pmr = value & PRIORITIES
        elif register == CTLR:
            self._ctlr = value & (CTLR_CBPR | CTLR_EOIMODE)
        elif register == BPR0:
            self._bpr[0] = max(value & 7, LEAST_BPR)
        elif register == BPR1:
            if not self._ctlr & CTLR_CBPR:
                self._bpr[1] = max(value & 7, LEAST_BPR + 1)
        elif register in (AP0R0, AP1R0):
            self._apr[register == AP1R0] = value & 0xFFFFFFFF
        elif register in (IGRPEN0, IGRPEN1):
            self._enabled[register == IGRPEN1] = value & 1
        else:
            return False
        return True
