"""The console line by line, for who waits for something to be said."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["ConsoleLines"]


class ConsoleLines:
    """A listener of a UART that calls on_line(line) at each line feed, with all that came before it.

    Called while a CPU runs, as every listener.
    """

    def __init__(self, on_line: Callable[[bytes], object]) -> None:
        self._on_line = on_line
        self._line = bytearray()

    def __call__(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for end in lines:
            line = bytes(self._line) + end
            self._line.clear()
            self._on_line(line)
        self._line += rest
