"""A split virtqueue of virtio 1.2, section 2.7, from the device's side.

Everything in a ring is the driver's word and may be wrong: whatever breaks the rules raises RingError, and the
transport then tells the driver that the device needs a reset. A chain is looked at whole before anything is done with
it, so a bad one changes nothing.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kexecemu.errors import BusError
from kexecemu.machine.memory.ram import Ram
from kexecemu.shown import shown

__all__ = ["RING_EVENT_IDX", "RING_INDIRECT_DESC", "TABLE_MAX", "Chain", "RingError", "Virtqueue"]

RING_INDIRECT_DESC = 1 << 28
RING_EVENT_IDX = 1 << 29

_DESC = struct.Struct("<QIHH")  # addr, len, flags, next
_INDEX = struct.Struct("<HH")  # flags, idx: how the available and the used ring begin
_USED = struct.Struct("<II")  # id, len
_U16 = struct.Struct("<H")

_NEXT, _WRITE, _INDIRECT = 1, 2, 4  # VIRTQ_DESC_F_
_NO_INTERRUPT = 1  # VIRTQ_AVAIL_F_

TABLE_MAX = 32768
"""Entries of an indirect table: no queue is larger, and a longer one could only loop."""

_CHAIN_BYTES = 1 << 32


class RingError(Exception):
    """The driver put something into a ring that virtio does not allow; never leaves the transport."""


@shown()
class Chain(NamedTuple):
    """One request: what the device may read of it, as it lies in RAM, and where in RAM it may answer."""

    head: int
    readable: list[memoryview]
    writable: list[tuple[int, int]]
    """(phys, length in bytes) of each part."""

    @property
    def parts(self) -> int:
        """How many buffers it has."""
        return len(self.readable) + len(self.writable)

    @property
    def bytes(self) -> int:
        """The length of all of them."""
        return sum(one.nbytes for one in self.readable) + sum(length for _, length in self.writable)


class Virtqueue:
    """The rings at three physical addresses; what was negotiated is in `features`."""

    def __init__(
        self, ram: Ram, size: int, desc_phys: int, avail_phys: int, used_phys: int, features: int
    ) -> None:
        """RingError if the rings are not in RAM, not aligned, or of a size that is no power of 2."""
        if not 0 < size <= TABLE_MAX or size & size - 1:
            raise RingError(f"a queue of {size} descriptors")
        if desc_phys % 16 or avail_phys % 2 or used_phys % 4:
            raise RingError(f"rings not aligned: {desc_phys:#x}, {avail_phys:#x}, {used_phys:#x}")
        self._ram = ram
        self._size = size
        self._event_idx = bool(features & RING_EVENT_IDX)
        self._may_indirect = bool(features & RING_INDIRECT_DESC)
        event = 2 if self._event_idx else 0
        try:
            self._desc = ram.view(desc_phys, 16 * size)
            self._avail = ram.view(avail_phys, 4 + 2 * size + event)
            ram.view(used_phys, 4 + 8 * size + event)
        except BusError as error:
            raise RingError(f"a ring outside RAM: {error}") from None
        self._used_phys = used_phys
        self._used_event_at = 4 + 2 * size
        self._avail_event_phys = used_phys + 4 + 8 * size
        # A view of each whole bank, because slicing one is a tenth of the price of asking for a new one.
        self._banks = [(bank.start, bank.end, ram.view(bank.start, bank.size)) for bank in ram.banks]
        # How far the device is in the rings: available, used, and used when it last spoke of an interrupt.
        self._avail_idx = self._used_idx = self._signalled_idx = 0

    def chains(self) -> Iterator[Chain]:
        """The requests that the driver has made available by now, in their order.

        The ring's index is looked at once: only the device itself could move it meanwhile, by writing an answer over
        the ring, and that must not keep it busy for ever.
        """
        _, idx = _INDEX.unpack_from(self._avail, 0)
        waiting = idx - self._avail_idx & 0xFFFF
        if waiting > self._size:
            raise RingError(f"{waiting} requests in a queue of {self._size}")
        for _ in range(waiting):
            (head,) = _U16.unpack_from(self._avail, 4 + 2 * (self._avail_idx & self._size - 1))
            chain = self._chain(head)
            self._avail_idx = self._avail_idx + 1 & 0xFFFF
            yield chain

    def push(self, chain: Chain, written: int) -> None:
        """Hand a request back: `written` bytes of its writable part, from the first on, have been written."""
        slot = self._used_phys + 4 + 8 * (self._used_idx & self._size - 1)
        self._ram.write_dma(slot, _USED.pack(chain.head, written))
        self._used_idx = self._used_idx + 1 & 0xFFFF

    def publish(self) -> bool:
        """Let the driver see what push() handed back; True if it wants an interrupt for that."""
        old, new = self._signalled_idx, self._used_idx
        self._ram.write_dma(self._used_phys, _INDEX.pack(0, new))
        self._signalled_idx = new
        if not self._event_idx:
            flags, _ = _INDEX.unpack_from(self._avail, 0)
            return old != new and not flags & _NO_INTERRUPT
        # Tell the driver to notify us of its very next request.
        self._ram.write_dma(self._avail_event_phys, _U16.pack(self._avail_idx))
        (event,) = _U16.unpack_from(self._avail, self._used_event_at)
        # vring_need_event(): is the index that the driver waits for among those just passed?
        return bool((new - event - 1) & 0xFFFF < (new - old) & 0xFFFF)

    def _chain(self, head: int) -> Chain:
        """The chain of descriptors that begins at head, every one of them checked."""
        table, entries, indirect = self._desc, self._size, False
        index, seen, total = head, 0, 0
        readable: list[memoryview] = []
        writable: list[tuple[int, int]] = []
        while True:
            if index >= entries:
                raise RingError(f"descriptor {index} of a table of {entries}")
            if seen == entries:
                raise RingError(f"the chain from descriptor {head} has a loop")
            seen += 1
            phys, length, flags, index = _DESC.unpack_from(table, 16 * index)
            if flags & _INDIRECT:
                if indirect or flags & _NEXT or not self._may_indirect:
                    raise RingError("an indirect table where none may be")
                if not length or length % 16 or length > 16 * TABLE_MAX:
                    raise RingError(f"an indirect table of {length} bytes")
                table, entries, indirect = self._slice(phys, length), length // 16, True
                index = seen = 0
                continue
            part = self._slice(phys, length)
            if not length:
                raise RingError("a buffer of no bytes")
            if flags & _WRITE:
                writable.append((phys, length))
            elif writable:
                raise RingError("a readable buffer behind a writable one")
            else:
                readable.append(part)
            total += length
            if not flags & _NEXT:
                break
        if total > _CHAIN_BYTES:
            raise RingError(f"a request of {total:#x} bytes")
        return Chain(head, readable, writable)

    def _slice(self, phys: int, length: int) -> memoryview:
        for start, end, view in self._banks:
            if start <= phys and phys + length <= end:
                return view[phys - start : phys - start + length]
        raise RingError(f"a buffer outside RAM: {phys:#x}, length {length:#x}")
