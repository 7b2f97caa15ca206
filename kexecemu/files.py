"""Reading files that are files, and writing so that nothing is destroyed: one place that decides for all outputs.

A regular file is replaced, whole or not at all, by one rename: links to it are followed and stay, its permissions are
kept. What is no regular file (a device, a FIFO) and what a shell has opened already (/dev/stdout, /dev/fd/3) is written
through to. For folders see kexecemu.folders.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

from kexecemu.interrupt import undoing

__all__ = [
    "LARGEST",
    "OURS",
    "file_identity",
    "hindrance",
    "is_shared",
    "name_as_given",
    "named",
    "read_file",
]
__all__ += ["replace_file", "replacing"]

LARGEST = 4 << 30
"""Bytes of the largest file that is read: what kexec_file_load takes at most (KEXEC_FILE_SIZE_MAX)."""

_LARGEST_PIPED = 1 << 30  # of a pipe nobody knows whether it ends
_CHUNK = 1 << 20
OURS: Final = ".kexecemu."
"""Begins the name of what is yet to take its place."""
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"(?:/dev/fd|/proc/(?:self|thread-self|[0-9]+)/fd)/([0-9]{1,6})")


def named(path: str | os.PathLike[str]) -> str:
    """The path as a string; OSError for one that no system call takes."""
    name = os.fspath(path)
    if "\0" in name:
        raise OSError(errno.EINVAL, "embedded null byte", name)
    return name


def _descriptor(path: str) -> int | None:
    """The number of the open file that a path stands for, as /dev/stdout does; None for any other path."""
    for _ in range(40):  # as many links as the kernel follows
        path = os.path.abspath(path)
        if path in _STREAMS:
            return _STREAMS[path]
        if match := _DESCRIPTOR.fullmatch(path):
            return int(match[1])
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            return None
    return None


def _found(path: str) -> os.stat_result | None:
    """What is there, behind all links; None for nothing."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


# -- reading -------------------------------------------------------------------------------------------------------


def read_file(path: str | os.PathLike[str], most: int = LARGEST) -> bytes:
    """The bytes of a file; OSError for a folder, a device or a FIFO, of which some never end, and for too many bytes.

    A pipe that a shell has opened already (<(command), /dev/stdin) is read: somebody writes there, and it ends.
    """
    name = named(path)
    opened = _descriptor(name) is not None
    _check_readable(os.stat(name), name, opened)
    # Whoever puts a FIFO there meanwhile is not waited for.
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | (0 if opened else os.O_NONBLOCK))
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        _check_readable(found, name, opened)
        most = most if stat.S_ISREG(found.st_mode) else min(most, _LARGEST_PIPED)
        data = bytearray()
        while found.st_size <= most and (chunk := file.read(max(found.st_size - len(data), 0) or _CHUNK)):
            data += chunk
            if len(data) > most:
                break
        if max(found.st_size, len(data)) > most:
            raise OSError(errno.EFBIG, f"is larger than {most:,} bytes", name)
    return bytes(data)


def _check_readable(found: os.stat_result, name: str, opened: bool) -> None:
    mode = found.st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory", name)
    if not stat.S_ISREG(mode) and not (opened and stat.S_ISFIFO(mode)):
        raise OSError(errno.EINVAL, "is no regular file", name)


# -- what can be written -------------------------------------------------------------------------------------------


def file_identity(path: str | os.PathLike[str]) -> Hashable:
    """What is equal for two paths of one file: by its inode, and where there is none yet by where the links lead."""
    with suppress(OSError):
        if (found := _found(named(path))) is not None:
            return found.st_dev, found.st_ino
    return os.path.realpath(os.fspath(path).replace("\0", "\\0"))


def is_shared(path: str | os.PathLike[str]) -> bool:
    """Several can write there and harm nothing: /dev/null, a terminal."""
    with suppress(OSError):
        found = _found(named(path))
        return found is not None and stat.S_ISCHR(found.st_mode)
    return False


def hindrance(path: str | os.PathLike[str]) -> str:
    """Why a file cannot be written; "" when it can."""
    try:
        name = named(path)
        found = _found(name)
        if _descriptor(name) is not None or (found is not None and not stat.S_ISREG(found.st_mode)):
            return _through_hindrance(name, found)
        if found is not None and not os.access(name, os.W_OK):
            return "no permission to write to it"
        if found is not None and (found.st_dev, found.st_ino) in _outer_files():
            return "is where this command's own output goes; /dev/stdout is a name for that"
        # The file is made beside its final place, so it is the folder that has to be writable.
        return _place_hindrance(os.path.dirname(os.path.realpath(name)), os.path.dirname(name) or ".")
    except OSError as error:
        return error.strerror or str(error)


