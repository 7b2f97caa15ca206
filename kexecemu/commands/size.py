"""kexecemu size: how large crashkernel= must be for a capture kernel, by running it in many sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from kexecemu.commands.options import HtmlOption, JsonOption, option, output, processes, takes_setup
from kexecemu.commands.outputs import Written, check_outputs, input_files, print_json, print_written
from kexecemu.errors import InputError
from kexecemu.scenario.options import Setup

if TYPE_CHECKING:
    from kexecemu.sizing.run import Row

__all__ = ["EXAMPLES", "size_command"]

EXAMPLES = """\
kexecemu size --kernel fetched:kernel
Debian's 6.1 from 32M to 256M: more is not always better.
kexecemu size --kernel Image --initrd kdump.img --ram 4G --sizes 128M,192M,256M --html sizes.html
A kernel and an initrd of your own in three sizes; a page with a bar for each.
"""

_SIZES = "The sizes"
_FROM = "The first size (default: 32M)."
_TO = "The last (default: 256M)."
_STEP = "From one to the next (default: 16M)."
_FINE = "Between a size that works and one that does not, down to this (default: 4M)."
_LIST = "These sizes, in place of steps: 64M,96M."
_WHAT_IF = "Also with this on the capture kernel's command line, as cma=0; repeatable."
_MARGIN = "How much must have been left in the size to take (default: 32M)."
_ROWS = "Keep what is done there, and go on from it: a sweep that is interrupted goes on with the same words."
_JOBS = "Processes, each with a machine (default: one for each CPU)."


@takes_setup("linux", "capture", "stuck_cpus")
def size_command(
    setup: Setup,
    first: Annotated[str, option("--from", _FROM, "SIZE", _SIZES, show_default=False)] = "32M",
    last: Annotated[str, option("--to", _TO, "SIZE", _SIZES, show_default=False)] = "256M",
    step: Annotated[str, option("--step", _STEP, "SIZE", _SIZES, show_default=False)] = "16M",
    fine: Annotated[str, option("--fine", _FINE, "SIZE", _SIZES, show_default=False)] = "4M",
    sizes: Annotated[str | None, option("--sizes", _LIST, "SIZE,...", _SIZES)] = None,
    what_if: Annotated[list[str] | None, option("--what-if", _WHAT_IF, "WORDS", _SIZES)] = None,
    margin: Annotated[str, option("--margin", _MARGIN, "SIZE", _SIZES, show_default=False)] = "32M",
    jobs: Annotated[int | None, option("--jobs", _JOBS, "N", parser=processes, show_default=False)] = None,
    rows: Annotated[Path | None, output("--rows", _ROWS)] = None,
    json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """Find how large crashkernel= must be: a capture kernel is run in many sizes of it."""
    from kexecemu.campaign.version import own_version
    from kexecemu.report.sizes import print_sizes, sizes_object, sizes_page
    from kexecemu.report.terminal import account
    from kexecemu.sizing.advice import advice_of
    from kexecemu.sizing.sweep import Plan, RowFile, check_setup, setting_of, sweep

    chosen = (
        tuple(_size("--sizes", one) for one in sizes.split(","))
        if sizes is not None
        else _steps(_size("--from", first), _size("--to", last), _size("--step", step))
    )
    plan = Plan(chosen, _size("--fine", fine), tuple(what_if or ()))
    least = _size("--margin", margin)
    check_outputs({"--rows": rows, "--html": html}, input_files(setup))
    check_setup(setup, plan)
    kept = RowFile(rows, setup, own_version()) if rows is not None else None
    with _telling(len(plan.sizes)) as told:

        def done(row: Row, left: int) -> None:
            if kept is not None:
                kept.add(row)
            told(row, left)

        found = sweep(
            setup, plan, jobs=jobs or os.cpu_count() or 1, known=kept.rows if kept else (), told=done
        )
    advice, setting = advice_of(found, least), setting_of(setup, found)
    written = Written()
    if kept is not None:
        written.files.append(kept.path)
    written.write("--html", html, lambda: sizes_page(found, advice, setting))
    if json:
        print_json(sizes_object(found, advice, setting), written.files)
    else:
        print_sizes(account(), found, advice, setting)
        print_written(written.files)
    written.exit(0 if advice.smallest is not None else 1)


def _size(option: str, text: str) -> int:
    from kexecemu.machine.board import parse_size

    try:
        return parse_size(text)
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


def _steps(first: int, last: int, step: int) -> tuple[int, ...]:
    if step < 1 << 20:
        raise InputError("--step: sizes are tried in steps of 1 MiB at least")
    if first > last:
        raise InputError("--from is larger than --to")
    return tuple(range(first, last + 1, step))


@contextmanager
def _telling(count: int) -> Iterator[Callable[[Row, int], None]]:
    """On a terminal a bar, with the last size and what came of it; in a pipe nothing."""
    import sys

    if not sys.stderr.isatty():
        yield lambda row, left: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from kexecemu.report.terminal import console_on
    from kexecemu.sizing.advice import end_word, size_word

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console_on(sys.stderr), transient=True) as bar:
        task = bar.add_task("sizes", total=count)
        finished = 0

        def told(row: Row, left: int) -> None:
            nonlocal finished
            finished += 1
            bar.update(
                task,
                completed=finished,
                total=finished + left,
                description=f"{size_word(row.asked.size)} {row.asked.more} {end_word(row)}",
            )

        yield told
