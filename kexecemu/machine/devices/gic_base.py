"""What a GICv2 and a GICv3 have in common: lines from devices, which interrupt is a CPU's next, and what becomes of it.

Sets of interrupts are integers with bit N for interrupt N. What is derived from them is kept up to date with each
change, so that a line, an acknowledge and an end of interrupt cost a few operations each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from kexecemu.machine.devices.gic_bank import PRIVATE, SGIS, Bank
from kexecemu.machine.virt import FIRST_PPI, FIRST_SPI
from kexecemu.shown import shown

__all__ = ["CpuInterfaceBase", "GicBase"]

SPURIOUS: Final = 1023
IDLE_PRIORITY: Final = 0x100
"""Less urgent than any priority that an interrupt can have."""


class CpuInterfaceBase:
    """A CPU's side of the interrupt controller. What there is of each group, is by number of the group."""

    least: ClassVar[int]
    """An interrupt must be more urgent than this to be next."""
    priority_shift: ClassVar[int]
    """Priorities that preempt each other are multiples of 1 << priority_shift."""
    least_bpr: ClassVar[int]
    cbpr: ClassVar[int]
    eoimode: ClassVar[int]
    """The bits in ctlr: one binary point for both groups; an end of interrupt does not deactivate it."""

    def __init__(self, gic: GicBase, cpu: int, bank: Bank) -> None:
        self.cpu = cpu
        self.bank = bank
        """The CPU's own interrupts."""
        self.output = False
        """The level of the CPU's IRQ input."""
        self.targets = 0
        """The SPIs that are sent to this CPU."""
        self._gic = gic
        self._spis = gic.spis
        self.reset_registers()

    def reset_registers(self) -> None:
        """The CPU's own registers alone."""
        self.pmr = self.ctlr = 0
        self.bpr = [self.least_bpr, self.least_bpr + 1]
        self.apr = [0, 0]
        self.enabled = [0, 0]
        self.signalled = [False, True]
        """Whether a group is signalled as IRQ: FIQ is wired to nothing."""
        self._next = SPURIOUS
        self._next_priority = IDLE_PRIORITY
        self._takes_next = False

    def state(self) -> tuple[Any, ...]:
        """What restore() takes."""
        return self.pmr, self.ctlr, *self.bpr, *self.apr, self.bank.state()

    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to a state(); targets and the output are settled by the caller."""
        self.pmr, self.ctlr, bpr0, bpr1, apr0, apr1, bank = state
        self.bpr, self.apr = [bpr0, bpr1], [apr0, apr1]
        self.bank.restore(bank)

    # -- which interrupt is next ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Find the most urgent pending interrupt and drive the output accordingly."""
        ready = self.bank.ready | self._spis.ready & self.targets
        best, best_priority = SPURIOUS, self.least
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
        takes = output = False
        if best_priority < self.pmr:
            group = self.group_of(best)
            if self.enabled[group]:
                mask = self._group_priority_mask(group)
                takes = best_priority & mask < self.running() & mask
                output = takes and self.signalled[group]
        self._takes_next = takes
        if output != self.output:
            self.output = output
            self._gic.on_output(self.cpu, output)

    def bank_of(self, intid: int) -> Bank:
        """The bank that an interrupt is in."""
        return self.bank if intid < FIRST_SPI else self._spis

    def group_of(self, intid: int) -> int:
        """An interrupt's group; 0 for SPURIOUS."""
        return (self.bank if intid < FIRST_SPI else self._spis).group >> intid & 1

    def exists(self, intid: int) -> bool:
        """There is an interrupt of this number."""
        return bool((PRIVATE | self._spis.valid) >> intid & 1)

    def _group_priority_mask(self, group: int) -> int:
        """The part of a priority that decides on preemption; being idle is below all of them."""
        # Group 1's binary point counts from one: the same value splits one bit further down.
        point = self.bpr[1] - 1 if group and not self.ctlr & self.cbpr else self.bpr[0]
        return 0xFE << point & 0xFF | IDLE_PRIORITY

    def running(self) -> int:
        """The running priority, IDLE_PRIORITY when nothing is being handled."""
        active = self.apr[0] | self.apr[1]
        return (active & -active).bit_length() - 1 << self.priority_shift if active else IDLE_PRIORITY

    # -- handling it ----------------------------------------------------------------------------------------------

    def activate_next(self, *, keep_latch: bool = False) -> None:
        """The next interrupt is acknowledged, and active from now on; keep_latch: pending, too."""
        intid, group = self._next, self.group_of(self._next)
        level = (self._next_priority & self._group_priority_mask(group)) >> self.priority_shift
        self.apr[group] |= 1 << level
        bit = 1 << intid
        bank = self.bank if intid < FIRST_SPI else self._spis
        bank.active |= bit
        bank.ready &= ~bit
        if not keep_latch:
            bank.latch &= ~bit
        if intid < FIRST_SPI:
            self.settle()
        else:
            self._gic.settle_targets(bit, self)

    def end(self, intid: int) -> None:
        """The running priority has been dropped for this interrupt."""
        if self.ctlr & self.eoimode:
            self.settle()
        else:
            self._deactivate(intid)

    def write_dir(self, intid: int) -> None:
        """A store to DIR. Without EOImode this is unpredictable; the interrupt then stays as it is."""
        if self.ctlr & self.eoimode and self.exists(intid):
            self._deactivate(intid)

    def _deactivate(self, intid: int) -> None:
        bank = self.bank if intid < FIRST_SPI else self._spis
        bank.active &= ~(1 << intid)
        bank.refresh()
        if intid < FIRST_SPI:
            self.settle()
        else:
            self._gic.settle_targets(1 << intid, self)