def _outer_files() -> Iterator[tuple[int, int]]:
    """Where stdout and stderr are sent to: device and inode."""
    for number in (1, 2):
        with suppress(OSError):
            found = os.fstat(number)
            yield found.st_dev, found.st_ino


def _through_hindrance(name: str, found: os.stat_result | None) -> str:
    if found is None:
        return "is no open file"
    if stat.S_ISDIR(found.st_mode):
        return "is a directory"
    return "" if os.access(name, os.W_OK) else "no permission to write to it"


def _place_hindrance(folder: str, called: str) -> str:
    if not os.path.isdir(folder):
        called = called if not os.path.isdir(called) else folder
        return f"{called} is not a folder" if os.path.exists(folder) else f"there is no folder {called}"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"no permission to write into {called}"


# -- writing -------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | os.PathLike[str], *, executable: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes path's place when the block ends well: a reader sees the old one or the whole new one.

    It is made in the same folder, so that the exchange is one rename; nothing is left of it when the block fails. What
    is no regular file gets the bytes when the block has ended well. OSError names the path that was given.
    """
    name = named(path)
    try:
        found = _found(name)
        if _descriptor(name) is not None or (found is not None and not stat.S_ISREG(found.st_mode)):
            with _writing_through(name) as file:
                yield file
            return
        with _writing_beside(os.path.realpath(name), found, executable) as file:
            yield file
    except OSError as error:
        name_as_given(error, name)
        raise


def name_as_given(error: OSError, name: str) -> None:
    """An error about a temporary file is one about the file that the caller knows."""
    if error.filename is None or OURS in str(error.filename):
        error.filename, error.filename2 = name, None


@contextmanager
def _writing_beside(name: str, found: os.stat_result | None, executable: bool) -> Iterator[BinaryIO]:
    fd, temporary = _temporary(os.path.dirname(name), 0o777 if executable else 0o666)
    try:
        with undoing(lambda: os.unlink(temporary)), open(fd, "w+b") as file:
            if found is not None:
                _keep_permissions(fd, found, executable)
            yield file
        try:
            os.replace(temporary, name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            shutil.copyfile(temporary, name)  # mounted there, as a container has it: its inode has to stay
            os.unlink(temporary)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _temporary(folder: str, mode: int) -> tuple[int, str]:
    """A new file in a folder, with a name that is short whatever is to take its place."""
    for number in range(1 << 20):
        name = os.path.join(folder, f"{OURS}{os.getpid()}.{number}")
        with suppress(FileExistsError):
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), name
    raise OSError(errno.EEXIST, "too many files that others have left", folder)


def _keep_permissions(fd: int, found: os.stat_result, executable: bool) -> None:
    mode = found.st_mode & 0o777
    with suppress(PermissionError):  # another owner's: only root can keep that
        if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, mode | (mode & 0o444) >> 2 if executable else mode)


@contextmanager
def _writing_through(name: str) -> Iterator[BinaryIO]:
    """What is written goes to a file that can be sought in, and from there to where it belongs."""
    with tempfile.TemporaryFile() as spool:
        yield spool
        spool.flush()
        number = _descriptor(name)
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
        with open(os.dup(number) if number is not None else os.open(name, flags), "wb") as file:
            holes = not stat.S_ISCHR(os.fstat(file.fileno()).st_mode)
            _copy(spool.fileno(), file, holes)


def _copy(source: int, file: BinaryIO, holes: bool) -> None:
    """All bytes of an open file; without holes those that were written alone: a damaged core may have exabytes."""
    at, end = 0, os.fstat(source).st_size
    while at < end:
        if not holes:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
            except OSError:
                return
        chunk = os.pread(source, min(_CHUNK, end - at), at)
        file.write(chunk)
        at += len(chunk)


def replace_file(path: str | os.PathLike[str], data: bytes, *, executable: bool = False) -> None:
    """Write data to path, as replacing() does."""
    with replacing(path, executable=executable) as file:
        file.write(data)
