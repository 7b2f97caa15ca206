"""What a GICv2 and a GICv3 have in common: lines from devices, and which interrupts the CPU interfaces get to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kexecemu.machine.devices.gic_bank import SGIS, Bank
from kexecemu.machine.virt import FIRST_PPI, FIRST_SPI
from kexecemu.shown import shown

__all__ = ["GicBase", "Interface"]


class Interface(Protocol):
    """A CPU's side of the interrupt controller, as far as both versions have the same."""

    targets: int
    """The SPIs that are sent to this CPU."""
    output: bool

    @property
    def bank(self) -> Bank:
        """The CPU's own interrupts."""

    def settle(self) -> None:
        """Work out the signal to the CPU."""


@shown("version", "cpus")
class GicBase:
    """The lines of an interrupt controller of `cpus` CPUs with `spis` shared interrupts from 32 on.

    on_output(cpu, level) is called exactly when the IRQ signal to a CPU changes. It may come from within a register
    access of that or of another CPU, or from within set_level.
    """

    interfaces: Sequence[Interface]
    spis: Bank

    def __init__(self, cpus: int, on_output: Callable[[int, bool], object], spis: int) -> None:
        """Raises ValueError for a number of shared interrupts that cannot be."""
        if spis % 32 or not 32 <= spis <= 960:
            raise ValueError(f"SPIs come in blocks of 32, up to 960: not {spis}")
        self.cpus = cpus
        self.on_output = on_output
        self.ctlr = 0
        self._count = FIRST_SPI + spis

    def output(self, cpu: int) -> bool:
        """The IRQ signal to a CPU."""
        return self.interfaces[cpu].output

    def line(self, intid: int, cpu: int = 0) -> Callable[[bool], None]:
        """The input of a PPI of `cpu` (16 to 31) or of an SPI (from 32), to hand to a device.

        Raises ValueError when there is no such input.
        """
        if not FIRST_PPI <= intid < self._count or not 0 <= cpu < self.cpus:
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

    def settle_targets(self, bit: int, acting: Interface | None = None) -> None:
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
