"""A board: RAM, the CPUs that share it, a UART, firmware, a bus master, and one clock for all of them."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Self

from kexecemu.arguments import instance, integer, number
from kexecemu.errors import InputError
from kexecemu.machine import virt
from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_SECOND
from kexecemu.machine.cpu.system_cpu import Line, SystemCpu
from kexecemu.machine.cpu.work import HostWork
from kexecemu.machine.devices.gic import Gic2
from kexecemu.machine.devices.gic3 import CpuInterface3, Gic3
from kexecemu.machine.devices.pl011 import Pl011
from kexecemu.machine.devices.pl031 import Pl031
from kexecemu.machine.devices.uart import Uart
from kexecemu.machine.devices.virtio_mmio import VirtioBus, VirtioDevice
from kexecemu.machine.memory.mmio import AbsentDevice, MmioDevice
from kexecemu.machine.memory.ram import HOST_PAGE, DmaMaster, Ram
from kexecemu.machine.psci import AFFINITY_MASK, Psci
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.timeline import Timeline
from kexecemu.shown import brief, shown

__all__ = ["Board", "parse_size"]

MAX_CPUS = virt.GICV3_CPUS


_SIZE = re.compile(r"\s*(0[xX][0-9a-fA-F]+|[0-9]+)\s*(?:([KMGT])(?:iB)?)?\s*", re.IGNORECASE | re.ASCII)
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(size: str | int) -> int:
    """Bytes in "1G", "768M", "0x1000", "512k" or a number; InputError for anything else, zero included."""
    if isinstance(size, int) and not isinstance(size, bool):
        value = size
    elif isinstance(size, str) and (match := _SIZE.fullmatch(size)):
        base = 16 if match[1][:2] in ("0x", "0X") else 10
        value = number(match[1], "not a size", base) * _SUFFIXES[(match[2] or "").upper()]
    else:
        raise InputError(f"not a size: {brief(size, room=60)} (write for example 1G, 768M or 0x40000000)")
    if value <= 0:
        raise InputError(f"not a size: {size!r} is not more than zero")
    return value


def check_numbers(cpus: int, gic: int | None) -> int:
    """The version of a board's interrupt controller; InputError when there is none such, or not with so many CPUs.

    None is as in QEMU 11.1's virt: a GICv2 for up to 8 CPUs, else a GICv3. (7.2's refuses more than 8 then.)
    """
    if not 1 <= cpus <= MAX_CPUS:
        raise InputError(f"a board has 1 to {MAX_CPUS} CPUs, not {cpus}")
    if gic not in (None, 2, 3):
        raise InputError(f"a board has a GIC of version 2 or 3, not {gic}")
    if gic == 2 and cpus > virt.GICV2_CPUS:
        raise InputError(
            f"a board with a GICv2 has 1 to {virt.GICV2_CPUS} CPUs, not {cpus}; with a GICv3 up to {MAX_CPUS}"
        )
    return gic or (2 if cpus <= virt.GICV2_CPUS else 3)


def _banks(ram: str | int | Sequence[PhysRange], base_phys: int) -> Sequence[PhysRange]:
    """The banks that a board's `ram` means."""
    if not isinstance(ram, Sequence) or isinstance(ram, str | bytes):
        size = parse_size(ram)
        if size % HOST_PAGE:
            raise InputError(f"RAM of {ram!r} is not made of whole pages of {HOST_PAGE:#x} bytes")
        return (PhysRange.of(base_phys, size),)
    return [instance(bank, PhysRange, "ram") for bank in ram]


