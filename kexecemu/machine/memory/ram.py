"""Guest RAM: one shared host mapping per bank, seen alike by every CPU, by DMA and by the host.

The CPUs' engines map the very same host pages, so a host write is at once what the guest loads. What it is
not is at once what the guest *executes*: an engine keeps translated code. Every host write therefore bumps
`generation`, and a CPU drops its translations before it runs on if the number has moved (see
kexecemu.machine.cpu.cpu).
"""

import ctypes
import itertools
import mmap
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from errno import ENXIO

from kexecemu.errors import BusError, InputError, MachineError
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["HOST_PAGE", "Bank", "DmaMaster", "Ram"]

HOST_PAGE = mmap.PAGESIZE
"""The host's page size in bytes: the grain in which RAM is allocated, and of Ram.data_ranges()."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

Buffer = bytes | bytearray | memoryview


@shown("phys")
class Bank:
    """One contiguous bank of RAM: a range of physical addresses and the host mapping behind it."""

    def __init__(self, phys: PhysRange) -> None:
        self.phys = phys
        # A memfd rather than anonymous memory because SEEK_DATA tells which pages were ever touched, and
        # because its pages come to be on first touch: a 64 GiB bank costs nothing until the guest uses it.
        self.fd = os.memfd_create("kexecemu-ram", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, phys.size)
            self.map = mmap.mmap(self.fd, phys.size, flags=mmap.MAP_SHARED)
        except OSError as error:
            os.close(self.fd)
            raise MachineError(f"the host cannot map {phys.size:#x} bytes of guest RAM: {error}") from error
        # A board that nobody closed gives its descriptor back with its memory.
        self._let_go = weakref.finalize(self, os.close, self.fd)
        # Only the address is kept: a live ctypes view would make the mapping impossible to close.
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def close(self) -> None:
        """Give the memory back; views that are still held keep the mapping, not the descriptor."""
        try:
            self.map.close()
        except BufferError:
            pass  # a view() outlives us: the mapping goes when the last view does
        finally:
            self._let_go()


@shown("size", "banks", "closed")
class Ram:
    """All RAM of a board. Addresses are physical, lengths are in bytes, a new byte is zero.

    Any access that is not wholly inside one bank raises BusError and changes nothing.
    """

    def __init__(self, banks: Sequence[PhysRange]) -> None:
        """Map the given banks; MachineError if they are empty, overlap, or are not whole host pages."""
        ordered = sorted(banks)
        if not ordered:
            raise MachineError("a board needs at least one bank of RAM")
        for bank in ordered:
            if not bank.size or bank.start % HOST_PAGE or bank.size % HOST_PAGE:
                raise MachineError(f"RAM bank {bank} is not made of whole pages of {HOST_PAGE:#x} bytes")
        for low, high in itertools.pairwise(ordered):
            if low.overlaps(high):
                raise MachineError(f"RAM banks {low} and {high} overlap")
        self.banks: tuple[PhysRange, ...] = tuple(ordered)
        self.mapped: tuple[Bank, ...] = tuple(Bank(bank) for bank in ordered)
        self.generation = 0
        """Bumped by each host or DMA write."""
        self.last_runner: object = None
        """Who executed guest code last; a CPU that finds another one here drops its translations."""
        self.private = False
        """The banks are mapped privately over their files (see snapshot.py): what counts is in the mappings alone."""
        self.closed = False
        """close() has been called: there is no memory any more."""

    @property
    def size(self) -> int:
        """Bytes of RAM in all banks."""
        return sum(bank.size for bank in self.banks)

    def close(self) -> None:
        """Give the host memory back. No engine that maps it may run afterwards."""
        banks, self.mapped, self.closed = self.mapped, (), True
        for bank in banks:
            bank.close()

    def _at(self, phys: int, length: int) -> tuple[Bank, int]:
        """The bank that holds [phys, phys + length) and the offset of phys in it."""
        for bank in self.mapped:
            if bank.phys.start <= phys and phys + length <= bank.phys.end and length >= 0:
                return bank, phys - bank.phys.start
        if self.closed:
            raise InputError("the board is closed: its memory is gone")
        raise BusError(phys, length)

    def __contains__(self, phys: int) -> bool:
        """True for the physical address of a byte of RAM."""
        return any(bank.start <= phys < bank.end for bank in self.banks)

    def read(self, phys: int, length: int) -> bytes:
        """`length` bytes from `phys`. Reading a page that nobody touched does not allocate it."""
        bank, offset = self._at(phys, length)
        if self.private:
            return bank.map[offset : offset + length]
        # pread() of a hole gives zeros; a load through the mapping would allocate the page for good.
        pieces: list[bytes] = []
        while length:
            piece = os.pread(bank.fd, length, offset)  # a read of 2 GiB and more comes in pieces
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def view(self, phys: int, length: int) -> memoryview:
        """A read-only window on [phys, phys + length), without a copy: later writes show through it."""
        bank, offset = self._at(phys, length)
        return memoryview(bank.map)[offset : offset + length].toreadonly()

    def write(self, phys: int, data: Buffer) -> None:
        """Store `data` at `phys`, as the host or a device does: no MMU, no permissions."""
        self.write_dma(phys, data)
        self.generation += 1

    def write_dma(self, phys: int, data: Buffer) -> None:
        """Store `data` at `phys` as write() does, but leave it to the guest when CPUs see it as code.

        A guest that lets a device load code has to invalidate the instruction cache before it runs any of it, and
        that is when a CPU drops its translations. Doing it here would cost a retranslation per request.
        """
        length = len(data) if isinstance(data, bytes | bytearray) else data.nbytes
        bank, offset = self._at(phys, length)
        bank.map[offset : offset + length] = data if isinstance(data, bytes | bytearray) else data.cast("B")

    def fill(self, phys: int, length: int, byte: int = 0) -> None:
        """Set `length` bytes from `phys` to `byte`; whole pages of zeros go back to being untouched."""
        bank, offset = self._at(phys, length)
        end = offset + length
        if byte == 0 and not self.private:
            first, last = -(-offset // HOST_PAGE) * HOST_PAGE, end // HOST_PAGE * HOST_PAGE
            if first < last:
                bank.map.madvise(mmap.MADV_REMOVE, first, last - first)
                bank.map[offset:first] = bytes(first - offset)
                offset = last
        chunk = 1 << 20
        block = bytes([byte]) * min(chunk, end - offset)
        while offset < end:
            step = min(chunk, end - offset)
            bank.map[offset : offset + step] = block[:step]
            offset += step
        self.generation += 1

    def read_u32(self, phys: int) -> int:
        """The little-endian 32-bit value at `phys` (any alignment)."""
        bank, offset = self._at(phys, 4)
        return int(_U32.unpack_from(bank.map, offset)[0])

    def read_u64(self, phys: int) -> int:
        """The little-endian 64-bit value at `phys` (any alignment)."""
        bank, offset = self._at(phys, 8)
        return int(_U64.unpack_from(bank.map, offset)[0])

    def write_u32(self, phys: int, value: int) -> None:
        """Store a 32-bit value, little-endian; bits above 31 are dropped."""
        bank, offset = self._at(phys, 4)
        _U32.pack_into(bank.map, offset, value & 0xFFFFFFFF)
        self.generation += 1

    def write_u64(self, phys: int, value: int) -> None:
        """Store a 64-bit value, little-endian; bits above 63 are dropped."""
        bank, offset = self._at(phys, 8)
        _U64.pack_into(bank.map, offset, value & 0xFFFFFFFFFFFFFFFF)
        self.generation += 1

    def read_cstring(self, phys: int, limit: int) -> bytes:
        """The bytes from `phys` to the first NUL, without it: `limit` at most, and never past the bank."""
        bank, offset = self._at(phys, 1)
        end = min(offset + limit, bank.phys.size)
        nul = bank.map.find(b"\0", offset, end)
        return bank.map[offset : end if nul < 0 else nul]

    def data_ranges(self, within: PhysRange) -> Iterator[PhysRange]:
        """The parts of `within` that were ever touched, in host pages and in order.

        `within` may span banks and gaps. All RAM outside them is zero. A page that a guest merely loaded from
        counts as touched.
        """
        if self.private:
            # The files do not know what was written since.
            for phys in self.banks:
                start, end = max(within.start, phys.start), min(within.end, phys.end)
                if start < end:
                    yield PhysRange(start, end)
            return
        for bank in self.mapped:
            position = max(within.start, bank.phys.start) - bank.phys.start
            end = min(within.end, bank.phys.end) - bank.phys.start
            while position < end:
                try:
                    data = os.lseek(bank.fd, position, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != ENXIO:  # ENXIO: nothing but a hole up to the end of the bank
                        raise
                    break
                position = min(os.lseek(bank.fd, data, os.SEEK_HOLE), end)
                if data < position:
                    yield PhysRange(bank.phys.start + data, bank.phys.start + position)


@shown()
class DmaMaster:
    """A device with direct memory access and no IOMMU in front of it.

    Page tables and permissions do not exist for it, which is the point: no protection that lives in the CPU's
    page tables can stop what it writes.
    """

    def __init__(self, ram: Ram) -> None:
        self._ram = ram

    def write(self, phys: int, data: bytes) -> None:
        """Store `data` at physical address `phys`; BusError when any byte of it is outside RAM."""
        self._ram.write(phys, data)
