"""What some memory held at a moment, so that it can be told later whether it still does.

While snapshots are taken (snapshot.py) the host knows which pages were written: those are kept, and the base has the
rest. Otherwise a digest is kept of every stretch that was ever touched; all else was zeros.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Final

from kexecemu.machine.memory.ram import HOST_PAGE, Ram
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.machine.snapshot import written_pages

__all__ = ["MemoryDigest"]

_CHUNK: Final = 1 << 20


class MemoryDigest:
    """Physical areas as they were when this was made. It costs what was written, not what there is."""

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
