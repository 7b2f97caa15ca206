"""What long runs show while they last: a progress bar, and the console as it is printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kexecemu.capture.second_stage import Progress
from kexecemu.machine.counter import INSTRUCTIONS_PER_SECOND

__all__ = ["live_console", "progress_bar"]


def live_console(data: bytes) -> None:
    """Pass a piece of the guest's console on to stderr, byte for byte; stdout is for the account of the run."""
    sys.stderr.buffer.write(data)
    if b"\n" in data:
        sys.stderr.buffer.flush()


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Progress | None]:
    """Give a callback for long runs; None where stderr is no terminal, so that pipes stay clean, or with quiet.

    The bar shows what the machine's own clock does, which counts instructions.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[millions]:,} M instructions, {task.fields[guest]:.2f} s of guest time"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        # The purgatory hashes first; what counts from zero again is the kernel that it started.
        words = ["the capture kernel is running", "the purgatory is hashing"]
        tasks = [bar.add_task(words.pop(), total=None, millions=0, guest=0.0)]
        last = 0

        def update(done: int, expected: int) -> None:
            nonlocal last
            if done < last and words:
                bar.remove_task(tasks.pop())
                tasks.append(bar.add_task(words.pop(), total=None, millions=0, guest=0.0))
            last = done
            bar.update(
                tasks[0],
                completed=done,
                total=expected,
                millions=done // 1_000_000,
                guest=done / INSTRUCTIONS_PER_SECOND,
            )

        yield update
