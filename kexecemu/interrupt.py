"""Ctrl-C: the command line's end within a second, whatever is being done, with nothing half-written and no child left.

Python turns Ctrl-C into KeyboardInterrupt as soon as it executes Python code again, and so most of it needs nothing
from here: files that are replaced are unlinked by those who made them, children killed by those who started them. But a
call into C (a long stretch of emulation, a digest of a GiB, a file system that does not answer) comes back when it
likes. So a thread hears of the signal too, by Python's wakeup descriptor, waits for as long as is decent, and then
undoes what was promised to be undone and ends the process.
"""

import _thread
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any, NoReturn, TypeVar

__all__ = [
    "INTERRUPTED",
    "Stopped",
    "again_in",
    "guarded",
    "leave",
    "on_ctrl_c",
    "patience",
    "raise_in",
    "runs_guest",
    "undoing",
]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells count: 128 and SIGINT's number."""


class Stopped(Exception):
    """A command was ended by Ctrl-C, and has more to say of it than that."""


_Method = TypeVar("_Method", bound=Any)
_LINE = b"kexecemu: interrupted\n"
_patience: tuple[float, ...] = (0.7,)
"""Seconds that the main thread has after the first Ctrl-C, the second, ...; the last for all after it."""

_undo: dict[int, Callable[[], object]] = {}
"""What is to be done when the process is ended from here, the newest first."""


_Stop = Callable[[Any, BaseException], object]
_guests: dict[CodeType, _Stop] = {}
"""Methods that run guest code, and what has one raise an exception as soon as it is back."""


def runs_guest(stop: _Stop) -> Callable[[_Method], _Method]:
    """Mark a method in which the engine calls back into Python; stop(self, error) ends it by that exception.

    One that a signal's handler raises at the entry of a function that C has called goes nowhere: it is printed, and the
    guest runs on.
    """

    def mark(method: _Method) -> _Method:
        _guests[method.__code__] = stop
        return method

    return mark


def on_ctrl_c(number: int, frame: FrameType | None) -> None:
    """The handler that raises KeyboardInterrupt, as Python's own does, but never where C would swallow it."""
    raise_in(frame, KeyboardInterrupt())


def raise_in(frame: FrameType | None, error: BaseException) -> None:
    """Raise an exception in a signal's handler, or where a guest runs, as soon as that is back."""
    inner = frame
    while inner is not None and inner.f_code not in _guests:
        inner = inner.f_back
    if inner is None or inner is frame:
        raise error
    _guests[inner.f_code](inner.f_locals["self"], error)


@contextmanager
def undoing(undo: Callable[[], object]) -> Iterator[None]:
    """Have something undone if the process is ended in the block by leave(). Exceptions are the caller's own affair."""
    key = max(_undo, default=0) + 1
    _undo[key] = undo
    try:
        yield
    finally:
        del _undo[key]


@contextmanager
def patience(*seconds: float) -> Iterator[None]:
    """Who does something about Ctrl-C has other times: after the first one, the second, and all others."""
    global _patience
    before, _patience = _patience, seconds
    try:
        yield
    finally:
        _patience = before


def leave(line: bytes = _LINE, status: int = INTERRUPTED) -> NoReturn:
    """End the process at once after Ctrl-C, with a line of its own if there was none yet, or after another signal."""
    for key in sorted(_undo, reverse=True):
        with suppress(OSError, KeyError):
            _undo[key]()
    with suppress(OSError):
        os.write(2, line)
    os._exit(status)


def again_in(seconds: float) -> Callable[[], object]:
    """Ctrl-C once more after so many seconds; returns what cancels that."""
    timer = threading.Timer(seconds, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
    return timer.cancel


@contextmanager
def guarded() -> Iterator[None]:
    """End the process if Ctrl-C has not ended the block soon after it. Nothing where somebody else hears of signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    watcher = None
    if before == -1:
        watcher = threading.Thread(target=_watch, args=(heard,), daemon=True)
        watcher.start()
    else:
        signal.set_wakeup_fd(before)
    swallowed, sys.unraisablehook = sys.unraisablehook, _once_more
    try:
        yield
    finally:
        sys.unraisablehook = swallowed
        if watcher is not None:
            signal.set_wakeup_fd(-1)
        os.close(told)  # which ends the watcher
        if watcher is not None:
            watcher.join()
        os.close(heard)


def _once_more(unraisable: "sys.UnraisableHookArgs") -> None:
    """What came while an object was taken down goes nowhere: Ctrl-C comes once more, a moment later."""
    if unraisable.exc_type is KeyboardInterrupt:
        again_in(0.05)
    elif isinstance(unraisable.exc_value, SystemExit):
        leave(b"", int(unraisable.exc_value.code or 0))
    else:
        sys.__unraisablehook__(unraisable)


def _watch(heard: int) -> None:
    """Hear signals' numbers until the other end is closed, or until the process has to be ended."""
    count, late, how = 0, None, (_LINE, INTERRUPTED)
    while True:
        left = None if late is None else max(0.0, late - time.monotonic())
        if not select.select([heard], [], [], left)[0]:
            leave(*how)
        numbers = os.read(heard, 64)
        if not numbers:
            return
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGHUP) and late is None:
                late, how = time.monotonic() + _patience[0], (b"", 128 + number)
        for _ in range(numbers.count(signal.SIGINT)):
            end = time.monotonic() + _patience[min(count, len(_patience) - 1)]
            late = end if late is None else min(late, end)
            count += 1
