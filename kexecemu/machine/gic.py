"""A GICv2: distributor and CPU interfaces, after ARM IHI 0048B, with the identity of the one in QEMU's virt.

Implementation choices, all QEMU's: no security extensions, but two groups; 8 bits of priority; SGIs always enabled; a
running priority that is kept in the active priorities registers and nowhere else. FIQ is wired to nothing: with
GICC_CTLR.FIQEn, Group 0 is never signalled, though it can still be acknowledged.

Sets of interrupts are integers with bit N for interrupt N. What is derived from them is kept up to date with each
change, so that a line, an acknowledge and an end of interrupt cost a few operations each.
"""

from __future__ import annotations

from collections.abc import Callable

from kexecemu.machine.ranges import PhysRange

__all__ = ["MAX_CPUS", "SPURIOUS", "CpuInterface", "Distributor", "Gic2"]

MAX_CPUS = 8
SPURIOUS = 1023
GROUP1_PENDING = 1022

FIRST_PPI = 16
FIRST_SPI = 32
SGIS = (1 << FIRST_PPI) - 1
PRIVATE = (1 << FIRST_SPI) - 1

IDLE_PRIORITY = 0x100  # less urgent than any priority that an interrupt can have

IIDR = 0x43B  # Arm

# Offsets in the distributor.
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

# Offsets in a CPU interface.
GICC_CTLR = 0x00
PMR = 0x04
BPR = 0x08
IAR = 0x0C
EOIR = 0x10
RPR = 0x14
HPPIR = 0x18
ABPR = 0x1C
AIAR = 0x20
AEOIR = 0x24
AHPPIR = 0x28
APR = 0xD0
NSAPR = 0xE0
NSAPR_END = 0xF0
GICC_IIDR = 0xFC
DIR = 0x1000

CTLR_ACKCTL = 1 << 2
CTLR_FIQEN = 1 << 3
CTLR_CBPR = 1 << 4
CTLR_EOIMODE = 1 << 9
GICC_CTLR_MASK = 0x21F


class _Bank:
    """State of a set of interrupts: either the 32 that one CPU has for itself, or the SPIs."""

    STATE = ("level", "latch", "edge", "enabled", "group", "active")

    def __init__(self, valid: int) -> None:
        self.valid = valid
        """The interrupts that there are."""
        self.level = 0
        """What the lines are driven to."""
        self.reset()

    def reset(self) -> None:
        self.latch = 0  # pending by an edge, by a write of ISPENDR or as an SGI: until acknowledged
        self.edge = self.valid & SGIS
        self.enabled = self.valid & SGIS
        self.group = 0
        self.active = 0
        self.forwarded = 0  # enabled, and so is their group
        self.ready = 0  # what the CPU interfaces get to see: forwarded, pending, not active

    def pending(self) -> int:
        return self.latch | self.level & ~self.edge

    def refresh(self) -> None:
        self.ready = (self.latch | self.level & ~self.edge) & self.forwarded & ~self.active


