"""Reading files that are files, and writing them whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kexecemu.interrupt import undoing

__all__ = ["read_file", "replace_file", "replacing"]

# What a shell hands over as `<(command)` or a pipe: somebody writes there, and it ends.
_OPEN_ALREADY = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file; OSError for a folder, a device or a FIFO, of which some never end."""
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory", str(file))
    if file.exists() and not file.is_file() and not str(file).startswith(_OPEN_ALREADY):
        raise OSError(errno.EINVAL, "is no regular file", str(file))
    return file.read_bytes()


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes path's place when the block ends well: a reader sees the old one or the whole new one.

    It is made in the same folder, so that the exchange is one rename; nothing is left of it when the block fails.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with undoing(lambda: temporary.unlink(missing_ok=True)):
            with open(temporary, "wb") as file:
                yield file
            os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(target)  # the name that the caller knows
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Write data to path atomically."""
    with replacing(path) as file:
        file.write(data)
