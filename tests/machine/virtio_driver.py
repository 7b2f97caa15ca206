"""A driver for virtio over MMIO as the specification (virtio 1.2) wants one, for whatever has registers and memory.

It knows nothing of the device under test: the emulated bus and QEMU behind qtest are driven alike.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

NEXT, WRITE, INDIRECT = 1, 2, 4
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 0x40
VERSION_1, INDIRECT_DESC, EVENT_IDX = 1 << 32, 1 << 28, 1 << 29

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13


class Machine(Protocol):
    """What a driver sees: the registers of its device, and RAM by physical address."""

    def load(self, offset: int, size: int = 4) -> int: ...

    def store(self, offset: int, value: int, size: int = 4) -> None: ...

    def read(self, phys: int, length: int) -> bytes: ...

    def write(self, phys: int, data: bytes) -> None: ...

    def settle(self, done: Callable[[], bool]) -> None:
        """Give the device the time that it needs after a notification, until done() is true."""


@dataclass
class Emulated:
    """A slot of the emulated bus, and the board's RAM; notes each level of the interrupt line."""

    bus: object
    ram: object
    slot: int = 0
    levels: list[bool] = field(default_factory=list)

    def load(self, offset: int, size: int = 4) -> int:
        return self.bus.read(self.slot * 0x200 + offset, size)

    def store(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write(self.slot * 0x200 + offset, size, value)

    def read(self, phys: int, length: int) -> bytes:
        return self.ram.read(phys, length)

    def write(self, phys: int, data: bytes) -> None:
        self.ram.write(phys, data)

    def settle(self, done: Callable[[], bool]) -> None:
        """Ours answers at once."""


class Driver:
    """One queue of one device, with its rings at `base` and room for requests behind them."""

    def __init__(self, machine: Machine, base: int, size: int = 256) -> None:
        self.machine = machine
        self.size = size
        self.desc = base
        self.avail = base + 0x4000
        self.used = base + 0x8000
        self.tables = base + 0x10000
        self.buffers = base + 0x40000
        self.avail_idx = 0
        self.features = 0
        self.interrupts = 0
        """InterruptStatus as run() found it."""

    def offered(self) -> int:
        low, high = (self._feature_word(sel) for sel in (0, 1))
        return high << 32 | low

    def _feature_word(self, sel: int) -> int:
        self.machine.store(0x14, sel)
        return self.machine.load(0x10)

    def set_up(self, features: int | None = None, queue: bool = True) -> None:
        """3.1.1 Driver initialization, in its order."""
        m = self.machine
        assert (m.load(0), m.load(4)) == (0x74726976, 2)
        m.store(0x70, 0)
        assert m.load(0x70) == 0
        m.store(0x70, ACKNOWLEDGE)
        m.store(0x70, ACKNOWLEDGE | DRIVER)
        self.features = self.offered() if features is None else features | VERSION_1
        for sel in (0, 1):
            m.store(0x24, sel)
            m.store(0x20, self.features >> 32 * sel & 0xFFFFFFFF)
        m.store(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert m.load(0x70) == ACKNOWLEDGE | DRIVER | FEATURES_OK
        if queue:
            self.set_up_queue()
        m.store(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def set_up_queue(self, index: int = 0) -> None:
        """4.2.3.2 Virtqueue configuration."""
        m = self.machine
        m.store(0x30, index)
        assert m.load(0x44) == 0
        assert m.load(0x34) >= self.size
        for phys, length in ((self.desc, 0x4000), (self.avail, 0x1000), (self.used, 0x1000)):
            m.write(phys, bytes(length))
        self.avail_idx = 0
        m.store(0x38, self.size)
        for offset, phys in ((0x80, self.desc), (0x90, self.avail), (0xA0, self.used)):
            m.store(offset, phys & 0xFFFFFFFF)
            m.store(offset + 4, phys >> 32)
        m.store(0x44, 1)

    def chain(self, parts: Sequence[tuple[int, int, bool]], first: int = 0, *, table: int = 0) -> int:
        """Describe (phys, length, writable) parts from descriptor `first` on, or in a table at phys `table`."""
        packed = bytearray()
        base = 0 if table else first
        for n, (phys, length, writable) in enumerate(parts):
            flags = (NEXT if n + 1 < len(parts) else 0) | (WRITE if writable else 0)
            packed += struct.pack("<QIHH", phys, length, flags, base + n + 1 if flags & NEXT else 0)
        if table:
            self.machine.write(table, bytes(packed))
            packed = bytearray(struct.pack("<QIHH", table, len(packed), INDIRECT, 0))
        self.machine.write(self.desc + 16 * first, bytes(packed))
        return first

    def offer(self, *heads: int) -> None:
        """Put heads into the available ring and move its index, without a notification."""
        for head in heads:
            at = self.avail + 4 + 2 * (self.avail_idx % self.size)
            self.machine.write(at, struct.pack("<H", head))
            self.avail_idx += 1
        self.machine.write(self.avail + 2, struct.pack("<H", self.avail_idx & 0xFFFF))

    def notify(self, queue: int = 0) -> None:
        """Notify, and come back when the device has done all requests or needs a reset."""
        self.machine.store(0x50, queue)
        self.machine.settle(lambda: self.used_idx() == self.avail_idx & 0xFFFF or self.needs_reset())

    def needs_reset(self) -> bool:
        return bool(self.machine.load(0x70) & NEEDS_RESET)

    def used_idx(self) -> int:
        return int(struct.unpack("<H", self.machine.read(self.used + 2, 2))[0])

    def used_entry(self, idx: int) -> tuple[int, int]:
        """(head, length) of the used ring's entry number idx."""
        return struct.unpack("<II", self.machine.read(self.used + 4 + 8 * (idx % self.size), 8))

    def avail_event(self) -> int:
        return int(struct.unpack("<H", self.machine.read(self.used + 4 + 8 * self.size, 2))[0])

    def run(self, parts: Sequence[tuple[int, int, bool]], *, indirect: bool = False) -> int:
        """One request from offering to acknowledging; the length in the used ring."""
        before = self.used_idx()
        head = self.chain(parts, table=self.tables if indirect else 0)
        self.offer(head)
        self.notify()
        assert self.used_idx() == before + 1 & 0xFFFF, "the request is not done"
        got, length = self.used_entry(before)
        assert got == head
        self.interrupts = self.machine.load(0x60)
        self.machine.store(0x64, self.interrupts)
        return length

    def ask_for_interrupt(self, used_idx: int) -> None:
        """With EVENT_IDX: the next interrupt is wanted once the used ring moves past this index."""
        self.machine.write(self.avail + 4 + 2 * self.size, struct.pack("<H", used_idx & 0xFFFF))


class BlockDriver(Driver):
    """Requests of a block device: header, data and status in descriptors of their own."""

    def request(
        self,
        kind: int,
        sector: int = 0,
        *,
        out: Sequence[tuple[int, int]] = (),
        into: Sequence[tuple[int, int]] = (),
        indirect: bool = False,
    ) -> tuple[int, int]:
        """Run one request with data parts (phys, length); its status byte and the used ring's length."""
        header, status = self.buffers, self.buffers + 0x100
        self.machine.write(header, struct.pack("<IIQ", kind, 0, sector))
        self.machine.write(status, b"\xee")
        parts = [(header, 16, False)]
        parts += [(phys, length, False) for phys, length in out]
        parts += [(phys, length, True) for phys, length in into]
        parts += [(status, 1, True)]
        length = self.run(parts, indirect=indirect)
        return self.machine.read(status, 1)[0], length
