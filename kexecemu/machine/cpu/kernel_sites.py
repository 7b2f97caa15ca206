"""Where in a running arm64 Linux the instructions are that a machine without native hooks has to see.

The kernel is found in memory by its Image header (Documentation/arm64/booting.rst), wherever KASLR has put it, and
searched for the encodings of MRS, MSR and SYS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from unicorn.arm64_const import UC_ARM64_INS_MRS, UC_ARM64_INS_MSR, UC_ARM64_INS_SYS

from kexecemu.errors import BusError
from kexecemu.machine.memory.ram import Ram
from kexecemu.shown import shown

__all__ = ["Image", "find_image", "sites"]

_HEADER: Final = 64
_MAGIC_OFFSET: Final = 56
_MAGIC: Final = b"ARM\x64"
_IMAGE_SIZE_OFFSET: Final = 16
_ALIGN: Final = 64 << 10  # of the image in memory, with the largest pages
_LARGEST: Final = 128 << 20  # no kernel is: module space is not more

_MSR_SCTLR: Final = 0xD5181000

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
            if phys >= text_phys + size:
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