@shown(
    "ram",
    cpus=lambda board: len(board.cpus),
    gic=lambda board: board.gic.version,
    uart_phys=lambda board: board.uart.base_phys,
    instructions=lambda board: board.instructions,
)
class Board:
    """A machine like QEMU's virt: RAM from ram_base on, a PL011 below it, PSCI by HVC; or with these elsewhere.

    ram is a size for one bank from ram_base ("1G", bytes), or the banks themselves. All CPUs are off at
    first; board.boot_cpu.reset(entry_phys, dtb_phys) does what firmware does.
    """

    def __init__(
        self,
        ram: str | int | Sequence[PhysRange] = "1G",
        cpus: int = 1,
        *,
        ram_base: int = virt.RAM_BASE,
        uart_base: int = virt.UART.start,
        absent: bool | Sequence[AbsentDevice] = False,
        gic: int | None = None,
        bbm: int = 0,
        stuck_cpus: Iterable[int] = (),
        uart: Uart | None = None,
        conduit: str = "hvc",
        gic_phys: tuple[PhysRange, PhysRange] | None = None,
        affinities: Sequence[int] | None = None,
        virtio_phys: PhysRange = virt.VIRTIO,
        disk_intid: int = virt.VIRTIO_SPI + virt.VIRTIO_SLOTS - 1,
        timer_ppis: tuple[int, int] = (virt.TIMER_PHYSICAL_PPI, virt.TIMER_VIRTUAL_PPI),
    ) -> None:
        """gic is the interrupt controller's architecture, 2 or 3; None is 2, which is for up to 8 CPUs, and else 3.

        bbm is the CPUs' level of FEAT_BBM, 0 to 3.

        A Cortex-A57 has none: with others the model kernel may build another linear map, and no code finds it in a
        register. stuck_cpus hear no interrupt once the model kernel crashes; the one that crashes is not asked.

        uart is the console in place of a PL011 at uart_base, conduit the instruction that calls PSCI, "hvc" or "smc",
        and gic_phys where the interrupt controller's registers are: the distributor's and, of a GICv2, the CPU
        interface's, of a GICv3 the redistributors'. affinities are the CPUs', as MPIDR_EL1 has them, the boot CPU's
        first.

        absent lets accesses pass to the devices that QEMU's virt has besides, where they would fault: for a kernel that
        was given QEMU's device tree and looks for those. Or it is what another board has in their place.

        virtio_phys is where the 32 virtio transports are, and disk_intid the interrupt of the last, which a capture
        kernel's disk has. timer_ppis are the interrupts of the CPUs' physical and virtual timer.

        Raises InputError when the numbers make no board, MachineError when the host cannot provide it.
        """
        gic = check_numbers(integer(cpus, "cpus"), None if gic is None else integer(gic, "gic"))
        self.stuck_cpus = virt.check_stuck(stuck_cpus, cpus)
        """Those that cannot be stopped."""
        self.bbm = virt.check_bbm(integer(bbm, "bbm"))
        """How the CPUs take a block that is replaced by a table without a break: their level of FEAT_BBM."""
        for what, base in (("ram_base", ram_base), ("uart_base", uart_base)):
            if integer(base, what, 0) % HOST_PAGE:
                raise InputError(f"{what}: {base:#x} is not the start of a page of {HOST_PAGE:#x} bytes")
        banks = _banks(ram, ram_base)
        self.gic: Gic2 | Gic3 = (Gic2 if gic == 2 else Gic3)(cpus, self._interrupt)
        if gic_phys is not None:
            self.gic.place(*gic_phys)
        self.uart: Uart = uart or Pl011(uart_base, irq=self.gic.line(virt.UART_SPI))
        self.conduit = conduit
        """The instruction that calls PSCI: hvc or smc."""
        for bank in banks:
            if bank.overlaps(self.uart.phys):
                raise InputError(f"RAM {bank} covers the UART at {self.uart.base_phys:#x}")
            if bank.end > virt.PHYS_LIMIT:
                raise InputError(f"RAM {bank} is beyond the CPU's 44 bits of physical addresses")
        self.ram = Ram(banks)
        self.work = HostWork(lambda: sum(cpu.work for cpu in self.cpus))
        """What the host has done for the guest, and how much it will do."""
        self.virtio = VirtioBus(self.ram, self.work, virtio_phys)
        self._disk_intid = disk_intid
        self.rtc = Pl031(now=lambda: self._noted // INSTRUCTIONS_PER_SECOND, irq=self.gic.line(virt.RTC_SPI))
        if isinstance(absent, bool):
            missing = virt.ABSENT + (virt.ABSENT_GICV3 if gic == 3 else ())
            absent = [AbsentDevice(phys, value) for phys, value in missing] if absent else []
        self._absent = absent
        self._timer_ppis = timer_ppis
        self._noted = 0
        self.idle = 0
        """Instructions of time in which all CPUs were waiting: run by none of them."""
        self.cpus: tuple[SystemCpu, ...] = tuple(self._cpu(index) for index in range(cpus))
        self.dma = DmaMaster(self.ram)
        self.timeline = Timeline(lambda: self.time)
        self.accounts: list[list[Any]] = []
        """Lists of what has happened on the board, kept by whoever put them here: a snapshot puts them back, too."""
        for cpu, affinity in zip(self.cpus, affinities or (), strict=False):
            cpu.mpidr = 1 << 31 | affinity & AFFINITY_MASK
            if isinstance(self.gic, Gic3):
                self.gic.interfaces[cpu.index].affinity = affinity >> 32 << 24 | affinity & 0xFFFFFF
        self._psci = Psci(self.cpus)

    def close(self) -> None:
        """Give the host's memory back; the board cannot be used afterwards."""
        for cpu in self.cpus:
            cpu.close()
        self.ram.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cpu(self, index: int) -> SystemCpu:
        devices: list[MmioDevice] = []
        registers: CpuInterface3 | None = None
        if isinstance(self.gic, Gic3):
            devices += [self.gic.distributor, self.gic.redistributors]
            registers = self.gic.cpu_interface(index)
        else:
            devices += [self.gic.distributor(index), self.gic.cpu_interface(index)]
        physical = self._timer_line(index, self.gic.line(self._timer_ppis[0], index))
        virtual = self._timer_line(index, self.gic.line(self._timer_ppis[1], index))
        devices += [self.virtio, self.rtc]
        mapped: list[MmioDevice] = [self.uart] if self.uart.phys.size else []
        for device in devices:
            if not any(map(device.phys.overlaps, [*self.ram.banks, *(one.phys for one in mapped)])):
                mapped.append(device)
        # What is left between them.
        taken = [*self.ram.banks, *(one.phys for one in mapped)]
        for absent in self._absent:
            mapped += absent.outside_of(taken)
        return SystemCpu(
            index,
            self.ram,
            mapped,
            clock=lambda: self.time,
            hypercall=lambda cpu: self._psci.call(cpu),
            conduit=self.conduit,
            physical=physical,
            virtual=virtual,
            work_end=lambda: self.work.end,
            gic_registers=registers,
        )

    def _interrupt(self, cpu: int, level: bool) -> None:
        self.cpus[cpu].set_irq(level)

    def attach(self, slot: int, device: VirtioDevice) -> None:
        """Put a virtio device into one of the 32 slots; QEMU fills them from the last one down."""
        intid = self._disk_intid if slot == virt.VIRTIO_SLOTS - 1 else virt.VIRTIO_SPI + slot
        self.virtio.attach(slot, device, self.gic.line(intid))

    @property
    def boot_cpu(self) -> SystemCpu:
        """CPU 0, the one that firmware starts."""
        return self.cpus[0]

    @property
    def instructions(self) -> int:
        """Instructions retired by all CPUs together."""
        return sum(cpu.instructions for cpu in self.cpus)

    @property
    def time(self) -> int:
        """The board's time: the instructions retired, and those that would have been while all CPUs waited."""
        return self.instructions + self.idle

    def _timer_line(self, index: int, line: Line) -> Line:
        """A timer's interrupt line, which also lets the real-time clock know what time it is when it goes up.

        That is the same in every run; a load of the clock comes from the middle of code, where nobody knows the time.
        """
        up = False

        def follow(level: bool) -> None:
            nonlocal up
            if level and not up:
                self._noted = self.cpus[index].now
            up = level
            line(level)

        return follow
