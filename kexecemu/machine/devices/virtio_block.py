"""A virtio block device (virtio 1.2, section 5.2), as drivers/block/virtio_blk.c drives it."""

import struct

from kexecemu.errors import InputError, MachineError
from kexecemu.machine.devices.disk import SECTOR, Disk
from kexecemu.machine.devices.virtqueue import Chain, RingError
from kexecemu.machine.memory.ram import Ram
from kexecemu.shown import shown

__all__ = ["VirtioBlock"]

# VIRTIO_BLK_F_, as masks.
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14


class Kind:
    """Kinds of request: VIRTIO_BLK_T_ in linux/virtio_blk.h."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


# VIRTIO_BLK_S_
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2

QUEUE_SIZE = 256
SEG_MAX = QUEUE_SIZE - 2
"""A request's header and status take a descriptor each."""

ZERO_SECTORS_MAX = 0x3FFFFF
"""The most sectors that one DISCARD or WRITE_ZEROES may ask for: QEMU's number."""

ID_BYTES = 20

_HEADER = struct.Struct("<IIQ")  # type, reserved, sector
_RANGE = struct.Struct("<QII")  # sector, num_sectors, flags

# struct virtio_blk_config up to write_zeroes_may_unmap: capacity, (size_max), seg_max, (geometry), blk_size,
# (topology, writeback), num_queues, max_discard_sectors and _seg, discard_sector_alignment,
# max_write_zeroes_sectors and _seg, write_zeroes_may_unmap. What is in parentheses belongs to features not offered.
_CONFIG = struct.Struct("<Q 4x I 4x I 8x 2x H III II B")

_UNMAP = 1  # VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP

_Parts = list[tuple[int, int]]

_PIECE = 4 << 20
"""Bytes that are read from the disk at a time."""


@shown("disk")
class VirtioBlock:
    """A disk behind a transport: a VirtioDevice with one queue.

    A flush has nothing to do: what the device has answered, the host sees, and that the host itself may crash is
    not modelled.
    """

    device_id = 2
    queue_sizes = (QUEUE_SIZE,)

    def __init__(self, disk: Disk, serial: str = "") -> None:
        """serial is what /sys/block/vda/serial shows: at most 20 bytes of ASCII; InputError otherwise."""
        if len(serial) > ID_BYTES or not serial.isascii() or "\0" in serial:
            raise InputError(f"not a disk's serial: {serial!r} (at most {ID_BYTES} characters of ASCII)")
        self.disk = disk
        self._id = serial.encode().ljust(ID_BYTES, b"\0")
        self.features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH
        self.features |= F_RO if disk.read_only else F_DISCARD | F_WRITE_ZEROES
        limits = (ZERO_SECTORS_MAX, 1, 1, ZERO_SECTORS_MAX, 1, 1)
        self.config = _CONFIG.pack(disk.size // SECTOR, SEG_MAX, SECTOR, 1, *limits)

    def serve(self, ram: Ram, queue: int, chain: Chain, features: int) -> int:
        """Do one request and write its status; RingError where its header or status has no room.

        What is wrong with a request itself (a sector beyond the end, a type that is not known) is in the status.
        """
        header, data_out = _take(chain.readable, _HEADER.size)
        if not chain.writable:
            raise RingError("a block request without a status byte")
        # The status is the last byte, however the driver has cut the request into descriptors.
        phys, length = chain.writable[-1]
        status_phys = phys + length - 1
        data_in = chain.writable[:-1]
        if length > 1:
            data_in.append((phys, length - 1))
        kind, _, sector = _HEADER.unpack(header)
        try:
            status, written = self._do(ram, kind, sector, data_out, data_in, features)
        except (OSError, MachineError):
            status, written = S_IOERR, 0
        ram.write_dma(status_phys, bytes((status,)))
        # The length counts from the first byte on, so the status is in it only when all before it was written.
        return written + 1 if written == sum(length for _, length in data_in) else written

    def _do(
        self, ram: Ram, kind: int, sector: int, data_out: list[memoryview], data_in: _Parts, features: int
    ) -> tuple[int, int]:
        """One request: its status, and how many bytes of data_in have been written."""
        match kind:
            case Kind.IN:
                return self._read(ram, sector, data_in)
            case Kind.OUT:
                return self._write(sector, data_out), 0
            case Kind.FLUSH if features & F_FLUSH:
                return S_OK, 0
            case Kind.GET_ID:
                return S_OK, _scatter(ram, data_in, 0, self._id)
            case Kind.DISCARD if features & F_DISCARD:
                return self._zero(data_out, allowed_flags=0), 0
            case Kind.WRITE_ZEROES if features & F_WRITE_ZEROES:
                return self._zero(data_out, allowed_flags=_UNMAP), 0
        return S_UNSUPP, 0

    def _in_range(self, sector: int, length: int) -> bool:
        return length % SECTOR == 0 and sector * SECTOR + length <= self.disk.size

    def _read(self, ram: Ram, sector: int, parts: list[tuple[int, int]]) -> tuple[int, int]:
        length = sum(part_length for _, part_length in parts)
        if not self._in_range(sector, length):
            return S_IOERR, 0
        offset = sector * SECTOR
        for done in range(0, length, _PIECE):
            piece = self.disk.read(offset + done, min(_PIECE, length - done))
            _scatter(ram, parts, done, piece)
        return S_OK, length

    def _write(self, sector: int, parts: list[memoryview]) -> int:
        if not self._in_range(sector, sum(part.nbytes for part in parts)):
            return S_IOERR
        self.disk.write_parts(sector * SECTOR, parts)
        return S_OK

    def _zero(self, parts: list[memoryview], allowed_flags: int) -> int:
        """DISCARD and WRITE_ZEROES alike: a discarded sector reads as zeros here."""
        data = b"".join(parts)
        if len(data) != _RANGE.size:
            return S_IOERR if len(data) < _RANGE.size else S_UNSUPP  # one range, as the configuration says
        sector, sectors, flags = _RANGE.unpack(data)
        if sectors > ZERO_SECTORS_MAX or not self._in_range(sector, sectors * SECTOR):
            return S_IOERR
        if flags & ~allowed_flags:
            return S_UNSUPP
        self.disk.zero(sector * SECTOR, sectors * SECTOR)
        return S_OK


def _take(parts: list[memoryview], length: int) -> tuple[bytes, list[memoryview]]:
    """The first `length` bytes, and what is left; RingError if there are fewer."""
    if parts and parts[0].nbytes == length:
        return bytes(parts[0]), parts[1:]
    head, rest = b"", list(parts)
    while len(head) < length:
        if not rest:
            raise RingError(f"a block request with a header of {len(head)} bytes")
        missing = length - len(head)
        head += rest[0][:missing]
        if rest[0].nbytes > missing:
            rest[0] = rest[0][missing:]
        else:
            del rest[0]
    return head, rest


def _scatter(ram: Ram, parts: list[tuple[int, int]], start: int, data: bytes) -> int:
    """Store data into the parts from their byte number `start` on, as far as they go; bytes stored."""
    view = memoryview(data)
    done = 0
    for phys, length in parts:
        if start >= length:
            start -= length
            continue
        piece = view[done : done + length - start]
        if not piece.nbytes:
            break
        ram.write_dma(phys + start, piece)
        done += piece.nbytes
        start = 0
    return done
