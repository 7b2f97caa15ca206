"""A bank of interrupts in a GICv3, with the registers that the distributor and the redistributors have alike."""

from __future__ import annotations

from kexecemu.machine.devices.gic_bank import SGIS, Bank, BankState
from kexecemu.shown import shown

__all__ = ["IDENTITY", "ID_REGISTERS", "Bank3", "Bank3State"]

IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER = range(0x080, 0x400, 0x80)
IPRIORITYR = 0x400
IPRIORITYR_END = 0x800
ICFGR = 0xC00
ICFGR_END = 0xD00

ID_REGISTERS = 0xFFD0
# PeriphID4-7, PeriphID0-3 (part 0x492, designer 0x43B: Arm; architecture 3), CellID0-3.
IDENTITY = bytes((0x44, 0, 0, 0, 0x92, 0xB4, 0x3B, 0, 0x0D, 0xF0, 0x05, 0xB1))

Bank3State = tuple[BankState, bytes]


@shown("valid")
class Bank3(Bank):
    """Either the 32 interrupts that one redistributor has, or the distributor's SPIs.

    Offsets are those of the distributor and of the SGI frame, which agree. All registers are 32 bits wide; those of
    the priorities can be read and written by the byte too, and every other access reads as zero and does nothing.
    """

    def __init__(self, valid: int) -> None:
        self.priorities = bytearray(valid.bit_length())
        super().__init__(valid)

    def reset(self) -> None:
        """The reset state: no SGI is enabled in a GICv3 either. The lines keep their levels."""
        super().reset()
        self.enabled = 0
        self.priorities[:] = bytes(len(self.priorities))

    def saved(self) -> Bank3State:
        """What go_back() takes."""
        return self.state(), bytes(self.priorities)

    def go_back(self, state: Bank3State) -> None:
        """Go back to a saved(); what is derived from it is left to Gic3.refresh()."""
        bank, self.priorities[:] = state
        self.restore(bank)

    def read(self, offset: int, size: int) -> int:
        """A load; registers that there are not read as zero."""
        if IPRIORITYR <= offset < IPRIORITYR_END:
            first = offset - IPRIORITYR
            return int.from_bytes(self.priorities[first : first + size], "little") if size <= 4 else 0
        if size != 4:
            return 0
        if IGROUPR <= offset < IPRIORITYR:
            register = offset & ~0x7F
            return self._set(register) >> (offset - register) * 8 & 0xFFFFFFFF
        if ICFGR <= offset < ICFGR_END:
            edge = self.edge >> (offset - ICFGR) * 4
            return sum((edge >> n & 1) << 2 * n + 1 for n in range(16))
        return 0

    def _set(self, register: int) -> int:
        if register == IGROUPR:
            return self.group
        if register in (ISENABLER, ICENABLER):
            return self.enabled
        if register in (ISPENDR, ICPENDR):
            return self.pending()
        return self.active

    def write(self, offset: int, size: int, value: int) -> None:
        """A store. What is derived from what it changes is left to Gic3.refresh()."""
        if IPRIORITYR <= offset < IPRIORITYR_END and size <= 4:
            for n in range(size):
                intid = offset - IPRIORITYR + n
                if self.valid >> intid & 1:
                    self.priorities[intid] = value >> 8 * n & 0xFF
        elif size != 4:
            return
        elif IGROUPR <= offset < IPRIORITYR:
            register = offset & ~0x7F
            shift = (offset - register) * 8
            self._write_set(register, value << shift & self.valid, 0xFFFFFFFF << shift & self.valid)
        elif ICFGR <= offset < ICFGR_END:
            first = (offset - ICFGR) * 4
            edge = sum((value >> 2 * n + 1 & 1) << first + n for n in range(16))
            # SGIs are edges for ever.
            lane = 0xFFFF << first & self.valid & ~SGIS
            self.edge = self.edge & ~lane | edge & lane

    def _write_set(self, register: int, bits: int, lane: int) -> None:
        if register == IGROUPR:
            self.group = self.group & ~lane | bits
        elif register == ISENABLER:
            self.enabled |= bits
        elif register == ICENABLER:
            self.enabled &= ~bits
        elif register == ISPENDR:
            self.latch |= bits
        elif register == ICPENDR:
            self.latch &= ~bits
        elif register == ISACTIVER:
            self.active |= bits
        else:
            self.active &= ~bits
