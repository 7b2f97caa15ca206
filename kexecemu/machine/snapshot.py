"""Going back to a moment: RAM by the pages that differ from a base, CPUs by their saved registers.

The base is what the host file behind the RAM holds. While a Snapshots object is there the guest's RAM is mapped
privately over that file, so every page that anybody writes becomes a copy of its own, which the host can name
(/proc/self/pagemap) and drop again (MADV_DONTNEED). Nothing watches the guest's stores, and nothing is copied that
was not written. Unicorn's own memory snapshots are not used: they crash, and they refuse page protection.
"""

import ctypes
import hashlib
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from kexecemu.errors import MachineError
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.memory.ram import HOST_PAGE, Bank, Ram
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.machine.timeline import Event
from kexecemu.shown import shown

__all__ = ["MemoryDigest", "Snapshot", "Snapshots"]

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FIXED: Final = 0x10
_MADV_DONTNEED: Final = 4
# Of a /proc/self/pagemap entry the last byte tells: present is bit 63, swapped 62, of a file or shared 61. Written is
# what is present or swapped and our own; one table makes an "X" of that, for a search that looks at no byte in Python.
_WRITTEN: Final = bytes(ord("X") if flags & 0xC0 and not flags & 0x20 else 0 for flags in range(256))
_RUN: Final = re.compile(rb"X+")


@shown()
@dataclass(frozen=True)
class Snapshot:
    """One moment of a board. pages maps (bank, offset) to the bytes of each page that differs from the base.

    devices is what is in the registers of the UART and of the interrupt controller, where stray code may store too.
    """

    pages: dict[tuple[int, int], bytes]
    cpus: list[Any]
    idle: int
    exceptions: list[list[GuestException]]
    output: bytes
    events: list[Event]
    accounts: list[list[Any]]
    devices: Any


