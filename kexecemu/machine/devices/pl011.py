"""A PL011 UART (ARM DDI 0183), as much of it as a console needs.

It sends at once, so its transmit FIFO is always empty. What it receives waits on the host's side until the guest takes
it: nothing typed is ever overrun. Both receive interrupts are raised with the first byte, as nobody else could tell how
long a timeout is: IFLS is but stored.
"""

import re
from collections import deque
from collections.abc import Callable

from kexecemu.machine import virt
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CONSOLE_LIMIT", "ConsoleLines", "Pl011", "kept_of"]

DR = 0x000
FR = 0x018
LCR_H = 0x02C
RIS = 0x03C
MIS = 0x040
ICR = 0x044
IMSC = 0x038
ID = 0xFE0

FR_RXFE, FR_RXFF, FR_TXFE = 1 << 4, 1 << 6, 1 << 7

INT_RX, INT_TX, INT_RT = 1 << 4, 1 << 5, 1 << 6

LCR_H_FEN = 1 << 4  # with the FIFOs off, each is one character deep
FIFO_DEPTH = 16

# PeriphID0-3 (part 0x011, designer 0x41, revision 1) and CellID0-3: what an AMBA bus driver looks for.
IDENTITY = bytes((0x11, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1))

# Registers that read back what was written: IBRD, FBRD, LCR_H, CR, IFLS, IMSC, DMACR; with their reset
# values.
STORED = {0x024: 0, 0x028: 0, LCR_H: 0, 0x030: 0x300, 0x034: 0x12, IMSC: 0, 0x048: 0}

CONSOLE_LIMIT = 16 << 20
"""Bytes of a console that are kept: some hundred times what a boot prints."""
_FULL = f"\n[kexecemu: the console has printed {CONSOLE_LIMIT >> 20} MiB, and what follows is not kept]\n".encode()

_LINE_LIMIT = 64 << 10
_LINE_END = re.compile(r"\r\n|\n\r")


@shown("phys", "output")
class Pl011:
    """The UART at base_phys. Everything sent is kept in `output`; listeners hear of each chunk as it is sent.

    A listener is called while a CPU runs: it must neither touch the CPU nor write guest RAM. irq is the interrupt line:
    it is called with its level whenever that changes, the first time when it rises.
    """

    def __init__(self, base_phys: int = virt.UART.start, irq: Callable[[bool], object] | None = None) -> None:
        self.base_phys = base_phys
        self.phys = PhysRange.of(base_phys, virt.UART.size)
        self.output = bytearray()
        """All bytes sent so far, up to CONSOLE_LIMIT."""
        self.listeners: list[Callable[[bytes], object]] = []
        self._registers = dict(STORED)
        self._received: deque[int] = deque()
        self._raw_interrupts = 0
        self._irq = irq
        self._level = False

    @property
    def text(self) -> str:
        """The output as text, with lines that end in a line feed alone; what is not UTF-8 shows as U+FFFD.

        The carriage return that goes with a line feed may stand on either side of it: kexec-tools' purgatory sends it
        after.
        """
        return _LINE_END.sub("\n", self.output.decode("utf-8", errors="replace"))

    def transmit(self, data: bytes) -> None:
        """Send bytes: what a store to DR does, for those who write to the console from the host.

        Listeners hear all of it. Of a flood no more than CONSOLE_LIMIT bytes are kept, and a line that says so.
        """
        self.output += kept_of(len(self.output), data)
        for listener in self.listeners:
            listener(data)

    def feed(self, data: bytes) -> None:
        """Bytes typed at the console: the guest receives them, 16 at most in its FIFO at a time.

        A driver throws away what came before it was opened, as Linux does with the FIFO's length twice over.
        """
        if data:
            self._received += data
            self._raw_interrupts |= INT_RX | INT_RT
            self._drive()

    def _receive(self) -> int:
        if not self._received:
            return 0
        byte = self._received.popleft()
        if not self._received:
            self._raw_interrupts &= ~(INT_RX | INT_RT)
            self._drive()
        return byte

    def _flags(self) -> int:
        # The guest's FIFO holds the first few of what was received, as many as fit.
        waiting = len(self._received)
        if not waiting:
            return FR_TXFE | FR_RXFE
        depth = FIFO_DEPTH if self._registers[LCR_H] & LCR_H_FEN else 1
        return FR_TXFE | FR_RXFF if waiting >= depth else FR_TXFE

    def _drive(self) -> None:
        level = bool(self._raw_interrupts & self._registers[IMSC])
        if level != self._level:
            self._level = level
            if self._irq is not None:
                self._irq(level)

    def read(self, offset: int, size: int) -> int:
        """A load of a register; unknown ones read as zero."""
        if offset == FR:
            return self._flags()
        if offset == DR:
            return self._receive()
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
            if not self._raw_interrupts & INT_TX:
                self._raw_interrupts |= INT_TX
                self._drive()
            self.transmit(bytes((value & 0xFF,)))
        elif offset == ICR:
            # A receive interrupt stays for as long as there is something to take.
            self._raw_interrupts &= ~value | (INT_RX | INT_RT if self._received else 0)
            self._drive()
        elif offset in self._registers:
            self._registers[offset] = value & 0xFFFF
            if offset == IMSC:
                self._drive()


def kept_of(length: int, data: bytes) -> bytes:
    """What is kept of data behind so many bytes of a console: all, or what has room and a line that says so."""
    room = CONSOLE_LIMIT - length
    if len(data) <= room:
        return data
    return data[:room] + _FULL if room >= 0 else b""


class ConsoleLines:
    """A listener of a UART that calls on_line(line) at each line feed, with the first 64 KiB of what came before it.

    Called while a CPU runs, as every listener.
    """

    def __init__(self, on_line: Callable[[bytes], object]) -> None:
        self._on_line = on_line
        self._line = bytearray()

    def __call__(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for end in lines:
            line = (bytes(self._line) + end)[:_LINE_LIMIT]
            self._line.clear()
            self._on_line(line)
        self._line += rest[: _LINE_LIMIT - len(self._line)]
