"""A GICv2: distributor and CPU interfaces, after ARM IHI 0048B, with the identity of the one in QEMU's virt.

Implementation choices, all QEMU's: no security extensions, but two groups; 8 bits of priority; SGIs always enabled; a
running priority that is kept in the active priorities registers and nowhere else. FIQ is wired to nothing: with
GICC_CTLR.FIQEn, Group 0 is never signalled, though it can still be acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable

from kexecemu.machine import virt
from kexecemu.machine.devices import gic_bank
from kexecemu.machine.devices.gic_base import SPURIOUS, GicBase
from kexecemu.machine.devices.gic_cpu_interface import GICC_CTLR, CpuInterface
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import FIRST_SPI
from kexecemu.shown import shown

__all__ = ["SPURIOUS", "Distributor", "Gic2"]

GICD_CTLR, GICD_TYPER, GICD_IIDR = 0x000, 0x004, 0x008
ITARGETSR = gic_bank.IPRIORITYR_END
SGIR = 0xF00
CPENDSGIR, SPENDSGIR, SPENDSGIR_END = 0xF10, 0xF20, 0xF30
GICD_ID = 0xFD0

# PeriphID4-7, PeriphID0-3 (part 0x490, designer 0x43B: Arm; architecture 2), CellID0-3.
IDENTITY = bytes((0x04, 0, 0, 0, 0x90, 0xB4, 0x2B, 0, 0x0D, 0xF0, 0x05, 0xB1))


@shown("phys")
class Distributor:
    """The distributor as one CPU sees it: with that CPU's own interrupts 0 to 31."""

    phys = virt.GIC_DISTRIBUTOR

    def __init__(self, gic: Gic2, interface: CpuInterface) -> None:
        self._gic = gic
        self._interface = interface
        self._banks = (interface.bank, gic.spis)

    def read(self, offset: int, size: int) -> int:
        """A load from the distributor; registers that there are not read as zero."""
        if gic_bank.IGROUPR <= offset < gic_bank.IPRIORITYR:
            register = offset & ~0x7F
            own, shared = (bank.read_set(register) for bank in self._banks)
            return (own | shared) >> (offset - register) * 8 & (1 << 8 * size) - 1
        return int.from_bytes(bytes(self._read_byte(offset + n) for n in range(size)), "little")

    def _read_byte(self, offset: int) -> int:
        gic, interface = self._gic, self._interface
        if offset < gic_bank.IGROUPR:
            words = {GICD_CTLR: gic.ctlr, GICD_TYPER: gic.typer, GICD_IIDR: gic_bank.IIDR}
            return words.get(offset & ~3, 0) >> (offset & 3) * 8 & 0xFF
        if offset < ITARGETSR:
            return _at(
                interface.bank_of(offset - gic_bank.IPRIORITYR).priorities, offset - gic_bank.IPRIORITYR
            )
        if offset < gic_bank.ICFGR:
            return gic.targets_of(offset - ITARGETSR, interface)
        if offset < gic_bank.ICFGR_END:
            return sum(bank.read_config((offset - gic_bank.ICFGR) * 4, 4) for bank in self._banks)
        if CPENDSGIR <= offset < SPENDSGIR_END:
            return interface.sgi_sources[offset & 0xF]
        if offset >= GICD_ID and offset % 4 == 0:
            return _at(IDENTITY, (offset - GICD_ID) // 4)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the distributor; to a register that there is not, or is read-only, it does nothing."""
        gic = self._gic
        if offset == SGIR:
            self._send_sgi(value)
        elif gic_bank.IGROUPR <= offset < gic_bank.IPRIORITYR:
            register = offset & ~0x7F
            lane = (1 << 8 * size) - 1 << (offset - register) * 8
            bits = value << (offset - register) * 8 & lane
            for bank in self._banks:
                if lane & bank.valid:
                    bank.write_set(register, bits, lane)
                    gic.refresh(bank)
            if lane & ~gic_bank.PRIVATE:
                gic.settle_all()
            else:
                self._interface.settle()
        elif offset == GICD_CTLR:
            gic.ctlr = value & 3
            gic.refresh_all()
        else:
            for n in range(size):
                self._write_byte(offset + n, value >> 8 * n & 0xFF)
            gic.refresh_all()

    def _write_byte(self, offset: int, value: int) -> None:
        gic, interface = self._gic, self._interface
        if gic_bank.IPRIORITYR <= offset < ITARGETSR:
            interface.bank_of(offset - gic_bank.IPRIORITYR).write_priority(
                offset - gic_bank.IPRIORITYR, value
            )
        elif ITARGETSR <= offset < gic_bank.ICFGR:
            gic.set_targets(offset - ITARGETSR, value)
        elif gic_bank.ICFGR <= offset < gic_bank.ICFGR_END:
            for bank in self._banks:
                bank.write_config((offset - gic_bank.ICFGR) * 4, 4, value)
        elif CPENDSGIR <= offset < SPENDSGIR_END:
            sources = interface.sgi_sources
            sgi = offset & 0xF
            if offset < SPENDSGIR:
                sources[sgi] &= ~value & 0xFF
            else:
                sources[sgi] |= value & (1 << gic.cpus) - 1
            latch = interface.bank.latch & ~(1 << sgi)
            interface.bank.latch = latch | bool(sources[sgi]) << sgi

    def _send_sgi(self, value: int) -> None:
        sender = self._interface.cpu
        to = (value >> 16 & 0xFF, ~(1 << sender), 1 << sender, 0)[value >> 24 & 3]
        sgi = value & 0xF
        for interface in self._gic.interfaces:
            if to >> interface.cpu & 1:
                interface.sgi_sources[sgi] |= 1 << sender
                interface.bank.latch |= 1 << sgi
                interface.bank.refresh()
                interface.settle()


def _at(table: bytes | bytearray, index: int) -> int:
    return table[index] if index < len(table) else 0


class Gic2(GicBase):
    """See GicBase."""

    interfaces: tuple[CpuInterface, ...]
    version = 2
    most_cpus = virt.GICV2_CPUS

    def __init__(self, cpus: int, on_output: Callable[[int, bool], object], spis: int = virt.SPIS) -> None:
        """Raises ValueError for numbers that a GICv2 cannot have."""
        super().__init__(cpus, on_output, spis)
        self.typer = spis // 32 | cpus - 1 << 5
        self.interfaces = tuple(CpuInterface(self, cpu) for cpu in range(cpus))
        self._distributors = tuple(Distributor(self, interface) for interface in self.interfaces)

    def place(self, distributor: PhysRange, cpu_interface: PhysRange) -> None:
        """Put its registers to these physical addresses."""
        for one in self._distributors:
            one.phys = distributor
        for interface in self.interfaces:
            interface.phys = cpu_interface

    def distributor(self, cpu: int) -> Distributor:
        """The distributor for this CPU's list of devices."""
        return self._distributors[cpu]

    def cpu_interface(self, cpu: int) -> CpuInterface:
        """The CPU interface for this CPU's list of devices."""
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
