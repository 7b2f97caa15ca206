"""A GICv2: distributor and CPU interfaces, after ARM IHI 0048B, with the identity of the one in QEMU's virt.

Implementation choices, all QEMU's: no security extensions, but two groups; 8 bits of priority; SGIs always enabled; a
running priority that is kept in the active priorities registers and nowhere else. FIQ is wired to nothing: with
GICC_CTLR.FIQEn, Group 0 is never signalled, though it can still be acknowledged.

Sets of interrupts are integers with bit N for interrupt N. What is derived from them is kept up to date with each
change, so that a line, an acknowledge and an end of interrupt cost a few operations each.
"""

from __future__ import annotations

from collections.abc import Callable

from kexecemu.machine import virt
from kexecemu.machine.devices.gic_bank import Bank, BankState
from kexecemu.machine.devices.gic_base import GicBase
from kexecemu.machine.devices.gic_cpu_interface import GICC_CTLR, SPURIOUS, CpuInterface, CpuInterfaceState
from kexecemu.machine.devices.gic_distributor import Distributor
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import FIRST_SPI

__all__ = ["MAX_CPUS", "SPURIOUS", "CpuInterface", "Distributor", "Gic2", "GicState"]

MAX_CPUS = virt.GICV2_CPUS

GicState = tuple[int, BankState, tuple[CpuInterfaceState, ...]]


class Gic2(GicBase):
    """The interrupt controller of `cpus` CPUs, with `spis` shared interrupts (a multiple of 32) from 32 on.

    on_output(cpu, level) is called exactly when the IRQ signal to a CPU changes. It may come from within a register
    access of that or of another CPU, or from within set_level.
    """

    interfaces: tuple[CpuInterface, ...]
    version = 2
    """Of the architecture."""

    def __init__(
        self,
        cpus: int,
        on_output: Callable[[int, bool], object],
        *,
        spis: int = virt.SPIS,
        distributor_phys: int = virt.GIC_DISTRIBUTOR.start,
        cpu_interface_phys: int = virt.GIC_CPU_INTERFACE.start,
    ) -> None:
        """Raises ValueError for numbers that a GICv2 cannot have."""
        if not 1 <= cpus <= MAX_CPUS:
            raise ValueError(f"a GICv2 has 1 to {MAX_CPUS} CPUs, not {cpus}")
        super().__init__(cpus, on_output, spis)
        self.spis = Bank((1 << spis) - 1 << FIRST_SPI)
        self.typer = spis // 32 | cpus - 1 << 5
        frame = PhysRange.of(cpu_interface_phys, virt.GIC_CPU_INTERFACE.size)
        self.interfaces = tuple(CpuInterface(self, cpu, frame, self._count) for cpu in range(cpus))
        frame = PhysRange.of(distributor_phys, virt.GIC_DISTRIBUTOR.size)
        self._distributors = tuple(Distributor(self, interface, frame) for interface in self.interfaces)

    def distributor(self, cpu: int) -> Distributor:
        """The device at distributor_phys for this CPU's list of devices."""
        return self._distributors[cpu]

    def cpu_interface(self, cpu: int) -> CpuInterface:
        """The device at cpu_interface_phys for this CPU's list of devices."""
        return self.interfaces[cpu]

    def disable_cpu_interface(self, cpu: int) -> None:
        """Let a CPU hear no interrupt any more, as if it had disabled them in its interface."""
        self.interfaces[cpu].write(GICC_CTLR, 4, 0)

    def set_priority(self, intid: int, priority: int, interface: CpuInterface) -> None:
        """A store to IPRIORITYR by the interface's CPU."""
        if intid < FIRST_SPI:
            interface.priorities[intid] = priority
        elif intid < self._count:
            for each in self.interfaces:
                each.priorities[intid] = priority

    def set_targets(self, intid: int, targets: int) -> None:
        """A store to ITARGETSR; read-only for a CPU's own interrupts, and nothing at all with a single CPU."""
        bit = 1 << intid & self.spis.valid
        if self.cpus > 1:
            for interface in self.interfaces:
                interface.targets &= ~bit
                if targets >> interface.cpu & 1:
                    interface.targets |= bit

    def targets_of(self, intid: int, interface: CpuInterface) -> int:
        """A load of ITARGETSR by the interface's CPU."""
        if self.cpus == 1:
            return 0
        if intid < FIRST_SPI:
            return 1 << interface.cpu
        return sum((each.targets >> intid & 1) << each.cpu for each in self.interfaces)

    def reset(self) -> None:
        """The reset state. The lines keep the levels that their devices drive them to."""
        self.ctlr = 0
        self.spis.reset()
        for interface in self.interfaces:
            interface.reset()
        self.settle_all()

    def snapshot(self) -> GicState:
        """All state, for restore()."""
        return self.ctlr, self.spis.state(), tuple(each.state() for each in self.interfaces)

    def restore(self, snapshot: GicState) -> None:
        """Go back to a snapshot of a GIC of the same shape; on_output hears of the signals that this changes."""
        self.ctlr, spis, interfaces = snapshot
        self.spis.restore(spis)
        for interface, state in zip(self.interfaces, interfaces, strict=True):
            interface.restore(state)
        self.refresh_all()
