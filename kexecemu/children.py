"""Programs of others, which end with us: QEMU, make and its compilers, apt.

Each is the first of a process group of its own, so that a terminal's Ctrl-C does not reach it beside us, and so that it
can be killed with all that it has started. If we are killed ourselves a shell that waits for our end does that.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kexecemu.interrupt import undoing

__all__ = ["child", "run_child"]

# Reads the end of a pipe that we hold, and nothing else.
_AFTER_US = 'read -r _; kill -KILL -- "-$1"'


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a program as subprocess.Popen() does. When the block ends there is nothing left of it and its children.

    Raises OSError where it cannot be started.
    """
    with _started(command, options) as process, undoing(lambda: _kill(process)):
        try:
            yield process
        finally:
            _kill(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(OSError):  # what it was to be told yet
                        pipe.close()
            process.wait()


@contextmanager
def _started(command: Sequence[str], options: dict[str, Any]) -> Iterator[subprocess.Popen[Any]]:
    process = subprocess.Popen(command, process_group=0, **options)
    pipe = subprocess.PIPE
    ours = ["sh", "-c", _AFTER_US, "sh", str(process.pid)]
    try:
        after = subprocess.Popen(
            ours, process_group=0, stdin=pipe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except BaseException:
        _kill(process)
        process.wait()
        raise
    try:
        yield process
    finally:
        after.kill()
        after.communicate()


def _kill(process: subprocess.Popen[Any]) -> None:
    """The whole group. Its number is not given to others while anybody of it is left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_child(
    command: Sequence[str], *, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as subprocess.run() does with captured output."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with child(command, **pipes) as process:
        said = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, *said)
