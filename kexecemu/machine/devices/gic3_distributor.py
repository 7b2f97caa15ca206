"""The memory of a GICv3: its distributor and its redistributors (ARM IHI 0069, chapter 12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexecemu.machine.devices import gic_bank
from kexecemu.machine.devices.gic_bank import Bank
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import FIRST_SPI, REDISTRIBUTOR_SIZE
from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.machine.devices.gic3 import Gic3

__all__ = ["Distributor3", "Redistributors"]

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
    return (
        bank.read_config((offset - gic_bank.ICFGR) * 4, 16)
        if size == 4 and gic_bank.ICFGR <= offset < gic_bank.ICFGR_END
        else 0
    )


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

    def __init__(self, gic: Gic3, phys: PhysRange) -> None:
        self.phys = phys
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

    def __init__(self, gic: Gic3, phys: int) -> None:
        self.phys = PhysRange.of(phys, gic.cpus * REDISTRIBUTOR_SIZE)
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
