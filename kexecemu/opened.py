"""What the name of a file stands for, as the system has it: an open file of this process, or a place in a folder."""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator

__all__ = ["descriptor", "descriptor_hindrance", "final_place", "named"]

_LINKS = 40  # as many as the kernel follows
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_OPEN_FILES = re.compile(r"/proc/([0-9]+)(?:/task/[0-9]+)?/fd")
_NUMBER = re.compile(r"[0-9]{1,6}", re.ASCII)


def named(path: str | os.PathLike[str]) -> str:
    """The path as a string; OSError for one that no system call takes."""
    name = os.fspath(path)
    if "\0" in name:
        raise OSError(errno.EINVAL, "embedded null byte", name)
    return name


def _ways(name: str) -> Iterator[tuple[str, str]]:
    """The folder that a name lies in, without links, and its last word; the same for where that leads, if it is a link.

    OSError where there is no such folder: MISSING/../file is no name of a file, whatever a look at its text says.
    """
    for _ in range(_LINKS):
        folder, last = os.path.split(name)
        if not stat.S_ISDIR(os.stat(folder or ".").st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
        folder = os.path.realpath(folder or ".", strict=True)
        yield folder, last
        try:
            name = os.path.join(folder, os.readlink(os.path.join(folder, last)))
        except OSError:
            return
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)


def final_place(name: str) -> str:
    """Where a file of that name lies, or would be made, without links. OSError where there is no folder for it."""
    folder, last = list(_ways(name))[-1]
    return os.path.join(folder, last)


def descriptor(name: str) -> int | None:
    """The number of the open file of this process that a name stands for, as /dev/stdout does; else None."""
    try:
        for folder, last in _ways(name):
            if (stream := _STREAMS.get(os.path.join(folder, last))) is not None:
                return stream
            found = _OPEN_FILES.fullmatch(folder)
            if found and int(found[1]) == os.getpid() and _NUMBER.fullmatch(last):
                return int(last)
    except OSError:
        pass
    return None


def descriptor_hindrance(number: int, *, writing: bool) -> str:
    """Why an open file cannot be read or written; "" when it can.

    Those that this process has opened itself are nobody's to name: a shell hands down what survives an exec().
    """
    try:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        if number > 2 and not os.get_inheritable(number):
            return "is no open file"
    except OSError:
        return "is no open file"
    if mode in (os.O_RDWR, os.O_WRONLY if writing else os.O_RDONLY):
        return ""
    return f"is not open for {'writing' if writing else 'reading'}"
