"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["replace_file", "replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes path's place when the block ends well: a reader sees the old one or the whole new one.

    It is made in the same folder, so that the exchange is one rename; nothing is left of it when the block fails.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
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
