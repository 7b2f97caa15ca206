"""A campaign told to people on a terminal: what was run, what came of it, the worst of it, and what it rests on."""

from collections import Counter

from rich.console import Console
from rich.markup import escape

from kexecemu.campaign.stats import Figure
from kexecemu.campaign.summary import Example, Summary
from kexecemu.report import campaign_words as words
from kexecemu.report.picture import size_text
from kexecemu.report.terminal import print_table, say_labelled

__all__ = ["print_campaign"]

_STYLES = {"good": "green", "caught": "yellow", "quiet": "cyan", "bad": "bold red", "none": "bold magenta"}
_WORST_SHOWN = 3  # of each outcome


def print_campaign(console: Console, summary: Summary) -> None:
    """The whole account. Every table stands under the line that says what its figures rest on."""
    say_labelled(console, f"[bold]{escape(summary.name)}[/]")
    named = f"{summary.scenario} {summary.options}".rstrip()
    setting = f"scenario {named}; protection {summary.protection}, purgatory {summary.purgatory}"
    say_labelled(console, escape(setting))
    _print_space(console, summary)
    say_labelled(console)
    say_labelled(console, escape(words.headline(summary)))
    if summary.dumps:
        say_labelled(console, escape(words.dump_headline(summary)))
    _print_outcomes(console, summary)
    if summary.dumps:
        _heading(console, summary, words.DIMENSION_WORDS["dump"])
        _print_figures(console, "dump", words.dump_rows(summary))
        _print_matrix(console, summary, words.dump_matrix(summary))
    for dimension in summary.by:
        _print_matrix(console, summary, words.matrix_of(summary, dimension))
    _print_how(console, summary)
    _print_worst(console, summary)
    say_labelled(console)
    style = "bold red" if summary.disagreements else "bold"
    say_labelled(console, f"[{style}]audit[/]  {escape(words.audit_text(summary))}")
    for one in summary.disagreements:
        decided, run = words.disagreement_text(one)
        say_labelled(console, f"  {escape(f'{decided} by {one.how}, but {run}: {one.detail}'.rstrip(': '))}")
        say_labelled(console, f"    {escape(summary.reproducer(one))}", folded=False)
    _print_speed(console, summary)
    say_labelled(console, f"[dim]results  sha256 {summary.table_sha256}[/]")


def _heading(console: Console, summary: Summary, title: str) -> None:
    say_labelled(console)
    say_labelled(console, f"[bold]{escape(title)}[/]  [dim]{escape(words.basis_text(summary))}[/]")


def _print_space(console: Console, summary: Summary) -> None:
    """The fault space by kind of memory; equal names of areas are one."""
    kinds: dict[str, tuple[list[str], int]] = {}
    for area in summary.areas:
        names, size = kinds.get(area.kind, ([], 0))
        kinds[area.kind] = (list(dict.fromkeys([*names, area.name])), size + area.end - area.start)
    for kind, (names, size) in kinds.items():
        what = f"{size_text(size)} in {', '.join(names)}; {words.KIND_WORDS.get(kind, kind)}"
        say_labelled(console, f"space  {kind:<9} [dim]{escape(what)}[/]")


def _print_outcomes(console: Console, summary: Summary) -> None:
    say_labelled(console)
    say_labelled(console, f"[bold]outcomes[/]  [dim]{escape(str(summary.basis))}[/]")
    if "stratified" in summary.basis.sampler:
        say_labelled(console, f"[dim]{words.STRATIFIED}[/]")
    _print_figures(console, "outcome", words.outcome_rows(summary))


def _print_figures(console: Console, what: str, figures: list[tuple[str, Figure, str]]) -> None:
    rows = [
        [
            (word, _STYLES[words.tone_of(word)] if figure.count else "dim"),
            (f"{figure.count:,}", ""),
            (words.share_text(figure), ""),
            (words.interval_text(figure), ""),
            (meaning, "dim"),
        ]
        for word, figure, meaning in figures
    ]
    print_table(console, (what, "faults", "share of the population", "between", ""), rows)


def _print_matrix(console: Console, summary: Summary, matrix: words.Matrix) -> None:
    title = words.DIMENSION_WORDS.get(matrix.dimension, matrix.dimension)
    if len(matrix.rows) == 1:
        say_labelled(console)
        say_labelled(console, f"[bold]{title}[/]  {escape(matrix.rows[0][0])} in all of them")
        return
    _heading(console, summary, title)
    rows = []
    for key, counts, total in matrix.rows:
        styles = (_STYLES[words.tone_of(column)] for column in matrix.columns)
        cells = [
            (f"{count:,}", style if count else "dim") for count, style in zip(counts, styles, strict=True)
        ]
        rows.append([(key, ""), *cells, (f"{total:,}", "")])
    print_table(console, (matrix.dimension, *matrix.columns, "faults"), rows)


def _print_how(console: Console, summary: Summary) -> None:
    _heading(console, summary, "how it was found")
    rows = [((how, ""), (f"{one:,}", ""), (words.HOW_WORDS[how], "dim")) for how, one in summary.how.items()]
    print_table(console, ("how", "faults", ""), rows)


def _print_worst(console: Console, summary: Summary) -> None:
    if not summary.worst:
        say_labelled(console)
        say_labelled(console, "[bold]the worst[/]  none is silent, misboot, hung, trapped or error")
        return
    _heading(console, summary, "the worst")
    shown = Counter[str]()
    for one in summary.worst:
        shown[one.outcome] += 1
        if shown[one.outcome] > _WORST_SHOWN:
            continue
        what = _where(one) + (f"; dump: {one.dump_reason}" if one.dump_reason else "")
        style = _STYLES[words.tone_of(one.outcome)]
        say_labelled(console, f"  [{style}]{one.outcome:<8}[/] {escape(what)}")
        say_labelled(console, f"           {escape(summary.reproducer(one))}", folded=False)
    more = sum(max(0, summary.outcomes[outcome] - _WORST_SHOWN) for outcome in shown)
    if more:
        say_labelled(console, f"  and {more:,} more")


def _where(one: Example) -> str:
    reported = ", reported" if one.reported else ""
    detail = f": {one.detail}" if one.detail else ""
    return f"at {one.phys:#x} in {one.segment or 'no segment'}{reported}{detail}"


def _print_speed(console: Console, summary: Summary) -> None:
    """By the host's clock: the one thing here that is not the same again."""
    rate = summary.injections_per_second
    if rate is not None:
        say_labelled(
            console,
            f"[bold]speed[/]  {rate:,.0f} injections a second ({words.plural(summary.faults, 'fault')} in "
            f"{summary.seconds:,.1f} s); the audit took {summary.audit_seconds:,.1f} s besides",
        )
