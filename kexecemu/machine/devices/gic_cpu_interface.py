"""The CPU interface of a GICv2: priorities, acknowledging, and the end of an interrupt (ARM IHI 0048B, 4.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexecemu.machine.devices.gic_bank import IIDR, PRIVATE, Bank, BankState
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import FIRST_PPI, FIRST_SPI
from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.machine.devices.gic import Gic2

__all__ = ["SPURIOUS", "CpuInterface", "CpuInterfaceState"]

SPURIOUS = 1023
GROUP1_PENDING = 1022

IDLE_PRIORITY = 0x100  # less urgent than any priority that an interrupt can have

GICC_CTLR = 0x00
PMR = 0x04
BPR = 0x08
IAR = 0x0C
EOIR = 0x10
RPR = 0x14
HPPIR = 0x18
ABPR = 0x1C
AIAR = 0x20
AEOIR = 0x24
AHPPIR = 0x28
APR = 0xD0
NSAPR = 0xE0
NSAPR_END = 0xF0
GICC_IIDR = 0xFC
DIR = 0x1000

CTLR_ACKCTL = 1 << 2
CTLR_FIQEN = 1 << 3
CTLR_CBPR = 1 << 4
CTLR_EOIMODE = 1 << 9
GICC_CTLR_MASK = 0x21F

CpuInterfaceState = tuple[tuple[int, ...], BankState, bytes, bytes]


@shown("cpu", "phys")
class CpuInterface:
    """One CPU's interface, as a device in that CPU's physical address space."""

    def __init__(self, gic: Gic2, cpu: int, phys: PhysRange, interrupts: int) -> None:
        self.cpu = cpu
        self.phys = phys
        self.bank = Bank(PRIVATE)
        self.output = False
        """The level of the CPU's IRQ input."""
        self._gic = gic
        self._spis = gic.spis
        # The CPU's own 32 and a copy of the SPIs', so that the search for the most urgent one has one table.
        self.priorities = bytearray(interrupts)
        self.sgi_sources = bytearray(FIRST_PPI)
        self.reset()

    def reset(self) -> None:
        """The reset state; the output is settled by the caller."""
        self.bank.reset()
        self.priorities[:] = bytes(len(self.priorities))
        self.sgi_sources[:] = bytes(FIRST_PPI)
        self.ctlr = self.pmr = self.bpr = self.apr = self.nsapr = 0
        self.abpr = 1
        # ITARGETSR, kept the other way round. With one CPU it reads as zero and means that one.
        self.targets = self._spis.valid if self._gic.cpus == 1 else 0
        self._next = SPURIOUS
        self._next_priority = IDLE_PRIORITY
        self._takes_next = False

    def state(self) -> CpuInterfaceState:
        """What restore() takes."""
        registers = (self.ctlr, self.pmr, self.bpr, self.abpr, self.apr, self.nsapr, self.targets)
        return registers, self.bank.state(), bytes(self.priorities), bytes(self.sgi_sources)

    def restore(self, state: CpuInterfaceState) -> None:
        """Go back to a state(); the output is settled by the caller."""
        registers, bank, self.priorities[:], self.sgi_sources[:] = state
        self.ctlr, self.pmr, self.bpr, self.abpr, self.apr, self.nsapr, self.targets = registers
        self.bank.restore(bank)

    def settle(self) -> None:
        """Find the most urgent pending interrupt and drive the output accordingly."""
        ready = self.bank.ready | self._spis.ready & self.targets
        best, best_priority = SPURIOUS, IDLE_PRIORITY
        priorities = self.priorities
        while ready:
            lowest = ready & -ready
            ready ^= lowest
            intid = lowest.bit_length() - 1
            # Of equals the one with the lowest number wins.
            if priorities[intid] < best_priority:
                best, best_priority = intid, priorities[intid]
        self._next = best
        self._next_priority = best_priority
        takes = output = False
        if best_priority < self.pmr:
            group = self._is_group1(best)
            mask = self._group_priority_mask(group)
            if self.ctlr >> group & 1 and best_priority & mask < self.running() & mask:
                takes = True
                output = bool(group or not self.ctlr & CTLR_FIQEN)
        self._takes_next = takes
        if output != self.output:
            self.output = output
            self._gic.on_output(self.cpu, output)

    def _is_group1(self, intid: int) -> int:
        return (self.bank if intid < FIRST_SPI else self._spis).group >> intid & 1

    def _group_priority_mask(self, group1: int) -> int:
        """The part of a priority that decides on preemption; being idle is below all of them."""
        # ABPR counts from one: the same value splits one bit further down.
        point = self.abpr - 1 if group1 and not self.ctlr & CTLR_CBPR else self.bpr
        return 0xFE << point & 0xFF | IDLE_PRIORITY

    def running(self) -> int:
        """The running priority, IDLE_PRIORITY when nothing is being handled."""
        active = self.apr | self.nsapr
        return (active & -active).bit_length() - 1 << 1 if active else IDLE_PRIORITY

    def _visible(self, alias: bool) -> int:
        """What to answer for the next interrupt: itself, or that there is none of the register's group."""
        if self._is_group1(self._next):
            return self._next if alias or self.ctlr & CTLR_ACKCTL else GROUP1_PENDING
        return SPURIOUS if alias else self._next

    def _acknowledge(self, alias: bool = False) -> int:
        if not self._takes_next:
            return SPURIOUS
        intid = self._visible(alias)
        if intid >= GROUP1_PENDING:
            return intid
        bit = 1 << intid
        group = self._is_group1(intid)
        level = 1 << ((self._next_priority & self._group_priority_mask(group)) >> 1)
        if group:
            self.nsapr |= level
        else:
            self.apr |= level
        if intid >= FIRST_SPI:
            spis = self._spis
            spis.active |= bit
            spis.latch &= ~bit
            spis.ready &= ~bit
            self._gic.settle_targets(bit, self)
            return intid
        bank = self.bank
        bank.active |= bit
        bank.ready &= ~bit
        source = 0
        if intid < FIRST_PPI:
            # One source at a time, the lowest first: the others make it pending anew.
            sources = self.sgi_sources[intid]
            source = (sources & -sources).bit_length() - 1
            sources &= sources - 1
            self.sgi_sources[intid] = sources
            if not sources:
                bank.latch &= ~bit
        else:
            bank.latch &= ~bit
        self.settle()
        return source << 10 | intid

    def _end(self, intid: int) -> None:
        if intid >= len(self.priorities) or not self.apr | self.nsapr:
            return
        if self._is_group1(intid):
            self.nsapr &= self.nsapr - 1 if self.nsapr else 0
        elif self.apr:
            self.apr &= self.apr - 1
        if self.ctlr & CTLR_EOIMODE:
            self.settle()
        else:
            self._deactivate(intid)

    def _deactivate(self, intid: int) -> None:
        bit = 1 << intid
        bank = self.bank if intid < FIRST_SPI else self._spis
        bank.active &= ~bit
        if bank.pending() & bank.forwarded & bit:
            bank.ready |= bit
            if intid >= FIRST_SPI:
                self._gic.settle_targets(bit, self)
                return
        self.settle()

    def _pending(self, alias: bool) -> int:
        if self._next == SPURIOUS or not self.ctlr >> self._is_group1(self._next) & 1:
            return SPURIOUS
        intid = self._visible(alias)
        if intid >= FIRST_PPI:
            return intid
        sources = self.sgi_sources[intid]
        return (sources & -sources).bit_length() - 1 << 10 | intid

    def read(self, offset: int, size: int) -> int:
        """A load from the interface; registers that there are not read as zero."""
        if offset == IAR:
            return self._acknowledge()
        if offset == GICC_CTLR:
            return self.ctlr
        if offset == PMR:
            return self.pmr
        if offset == BPR:
            return self.bpr
        if offset == RPR:
            return min(self.running(), 0xFF)
        if offset in (HPPIR, AHPPIR):
            return self._pending(offset == AHPPIR)
        if offset == ABPR:
            return self.abpr
        if offset == AIAR:
            return self._acknowledge(alias=True)
        if APR <= offset < NSAPR:
            return self.apr >> (offset - APR) * 8 & 0xFFFFFFFF
        if NSAPR <= offset < NSAPR_END:
            return self.nsapr >> (offset - NSAPR) * 8 & 0xFFFFFFFF
        if offset == GICC_IIDR:
            return IIDR | 2 << 16
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the interface; to a register that there is not, or is read-only, it does nothing."""
        if offset in (EOIR, AEOIR):
            self._end(value & 0x3FF)
            return
        if offset == DIR:
            intid = value & 0x3FF
            # Without EOImode this is unpredictable; the interrupt then stays as it is.
            if self.ctlr & CTLR_EOIMODE and intid < len(self.priorities):
                self._deactivate(intid)
            return
        if offset == GICC_CTLR:
            self.ctlr = value & GICC_CTLR_MASK
        elif offset == PMR:
            self.pmr = value & 0xFF
        elif offset == BPR:
            self.bpr = value & 7
        elif offset == ABPR:
            self.abpr = max(value & 7, 1)
        elif APR <= offset < NSAPR:
            self.apr = _with_lane(self.apr, (offset - APR) * 8, 32, value)
        elif NSAPR <= offset < NSAPR_END:
            self.nsapr = _with_lane(self.nsapr, (offset - NSAPR) * 8, 32, value)
        self.settle()


def _with_lane(word: int, shift: int, width: int, value: int) -> int:
    lane = (1 << width) - 1
    return word & ~(lane << shift) | (value & lane) << shift
