"""A campaign told to people on a terminal: what was run, what came of it, the worst of it, and what it rests on."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape

from kexecemu.campaign.stats import Figure
from kexecemu.campaign.summary import Example, Summary
from kexecemu.crash.outcome import Outcome
from kexecemu.report.campaign_words import (
    DIMENSION_WORDS,
    DUMPS,
    HOW_WORDS,
    KIND_WORDS,
    STRATIFIED,
    Matrix,
    audit_text,
    basis_text,
    disagreement_text,
    dump_headline,
    dump_matrix,
    headline,
    interval_text,
    matrix_of,
    plural,
    share_text,
    tone_of,
)
from kexecemu.report.picture import size_text
from kexecemu.report.terminal import Cell, print_table, say_labelled

__all__ = ["print_campaign"]

_STYLES = {"good": "green", "caught": "yellow", "quiet": "cyan", "bad": "bold red", "none": "bold magenta"}
_WORST_SHOWN = 3  # of each outcome


def print_campaign(console: Console, summary: Summary) -> None:
    """The whole account. Every table stands under the line that says what its figures rest on."""
    _line(console, f"[bold]{escape(summary.name)}[/]")
    named = f"{summary.scenario} {summary.options}".rstrip()
    setting = f"scenario {named}; protection {summary.protection}, purgatory {summary.purgatory}"
    _line(console, escape(setting))
    _print_space(console, summary)
    _line(console)
    _line(console, escape(headline(summary)))
    if summary.dumps:
        _line(console, escape(dump_headline(summary)))
    _print_outcomes(console, summary)
    if summary.dumps:
        _print_dumps(console, summary)
        _print_matrix(console, summary, dump_matrix(summary))
    for dimension in summary.by:
        _print_matrix(console, summary, matrix_of(summary, dimension))
    _print_how(console, summary)
    _print_worst(console, summary)
    _line(console)
    style = "bold red" if summary.disagreements else "bold"
    _line(console, f"[{style}]audit[/]  {escape(audit_text(summary))}")
    for one in summary.disagreements:
        decided, run = disagreement_text(one)
        _line(console, f"  {escape(f'{decided} by {one.how}, but {run}: {one.detail}'.rstrip(': '))}")
        _line(console, f"    {escape(summary.reproducer(one))}", folded=False)
    _print_speed(console, summary)
    _line(console, f"[dim]results  sha256 {summary.table_sha256}[/]")


def _line(console: Console, text: str = "", *, folded: bool = True) -> None:
    """One line. What is too long for a terminal goes on behind the line's label, but for commands, to be copied."""
    say_labelled(console, text, folded=folded)


def _heading(console: Console, summary: Summary, title: str) -> None:
    _line(console)
    _line(console, f"[bold]{escape(title)}[/]  [dim]{escape(basis_text(summary))}[/]")


def _print_space(console: Console, summary: Summary) -> None:
    """The fault space by kind of memory; equal names of areas are one."""
    kinds: dict[str, tuple[list[str], int]] = {}
    for area in summary.areas:
        names, size = kinds.get(area.kind, ([], 0))
        kinds[area.kind] = (list(dict.fromkeys([*names, area.name])), size + area.end - area.start)
    for kind, (names, size) in kinds.items():
        what = f"{size_text(size)} in {', '.join(names)}"
        _line(console, f"space  {kind:<9} [dim]{escape(f'{what}; {KIND_WORDS.get(kind, kind)}')}[/]")


def _print_outcomes(console: Console, summary: Summary) -> None:
    _line(console)
    _line(console, f"[bold]outcomes[/]  [dim]{escape(str(summary.basis))}[/]")
    if "stratified" in summary.basis.sampler:
        _line(console, f"[dim]{STRATIFIED}[/]")
    rows = [_row(outcome, summary.figures[outcome], Outcome(outcome).meaning) for outcome in summary.outcomes]
    print_table(console, ("outcome", *_FIGURE_HEADINGS), rows)


def _print_dumps(console: Console, summary: Summary) -> None:
    _heading(console, summary, DIMENSION_WORDS["dump"])
    rows = [
        _row(name, figure, DUMPS[name])
        for name, figure in zip(DUMPS, summary.dump_figures.values(), strict=True)
    ]
    print_table(console, ("dump", *_FIGURE_HEADINGS), rows)


_FIGURE_HEADINGS = ("faults", "share of the population", "between", "")


def _row(word: str, figure: Figure, meaning: str) -> list[Cell]:
    return [
        (word, _STYLES[tone_of(word)] if figure.count else "dim"),
        (f"{figure.count:,}", ""),
        (share_text(figure), ""),
        (interval_text(figure), ""),
        (meaning, "dim"),
    ]


def _print_matrix(console: Console, summary: Summary, matrix: Matrix) -> None:
    words = DIMENSION_WORDS.get(matrix.dimension, matrix.dimension)
    if len(matrix.rows) == 1:
        _line(console)
        _line(console, f"[bold]{words}[/]  {escape(matrix.rows[0][0])} in all of them")
        return
    _heading(console, summary, words)
    rows = []
    for key, counts, total in matrix.rows:
        cells = [
            (f"{count:,}", _STYLES[tone_of(column)] if count else "dim")
            for column, count in zip(matrix.columns, counts, strict=True)
        ]
        rows.append([(key, ""), *cells, (f"{total:,}", "")])
    print_table(console, (matrix.dimension, *matrix.columns, "faults"), rows)


def _print_how(console: Console, summary: Summary) -> None:
    _heading(console, summary, "how it was found")
    rows = [((how, ""), (f"{count:,}", ""), (HOW_WORDS[how], "dim")) for how, count in summary.how.items()]
    print_table(console, ("how", "faults", ""), rows)


def _print_worst(console: Console, summary: Summary) -> None:
    if not summary.worst:
        _line(console)
        _line(console, "[bold]the worst[/]  none is silent, misboot, hung, trapped or error")
        return
    _heading(console, summary, "the worst")
    shown = Counter[str]()
    for one in summary.worst:
        shown[one.outcome] += 1
        if shown[one.outcome] > _WORST_SHOWN:
            continue
        what = "; ".join(
            part for part in (_where(one), one.dump_reason and f"dump: {one.dump_reason}") if part
        )
        style = _STYLES[tone_of(one.outcome)]
        _line(console, f"  [{style}]{one.outcome:<8}[/] {escape(what)}")
        _line(console, f"           {escape(summary.reproducer(one))}", folded=False)
    more = sum(max(0, summary.outcomes[outcome] - _WORST_SHOWN) for outcome in shown)
    if more:
        _line(console, f"  and {more:,} more")


def _where(one: Example) -> str:
    reported = ", reported" if one.reported else ""
    return f"at {one.phys:#x} in {one.segment or 'no segment'}{reported}" + (
        f": {one.detail}" if one.detail else ""
    )


def _print_speed(console: Console, summary: Summary) -> None:
    """By the host's clock: the one thing here that is not the same again."""
    rate = summary.injections_per_second
    if rate is not None:
        _line(
            console,
            f"[bold]speed[/]  {rate:,.0f} injections a second ({plural(summary.faults, 'fault')} in "
            f"{summary.seconds:,.1f} s); the audit took {summary.audit_seconds:,.1f} s besides",
        )
