"""The distributor of a GICv2 (ARM IHI 0048B, 4.3): which interrupts there are, and who gets to see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexecemu.machine.devices.gic_bank import IIDR, PRIVATE, SGIS, Bank
from kexecemu.machine.devices.gic_cpu_interface import CpuInterface
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.machine.devices.gic import Gic2

__all__ = ["Distributor"]

GICD_CTLR = 0x000
GICD_TYPER = 0x004
GICD_IIDR = 0x008
IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER = range(0x080, 0x400, 0x80)
IPRIORITYR = 0x400
ITARGETSR = 0x800
ICFGR = 0xC00
ICFGR_END = 0xD00
SGIR = 0xF00
CPENDSGIR = 0xF10
SPENDSGIR = 0xF20
SPENDSGIR_END = 0xF30
GICD_ID = 0xFD0

# PeriphID4-7, PeriphID0-3 (part 0x490, designer 0x43B: Arm; architecture 2), CellID0-3.
IDENTITY = bytes((0x04, 0, 0, 0, 0x90, 0xB4, 0x2B, 0, 0x0D, 0xF0, 0x05, 0xB1))


@shown("phys")
class Distributor:
    """The distributor as one CPU sees it: with that CPU's own interrupts 0 to 31."""

    def __init__(self, gic: Gic2, interface: CpuInterface, phys: PhysRange) -> None:
        self.phys = phys
        self._gic = gic
        self._interface = interface

    def read(self, offset: int, size: int) -> int:
        """A load from the distributor; registers that there are not read as zero."""
        if IGROUPR <= offset < IPRIORITYR:
            register = offset & ~0x7F
            return self._set(register) >> (offset - register) * 8 & (1 << 8 * size) - 1
        return int.from_bytes(bytes(self._read_byte(offset + n) for n in range(size)), "little")

    def _set(self, register: int) -> int:
        own, spis = self._interface.bank, self._gic.spis
        if register == IGROUPR:
            return own.group | spis.group
        if register in (ISENABLER, ICENABLER):
            return own.enabled | spis.enabled
        if register in (ISPENDR, ICPENDR):
            return own.pending() | spis.pending()
        return own.active | spis.active

    def _read_byte(self, offset: int) -> int:
        gic, interface = self._gic, self._interface
        if offset < IGROUPR:
            words = {GICD_CTLR: gic.ctlr, GICD_TYPER: gic.typer, GICD_IIDR: IIDR}
            return words.get(offset & ~3, 0) >> (offset & 3) * 8 & 0xFF
        if offset < ITARGETSR:
            return _at(interface.priorities, offset - IPRIORITYR)
        if offset < ICFGR:
            return gic.targets_of(offset - ITARGETSR, interface)
        if offset < ICFGR_END:
            edge = (interface.bank.edge | gic.spis.edge) >> (offset - ICFGR) * 4
            return sum((edge >> n & 1) << 2 * n + 1 for n in range(4))
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
        elif IGROUPR <= offset < IPRIORITYR:
            register = offset & ~0x7F
            lane = (1 << 8 * size) - 1 << (offset - register) * 8
            bits = value << (offset - register) * 8 & lane
            own = self._interface.bank
            if lane & PRIVATE:
                self._write_set(own, register, bits, lane)
            if lane & gic.spis.valid:
                self._write_set(gic.spis, register, bits, lane)
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

    def _write_set(self, bank: Bank, register: int, bits: int, lane: int) -> None:
        bits &= bank.valid
        if register == IGROUPR:
            bank.group = bank.group & ~lane | bits
        elif register == ISENABLER:
            bank.enabled |= bits
        elif register == ICENABLER:
            bank.enabled &= ~bits | SGIS
        elif register == ISPENDR:
            bank.latch |= bits & ~SGIS
        elif register == ICPENDR:
            bank.latch &= ~bits | SGIS
        elif register == ISACTIVER:
            bank.active |= bits
        else:
            bank.active &= ~bits
        self._gic.refresh(bank)

    def _write_byte(self, offset: int, value: int) -> None:
        gic, interface = self._gic, self._interface
        if IPRIORITYR <= offset < ITARGETSR:
            gic.set_priority(offset - IPRIORITYR, value, interface)
        elif ITARGETSR <= offset < ICFGR:
            gic.set_targets(offset - ITARGETSR, value)
        elif ICFGR <= offset < ICFGR_END:
            first = (offset - ICFGR) * 4
            edge = sum((value >> 2 * n + 1 & 1) << first + n for n in range(4))
            for bank in (interface.bank, gic.spis):
                # SGIs are edges for ever.
                lane = 0xF << first & bank.valid & ~SGIS
                bank.edge = bank.edge & ~lane | edge & lane
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
