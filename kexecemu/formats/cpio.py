"""cpio archives in the "newc" form, which is what an initramfs is (Documentation/driver-api/early-userspace/)."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

from kexecemu.shown import shown

__all__ = ["CpioEntry", "build"]

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_FIRST_INODE = 1
_BLOCK = 512


@shown()
@dataclass(frozen=True)
class CpioEntry:
    """One member: its path without a leading slash, mode with the file type, contents, and a device's numbers."""

    name: str
    mode: int
    data: bytes = b""
    major: int = 0
    minor: int = 0

    @classmethod
    def directory(cls, name: str) -> CpioEntry:
        """A directory, rwxr-xr-x."""
        return cls(name, stat.S_IFDIR | 0o755)

    @classmethod
    def file(cls, name: str, data: bytes, *, executable: bool = False) -> CpioEntry:
        """A regular file."""
        return cls(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    @classmethod
    def link(cls, name: str, target: str) -> CpioEntry:
        """A symbolic link."""
        return cls(name, stat.S_IFLNK | 0o777, target.encode())

    @classmethod
    def device(cls, name: str, major: int, minor: int) -> CpioEntry:
        """A character device, rw-------."""
        return cls(name, stat.S_IFCHR | 0o600, b"", major, minor)


def _pad4(size: int) -> bytes:
    return bytes(-size % 4)


def _record(entry: CpioEntry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # uid, gid and mtime are 0: an archive depends on its contents only. There is no checksum in this form.
    owned = (inode, entry.mode, 0, 0, links, 0, len(entry.data))
    fields = (*owned, 0, 0, entry.major, entry.minor, len(name), 0)
    head = (_MAGIC + "".join(f"{field:08X}" for field in fields)).encode() + name
    return head + _pad4(len(head)) + entry.data + _pad4(len(entry.data))


def build(entries: Iterable[CpioEntry]) -> bytes:
    """An archive of the entries in the order given, padded to blocks of 512 bytes."""
    archive = b"".join(_record(entry, inode) for inode, entry in enumerate(entries, _FIRST_INODE))
    archive += _record(CpioEntry(_TRAILER, 0), 0)
    return archive + bytes(-len(archive) % _BLOCK)
