"""Programs of others, which end with us: QEMU, make and its compilers, apt.

Each has a process group of its own, so that a terminal's Ctrl-C does not reach it beside us, and so that it can be
killed with all that it has started. First of the group is a shell that waits for our end, and then does that.
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

# Reads the end of a pipe that we hold, and nothing else; then it kills its group.
_AFTER_US = ["sh", "-c", "read -r _; kill -s KILL 0"]


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a program as subprocess.Popen() does. When the block ends there is nothing left of it and its children.

    Raises OSError where it cannot be started.
    """
    nowhere = subprocess.DEVNULL
    with (
        subprocess.Popen(
            _AFTER_US, process_group=0, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere
        ) as first,
        undoing(lambda: _kill(first)),
    ):
        try:
            process = subprocess.Popen(command, process_group=first.pid, **options)
            try:
                yield process
            finally:
                _kill(first)
                for pipe in (process.stdin, process.stdout, process.stderr):
                    if pipe is not None:
                        with suppress(OSError):  # what it was to be told yet
                            pipe.close()
                process.wait()
        finally:
            _kill(first)


def _kill(first: subprocess.Popen[Any]) -> None:
    """The whole group. Its number is not given to others before we have waited for the first one."""
    with suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)


def run_child(
    command: Sequence[str], *, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as subprocess.run() does with captured output."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with child(command, **pipes) as process:
        said = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, *said)
