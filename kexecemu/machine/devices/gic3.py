"""A GICv3: distributor, redistributors and CPU interfaces, after ARM IHI 0069, as the one in QEMU's virt without EL3.

There is one security state (GICD_CTLR.DS is 1), affinity routing is always on, and the CPU interfaces are system
registers. No LPIs, and so no ITS; no interrupt is sent to any one of several CPUs (GICD_TYPER.No1N). A redistributor
forwards interrupts whether or not GICR_WAKER says that its CPU sleeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kexecemu.machine import virt
from kexecemu.machine.devices.gic3_cpu_interface import IGRPEN1, CpuInterface3
from kexecemu.machine.devices.gic3_distributor import Distributor3, Redistributors
from kexecemu.machine.devices.gic_base import SPURIOUS, GicBase
from kexecemu.machine.ranges import PhysRange

__all__ = ["SPURIOUS", "CpuInterface3", "Gic3"]

_ROUTE = 0xFF00FFFFFF
_SGI_IRM = 1 << 40


class Gic3(GicBase):
    """See GicBase."""

    interfaces: tuple[CpuInterface3, ...]
    version = 3
    most_cpus = virt.GICV3_CPUS

    def __init__(
        self,
        cpus: int,
        on_output: Callable[[int, bool], object],
        *,
        spis: int = virt.SPIS,
        distributor_phys: int = virt.GIC_DISTRIBUTOR.start,
        redistributors_phys: int = virt.GIC_REDISTRIBUTORS.start,
    ) -> None:
        """Raises ValueError for numbers that this GICv3 cannot have."""
        super().__init__(cpus, on_output, spis)
        self.routes: dict[int, int] = {}
        """GICD_IROUTER of the SPIs that are not routed to affinity 0.0.0.0."""
        # No1N, affinity 3 can be other than 0, numbers of 16 bits, and how many interrupts there are.
        self.typer = 1 << 25 | 1 << 24 | 0xF << 19 | spis // 32
        self.interfaces = tuple(CpuInterface3(self, cpu, virt.affinity(cpu)) for cpu in range(cpus))
        self.distributor = Distributor3(self, PhysRange.of(distributor_phys, virt.GIC_DISTRIBUTOR.size))
        self.redistributors = Redistributors(self, redistributors_phys)

    def cpu_interface(self, cpu: int) -> CpuInterface3:
        """The system registers of this CPU."""
        return self.interfaces[cpu]

    def disable_cpu_interface(self, cpu: int) -> None:
        """Let a CPU hear no interrupt any more, as if it had disabled them in its interface."""
        self.interfaces[cpu].write_sysreg(IGRPEN1, 0)

    def set_route(self, intid: int, route: int) -> None:
        """A store to GICD_IROUTER. An SPI that is routed to a CPU that there is not goes nowhere."""
        if not self.spis.valid >> intid & 1:
            return
        self.routes[intid] = route & _ROUTE
        self._follow_routes()
        self.settle_all()

    def _follow_routes(self) -> None:
        targets = {0: self.spis.valid}
        for intid, route in self.routes.items():
            targets[0] &= ~(1 << intid)
            to = route >> 32 << 24 | route & 0xFFFFFF
            targets[to] = targets.get(to, 0) | 1 << intid
        for interface in self.interfaces:
            interface.targets = targets.get(interface.affinity, 0)

    def send_sgi(self, sender: int, group: int, value: int) -> None:
        """A store to ICC_SGI0R_EL1 or ICC_SGI1R_EL1, which reach the CPUs that have that interrupt in that group."""
        bit = 1 << (value >> 24 & 0xF)
        cluster = (value >> 48 & 0xFF) << 16 | (value >> 32 & 0xFF) << 8 | value >> 16 & 0xFF
        for interface in self.interfaces:
            if value & _SGI_IRM:
                meant = interface.cpu != sender
            else:
                at = interface.affinity
                meant = cluster == at >> 8 and bool(value >> (at & 0xF) & 1)
            if meant and bool(interface.bank.group & bit) == bool(group):
                interface.bank.latch |= bit
                interface.bank.refresh()
                interface.settle()

    def snapshot(self) -> tuple[Any, ...]:
        """All state, for restore()."""
        return super().snapshot(), dict(self.routes)

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go back to a snapshot of a GIC of the same shape; on_output hears of the signals that this changes."""
        base, routes = snapshot
        self.routes = dict(routes)
        self._follow_routes()
        super().restore(base)
