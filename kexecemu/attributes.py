"""A file that takes another one's place: its owner, its permissions and its extended attributes."""

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress

__all__ = ["append_only", "keep_attributes"]

_OURS_TO_KEEP = ("user.", "system.")  # security. and trusted. are the system's
_FS_IOC_GETFLAGS = 0x80000000 | struct.calcsize("l") << 16 | ord("f") << 8 | 1
_FS_APPEND_FL = 0x20


def keep_attributes(fd: int, path: str, found: os.stat_result, *, executable: bool) -> bool:
    """Give an open new file what the one at path has; False where that cannot be: it is another one's, for example.

    executable lets everybody execute it who may read it.
    """
    try:
        made = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (made.st_uid, made.st_gid):
            os.fchown(fd, found.st_uid, found.st_gid)
        # Before the mode, whose bits of the group are the ACL's mask where there is one.
        _keep_extended(fd, path)
        mode = stat.S_IMODE(found.st_mode) & ~(stat.S_ISUID | stat.S_ISGID)  # as a write takes them away
        os.fchmod(fd, mode | (mode & 0o444) >> 2 if executable else mode)
    except OSError:
        return False
    return True


def _keep_extended(fd: int, path: str) -> None:
    there = _extended(path)
    for name, value in there.items():
        os.setxattr(fd, name, value)
    for name in _extended(fd).keys() - there.keys():
        os.removexattr(fd, name)  # an ACL that every new file in this folder has


def _extended(file: str | int) -> dict[str, bytes]:
    """Attributes beside those of stat(); none where a file system has none."""
    try:
        names = [name for name in os.listxattr(file) if name.startswith(_OURS_TO_KEEP)]
        return {name: os.getxattr(file, name) for name in names}
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return {}


def append_only(path: str) -> bool:
    """chattr +a: nothing in it can be replaced, and of a folder nothing taken away."""
    flags = bytearray(struct.calcsize("l"))
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        finally:
            os.close(fd)
    return bool(struct.unpack("l", flags)[0] & _FS_APPEND_FL)
