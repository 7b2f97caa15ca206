"""A GICv2: distributor and CPU interfaces, after ARM IHI 0048B, with the identity of the one in QEMU's virt.

Implementation choices, all QEMU's: no security extensions, but two groups; 8 bits of priority; SGIs always enabled; a
running priority that is kept in the active priorities registers and nowhere else. FIQ is wired to nothing: with
GICC_CTLR.FIQEn, Group 0 is never signalled, though it can still be acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable

from kexecemu.machine import virt
from kexecemu.machine.devices.gic_base import SPURIOUS, GicBase
from kexecemu.machine.devices.gic_cpu_interface import GICC_CTLR, CpuInterface
from kexecemu.machine.devices.gic_distributor import Distributor
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import FIRST_SPI

__all__ = ["SPURIOUS", "Gic2"]


class Gic2(GicBase):
    """See GicBase."""

    interfaces: tuple[CpuInterface, ...]
    version = 2
    most_cpus = virt.GICV2_CPUS

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
        super().__init__(cpus, on_output, spis)
        self.typer = spis // 32 | cpus - 1 << 5
        frame = PhysRange.of(cpu_interface_phys, virt.GIC_CPU_INTERFACE.size)
        self.interfaces = tuple(CpuInterface(self, cpu, frame) for cpu in range(cpus))
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
