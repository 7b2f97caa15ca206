"""struct kexec_segment: a piece of an image, and where it lies."""

from dataclasses import dataclass, field

from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["Segment"]


@shown()
@dataclass
class Segment:
    """One piece of a crash image: `buf` is loaded to physical `mem` and padded with zeros to `memsz` bytes.

    cma says that it lies there already, in pages of a CMA area, and is not moved at the reboot.
    name is the model's (ima, kernel, elfcorehdr, initrd, dtb, copy, page-digests, purgatory); a real kernel has none.
    The real one frees buf after the load; here it stays, so that what is in memory later can be compared with what
    was loaded.
    """

    name: str
    buf: bytes | bytearray
    mem: int
    memsz: int
    cma: bool = field(default=False, repr=False)

    @property
    def bufsz(self) -> int:
        """Bytes that come from the buffer; the rest of memsz is zeros."""
        return len(self.buf)

    @property
    def area(self) -> PhysRange:
        """The physical range that the segment fills."""
        return PhysRange.of(self.mem, self.memsz)

    def __str__(self) -> str:
        return f"{self.name} {self.area} ({self.bufsz:#x} bytes)"

    def content(self) -> bytes:
        """What memory holds right after the load: the buffer and zeros, memsz bytes."""
        return bytes(self.buf) + bytes(self.memsz - len(self.buf))
