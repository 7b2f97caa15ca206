"""What a stepper without native hooks knows of its guest's code: where it is, where blocks end, what has changed.

A Linux is found in memory by its Image header (Documentation/arm64/booting.rst), wherever KASLR has put it, and
searched for the encodings of MRS, MSR and SYS.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unicorn.arm64_const import UC_ARM64_INS_MRS, UC_ARM64_INS_MSR, UC_ARM64_INS_SYS

from kexecemu.errors import BusError
from kexecemu.machine.cpu.blockcount import LINE_SIZE
from kexecemu.machine.cpu.engine import CpuEngine
from kexecemu.machine.cpu.stepper import ends_block
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.machine.cpu.system_cpu import SystemCpu

__all__ = ["GuestCode", "Image", "StaleCode", "find_image", "sites"]

_WORD = struct.Struct("<I")
_PAGE: Final = 0x1000
_IC_LOOP: Final = 16
"""Instructions between two ICs of a loop over a page's lines, at most: no code of the page can run in between."""


_HEADER: Final = 64
_MAGIC_OFFSET: Final = 56
_MAGIC: Final = b"ARM\x64"
_IMAGE_SIZE_OFFSET: Final = 16
_ALIGN: Final = 64 << 10  # of the image in memory, with the largest pages
_LARGEST: Final = 128 << 20  # no kernel is: module space is not more

_MSR_SCTLR: Final = 0xD5181000
_TLBI: Final = (0, 1, 2, 3, 5, 7)  # op2 of VMALLE1, VAE1, ASIDE1, VAAE1, VALE1, VAALE1

# The three upper bytes of an instruction word, and what the whole word without its register must be.
_SOUGHT: Final = (
    (b"\xe0\x3b\xd5", (0xD53BE020, 0xD53BE040), UC_ARM64_INS_MRS),  # CNTPCT_EL0, CNTVCT_EL0
    (b"\xe2\x3b\xd5", (0xD53BE200, 0xD53BE220, 0xD53BE240), UC_ARM64_INS_MRS),  # CNTP_TVAL, CTL, CVAL_EL0
    (b"\xe3\x3b\xd5", (0xD53BE300, 0xD53BE320, 0xD53BE340), UC_ARM64_INS_MRS),  # CNTV_TVAL, CTL, CVAL_EL0
    (b"\xe1\x38\xd5", (0xD538E100,), UC_ARM64_INS_MRS),  # CNTKCTL_EL1
    (b"\x04\x38\xd5", (0xD5380400,), UC_ARM64_INS_MRS),  # ID_AA64PFR0_EL1
    (b"\xe2\x1b\xd5", (0xD51BE200, 0xD51BE220, 0xD51BE240), UC_ARM64_INS_MSR),
    (b"\xe3\x1b\xd5", (0xD51BE300, 0xD51BE320, 0xD51BE340), UC_ARM64_INS_MSR),
    (b"\xe1\x18\xd5", (0xD518E100,), UC_ARM64_INS_MSR),
    (b"\x10\x18\xd5", (_MSR_SCTLR,), UC_ARM64_INS_MSR),  # SCTLR_EL1: the MMU off, to go to another kernel
    (b"\x71\x08\xd5", (0xD5087100,), UC_ARM64_INS_SYS),  # IC IALLUIS
    (b"\x75\x08\xd5", (0xD5087500,), UC_ARM64_INS_SYS),  # IC IALLU
    (b"\x75\x0b\xd5", (0xD50B7520,), UC_ARM64_INS_SYS),  # IC IVAU
    (b"\x83\x08\xd5", tuple(0xD5088300 | op2 << 5 for op2 in _TLBI), UC_ARM64_INS_SYS),  # of all CPUs
    (b"\x87\x08\xd5", tuple(0xD5088700 | op2 << 5 for op2 in _TLBI), UC_ARM64_INS_SYS),  # of this one
)


@shown()
@dataclass(frozen=True)
class Image:
    """A kernel in memory: where its _text is, physical and virtual, and its size in bytes."""

    phys: int
    virt: int
    size: int


def find_image(ram: Ram, virt: int, phys: int) -> Image | None:
    """The Linux that holds an address of its own text, given virtual and physical; None if there is none below it."""
    start = phys - phys % _ALIGN
    for text_phys in range(start, start - _LARGEST, -_ALIGN):
        try:
            header = ram.read(text_phys, _HEADER)
        except BusError:
            return None
        if header[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] == _MAGIC:
            size = int.from_bytes(header[_IMAGE_SIZE_OFFSET : _IMAGE_SIZE_OFFSET + 8], "little")
            # A header says what it likes: a kernel is in RAM as a whole, and holds the address that it was found by.
            if phys >= text_phys + size or not any(
                bank.covers(PhysRange.of(text_phys, size)) for bank in ram.banks
            ):
                return None
            return Image(text_phys, virt - (phys - text_phys), size)
    return None


def sites(ram: Ram, image: Image) -> Iterator[tuple[int, int]]:
    """Virtual address and kind (UC_ARM64_INS_) of each instruction that matters, and of data that looks like one."""
    text = ram.read(image.phys, image.size)
    for upper, words, kind in _SOUGHT:
        at = text.find(upper)
        while at >= 0:
            if at % 4 == 1 and int.from_bytes(text[at - 1 : at + 3], "little") & ~31 in words:
                yield image.virt + at - 1, kind
                if _MSR_SCTLR in words:
                    # Switching the MMU off is done where virtual and physical addresses are the same.
                    yield image.phys + at - 1, kind
            at = text.find(upper, at + 1)


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
