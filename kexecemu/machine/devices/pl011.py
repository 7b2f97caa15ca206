"""A PL011 UART (ARM DDI 0183), as much of it as a console needs.

It sends at once, so its transmit FIFO is always empty. What it receives waits on the host's side until the guest takes
it: nothing typed is ever overrun. Both receive interrupts are raised with the first byte, as nobody else could tell how
long a timeout is: IFLS is but stored.
"""

from collections import deque
from collections.abc import Callable

from kexecemu.machine import virt
from kexecemu.machine.devices.uart import Uart
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["Pl011"]

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


@shown("phys", "output")
class Pl011(Uart):
    """The UART at base_phys. irq is its interrupt line.

    It is called with its level whenever that changes, the first time when it rises.
    """

    kind = "pl011"
    _state = ("_registers", "_received", "_raw_interrupts", "_level")

    def __init__(self, base_phys: int = virt.UART.start, irq: Callable[[bool], object] | None = None) -> None:
        super().__init__(base_phys, PhysRange.of(base_phys, virt.UART.size))
        self._registers = dict(STORED)
        self._received: deque[int] = deque()
        self._raw_interrupts = 0
        self._irq = irq
        self._level = False

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
