"""stdout and stderr as a command has them: what they cannot write is never a traceback.

Characters that their encoding does not have are written as escapes. A stdout that is full or closed ends the command
with one line and status 2; one that nobody reads any more (| head -1) ends it quietly with 141, as a shell shows the
status of a program that SIGPIPE has ended. A stderr that is full, closed or unread changes nothing: there is nobody to
tell.
"""

import errno
import io
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from kexecemu.visible import visible

__all__ = ["UNREAD", "StdoutError", "open_closed", "own_streams", "say_line"]

UNREAD = 141
"""The exit status where nobody reads stdout any more: 128 and the number of SIGPIPE."""

_LONGEST_WORD = 300


class StdoutError(Exception):
    """stdout cannot be written to. It is no OSError, which a command may expect of its files."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.unread = error.errno == errno.EPIPE


class _Stream(io.FileIO):
    """A descriptor: stdout, whose errors are told once, or stderr, whose errors are not."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.failed = False

    def write(self, data: Any) -> int:
        """All of the bytes, even where the descriptor does not block."""
        try:
            while not self.failed:
                if (written := super().write(data)) is not None:
                    return written
                select.select([], [self.fileno()], [])
        except OSError as error:
            self.failed = True
            if self.fileno() == 1:
                raise StdoutError(error) from error
        return len(memoryview(data).cast("B"))


def _own(stream: TextIO | None, number: int) -> TextIO:
    buffered = io.BufferedWriter(_Stream(number))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    at_once = number == 2 or bool(getattr(stream, "line_buffering", False))
    through = bool(getattr(stream, "write_through", False))
    return io.TextIOWrapper(
        buffered, encoding, "backslashreplace", line_buffering=at_once, write_through=through
    )


def open_closed() -> None:
    """A file that is opened must not get the number of a stream that is closed, and with it what is printed there."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # Opened for reading, so that a write to it fails as to one that is closed.
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)


@contextmanager
def own_streams() -> Iterator[None]:
    """stdout and stderr of this process, unless somebody has put others into their places."""
    before = sys.stdout, sys.stderr
    open_closed()
    try:
        for name, number in (("stdout", 1), ("stderr", 2)):
            stream, original = getattr(sys, name), getattr(sys, f"__{name}__")
            if stream is original:
                if stream is not None:
                    stream.flush()
                setattr(sys, name, _own(stream, number))
        yield
    finally:
        with suppress(StdoutError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def say_line(text: str) -> None:
    """One line on stderr with our name, whatever is in it; a word that no line has room for is shortened."""
    line = " ".join(visible(text).split())
    line = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:60]}...{word[0][-20:]}", line)
    print(f"kexecemu: {line}", file=sys.stderr)