@shown("board")
class Snapshots:
    """All snapshots of one board. The board must not be restored by anybody else meanwhile."""

    def __init__(self, board: Board) -> None:
        """RAM as it is now becomes the base. MachineError where the host does not let us."""
        self.board = board
        for bank in board.ram.mapped:
            self._map(bank, mmap.MAP_PRIVATE)
        board.ram.private = True

    def close(self) -> None:
        """Back to the base for good: everything written since is lost."""
        for bank in self.board.ram.mapped:
            self._map(bank, mmap.MAP_SHARED)
        self.board.ram.private = False

    @staticmethod
    def _map(bank: Bank, how: int) -> None:
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        where = _LIBC.mmap(bank.host_address, bank.phys.size, prot, how | _MAP_FIXED, bank.fd, 0)
        if where != bank.host_address:
            raise MachineError(f"the host cannot map RAM anew: {os.strerror(ctypes.get_errno())}")

    def take(self) -> Snapshot:
        """The board as it is now; no CPU may be running."""
        board = self.board
        pages = {}
        for number, bank in enumerate(board.ram.mapped):
            for offset in written_pages(bank):
                page = bytes(bank.map[offset : offset + HOST_PAGE])
                # Written with what was there already: two runs that are alike may differ in that.
                if page != os.pread(bank.fd, HOST_PAGE, offset):
                    pages[number, offset] = page
        return Snapshot(
            pages,
            [cpu.save() for cpu in board.cpus],
            board.idle,
            [cpu.exceptions[:] for cpu in board.cpus],
            bytes(board.uart.output),
            list(board.timeline),
            [list(one) for one in board.accounts],
            _devices(board),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot. Translated code stays: flush it where code that has run is not what it was."""
        board = self.board
        for bank in board.ram.mapped:
            if _LIBC.madvise(bank.host_address, bank.phys.size, _MADV_DONTNEED):
                raise MachineError(f"the host keeps written pages: {os.strerror(ctypes.get_errno())}")
        for (number, offset), page in snapshot.pages.items():
            board.ram.mapped[number].map[offset : offset + HOST_PAGE] = page
        for cpu, state, exceptions in zip(board.cpus, snapshot.cpus, snapshot.exceptions, strict=True):
            cpu.restore(state)
            cpu.exceptions[:] = exceptions
        board.idle = snapshot.idle
        board.uart.output[:] = snapshot.output
        board.timeline.put_back(snapshot.events)
        for account, then in zip_longest(board.accounts, snapshot.accounts, fillvalue=()):
            account[:] = then  # type: ignore[index]
        if _devices(board) != snapshot.devices:
            uart, gic = snapshot.devices
            board.uart.restore(uart)
            board.gic.restore(gic)


def _devices(board: Board) -> tuple[dict[str, Any], Any]:
    return board.uart.save(), board.gic.snapshot()


def written_pages(bank: Bank) -> list[int]:
    """Offsets of the pages of a privately mapped bank that have been written."""
    first = bank.host_address // HOST_PAGE
    count = bank.phys.size // HOST_PAGE
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            raw = os.pread(file.fileno(), count * 8, first * 8)
    except OSError as error:
        raise MachineError(f"the host does not tell which pages were written: {error}") from error
    if len(raw) != count * 8:
        raise MachineError("the host does not tell which pages were written")
    flags = raw[7::8].translate(_WRITTEN)
    return [index * HOST_PAGE for run in _RUN.finditer(flags) for index in range(run.start(), run.end())]


_CHUNK: Final = 1 << 20


class MemoryDigest:
    """Physical areas as they were when this was made, to tell later whether they still are.

    It costs what was written, not what there is: while snapshots are taken the host knows which pages were written,
    and the base has the rest. Otherwise a digest is kept of every stretch that was ever touched; all else was zeros.
    """

    def __init__(self, ram: Ram, areas: Sequence[PhysRange]) -> None:
        self._ram = ram
        self._areas: list[PhysRange] = []
        for area in areas:  # a core names the kernel's text twice
            self._areas += subtract([area], self._areas)
        self._private = ram.private
        self._pages = dict(self._written()) if ram.private else {}
        self._digests = {} if ram.private else {part: self._digest(part) for part in self._touched()}

    def changed(self) -> list[PhysRange]:
        """What is not as it was, in order of address: in whole pages, or in stretches of up to 1 MiB.

        The RAM must be mapped as it was, and with snapshots have the same base.
        """
        assert self._ram.private == self._private
        if self._private:
            now = dict(self._written())
            keys = sorted(now.keys() | self._pages.keys())
            return [part for part in keys if self._page(part, now) != self._page(part, self._pages)]
        changed = [part for part, digest in self._digests.items() if self._digest(part) != digest]
        # What nobody had touched was zeros.
        for part in subtract(list(self._touched()), list(self._digests)):
            if any(self._ram.read(part.start, part.size)):
                changed.append(part)
        return sorted(changed)

    def _written(self) -> Iterator[tuple[PhysRange, bytes]]:
        for bank in self._ram.mapped:
            for offset in written_pages(bank):
                page = PhysRange.of(bank.phys.start + offset, HOST_PAGE)
                for area in self._areas:
                    if area.overlaps(page):
                        part = PhysRange(max(page.start, area.start), min(page.end, area.end))
                        yield part, self._ram.read(part.start, part.size)

    def _page(self, part: PhysRange, written: dict[PhysRange, bytes]) -> bytes:
        """A page's bytes: those that were written, or the base's."""
        found = written.get(part)
        if found is not None:
            return found
        bank = next(bank for bank in self._ram.mapped if bank.phys.covers(part))
        return os.pread(bank.fd, part.size, part.start - bank.phys.start)

    def _touched(self) -> Iterator[PhysRange]:
        for area in self._areas:
            for touched in self._ram.data_ranges(area):
                for start in range(touched.start, touched.end, _CHUNK):
                    yield PhysRange(start, min(start + _CHUNK, touched.end))

    def _digest(self, part: PhysRange) -> bytes:
        return hashlib.sha256(self._ram.view(part.start, part.size)).digest()
