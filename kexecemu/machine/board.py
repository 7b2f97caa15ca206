"""A board: RAM, the CPUs that share it, a UART, firmware, a bus master, and one clock for all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kexecemu.errors import InputError
from kexecemu.machine.cpu import Cpu
from kexecemu.machine.dma import DmaMaster
from kexecemu.machine.pl011 import Pl011
from kexecemu.machine.psci import Psci
from kexecemu.machine.ram import HOST_PAGE, Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.timeline import Timeline

__all__ = ["Board", "parse_size"]

MAX_CPUS = 256
PHYS_LIMIT = 1 << 44  # Cortex-A57: ID_AA64MMFR0_EL1.PARange is 44 bits

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(size: str | int) -> int:
    """Bytes in "1G", "768M", "0x1000", "512k" or a number; InputError for anything else, zero included."""
    if isinstance(size, int):
        value = size
    else:
        match = re.fullmatch(r"\s*(0[xX][0-9a-fA-F]+|[0-9]+)\s*(?:([KMGT])(?:iB)?)?\s*", size, re.IGNORECASE)
        if match is None:
            raise InputError(f"not a size: {size!r} (write for example 1G, 768M or 0x40000000)")
        number = match[1]
        value = int(number, 16 if number[:2] in ("0x", "0X") else 10) * _SUFFIXES[(match[2] or "").upper()]
    if value <= 0:
        raise InputError(f"not a size: {size!r} is not more than zero")
    return value


class Board:
    """A machine like QEMU's virt: RAM from ram_base on, a PL011 below it, PSCI by HVC.

    ram is a size for one bank from ram_base ("1G", bytes), or the banks themselves. All CPUs are off at
    first; board.boot_cpu.reset(entry_phys, dtb_phys) does what firmware does.
    """

    def __init__(
        self,
        ram: str | int | Sequence[PhysRange] = "1G",
        cpus: int = 1,
        *,
        ram_base: int = 0x40000000,
        uart_base: int = 0x09000000,
    ) -> None:
        """Raises InputError when the numbers make no board, MachineError when the host cannot provide it."""
        if not 1 <= cpus <= MAX_CPUS:
            raise InputError(f"a board has 1 to {MAX_CPUS} CPUs, not {cpus}")
        if isinstance(ram, str | int):
            size = parse_size(ram)
            if size % HOST_PAGE:
                raise InputError(f"RAM of {ram!r} is not made of whole pages of {HOST_PAGE:#x} bytes")
            ram = (PhysRange.of(ram_base, size),)
        self.uart = Pl011(uart_base)
        for bank in ram:
            if bank.overlaps(self.uart.phys):
                raise InputError(f"RAM {bank} covers the UART at {uart_base:#x}")
            if bank.end > PHYS_LIMIT:
                raise InputError(f"RAM {bank} is beyond the CPU's 44 bits of physical addresses")
        self.ram = Ram(ram)
        self.cpus: tuple[Cpu, ...] = tuple(
            Cpu(index, self.ram, (self.uart,), clock=lambda: self.instructions, hypercall=self._hypercall)
            for index in range(cpus)
        )
        self.dma = DmaMaster(self.ram)
        self.timeline = Timeline(lambda: self.instructions)
        self._psci = Psci(self.cpus)

    def close(self) -> None:
        """Give the host's memory back; the board cannot be used afterwards."""
        for cpu in self.cpus:
            cpu.close()
        self.ram.close()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def boot_cpu(self) -> Cpu:
        """CPU 0, the one that firmware starts."""
        return self.cpus[0]

    @property
    def instructions(self) -> int:
        """Instructions retired by all CPUs together: the board's time."""
        return sum(cpu.instructions for cpu in self.cpus)

    def _hypercall(self, cpu: Cpu) -> str | None:
        return self._psci.call(cpu)
