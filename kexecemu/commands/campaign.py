"""kexecemu campaign: many faults against one load."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kexecemu.commands import options
from kexecemu.commands.outputs import (
    Written,
    check_folder,
    check_outputs,
    input_files,
    print_json,
    print_written,
)
from kexecemu.commands.run import located
from kexecemu.commands.streams import say_line
from kexecemu.errors import InputError
from kexecemu.interrupt import Stopped
from kexecemu.scenario.given import command_words

if TYPE_CHECKING:
    from kexecemu.campaign.summary import Summary
    from kexecemu.campaign.work import CampaignProgress

__all__ = ["EXAMPLES", "campaign_command"]

EXAMPLES = """\
kexecemu campaign campaign-16m --faults 3000 --seed 1 --out stray
3000 faults over a scenario that ships; the results are in the folder stray.
kexecemu campaign mine.toml --faults 9000 --seed 1 --out big --resume --rows r.csv
Go on with one that was stopped, and write a row for each fault.
"""

_ADDRESS = re.compile(r"(?:[a-z]+://)?(?:[^\s:/\[\]]+|\[[0-9a-fA-F:.%]+\]):[0-9]{1,5}/?", re.ASCII)
_SEED = "Seed of the sample; the machine has the scenario's."
_EXECUTOR = "local, or dask://HOST:PORT for the cluster of that scheduler."
_WORKERS = "Local processes (default: one a CPU)."
_ROWS = "Write a row for each fault: FILE.csv, or FILE.jsonl for JSON lines."


@options.takes_changes
def campaign_command(
    changes: Mapping[str, Any],
    scenario: options.ScenarioArgument,
    faults: Annotated[int, options.option("--faults", "How many to draw.", "N", parser=options.from_one)],
    seed: Annotated[int, options.option("--seed", _SEED, "N", parser=options.seed_number)],
    out: Annotated[Path, options.output("--out", "Folder for the results.", metavar="DIR")],
    resume: Annotated[bool, options.option("--resume", "Go on with what is in the folder.")] = False,
    executor: Annotated[str, options.option("--executor", _EXECUTOR, "WHERE")] = "local",
    workers: Annotated[
        int | None, options.option("--workers", _WORKERS, "N", parser=options.processes)
    ] = None,
    audit: Annotated[
        int,
        options.option("--audit", "Conclusions to check by full emulation.", "N", parser=options.from_zero),
    ] = 300,
    json: options.JsonOption = False,
    html: options.HtmlOption = None,
    rows: Annotated[Path | None, options.output("--rows", _ROWS)] = None,
) -> None:
    """Try many faults against one load: what came of them, with exact intervals; 1 if the audit finds an error."""
    from kexecemu.campaign.work import Interrupted, plan_campaign, run_campaign
    from kexecemu.scenario.runner import scenario_setup
    from kexecemu.scenario.toml import changed_scenario

    path, parsed = changed_scenario(scenario, changes)
    inputs = input_files(scenario_setup(parsed, path.parent), path)
    _check_outputs(out, html, rows, inputs)
    with located(path, parsed), _executor(executor) as make, _bar() as progress:
        planned = plan_campaign(
            parsed,
            path.parent,
            faults,
            seed,
            named=shlex.quote(scenario),
            options=shlex.join(command_words(changes)),
            source=path.read_text(encoding="utf-8"),
        )
        try:
            summary = run_campaign(
                planned,
                out,
                resume=resume,
                executor=make,
                workers=workers or _cpus(),
                audit=audit,
                progress=progress,
            )
        except Interrupted as stopped:
            again = [one for one in sys.argv[1:] if one != "--resume"]
            raise Stopped(f"{stopped}; go on with: kexecemu {shlex.join([*again, '--resume'])}") from None
    _deliver(summary, json, out, html, rows)


def _check_outputs(out: Path, html: Path | None, rows: Path | None, inputs: Mapping[str, Path]) -> None:
    """Say at once that something cannot be written, and not when the work is done."""
    from kexecemu.campaign.database import FILE

    files = {"--html": html, "--rows": rows}
    check_outputs(files, inputs)
    check_folder("--out", out, [FILE, f"{FILE}-*"], {**inputs, **files})
    if rows is not None:
        from kexecemu.report.campaign_rows import check_rows

        check_rows(rows)


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


@contextmanager
def _executor(words: str) -> Iterator[Callable[[], Executor] | None]:
    """What --executor asks for; None for processes of this machine."""
    kind, _, address = words.partition("://")
    if words == "local":
        yield None
    elif kind == "dask" and _ADDRESS.fullmatch(address):
        from kexecemu.campaign.cluster import dask_workers

        with dask_workers(address) as (make, _):
            yield make
    else:
        raise InputError(f"--executor {words!r}: is local or dask://HOST:PORT")


def _deliver(summary: Summary, json: bool, out: Path, html: Path | None, rows: Path | None) -> None:
    from kexecemu.campaign.database import FILE
    from kexecemu.report.campaign_html import render_campaign
    from kexecemu.report.campaign_rows import write_rows
    from kexecemu.report.campaign_words import disagreement_text

    written = Written()
    written.files.append(out / FILE)
    written.write("--html", html, lambda: render_campaign(summary))
    if rows is not None:
        with written.writing("--rows", rows):
            write_rows(rows, out)
            written.files.append(rows)
    if json:
        from kexecemu.report.campaign_json import campaign_object

        print_json(campaign_object(summary), written.files)
    else:
        from kexecemu.report.campaign_text import print_campaign
        from kexecemu.report.terminal import account

        print_campaign(account(), summary)
        print_written(written.files)
    for one in summary.disagreements:
        decided, run = disagreement_text(one)
        ends = f"{one.fault} was decided {decided}, but ends {run}"
        say_line(f"audit: {ends}: nothing here can be believed")
    written.exit(1 if summary.disagreements else 0)


@contextmanager
def _bar() -> Iterator[CampaignProgress | None]:
    """A bar with the rate and the outcomes so far on a terminal; None elsewhere, so that pipes stay clean."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from kexecemu.report.terminal import console_on

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[outcomes]}"),
    )
    with Bar(*columns, console=console_on(sys.stderr), transient=True) as bar:
        bar.add_task("the undisturbed run", total=None, rate="", outcomes="")
        begun: dict[str, tuple[float, int, Any]] = {}

        def update(phase: str, done: int, total: int, outcomes: Mapping[str, int]) -> None:
            now = time.monotonic()
            if phase not in begun:
                for task in bar.task_ids:
                    bar.remove_task(task)
                begun[phase] = now, done, bar.add_task(phase, total=total, rate="", outcomes="")
            start, first, task = begun[phase]
            rate = (done - first) / (now - start) if now > start else 0.0
            told = "  ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()) if count)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.0f}/s", outcomes=told)

        yield update
