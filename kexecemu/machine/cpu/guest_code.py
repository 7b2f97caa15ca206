"""What a stepper without native hooks knows of its guest's code: where it is, where blocks end, what has changed."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from kexecemu.machine.cpu.blockcount import LINE_SIZE
from kexecemu.machine.cpu.engine import CpuEngine
from kexecemu.machine.cpu.kernel_sites import Image
from kexecemu.machine.cpu.stepper import ends_block
from kexecemu.machine.memory.ram import Ram

if TYPE_CHECKING:
    from kexecemu.machine.cpu.system_cpu import SystemCpu

__all__ = ["GuestCode", "StaleCode"]

_WORD = struct.Struct("<I")
_PAGE: Final = 0x1000
_IC_LOOP: Final = 16
"""Instructions between two ICs of a loop over a page's lines, at most: no code of the page can run in between."""


class GuestCode:
    """Finds code in memory, and the ends of its blocks. Addresses are virtual; image is the Linux that runs, if any."""

    def __init__(self, owner: SystemCpu) -> None:
        self._owner = owner
        self._distances: dict[int, dict[int, tuple[int, bool]]] = {}  # by page, by address
        self.image: Image | None = None

    def in_image(self, virt: int) -> bool:
        """True for an address in the Linux that runs."""
        return self.image is not None and 0 <= virt - self.image.virt < self.image.size

    def phys(self, virt: int) -> int | None:
        """Where code is, without a walk for the kernel's own text, which is in one piece; None if it is nowhere."""
        if self.image is not None and self.in_image(virt):
            return virt - self.image.virt + self.image.phys
        return self._owner.code_phys(virt)

    def distance(self, virt: int) -> tuple[int, bool]:
        """Instructions from there to one that ends a block; False if there is code that is not there before one."""
        if not virt >> 63:
            return self._look_ahead(virt)
        # The kernel's own code changes only with maintenance that is seen, and forgotten by pages then.
        page = self._distances.get(virt // _PAGE)
        if page is None:
            page = self._distances[virt // _PAGE] = {}
        found = page.get(virt)
        if found is None:
            found = page[virt] = self._look_ahead(virt)
        return found

    def forget(self, virt: int | None = None) -> None:
        """Code has changed, there or anywhere; what leads up to it may begin in the page before."""
        if virt is None:
            self._distances.clear()
            return
        self._distances.pop(virt // _PAGE, None)
        self._distances.pop(virt // _PAGE - 1, None)

    def _look_ahead(self, virt: int) -> tuple[int, bool]:
        count = 0
        if virt & 3:
            return 1, False  # nothing is fetched from there
        while True:
            phys = self.phys(virt)
            # Nothing is looked for further than a page away, so that forget() forgets enough.
            if phys is None or count > _PAGE // 4:
                return max(count, 1), False
            for word in _words(self._owner.ram, phys):
                count += 1
                if ends_block(word):
                    return count, True
            virt = (virt | _PAGE - 1) + 1


def _words(ram: Ram, phys: int) -> Iterator[int]:
    """The instructions from a physical address to the end of its page."""
    view = ram.view(phys, _PAGE - phys % _PAGE)
    for (word,) in _WORD.iter_unpack(view):
        yield word


class StaleCode:
    """Code that the guest has changed and, by IC, said so: its translations are to be dropped before it runs again.

    They are not dropped in the hook that sees the IC: that has lost a running block of its patched code.
    """

    def __init__(self, engine: CpuEngine, code: GuestCode) -> None:
        self._engine = engine
        self._code = code
        self._lines: list[int] = []
        self._pages: list[int] = []
        self._all = False
        self._last_page = -1  # of the last IC, when it was, and whether the whole page is to be dropped
        self._last_time = 0
        self._whole = False
        self.el0_ran = False
        """Set when code has run at EL0: then a kernel's address may be that of a page that programs run elsewhere."""

    def __bool__(self) -> bool:
        return self._all or bool(self._lines) or bool(self._pages)

    def everything(self) -> None:
        """IC IALLU and IALLUIS."""
        self._code.forget()
        self._all = True

    def line(self, virt: int, now: int) -> bool:
        """IC IVAU, at a time in instructions; False if it is one of a loop that has said nothing new."""
        page = virt // _PAGE
        if page == self._last_page and now - self._last_time < _IC_LOOP:
            # The next line of the same page, in one loop over it: all of the page, once for all the others.
            self._last_time = now
            if self._whole:
                return False
            self._whole = True
        else:
            self._code.forget(virt)
            self._last_page, self._last_time = page, now
            self._whole = bool(virt >> 63 and self.el0_ran)
        if self._whole:
            self._pages.append(page * _PAGE)
        else:
            self._lines.append(virt - virt % LINE_SIZE)
        return True

    def drop(self) -> None:
        """Between two runs of the engine."""
        if self._all:
            self._engine.flush_code()
            self.el0_ran = False
        else:
            self._drop(self._lines, LINE_SIZE)
            self._drop(self._pages, _PAGE)
        self._lines.clear()
        self._pages.clear()
        self._all = False

    def _drop(self, places_virt: Sequence[int], size: int) -> None:
        elsewhere = []
        for virt in places_virt:
            if self._code.in_image(virt) and not self.el0_ran:
                # The kernel's own text can always be fetched; tens of thousands of lines when it patches itself.
                self._engine.drop_code(virt, size)
            else:
                elsewhere.append(self._code.phys(virt))
        if None in elsewhere:
            self._engine.flush_code()
        self._engine.drop_code_phys([phys for phys in elsewhere if phys is not None], size)
