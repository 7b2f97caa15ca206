"""An initrd made larger, so that a scenario can have an image of a real size without a file of that size."""

import hashlib

from kexecemu.errors import InputError
from kexecemu.formats.cpio import CpioEntry, build

__all__ = ["padded_initrd"]

_BLOCK = 512  # what an archive is a multiple of
_ALIGN = 4  # where the next archive of an initramfs may begin


def padded_initrd(initrd: bytes, size: int) -> bytes:
    """`initrd` followed by a second archive, so that all is `size` bytes: an initramfs may be several in a row.

    The archive holds one file, "padding", of bytes that look compressed and are the same everywhere; what is too
    little for a block at the end is zeros, which the kernel skips. Raises InputError when there is no room for that.
    """
    start = -(-len(initrd) // _ALIGN) * _ALIGN
    empty = len(build([CpioEntry.file("padding", b"")]))
    room = (size - start) // _BLOCK * _BLOCK - empty
    if room <= 0:
        least = start + empty + _BLOCK
        raise InputError(f"initrd_size is {size} bytes, but with this initrd it has to be {least} or more")
    padding = hashlib.shake_128(b"kexecemu padding").digest(room)
    return (initrd.ljust(start, b"\0") + build([CpioEntry.file("padding", padding)])).ljust(size, b"\0")
