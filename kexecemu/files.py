"""Reading files that are files, and writing so that nothing is destroyed: one place that decides for all outputs.

A regular file is replaced, whole or not at all, by one rename: links to it are followed and stay, its owner, its
permissions and its ACL are kept. One for which that cannot be (another owner's, a mounted one) is overwritten when all
the bytes are there, and so is what is no regular file (a device, a FIFO) and what a shell has opened already
(/dev/stdout, /dev/fd/3). For folders see kexecemu.folders.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

from kexecemu.attributes import append_only, keep_attributes
from kexecemu.interrupt import undoing
from kexecemu.opened import descriptor, descriptor_hindrance, final_place, named

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
    number = descriptor(name)
    if number is not None and (wrong := descriptor_hindrance(number, writing=False)):
        raise OSError(errno.EBADF, wrong, name)
    _check_readable(os.stat(name), name, number is not None)
    # Whoever puts a FIFO there meanwhile is not waited for.
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | (0 if number is not None else os.O_NONBLOCK))
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        _check_readable(found, name, number is not None)
        # What has no size, as a file of /proc, may have no end either.
        most = most if found.st_size else min(most, _LARGEST_PIPED)
        if found.st_size <= most:
            data, size = b"", found.st_size + 1
            while size and (more := _now(file.read(size), name)):
                data += more
                size = most + 1 - len(data)
            if len(data) <= most:
                return data
    raise OSError(errno.EFBIG, f"is larger than {most:,} bytes", name)


def _now(data: bytes | None, name: str) -> bytes:
    """What was read; OSError where a read that waits for nobody has nothing, as of /proc/kmsg."""
    if data is None:
        raise OSError(errno.EAGAIN, "has nothing to read now: somebody would have to write to it", name)
    return data


def _check_readable(found: os.stat_result, name: str, opened: bool) -> None:
    mode = found.st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory", name)
    if not stat.S_ISREG(mode) and not (opened and stat.S_ISFIFO(mode)):
        raise OSError(errno.EINVAL, "is no regular file", name)


# -- what can be written -------------------------------------------------------------------------------------------


def file_identity(path: str | os.PathLike[str]) -> Hashable:
    """What is equal for two paths of one file: its inode, and where there is none yet its folder's and its name."""
    with suppress(OSError):
        if (found := _found(named(path))) is not None:
            return found.st_dev, found.st_ino
        folder, name = os.path.split(final_place(named(path)))
        above = os.stat(folder)
        return above.st_dev, above.st_ino, name
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
        number, found = descriptor(name), _found(name)
        if number is not None:
            return descriptor_hindrance(number, writing=True)
        if found is not None and stat.S_ISDIR(found.st_mode):
            return "is a directory"
        if found is not None and not os.access(name, os.W_OK):
            return "no permission to write to it"
        if found is None:
            return _place_hindrance(name)
        if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) in _outer_files():
            return "is where this command's own output goes; /dev/stdout is a name for that"
        return "can only be appended to" if stat.S_ISREG(found.st_mode) and append_only(name) else ""
    except OSError as error:
        return error.strerror or str(error)


def _outer_files() -> Iterator[tuple[int, int]]:
    """Where stdout and stderr are sent to: device and inode."""
    for number in (1, 2):
        with suppress(OSError):
            found = os.fstat(number)
            yield found.st_dev, found.st_ino


def _place_hindrance(name: str) -> str:
    """Why a new file cannot be made."""
    try:
        folder = os.path.dirname(final_place(name))
    except (FileNotFoundError, NotADirectoryError) as error:
        lost = os.fspath(error.filename)
        return f"{lost} is not a folder" if os.path.exists(lost) else f"there is no folder {lost}"
    called = os.path.dirname(name) or "."
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"no permission to write into {called}"
    return f"nothing in {called} can be renamed" if append_only(folder) else ""


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
        if descriptor(name) is None and (found is None or _replaceable(name, found)):
            with _writing_beside(final_place(name), found, executable) as file:
                yield file
        else:
            with tempfile.TemporaryFile() as spool:
                yield spool
                spool.flush()
                _overwrite(name, spool.fileno())
    except OSError as error:
        name_as_given(error, name)
        raise


def _replaceable(name: str, found: os.stat_result) -> bool:
    """A new file beside it may take its place."""
    if not stat.S_ISREG(found.st_mode):
        return False
    place = final_place(name)  # which another process's open file has not, if it was deleted
    there = os.path.lexists(place) and os.path.samestat(os.stat(place), found)
    return there and os.access(os.path.dirname(place), os.W_OK | os.X_OK)


def name_as_given(error: OSError, name: str) -> None:
    """An error about a temporary file, or its folder, is one about the file that the caller knows."""
    if error.filename in (None, os.path.dirname(name)) or OURS in str(error.filename):
        error.filename, error.filename2 = name, None


@contextmanager
def _writing_beside(name: str, found: os.stat_result | None, executable: bool) -> Iterator[BinaryIO]:
    fd, temporary = _temporary(os.path.dirname(name), 0o777 if executable else 0o666)
    try:
        with undoing(lambda: os.unlink(temporary)), open(fd, "w+b") as file:
            kept = found is None or keep_attributes(fd, name, found, executable=executable)
            yield file
            file.flush()
            if not kept or not _renamed(temporary, name):
                _overwrite(name, fd)
                os.unlink(temporary)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _renamed(temporary: str, name: str) -> bool:
    """Whether it has taken the other one's place. Its inode has to stay where it is mounted, as a container has it."""
    try:
        os.replace(temporary, name)
    except OSError as error:
        # EPERM: in a sticky folder files of others are not replaced; nor is there anything to overwrite without one.
        if error.errno not in (errno.EBUSY, errno.EPERM) or not os.path.lexists(name):
            raise
        return False
    return True


def _temporary(folder: str, mode: int) -> tuple[int, str]:
    """A new file in a folder, with a name that is short whatever is to take its place."""
    for number in range(1 << 20):
        name = os.path.join(folder, f"{OURS}{os.getpid()}.{number}")
        with suppress(FileExistsError):
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), name
    raise OSError(errno.EEXIST, "too many files that others have left", folder)


def _overwrite(name: str, source: int) -> None:
    """All bytes of an open file into one that is there and stays: a device, a FIFO, an open one, another owner's."""
    number = descriptor(name)
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
    with open(os.dup(number) if number is not None else os.open(name, flags), "wb") as file:
        found, size = os.fstat(file.fileno()), os.fstat(source)
        whole = stat.S_ISREG(found.st_mode) and number is None
        if whole:
            disk = os.fstatvfs(file.fileno())
            if 512 * (size.st_blocks - found.st_blocks) > disk.f_bavail * disk.f_frsize:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)  # and it is as it was
            file.truncate(0)
        for at, chunk in _chunks(source, holes=not whole and not stat.S_ISCHR(found.st_mode)):
            if whole:
                file.seek(at)
            file.write(chunk)
        if whole:
            file.truncate(size.st_size)


def _chunks(source: int, holes: bool) -> Iterator[tuple[int, bytes]]:
    """All bytes of an open file; without holes those that were written alone: a damaged core may have exabytes."""
    at, end = 0, os.fstat(source).st_size
    while at < end:
        if not holes:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
            except OSError:
                return
        chunk = os.pread(source, min(_CHUNK, end - at), at)
        yield at, chunk
        at += len(chunk)


def replace_file(path: str | os.PathLike[str], data: bytes, *, executable: bool = False) -> None:
    """Write data to path, as replacing() does."""
    with replacing(path, executable=executable) as file:
        file.write(data)
