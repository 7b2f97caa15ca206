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

from kexecemu.errors import InputError

if TYPE_CHECKING:
    from kexecemu.campaign.compare import Comparison, Pair
    from kexecemu.campaign.stats import Figure
    from kexecemu.campaign.summary import Summary
    from kexecemu.campaign.work import Progress
    from kexecemu.scenario.schema import Scenario

__all__ = ["campaign_command", "compare_command", "overridden"]

_AS_EXPECTED, _NOT_AS_EXPECTED, _INTERRUPTED = 0, 1, 130


def campaign_command(
    scenario: Annotated[str, typer.Argument(help="A TOML file, or the name of a scenario that ships.")],
    faults: Annotated[int, typer.Option("--faults", help="How many to draw.", min=1)],
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample; the machine has the scenario's.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")] = False,
    executor: Annotated[
        str, typer.Option("--executor", help="local, or dask://HOST:PORT for the cluster of that scheduler.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", help="Local processes (default: one a CPU).", min=1)
    ] = None,
    audit: Annotated[
        int, typer.Option("--audit", help="How many conclusions to check by full emulation.", min=0)
    ] = 300,
    protection: Annotated[
        str | None,
        typer.Option("--protection", help="none, pte, readonly or bbml2, whatever the scenario says."),
    ] = None,
    purgatory: Annotated[
        str | None,
        typer.Option("--purgatory", help="default, none or a purgatory object, whatever the scenario says."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a report as one HTML file.")] = None,
) -> None:
    """Try many faults against one load: what came of them, with exact intervals; 1 if the audit finds an error."""
    from kexecemu.campaign.work import Interrupted, plan_campaign, run_campaign
    from kexecemu.scenario.schema import find_scenario, read_scenario

    path = find_scenario(scenario)
    parsed = overridden(read_scenario(path), protection, purgatory)
    _check_html(html)
    with _executor(executor) as make, _bar() as progress:
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
    _deliver(summary, json, html)


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


def _check_html(html: Path | None) -> None:
    """Say at once that it cannot be written, and not when the work is done."""
    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        raise InputError(
            f"--html {html}: is a directory" if html.is_dir() else f"--html {html}: no such folder"
        )


def _write_html(html: Path, text: str) -> None:
    from kexecemu.files import replace_file

    try:
        replace_file(html, text.encode())
    except OSError as error:
        raise InputError(f"--html {html}: {error.strerror or error}") from error


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


def _deliver(summary: Summary, json: bool, html: Path | None) -> None:
    from kexecemu.report.json import to_text

    if html is not None:
        from kexecemu.report.campaign_html import render_campaign

        _write_html(html, render_campaign(summary))
    if json:
        from kexecemu.report.campaign_json import campaign_object

        sys.stdout.write(to_text(campaign_object(summary)))
    else:
        from rich.console import Console

        from kexecemu.report.campaign_text import print_campaign

        print_campaign(Console(), summary)
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
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the table and a picture as one HTML file.")
    ] = None,
) -> None:
    """What each of two campaigns catches that the other does not, fault by fault."""
    from kexecemu.campaign.compare import compare

    _check_html(html)
    comparison = compare(first, second)
    if html is not None:
        from kexecemu.report.comparison_html import render_comparison

        _write_html(html, render_comparison(comparison))
    if json:
        from kexecemu.report.json import to_text

        sys.stdout.write(to_text(_comparison_object(comparison)))
    else:
        _print_comparison(comparison)


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
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    names = comparison.names
    say(f"first   {names[0]}: {comparison.first.scenario}")
    say(f"second  {names[1]}: {comparison.second.scenario}")
    say(str(comparison.basis))
    say("")

    def cross(found: Mapping[str, Mapping[str, int]], columns: list[str], prefix: str = "") -> None:
        table = Table(box=None, pad_edge=False, title="first, down; second, across", title_justify="left")
        table.add_column("")
        for column in columns:
            table.add_column(prefix + column, justify="right", no_wrap=True)
        for here, counts in found.items():
            table.add_row(prefix + here, *(f"{counts.get(column, 0):,}" for column in columns))
        console.print(table)
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
