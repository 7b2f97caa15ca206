"""A GICv3: distributor, redistributors and CPU interfaces, after ARM IHI 0069, as the one in QEMU's virt without EL3.

There is one security state (GICD_CTLR.DS is 1), affinity routing is always on, and the CPU interfaces are system
registers. No LPIs, and so no ITS; no interrupt is sent to any one of several CPUs (GICD_TYPER.No1N). A redistributor
forwards interrupts whether or not GICR_WAKER says that its CPU sleeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kexecemu.machine import virt
from kexecemu.machine.devices import gic_bank
from kexecemu.machine.devices.gic3_cpu_interface import IGRPEN1, CpuInterface3
from kexecemu.machine.devices.gic_bank import Bank
from kexecemu.machine.devices.gic_base import SPURIOUS, GicBase
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import FIRST_SPI, REDISTRIBUTOR_SIZE
from kexecemu.shown import shown

__all__ = ["SPURIOUS", "CpuInterface3", "Distributor3", "Gic3", "Redistributors"]

_ROUTE = 0xFF00FFFFFF
_SGI_IRM = 1 << 40

GICD_CTLR, GICD_TYPER, GICD_IIDR = 0x0000, 0x0004, 0x0008
IROUTER, IROUTER_END = 0x6000, 0x8000

CTLR_ENABLES = 3
CTLR_ARE = 1 << 4
CTLR_DS = 1 << 6
"""One security state, and that affinity routing is on: nobody can change either."""

ID_REGISTERS = 0xFFD0
# PeriphID4-7, PeriphID0-3 (part 0x492, designer 0x43B: Arm; architecture 3), CellID0-3.
IDENTITY = bytes((0x44, 0, 0, 0, 0x92, 0xB4, 0x3B, 0, 0x0D, 0xF0, 0x05, 0xB1))

GICR_IIDR, GICR_TYPER, GICR_WAKER = 0x0004, 0x0008, 0x0014
WAKER_ASLEEP = 3 << 1
"""ProcessorSleep, and ChildrenAsleep, which follows it at once."""
SGI_FRAME = 0x10000
REDISTRIBUTOR_PIDR0 = 0x93
PIDR0 = 4
"""Its place in the identity, which says distributor."""


def _identity(offset: int) -> int:
    index = (offset - ID_REGISTERS) // 4
    return IDENTITY[index] if 0 <= index < len(IDENTITY) else 0


def _read(bank: Bank, offset: int, size: int) -> int:
    """A load of what the distributor and the redistributors' SGI frames have alike, at the same offsets.

    All registers are 32 bits wide; those of the priorities can be read and written by the byte too, and every other
    access reads as zero and does nothing.
    """
    if gic_bank.IPRIORITYR <= offset < gic_bank.IPRIORITYR_END:
        first = offset - gic_bank.IPRIORITYR
        return int.from_bytes(bank.priorities[first : first + size], "little") if size <= 4 else 0
    if size == 4 and gic_bank.IGROUPR <= offset < gic_bank.IPRIORITYR:
        register = offset & ~0x7F
        return bank.read_set(register) >> (offset - register) * 8 & 0xFFFFFFFF
    if size == 4 and gic_bank.ICFGR <= offset < gic_bank.ICFGR_END:
        return bank.read_config((offset - gic_bank.ICFGR) * 4, 16)
    return 0


def _write(bank: Bank, offset: int, size: int, value: int) -> None:
    """A store to these. What is derived from what it changes is left to GicBase.refresh()."""
    if gic_bank.IPRIORITYR <= offset < gic_bank.IPRIORITYR_END and size <= 4:
        for n in range(size):
            bank.write_priority(offset - gic_bank.IPRIORITYR + n, value >> 8 * n & 0xFF)
    elif size == 4 and gic_bank.IGROUPR <= offset < gic_bank.IPRIORITYR:
        register = offset & ~0x7F
        shift = (offset - register) * 8
        bank.write_set(register, value << shift, 0xFFFFFFFF << shift)
    elif size == 4 and gic_bank.ICFGR <= offset < gic_bank.ICFGR_END:
        bank.write_config((offset - gic_bank.ICFGR) * 4, 16, value)


@shown("phys")
class Distributor3:
    """The distributor, which looks alike to all CPUs: their own interrupts are the redistributors'."""

    phys = virt.GIC_DISTRIBUTOR

    def __init__(self, gic: Gic3) -> None:
        self._gic = gic

    def read(self, offset: int, size: int) -> int:
        """A load from the distributor; registers that there are not read as zero."""
        gic = self._gic
        if IROUTER <= offset < IROUTER_END:
            route = gic.routes.get((offset - IROUTER) // 8, 0)
            return route >> offset % 8 * 8 & (1 << 8 * size) - 1 if size in (4, 8) else 0
        if size == 4:
            if offset == GICD_CTLR:
                return gic.ctlr | CTLR_ARE | CTLR_DS
            if offset == GICD_TYPER:
                return gic.typer
            if offset == GICD_IIDR:
                return gic_bank.IIDR
            if offset >= ID_REGISTERS:
                return _identity(offset)
        return _read(gic.spis, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the distributor; to a register that there is not, or is read-only, it does nothing."""
        gic = self._gic
        if IROUTER <= offset < IROUTER_END:
            intid, shift = (offset - IROUTER) // 8, offset % 8 * 8
            if size in (4, 8) and intid >= FIRST_SPI:
                kept = gic.routes.get(intid, 0) & ~((1 << 8 * size) - 1 << shift)
                gic.set_route(intid, kept | value << shift)
        elif offset == GICD_CTLR:
            if size == 4:
                gic.ctlr = value & CTLR_ENABLES
                gic.refresh_all()
        else:
            _write(gic.spis, offset, size, value)
            gic.refresh(gic.spis)
            gic.settle_all()


@shown("phys")
class Redistributors:
    """The redistributors of all CPUs, one behind the other, each of an RD and an SGI frame."""

    def __init__(self, gic: Gic3) -> None:
        self.phys = PhysRange.of(virt.GIC_REDISTRIBUTORS.start, gic.cpus * REDISTRIBUTOR_SIZE)
        self._gic = gic

    def read(self, offset: int, size: int) -> int:
        """A load from a redistributor; registers that there are not read as zero."""
        cpu, offset = divmod(offset, REDISTRIBUTOR_SIZE)
        interface = self._gic.interfaces[cpu]
        if offset >= SGI_FRAME:
            return _read(interface.bank, offset - SGI_FRAME, size)
        if offset & ~7 == GICR_TYPER and size in (4, 8):
            last = cpu == self._gic.cpus - 1
            typer = interface.affinity << 32 | 1 << 24 | cpu << 8 | last << 4
            return typer >> offset % 8 * 8 & (1 << 8 * size) - 1
        if size != 4:
            return 0
        if offset == GICR_IIDR:
            return gic_bank.IIDR
        if offset == GICR_WAKER:
            return interface.waker
        if offset == ID_REGISTERS + PIDR0 * 4:
            return REDISTRIBUTOR_PIDR0
        return _identity(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to a redistributor; to a register that there is not, or is read-only, it does nothing."""
        cpu, offset = divmod(offset, REDISTRIBUTOR_SIZE)
        interface = self._gic.interfaces[cpu]
        if offset >= SGI_FRAME:
            _write(interface.bank, offset - SGI_FRAME, size, value)
            self._gic.refresh(interface.bank)
            interface.settle()
        elif offset == GICR_WAKER and size == 4:
            interface.waker = WAKER_ASLEEP if value & 2 else 0


class Gic3(GicBase):
    """See GicBase."""

    interfaces: tuple[CpuInterface3, ...]
    version = 3
    most_cpus = virt.GICV3_CPUS

    def __init__(self, cpus: int, on_output: Callable[[int, bool], object], spis: int = virt.SPIS) -> None:
        """Raises ValueError for numbers that this GICv3 cannot have."""
        super().__init__(cpus, on_output, spis)
        self.routes: dict[int, int] = {}
        """GICD_IROUTER of the SPIs that are not routed to affinity 0.0.0.0."""
        # No1N, affinity 3 can be other than 0, numbers of 16 bits, and how many interrupts there are.
        self.typer = 1 << 25 | 1 << 24 | 0xF << 19 | spis // 32
        self.interfaces = tuple(CpuInterface3(self, cpu, virt.affinity(cpu)) for cpu in range(cpus))
        self.distributor = Distributor3(self)
        self.redistributors = Redistributors(self)

    def place(self, distributor: PhysRange, redistributors: PhysRange) -> None:
        """Put its registers to these physical addresses."""
        self.distributor.phys = distributor
        self.redistributors.phys = PhysRange.of(redistributors.start, self.redistributors.phys.size)

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
