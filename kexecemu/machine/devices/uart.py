"""A board's console: what every UART has, and those of which no more is emulated than what printing needs."""

import re
from collections.abc import Callable
from copy import copy
from typing import Final, NamedTuple

from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["CONSOLE_LIMIT", "KINDS", "ConsoleLines", "PrintingUart", "Uart", "UartKind", "kept_of"]

CONSOLE_LIMIT = 16 << 20
"""Bytes of a console that are kept: some hundred times what a boot prints."""
_FULL = f"\n[kexecemu: the console has printed {CONSOLE_LIMIT >> 20} MiB, and what follows is not kept]\n".encode()

_LINE_LIMIT = 64 << 10
_LINE_END = re.compile(r"\r\n|\n\r")


_PAGE = 4096


@shown("kind", "phys", "output")
class Uart:
    """A console at base_phys. Everything sent is kept in `output`; listeners hear of each chunk as it is sent.

    A listener is called while a CPU runs: it must neither touch the CPU nor write guest RAM. phys is what the device
    takes of physical memory, whole pages; a board whose console is none that is known has one that takes nothing.
    """

    kind = ""
    """What sort of UART it is; empty for one that guest code cannot reach."""
    _state: tuple[str, ...] = ()  # the attributes that change as it runs

    def __init__(self, base_phys: int = 0, phys: PhysRange | None = None) -> None:
        self.base_phys = base_phys
        self.phys = phys or PhysRange(0, 0)
        self.output = bytearray()
        """All bytes sent so far, up to CONSOLE_LIMIT."""
        self.listeners: list[Callable[[bytes], object]] = []

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
        """Bytes typed at the console: nobody receives them here."""

    def read(self, offset: int, size: int) -> int:
        """A load of a register."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to a register."""

    def save(self) -> dict[str, object]:
        """What a snapshot holds of it besides its output."""
        return {name: copy(getattr(self, name)) for name in self._state}

    def restore(self, state: dict[str, object]) -> None:
        """Back to what save() gave."""
        self.__dict__.update({name: copy(value) for name, value in state.items()})


class UartKind(NamedTuple):
    """How a UART prints: a character goes to the register at `data` once the one at `status` says that there is room.

    Offsets are in bytes, with reg-shift 0; ready is what `status` reads as here. shift is the reg-shift of device trees
    that do not say one. others are more registers that a driver looks at before it prints, and what they read as.
    length is a register that says how many characters follow, four of them in each store to `data`; without it there is
    one.
    """

    compatible: tuple[str, ...]
    data: int
    status: int
    ready: int
    shift: int = 0
    others: tuple[tuple[int, int], ...] = ()
    length: int | None = None


KINDS: Final = {
    "8250": UartKind(
        (
            "ns16550a",
            "ns16550",
            "ns8250",
            "snps,dw-apb-uart",
        ),
        data=0,
        status=5,
        ready=0x60,  # UART_LSR_THRE, UART_LSR_TEMT
    ),
    # With registers of 32 bits.
    "8250-32": UartKind(
        (
            "brcm,bcm2835-aux-uart",
            "mediatek,mt6577-uart",
            "nvidia,tegra20-uart",
            "ti,am4372-uart",
            "ti,am654-uart",
        ),
        data=0,
        status=5,
        ready=0x60,
        shift=2,
    ),
    "meson": UartKind(
        ("amlogic,meson-gx-uart", "amlogic,meson-ao-uart", "amlogic,meson-uart"),
        data=0x00,
        status=0x0C,
        ready=1 << 22,
    ),
    "imx": UartKind(("fsl,imx6q-uart", "fsl,imx21-uart"), data=0x40, status=0xB4, ready=1 << 6),
    "lpuart": UartKind(("fsl,imx7ulp-lpuart", "fsl,imx8qxp-lpuart"), data=0x1C, status=0x14, ready=3 << 22),
    "geni": UartKind(
        ("qcom,geni-debug-uart", "qcom,geni-uart"),
        data=0x700,
        status=0x610,
        ready=1 << 30 | 1,
        others=((0x68, 2 << 8),),  # what firmware has made of the engine: a UART
        length=0x270,
    ),
    "samsung": UartKind(
        (
            "samsung,exynos4210-uart",
            "samsung,exynos5433-uart",
            "samsung,exynos850-uart",
            "samsung,exynos8895-uart",
            "google,gs101-uart",
            "apple,s5l-uart",
        ),
        data=0x20,
        status=0x10,
        ready=3 << 1,
    ),
    "scif": UartKind(("renesas,scif", "renesas,hscif"), data=0x0C, status=0x10, ready=3 << 5),
    "rz-scif": UartKind(
        ("renesas,scif-r9a07g044", "renesas,scif-r9a09g057"), data=0x06, status=0x08, ready=3 << 5
    ),
    "armada-3700": UartKind(("marvell,armada-3700-uart",), data=0x04, status=0x0C, ready=1 << 6 | 1 << 13),
    "uartdm": UartKind(("qcom,msm-uartdm",), data=0x70, status=0xA4, ready=3 << 2),
    "cadence": UartKind(("cdns,uart-r1p12", "xlnx,xuartps"), data=0x30, status=0x2C, ready=1 << 3),
}
"""By name, all but the PL011, which is emulated whole."""


class PrintingUart(Uart):
    """A UART of one of the KINDS: it sends at once, is never full, and receives nothing."""

    _state = ("_registers",)

    def __init__(self, kind: str, base_phys: int, shift: int | None = None) -> None:
        """shift is the device tree's reg-shift. KeyError for a kind that there is not."""
        self.kind = kind
        how = KINDS[kind]
        self.shift = shift = how.shift if shift is None else shift
        self._data, self._status, self._ready = how.data << shift, how.status << shift, how.ready
        self._length = -1 if how.length is None else how.length
        self._offset = base_phys % _PAGE
        self._registers: dict[int, int] = dict(how.others)
        end = base_phys + max(self._data, self._status, *(at for at, _ in how.others)) + 4
        super().__init__(base_phys, PhysRange(base_phys - self._offset, -(-end // _PAGE) * _PAGE))

    def read(self, offset: int, size: int) -> int:
        """A load of a register: that there is room, or what was stored there last."""
        at = offset - self._offset
        value = self._ready if at == self._status else self._registers.get(at, 0)
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to a register; one to the data register prints its lowest byte."""
        at = offset - self._offset
        if at == self._data:
            left = self._registers.get(self._length, 0)
            count = min(left, size) or 1
            self._registers[self._length] = max(left - count, 0)
            self.transmit(value.to_bytes(size, "little")[:count])
        else:
            self._registers[at] = value


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
