"""What long runs show while they last: a progress bar."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_SECOND
from kexecemu.stray.first import Progress

__all__ = ["LINUX_PARTS", "PARTS", "progress_bar"]


PARTS = ("the purgatory is hashing", "the capture kernel is running")
LINUX_PARTS = ("the first Linux is running", *PARTS)


@contextmanager
def progress_bar(quiet: bool = False, parts: Sequence[str] = PARTS) -> Iterator[Progress | None]:
    """Give a callback for long runs; None where stderr is no terminal, so that pipes stay clean, or with quiet.

    The bar shows what the machine's own clock does, which counts instructions. parts are the words for what is run, in
    order: the next one comes where the count begins anew.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from kexecemu.report.terminal import console_on

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[millions]:,} M instructions, {task.fields[guest]:.2f} s of guest time"),
        TimeElapsedColumn(),
        console=console_on(sys.stderr),
        transient=True,
    ) as bar:
        words, last = iter(parts), 0
        task = bar.add_task(next(words), total=None, millions=0, guest=0.0)

        def update(done: int, expected: int) -> None:
            nonlocal last, task
            if done < last and (following := next(words, None)) is not None:
                bar.remove_task(task)
                task = bar.add_task(following, total=None, millions=0, guest=0.0)
            last = done
            millions, guest = done // 1_000_000, done / INSTRUCTIONS_PER_SECOND
            bar.update(task, completed=done, total=expected, millions=millions, guest=guest)

        yield update