@shown("version", "cpus")
class GicBase:
    """The lines of an interrupt controller of `cpus` CPUs with `spis` shared interrupts (a multiple of 32) from 32 on.

    on_output(cpu, level) is called exactly when the IRQ signal to a CPU changes. It may come from within a register
    access of that or of another CPU, or from within set_level.
    """

    interfaces: Sequence[CpuInterfaceBase]
    version: ClassVar[int]
    """Of the architecture."""
    most_cpus: ClassVar[int]

    def __init__(self, cpus: int, on_output: Callable[[int, bool], object], spis: int) -> None:
        """Raises ValueError for numbers that cannot be."""
        if not 1 <= cpus <= self.most_cpus:
            raise ValueError(f"a GICv{self.version} has 1 to {self.most_cpus} CPUs, not {cpus}")
        if spis % 32 or not 32 <= spis <= 960:
            raise ValueError(f"SPIs come in blocks of 32, up to 960: not {spis}")
        self.cpus = cpus
        self.on_output = on_output
        self.ctlr = 0
        self.spis = Bank((1 << spis) - 1 << FIRST_SPI)

    def line(self, intid: int, cpu: int = 0) -> Callable[[bool], None]:
        """The input of a PPI of `cpu` (16 to 31) or of an SPI (from 32), to hand to a device.

        Raises ValueError when there is no such input.
        """
        if not FIRST_PPI <= intid < self.spis.valid.bit_length() or not 0 <= cpu < self.cpus:
            raise ValueError(f"the interrupt controller has no line {intid} (CPU {cpu})")

        def drive(level: bool) -> None:
            self.set_level(intid, level, cpu)

        return drive

    def set_level(self, intid: int, level: bool, cpu: int = 0) -> None:
        """Drive an input as line() describes it; the level that it already has changes nothing."""
        bank = self.spis if intid >= FIRST_SPI else self.interfaces[cpu].bank
        bit = 1 << max(intid, 0)
        if not bit & bank.valid & ~SGIS:
            raise ValueError(f"the interrupt controller has no line {intid}")
        if bool(bank.level & bit) == bool(level):
            return
        bank.level ^= bit
        if level and bank.edge & bit:
            bank.latch |= bit
        ready = bank.ready
        bank.refresh()
        if ready == bank.ready:
            return
        if intid >= FIRST_SPI:
            self.settle_targets(bit)
        else:
            self.interfaces[cpu].settle()

    def settle_targets(self, bit: int, acting: CpuInterfaceBase | None = None) -> None:
        """An SPI's readiness changed: settle those it is sent to, and the one whose running priority changed."""
        for interface in self.interfaces:
            if interface.targets & bit or interface is acting:
                interface.settle()

    def settle_all(self) -> None:
        """Settle every CPU's output."""
        for interface in self.interfaces:
            interface.settle()

    def refresh(self, bank: Bank) -> None:
        """Work out again what of a bank the CPU interfaces get to see."""
        groups = (bank.valid & ~bank.group if self.ctlr & 1 else 0) | (bank.group if self.ctlr & 2 else 0)
        bank.forwarded = bank.enabled & groups
        bank.refresh()

    def refresh_all(self) -> None:
        """Work out everything again, after what may have changed anything."""
        self.refresh(self.spis)
        for interface in self.interfaces:
            self.refresh(interface.bank)
        self.settle_all()

    def snapshot(self) -> tuple[Any, ...]:
        """All state, for restore()."""
        return self.ctlr, self.spis.state(), tuple(each.state() for each in self.interfaces)

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go back to a snapshot of a GIC of the same shape; on_output hears of the signals that this changes."""
        self.ctlr, spis, interfaces = snapshot
        self.spis.restore(spis)
        for interface, state in zip(self.interfaces, interfaces, strict=True):
            interface.restore(state)
        self.refresh_all()
