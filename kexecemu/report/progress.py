"""A progress bar for long checks: on a terminal only, and only when there is something to wait for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kexecemu.capture.second_stage import Progress

__all__ = ["progress_bar"]


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Give a callback for run_purgatory(); None where stderr is no terminal, so that pipes stay clean."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[millions]} M instructions"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = None

        def update(done: int, expected: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("the purgatory is hashing", total=expected, millions=0)
            bar.update(task, completed=done, total=expected, millions=done // 1_000_000)

        yield update