class CpuInterface:
    """One CPU's interface, as a device in that CPU's physical address space."""

    STATE = ("ctlr", "pmr", "bpr", "abpr", "apr", "nsapr", "targets")

    def __init__(self, gic: Gic2, cpu: int, phys: PhysRange, interrupts: int) -> None:
        self.cpu = cpu
        self.phys = phys
        self.bank = _Bank(PRIVATE)
        self.output = False
        """The level of the CPU's IRQ input."""
        self._gic = gic
        self._spis = gic.spis
        # The CPU's own 32 and a copy of the SPIs', so that the search for the most urgent one has one table.
        self.priorities = bytearray(interrupts)
        self.sgi_sources = bytearray(FIRST_PPI)
        self.reset()

    def reset(self) -> None:
        """The reset state; the output is settled by the caller."""
        self.bank.reset()
        self.priorities[:] = bytes(len(self.priorities))
        self.sgi_sources[:] = bytes(FIRST_PPI)
        self.ctlr = self.pmr = self.bpr = self.apr = self.nsapr = 0
        self.abpr = 1
        # ITARGETSR, kept the other way round. With one CPU it reads as zero and means that one.
        self.targets = self._spis.valid if self._gic.cpus == 1 else 0
        self._next = SPURIOUS
        self._next_priority = IDLE_PRIORITY
        self._takes_next = False

    def settle(self) -> None:
        """Find the most urgent pending interrupt and drive the output accordingly."""
        ready = self.bank.ready | self._spis.ready & self.targets
        best, best_priority = SPURIOUS, IDLE_PRIORITY
        priorities = self.priorities
        while ready:
            lowest = ready & -ready
            ready ^= lowest
            intid = lowest.bit_length() - 1
            # Of equals the one with the lowest number wins.
            if priorities[intid] < best_priority:
                best, best_priority = intid, priorities[intid]
        self._next = best
        self._next_priority = best_priority
        takes = output = False
        if best_priority < self.pmr:
            group = self._is_group1(best)
            if self.ctlr >> group & 1 and best_priority & self._group_priority_mask(group) < self.running():
                takes = True
                output = bool(group or not self.ctlr & CTLR_FIQEN)
        self._takes_next = takes
        if output != self.output:
            self.output = output
            self._gic.on_output(self.cpu, output)

    def _is_group1(self, intid: int) -> int:
        return (self.bank if intid < FIRST_SPI else self._spis).group >> intid & 1

    def _group_priority_mask(self, group1: int) -> int:
        """The part of a priority that decides on preemption."""
        # ABPR counts from one: the same value splits one bit further down.
        point = self.abpr - 1 if group1 and not self.ctlr & CTLR_CBPR else self.bpr
        return 0xFE << point & 0xFF

    def running(self) -> int:
        """The running priority, IDLE_PRIORITY when nothing is being handled."""
        active = self.apr | self.nsapr
        return (active & -active).bit_length() - 1 << 1 if active else IDLE_PRIORITY

    def _visible(self, alias: bool) -> int:
        """What to answer for the next interrupt: itself, or that there is none of the register's group."""
        if self._is_group1(self._next):
            return self._next if alias or self.ctlr & CTLR_ACKCTL else GROUP1_PENDING
        return SPURIOUS if alias else self._next

    def _acknowledge(self, alias: bool = False) -> int:
        if not self._takes_next:
            return SPURIOUS
        intid = self._visible(alias)
        if intid >= GROUP1_PENDING:
            return intid
        bit = 1 << intid
        group = self._is_group1(intid)
        level = 1 << ((self._next_priority & self._group_priority_mask(group)) >> 1)
        if group:
            self.nsapr |= level
        else:
            self.apr |= level
        if intid >= FIRST_SPI:
            spis = self._spis
            spis.active |= bit
            spis.latch &= ~bit
            spis.ready &= ~bit
            self._gic.settle_targets(bit, self)
            return intid
        bank = self.bank
        bank.active |= bit
        bank.ready &= ~bit
        source = 0
        if intid < FIRST_PPI:
            # One source at a time, the lowest first: the others make it pending anew.
            sources = self.sgi_sources[intid]
            source = (sources & -sources).bit_length() - 1
            sources &= sources - 1
            self.sgi_sources[intid] = sources
            if not sources:
                bank.latch &= ~bit
        else:
            bank.latch &= ~bit
        self.settle()
        return source << 10 | intid

    def _end(self, intid: int) -> None:
        if intid >= len(self.priorities) or not self.apr | self.nsapr:
            return
        if self._is_group1(intid):
            self.nsapr &= self.nsapr - 1 if self.nsapr else 0
        elif self.apr:
            self.apr &= self.apr - 1
        if self.ctlr & CTLR_EOIMODE:
            self.settle()
        else:
            self._deactivate(intid)

    def _deactivate(self, intid: int) -> None:
        bit = 1 << intid
        bank = self.bank if intid < FIRST_SPI else self._spis
        bank.active &= ~bit
        if bank.pending() & bank.forwarded & bit:
            bank.ready |= bit
            if intid >= FIRST_SPI:
                self._gic.settle_targets(bit, self)
                return
        self.settle()

    def _pending(self, alias: bool) -> int:
        if self._next == SPURIOUS or not self.ctlr >> self._is_group1(self._next) & 1:
            return SPURIOUS
        intid = self._visible(alias)
        if intid >= FIRST_PPI:
            return intid
        sources = self.sgi_sources[intid]
        return (sources & -sources).bit_length() - 1 << 10 | intid

    def read(self, offset: int, size: int) -> int:
        """A load from the interface; registers that there are not read as zero."""
        if offset == IAR:
            return self._acknowledge()
        if offset == GICC_CTLR:
            return self.ctlr
        if offset == PMR:
            return self.pmr
        if offset == BPR:
            return self.bpr
        if offset == RPR:
            return min(self.running(), 0xFF)
        if offset in (HPPIR, AHPPIR):
            return self._pending(offset == AHPPIR)
        if offset == ABPR:
            return self.abpr
        if offset == AIAR:
            return self._acknowledge(alias=True)
        if APR <= offset < NSAPR:
            return self.apr >> (offset - APR) * 8 & 0xFFFFFFFF
        if NSAPR <= offset < NSAPR_END:
            return self.nsapr >> (offset - NSAPR) * 8 & 0xFFFFFFFF
        if offset == GICC_IIDR:
            return IIDR | 2 << 16
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the interface; to a register that there is not, or is read-only, it does nothing."""
        if offset in (EOIR, AEOIR):
            self._end(value & 0x3FF)
            return
        if offset == DIR:
            intid = value & 0x3FF
            # Without EOImode this is unpredictable; the interrupt then stays as it is.
            if self.ctlr & CTLR_EOIMODE and intid < len(self.priorities):
                self._deactivate(intid)
            return
        if offset == GICC_CTLR:
            self.ctlr = value & GICC_CTLR_MASK
        elif offset == PMR:
            self.pmr = value & 0xFF
        elif offset == BPR:
            self.bpr = value & 7
        elif offset == ABPR:
            self.abpr = max(value & 7, 1)
        elif APR <= offset < NSAPR:
            self.apr = _with_lane(self.apr, (offset - APR) * 8, 32, value)
        elif NSAPR <= offset < NSAPR_END:
            self.nsapr = _with_lane(self.nsapr, (offset - NSAPR) * 8, 32, value)
        self.settle()


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

    def _write_set(self, bank: _Bank, register: int, bits: int, lane: int) -> None:
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


class Gic2:
    """The interrupt controller of `cpus` CPUs, with `spis` shared interrupts (a multiple of 32) from 32 on.

    on_output(cpu, level) is called exactly when the IRQ signal to a CPU changes. It may come from within a register
    access of that or of another CPU, or from within set_level.
    """

    def __init__(
        self,
        cpus: int,
        on_output: Callable[[int, bool], object],
        *,
        spis: int = 256,
        distributor_phys: int = 0x08000000,
        cpu_interface_phys: int = 0x08010000,
    ) -> None:
        """Raises ValueError for numbers that a GICv2 cannot have."""
        if not 1 <= cpus <= MAX_CPUS:
            raise ValueError(f"a GICv2 has 1 to {MAX_CPUS} CPUs, not {cpus}")
        if spis % 32 or not 32 <= spis <= 960:
            raise ValueError(f"SPIs come in blocks of 32, up to 960: not {spis}")
        self.cpus = cpus
        self.on_output = on_output
        self.spis = _Bank((1 << spis) - 1 << FIRST_SPI)
        self.ctlr = 0
        self.typer = spis // 32 | cpus - 1 << 5
        self._count = FIRST_SPI + spis
        frame = PhysRange.of(cpu_interface_phys, 0x10000)
        self.interfaces = tuple(CpuInterface(self, cpu, frame, self._count) for cpu in range(cpus))
        frame = PhysRange.of(distributor_phys, 0x10000)
        self._distributors = tuple(Distributor(self, interface, frame) for interface in self.interfaces)

    def distributor(self, cpu: int) -> Distributor:
        """The device at distributor_phys for this CPU's list of devices."""
        return self._distributors[cpu]

    def cpu_interface(self, cpu: int) -> CpuInterface:
        """The device at cpu_interface_phys for this CPU's list of devices."""
        return self.interfaces[cpu]

    def output(self, cpu: int) -> bool:
        """The IRQ signal to a CPU."""
        return self.interfaces[cpu].output

    def line(self, intid: int, cpu: int = 0) -> Callable[[bool], None]:
        """The input of a PPI of `cpu` (16 to 31) or of an SPI (from 32), to hand to a device.

        Raises ValueError when there is no such input.
        """
        if not FIRST_PPI <= intid < self._count or not 0 <= cpu < self.cpus:
            raise ValueError(f"the interrupt controller has no line {intid} (CPU {cpu})")

        def drive(level: bool) -> None:
            self.set_level(intid, level, cpu)

        return drive

    def set_level(self, intid: int, level: bool, cpu: int = 0) -> None:
        """Drive an input as line() describes it; the level that it already has changes nothing."""
        bit = 1 << intid
        bank = self.spis if intid >= FIRST_SPI else self.interfaces[cpu].bank
        if not bit & bank.valid & ~SGIS:
            raise ValueError(f"the interrupt controller has no line {intid}")
        if bool(bank.level & bit) == bool(level):
            return
        bank.level ^= bit
        if level and bank.edge & bit:
            bank.latch |= bit
        ready = bank.ready
        bank.refresh()
        if ready == bank.ready:
            return
        if intid >= FIRST_SPI:
            self.settle_targets(bit, None)
        else:
            self.interfaces[cpu].settle()

    def settle_targets(self, bit: int, acting: CpuInterface | None) -> None:
        """An SPI's readiness changed: settle those it is sent to, and the one whose running priority changed."""
        for interface in self.interfaces:
            if interface.targets & bit or interface is acting:
                interface.settle()

    def settle_all(self) -> None:
        """Settle every CPU's output."""
        for interface in self.interfaces:
            interface.settle()

    def refresh(self, bank: _Bank) -> None:
        """Work out again what of a bank the CPU interfaces get to see."""
        groups = (bank.valid & ~bank.group if self.ctlr & 1 else 0) | (bank.group if self.ctlr & 2 else 0)
        bank.forwarded = bank.enabled & groups
        bank.refresh()

    def refresh_all(self) -> None:
        """Work out everything again, after what may have changed anything."""
        self.refresh(self.spis)
        for interface in self.interfaces:
            self.refresh(interface.bank)
        self.settle_all()

    def set_priority(self, intid: int, priority: int, interface: CpuInterface) -> None:
        """A store to IPRIORITYR by the interface's CPU."""
        if intid < FIRST_SPI:
            interface.priorities[intid] = priority
        elif intid < self._count:
            for each in self.interfaces:
                each.priorities[intid] = priority

    def set_targets(self, intid: int, targets: int) -> None:
        """A store to ITARGETSR; read-only for a CPU's own interrupts, and nothing at all with a single CPU."""
        bit = 1 << intid & self.spis.valid
        if self.cpus > 1:
            for interface in self.interfaces:
                interface.targets &= ~bit
                if targets >> interface.cpu & 1:
                    interface.targets |= bit

    def targets_of(self, intid: int, interface: CpuInterface) -> int:
        """A load of ITARGETSR by the interface's CPU."""
        if self.cpus == 1:
            return 0
        if intid < FIRST_SPI:
            return 1 << interface.cpu
        return sum((each.targets >> intid & 1) << each.cpu for each in self.interfaces)

    def reset(self) -> None:
        """The reset state. The lines keep the levels that their devices drive them to."""
        self.ctlr = 0
        self.spis.reset()
        for interface in self.interfaces:
            interface.reset()
        self.settle_all()

    def snapshot(self) -> tuple[object, ...]:
        """All state, for restore()."""
        return (
            self.ctlr,
            _state(self.spis),
            tuple(
                (_state(each), _state(each.bank), bytes(each.priorities), bytes(each.sgi_sources))
                for each in self.interfaces
            ),
        )

    def restore(self, snapshot: tuple[object, ...]) -> None:
        """Go back to a snapshot of a GIC of the same shape; on_output hears of the signals that this changes."""
        self.ctlr, spis, interfaces = snapshot  # type: ignore[assignment]
        _set_state(self.spis, spis)
        for each, (own, bank, priorities, sgi_sources) in zip(self.interfaces, interfaces, strict=True):  # type: ignore[call-overload]
            _set_state(each, own)
            _set_state(each.bank, bank)
            each.priorities[:] = priorities
            each.sgi_sources[:] = sgi_sources
        self.refresh_all()


def _state(of: _Bank | CpuInterface) -> tuple[int, ...]:
    return tuple(getattr(of, name) for name in of.STATE)


def _set_state(of: _Bank | CpuInterface, values: object) -> None:
    assert isinstance(values, tuple)
    for name, value in zip(of.STATE, values, strict=True):
        setattr(of, name, value)


def _with_lane(word: int, shift: int, width: int, value: int) -> int:
    lane = (1 << width) - 1
    return word & ~(lane << shift) | (value & lane) << shift


def _at(table: bytes | bytearray, index: int) -> int:
    return table[index] if index < len(table) else 0
