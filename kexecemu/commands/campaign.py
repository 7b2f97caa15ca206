"""kexecemu campaign and campaign-compare: many faults against one load, and two such campaigns side by side."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexecemu.commands.options import (
    HtmlOption,
    JsonOption,
    ProtectionOption,
    PurgatoryOption,
    ScenarioArgument,
    from_one,
    from_zero,
    seed_number,
)
from kexecemu.commands.outputs import check_folder, check_outputs, print_json, print_written, writing
from kexecemu.commands.run import located
from kexecemu.errors import InputError

if TYPE_CHECKING:
    from kexecemu.campaign.compare import Comparison, Pair
    from kexecemu.campaign.stats import Figure
    from kexecemu.campaign.summary import Summary
    from kexecemu.campaign.work import Progress
    from kexecemu.scenario.schema import Scenario

__all__ = ["COMPARE_EXAMPLES", "EXAMPLES", "campaign_command", "compare_command", "overridden"]

EXAMPLES = (
    (
        "kexecemu campaign campaign-16m --faults 3000 --seed 1 --out stray",
        "3000 faults over a scenario that ships; the results are in the folder stray.",
    ),
    (
        "kexecemu campaign mine.toml --faults 9000 --seed 1 --out big --resume --rows r.csv",
        "Go on with one that was stopped, and write a row for each fault.",
    ),
)
COMPARE_EXAMPLES = (
    ("kexecemu campaign-compare with without", "The same faults in two campaigns: what only one catches."),
    (
        "kexecemu campaign-compare with without --html comparison.html",
        "The same with a picture, as one HTML file.",
    ),
)

_OUTPUT = "What is written"

_AS_EXPECTED, _NOT_AS_EXPECTED, _INTERRUPTED = 0, 1, 130


def campaign_command(
    scenario: ScenarioArgument,
    faults: Annotated[int, typer.Option("--faults", metavar="N", help="How many to draw.", parser=from_one)],
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            parser=seed_number,
            help="Seed of the sample; the machine has the scenario's.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder for the results.", rich_help_panel=_OUTPUT),
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")] = False,
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="WHERE",
            help="local, or dask://HOST:PORT for the cluster of that scheduler.",
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Local processes (default: one a CPU).", parser=from_one),
    ] = None,
    audit: Annotated[
        int,
        typer.Option(
            "--audit", metavar="N", parser=from_zero, help="Conclusions to check by full emulation."
        ),
    ] = 300,
    protection: ProtectionOption = None,
    purgatory: PurgatoryOption = None,
    json: JsonOption = False,
    html: HtmlOption = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--rows",
            metavar="FILE",
            help="Write a row for each fault: FILE.csv, or FILE.jsonl for JSON lines.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
) -> None:
    """Try many faults against one load: what came of them, with exact intervals; 1 if the audit finds an error."""
    from kexecemu.campaign.work import Interrupted, plan_campaign, run_campaign
    from kexecemu.scenario.schema import find_scenario, read_scenario

    path = find_scenario(scenario)
    parsed = overridden(read_scenario(path), protection, purgatory)
    _check_outputs(out, html, rows)
    with located(path, parsed), _executor(executor) as make, _bar() as progress:
        given = [("--protection", protection), ("--purgatory", purgatory)]
        planned = plan_campaign(
            parsed,
            path.parent,
            faults,
            seed,
            named=shlex.quote(scenario),
            options=" ".join(
                f"{option} {shlex.quote(value)}" for option, value in given if value is not None
            ),
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
            print(f"{stopped}; go on with: kexecemu {shlex.join([*again, '--resume'])}", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from None
    _deliver(summary, json, out, html, rows)


def overridden(scenario: Scenario, protection: str | None, purgatory: str | None) -> Scenario:
    """The scenario with another protection or purgatory; a purgatory object's path starts where we are."""
    import msgspec

    kernel = scenario.kernel
    if protection is not None:
        kernel = msgspec.structs.replace(kernel, protection=protection)
    if purgatory is not None:
        where = purgatory if purgatory in ("default", "none") else str(Path(purgatory).absolute())
        kernel = msgspec.structs.replace(kernel, purgatory=where)
    return msgspec.structs.replace(scenario, kernel=kernel)


def _check_outputs(out: Path, html: Path | None, rows: Path | None) -> None:
    """Say at once that something cannot be written, and not when the work is done."""
    check_folder("--out", out)
    check_outputs({"--html": html, "--rows": rows})
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
    kind, colon, address = words.partition("://")
    if words == "local":
        yield None
    elif kind == "dask" and colon and address:
        from kexecemu.campaign.cluster import dask_workers

        with dask_workers(address) as (make, _):
            yield make
    else:
        raise InputError(f"--executor {words!r}: is local or dask://HOST:PORT")


