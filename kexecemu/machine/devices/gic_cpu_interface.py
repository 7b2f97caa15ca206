"""The CPU interface of a GICv2: priorities, acknowledging, and the end of an interrupt (ARM IHI 0048B, 4.4)."""

from typing import Any

from kexecemu.machine import virt
from kexecemu.machine.devices.gic_bank import IIDR, PRIVATE, SGIS, Bank
from kexecemu.machine.devices.gic_base import IDLE_PRIORITY, SPURIOUS, CpuInterfaceBase, GicBase
from kexecemu.machine.virt import FIRST_PPI
from kexecemu.shown import shown

__all__ = ["CpuInterface"]

GROUP1_PENDING = 1022

GICC_CTLR, PMR, BPR, IAR, EOIR, RPR, HPPIR, ABPR, AIAR, AEOIR, AHPPIR = range(0x00, 0x2C, 4)
APR, NSAPR, NSAPR_END = 0xD0, 0xE0, 0xF0
GICC_IIDR = 0xFC
DIR = 0x1000

CTLR_ACKCTL, CTLR_FIQEN = 1 << 2, 1 << 3
GICC_CTLR_MASK = 0x21F


@shown("cpu", "phys")
class CpuInterface(CpuInterfaceBase):
    """One CPU's interface, as a device in that CPU's physical address space."""

    least = IDLE_PRIORITY
    priority_shift = 1
    least_bpr = 0
    cbpr = 1 << 4
    eoimode = 1 << 9

    phys = virt.GIC_CPU_INTERFACE

    def __init__(self, gic: GicBase, cpu: int) -> None:
        self.sgi_sources = bytearray(FIRST_PPI)
        super().__init__(gic, cpu, Bank(PRIVATE, SGIS))
        # ITARGETSR, kept the other way round. With one CPU it reads as zero and means that one.
        self.targets = self._spis.valid if self._gic.cpus == 1 else 0

    def state(self) -> tuple[Any, ...]:
        """What restore() takes."""
        return super().state(), self.targets, bytes(self.sgi_sources)

    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to a state(); the output is settled by the caller."""
        base, self.targets, self.sgi_sources[:] = state
        super().restore(base)
        self._write_ctlr(self.ctlr)

    def _write_ctlr(self, value: int) -> None:
        self.ctlr = value & GICC_CTLR_MASK
        self.enabled = [value & 1, value >> 1 & 1]
        # With FIQEn, Group 0 is a FIQ.
        self.signalled = [not value & CTLR_FIQEN, True]

    def _visible(self, alias: bool) -> int:
        """What to answer for the next interrupt: itself, or that there is none of the register's group."""
        if self.group_of(self._next):
            return self._next if alias or self.ctlr & CTLR_ACKCTL else GROUP1_PENDING
        return SPURIOUS if alias else self._next

    def _acknowledge(self, alias: bool = False) -> int:
        intid = self._visible(alias) if self._takes_next else SPURIOUS
        if intid >= GROUP1_PENDING:
            return intid
        if intid >= FIRST_PPI:
            self.activate_next()
            return intid
        # One source at a time, the lowest first: the others make it pending anew.
        sources = self.sgi_sources[intid]
        self.sgi_sources[intid] = sources & sources - 1
        self.activate_next(keep_latch=bool(sources & sources - 1))
        return _lowest(sources) << 10 | intid

    def _end(self, intid: int) -> None:
        if self.exists(intid) and (self.apr[0] or self.apr[1]):
            active = self.apr[self.group_of(intid)]
            self.apr[self.group_of(intid)] = active & active - 1 if active else 0
            self.end(intid)

    def _pending(self, alias: bool) -> int:
        intid = self._visible(alias) if self.enabled[self.group_of(self._next)] else SPURIOUS
        return intid if intid >= FIRST_PPI else _lowest(self.sgi_sources[intid]) << 10 | intid

    def read(self, offset: int, size: int) -> int:
        """A load from the interface; registers that there are not read as zero."""
        if offset == IAR:
            return self._acknowledge()
        if offset == GICC_CTLR:
            return self.ctlr
        if offset == PMR:
            return self.pmr
        if offset in (BPR, ABPR):
            return self.bpr[offset == ABPR]
        if offset == RPR:
            return min(self.running(), 0xFF)
        if offset in (HPPIR, AHPPIR):
            return self._pending(offset == AHPPIR)
        if offset == AIAR:
            return self._acknowledge(alias=True)
        if APR <= offset < NSAPR_END:
            return self.apr[offset >= NSAPR] >> offset % 16 * 8 & 0xFFFFFFFF
        if offset == GICC_IIDR:
            return IIDR | 2 << 16
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the interface; to a register that there is not, or is read-only, it does nothing."""
        if offset in (EOIR, AEOIR):
            self._end(value & 0x3FF)
            return
        if offset == DIR:
            self.write_dir(value & 0x3FF)
            return
        if offset == GICC_CTLR:
            self._write_ctlr(value)
        elif offset == PMR:
            self.pmr = value & 0xFF
        elif offset == BPR:
            self.bpr[0] = value & 7
        elif offset == ABPR:
            self.bpr[1] = max(value & 7, 1)
        elif APR <= offset < NSAPR_END:
            group, shift = int(offset >= NSAPR), offset % 16 * 8
            self.apr[group] = self.apr[group] & ~(0xFFFFFFFF << shift) | (value & 0xFFFFFFFF) << shift
        self.settle()


def _lowest(sources: int) -> int:
    """The lowest CPU that has sent an SGI; -1 where none has."""
    return (sources & -sources).bit_length() - 1
