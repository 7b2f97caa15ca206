"""A PL011 UART, as much of it as a console needs: it sends at once and receives nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

from kexecemu.machine.ranges import PhysRange

__all__ = ["Pl011"]

DR = 0x000
FR = 0x018
RIS = 0x03C
MIS = 0x040
ICR = 0x044
IMSC = 0x038
ID = 0xFE0

FR_RXFE = 1 << 4
FR_TXFE = 1 << 7

INT_TX = 1 << 5

# PeriphID0-3 (part 0x011, designer 0x41, revision 1) and CellID0-3: what an AMBA bus driver looks for.
IDENTITY = bytes((0x11, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1))

# Registers that read back what was written: IBRD, FBRD, LCR_H, CR, IFLS, IMSC, DMACR; with their reset
# values.
STORED = {0x024: 0, 0x028: 0, 0x02C: 0, 0x030: 0x300, 0x034: 0x12, IMSC: 0, 0x048: 0}


_LINE_END = re.compile(r"\r\n|\n\r")


class Pl011:
    """The UART at base_phys. Everything sent is kept in `output`; listeners hear of each chunk as it is sent.

    A listener is called while a CPU runs: it must neither touch the CPU nor write guest RAM.
    """

    def __init__(self, base_phys: int = 0x09000000) -> None:
        self.base_phys = base_phys
        self.output = bytearray()
        """All bytes sent so far."""
        self.listeners: list[Callable[[bytes], object]] = []
        self._registers = dict(STORED)
        self._raw_interrupts = 0

    @property
    def phys(self) -> PhysRange:
        """The physical page of the registers."""
        return PhysRange.of(self.base_phys, 0x1000)

    @property
    def text(self) -> str:
        """The output as text, with lines that end in a line feed alone; what is not UTF-8 shows as U+FFFD.

        The carriage return that goes with a line feed may stand on either side of it: kexec-tools' purgatory sends it
        after.
        """
        return _LINE_END.sub("\n", self.output.decode("utf-8", errors="replace"))

    def transmit(self, data: bytes) -> None:
        """Send bytes: what a store to DR does, for those who write to the console from the host."""
        self.output += data
        for listener in self.listeners:
            listener(data)

    def read(self, offset: int, size: int) -> int:
        """A load of a register; unknown ones read as zero."""
        if offset == FR:
            return FR_TXFE | FR_RXFE
        if offset == RIS:
            return self._raw_interrupts
        if offset == MIS:
            return self._raw_interrupts & self._registers[IMSC]
        if offset >= ID and offset % 4 == 0:
            return IDENTITY[(offset - ID) // 4]
        return self._registers.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to a register; to an unknown or read-only one it does nothing."""
        if offset == DR:
            self._raw_interrupts |= INT_TX
            self.transmit(bytes((value & 0xFF,)))
        elif offset == ICR:
            self._raw_interrupts &= ~value
        elif offset in self._registers:
            self._registers[offset] = value & 0xFFFF