def _deliver(summary: Summary, json: bool, out: Path, html: Path | None, rows: Path | None) -> None:
    from kexecemu.campaign.store import FILE
    from kexecemu.files import replace_file

    files = [out / FILE]
    if html is not None:
        from kexecemu.report.campaign_html import render_campaign

        with writing("--html", html):
            replace_file(html, render_campaign(summary).encode())
        files.append(html)
    if rows is not None:
        from kexecemu.report.campaign_rows import write_rows

        with writing("--rows", rows):
            write_rows(rows, out)
        files.append(rows)
    if json:
        from kexecemu.report.campaign_json import campaign_object

        print_json(campaign_object(summary), files)
    else:
        from kexecemu.report.campaign_text import print_campaign
        from kexecemu.report.terminal import account

        print_campaign(account(), summary)
        print_written(files)
    for one in summary.disagreements:
        from kexecemu.report.campaign_words import disagreement_text

        decided, run = disagreement_text(one)
        print(
            f"kexecemu: audit: {one.fault} was decided {decided}, but ends {run}: nothing here can be believed",
            file=sys.stderr,
        )
    raise typer.Exit(_NOT_AS_EXPECTED if summary.disagreements else _AS_EXPECTED)


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """A bar with the rate and the outcomes so far on a terminal; None elsewhere, so that pipes stay clean."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[outcomes]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
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


def compare_command(
    first: Annotated[Path, typer.Argument(help="The folder of a finished campaign.")],
    second: Annotated[Path, typer.Argument(help="The folder of another one over the same faults.")],
    json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """What each of two campaigns catches that the other does not, fault by fault."""
    from kexecemu.campaign.compare import compare

    check_outputs({"--html": html})
    comparison = compare(first, second)
    files = []
    if html is not None:
        from kexecemu.files import replace_file
        from kexecemu.report.comparison_html import render_comparison

        with writing("--html", html):
            replace_file(html, render_comparison(comparison).encode())
        files.append(html)
    if json:
        print_json(_comparison_object(comparison), files)
    else:
        _print_comparison(comparison)
        print_written(files)


def _comparison_object(comparison: Comparison) -> dict[str, Any]:
    basis = comparison.basis

    def side(number: int) -> dict[str, Any]:
        header = (comparison.first, comparison.second)[number]
        figure = (comparison.only_first, comparison.only_second)[number]
        pairs = (comparison.examples_first, comparison.examples_second)[number]
        true = (comparison.true_first, comparison.true_second)[number]
        true_pairs = (comparison.examples_true_first, comparison.examples_true_second)[number]
        return {
            "scenario": header.scenario,
            "protection": header.protection,
            "purgatory": header.purgatory,
            "version": header.version,
            "config_hash": header.config_hash,
            "caught_alone": figure.count,
            "interval": [figure.interval.low, figure.interval.high],
            "examples": [_pair(one) for one in pairs],
            "true_dump_alone": true.count if true is not None else 0,
            "true_dump_interval": [true.interval.low, true.interval.high] if true is not None else None,
            "true_dump_examples": [_pair(one) for one in true_pairs],
        }

    return {
        "population": basis.population,
        "faults": basis.faults,
        "seed": basis.seed,
        "sampler": basis.sampler,
        "method": basis.method,
        "first": side(0),
        "second": side(1),
        "outcomes": comparison.outcomes,
        "classes": comparison.classes,
        "mcnemar": comparison.even,
        "dumps": comparison.dumps,
        "dumps_mcnemar": comparison.even_dumps,
    }


def _pair(one: Pair) -> dict[str, str]:
    return {
        "fault": one.fault,
        "first": one.first,
        "second": one.second,
        "first_dump": one.first_dump,
        "second_dump": one.second_dump,
    }


def _print_comparison(comparison: Comparison) -> None:
    from rich.markup import escape

    from kexecemu.report.terminal import account, print_table, say_labelled

    console = account()

    def say(text: str) -> None:
        say_labelled(console, escape(text))

    names = comparison.names
    say(f"first   {names[0]}: {comparison.first.scenario}")
    say(f"second  {names[1]}: {comparison.second.scenario}")
    say(str(comparison.basis))
    say("")

    def cross(found: Mapping[str, Mapping[str, int]], columns: list[str], prefix: str = "") -> None:
        say("first, down; second, across")
        rows = [
            [(prefix + here, ""), *((f"{counts.get(column, 0):,}", "") for column in columns)]
            for here, counts in found.items()
        ]
        print_table(console, ("", *(prefix + column for column in columns)), rows)
        say("")

    cross(
        comparison.outcomes,
        list(dict.fromkeys(there for counts in comparison.outcomes.values() for there in counts)),
    )
    classes = comparison.classes
    say(f"caught by both     {classes['caught']['caught']:,}")
    say(f"harm in both       {classes['harm']['harm']:,}")

    def alone(which: str, what: str, figure: Figure, pairs: Sequence[Pair]) -> None:
        share = f"{figure.interval.low:.3g} to {figure.interval.high:.3g} of the population"
        say(f"{f'{which} alone':<18} {figure.count:,} {what} ({share})")
        for pair in pairs:
            dumps = f", dump {pair.first_dump} / {pair.second_dump}" if pair.first_dump else ""
            say(f"    {pair.fault}  {pair.first} / {pair.second}{dumps}")

    harm = "caught that are harm in the other"
    alone("first", harm, comparison.only_first, comparison.examples_first)
    alone("second", harm, comparison.only_second, comparison.examples_second)
    say(f"so uneven a split by chance: {comparison.even:.3g} (McNemar, exact)")
    if comparison.true_first is None or comparison.true_second is None:
        return
    say("")
    cross(comparison.dumps, list(comparison.dumps), "dump ")
    true = "with a true dump where the other has none, or a wrong one"
    alone("first", true, comparison.true_first, comparison.examples_true_first)
    alone("second", true, comparison.true_second, comparison.examples_true_second)
    say(f"so uneven a split by chance: {comparison.even_dumps:.3g} (McNemar, exact)")
