"""struct kimage, as far as a model needs it as an object."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.kernel.image.segment import Segment
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = [
    "COPY",
    "DM_CRYPT_KEYS",
    "IMA",
    "IND_DESTINATION",
    "IND_DONE",
    "IND_INDIRECTION",
    "IND_SOURCE",
    "KEXEC_ARCH_AARCH64",
    "KHO_SCRATCH",
]
__all__ += [
    "KEXEC_FILE_DEBUG",
    "KEXEC_FILE_NO_CMA",
    "KEXEC_FILE_NO_INITRAMFS",
    "KEXEC_FILE_ON_CRASH",
    "KEXEC_FILE_UNLOAD",
    "KEXEC_SEGMENT_MAX",
]
__all__ += ["PAGE_DIGESTS", "SEGMENT_NAMES", "Kimage", "PurgatoryGuard", "Segment", "pack_segments"]

KEXEC_FILE_UNLOAD = 1
KEXEC_FILE_ON_CRASH = 2
KEXEC_FILE_NO_INITRAMFS = 4
KEXEC_FILE_DEBUG, KEXEC_FILE_NO_CMA = 0x8, 0x10
KEXEC_ARCH_AARCH64 = 183 << 16
KEXEC_SEGMENT_MAX = 16

# Names of the two segments that only a purgatory has a use for: the SHA-256 of every page of the others, and all of
# the others once more.
PAGE_DIGESTS, COPY = "page-digests", "copy"
# What IMA hands on to the next kernel, the first segment where there is one; and keys for the disk of the dump.
IMA, DM_CRYPT_KEYS = "ima", "dm-crypt-keys"
# Where the scratch areas of kexec handover are.
KHO_SCRATCH = "kho-scratch"
_NAMES = ("kernel", "elfcorehdr", "initrd", "dtb", "purgatory", PAGE_DIGESTS, COPY, IMA)
SEGMENT_NAMES = (*_NAMES, DM_CRYPT_KEYS, KHO_SCRATCH)
"""All that there can be; which of them an image has is known when it is loaded."""

# Flags in the low bits of a kimage_entry_t.
IND_DESTINATION, IND_INDIRECTION, IND_DONE, IND_SOURCE = 1, 2, 4, 8


def pack_segments(segments: Sequence[Segment]) -> bytes:
    """struct kexec_segment of each: buf (which is gone after the load), bufsz, mem, memsz."""
    return b"".join(struct.pack("<4Q", 0, one.bufsz, one.mem, one.memsz) for one in segments)


@shown()
@dataclass(frozen=True)
class PurgatoryGuard:
    """The members of struct kimage_arch that are about the purgatory; addresses are physical, sizes in bytes.

    purgatory_size 0 means that it is not compared, purgatory_check 0 that it is not asked.
    """

    purgatory_mem: int
    purgatory_size: int = 0
    purgatory_digest: bytes = bytes(32)
    purgatory_check: int = 0


@shown()
@dataclass
class Kimage:
    """An image to kexec: segments in kimage order and where it starts.

    crash is False for an ordinary image (KEXEC_TYPE_DEFAULT), whose pages are moved to their places at reboot; head is
    then the first entry of the list of pages (relocation.py). A crash image lies where it runs, its head is IND_DONE.

    start is image->start, the physical address that machine_kexec() jumps to: the purgatory's entry, or the
    kernel's where there is no purgatory. control_page is where the search for the next control page begins.
    verdict_record is where the purgatory may write into the device tree: /chosen/linux,purgatory-verdict.
    purgatory is what was linked for this image, None without one. guard is what the first kernel knows of it, None
    where it knows of none: file_mode is False for an image that user space has made, whose parts the kernel ignores.
    arch_members are members of struct kimage_arch by name, numbers or bytes. table_pages hold the map of a purgatory
    that is entered with the MMU on.
    ima_pages are the physical pages in which IMA's list waits for the reboot.
    vmcoreinfo is the text that the load found and copied. Nothing here changes once the image is published.
    """

    control_page: int
    segments: list[Segment] = field(default_factory=list)
    start: int = 0
    kernel_entry: int = 0
    dtb_mem: int = 0
    control_pages: list[PhysRange] = field(default_factory=list)
    control_code_page: int = 0
    vmcoreinfo_safecopy: int = 0
    sha_regions: list[PhysRange] = field(default_factory=list)
    digest: bytes | None = None
    verdict_record: PhysRange | None = None
    crash: bool = True
    head: int = IND_DONE
    guard: PurgatoryGuard | None = None
    purgatory: LoadedPurgatory | None = None
    file_mode: bool = True
    vmcoreinfo: bytes = b""
    ima_pages: list[int] = field(default_factory=list)
    arch_members: dict[str, int | bytes] = field(default_factory=dict)
    table_pages: list[PhysRange] = field(default_factory=list)

    def segment(self, name: str) -> Segment | None:
        """The segment of that name, None if the image has none."""
        return next((one for one in self.segments if one.name == name), None)

    def segment_at(self, phys: int) -> Segment | None:
        """The segment that holds a physical address, None if none does."""
        return next((one for one in self.segments if phys in one.area), None)
