"""A campaign as one self-contained HTML file: what was run, what came of it and where, and what that rests on.

The template asks for nothing from outside and needs no script. What the host's clock says is left out, so that equal
campaigns give equal files, wherever they ran.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from kexecemu.campaign.compare import Comparison
from kexecemu.campaign.summary import AreaHits, Example, Summary
from kexecemu.crash.outcome import Outcome
from kexecemu.report.campaign_picture import AXIS_WIDTH, Axis, FigureRow, axis_of, strip_of
from kexecemu.report.campaign_words import (
    DIMENSION_WORDS,
    DUMPS,
    HARM,
    HOW_WORDS,
    KIND_WORDS,
    STRATIFIED,
    audit_text,
    basis_text,
    disagreement_text,
    dump_headline,
    dump_matrix,
    headline,
    interval_text,
    matrix_of,
    share_text,
    undetected,
)
from kexecemu.report.comparison_html import comparison_part, environment
from kexecemu.report.picture import size_text
from kexecemu.shown import shown
from kexecemu.stray.models import MODELS

__all__ = ["render_campaign"]

_WORST_OPEN = 3


@shown()
@dataclass(frozen=True)
class Group:
    """The examples of one outcome: some in sight, the rest folded away. count is how many the sample has."""

    outcome: str
    meaning: str
    count: int
    shown: list[Example]
    folded: list[Example]


def render_campaign(summary: Summary, comparison: Comparison | None = None) -> str:
    """The report as one HTML document, with a comparison with another campaign where one is given.

    Equal campaigns give the same text.
    """
    axis = axis_of({**summary.figures, **summary.dump_figures})
    return (
        environment()
        .get_template("campaign.html")
        .render(
            summary=summary,
            headline=headline(summary),
            dump_headline=dump_headline(summary),
            dump_rows=_dump_rows(summary, axis),
            disagreement_text=disagreement_text,
            tone=_tone(summary),
            verdict=_verdict(summary),
            setting=_setting(summary),
            axis=axis,
            axis_width=AXIS_WIDTH,
            rows=_rows(summary, axis),
            strip=strip_of(summary.areas),
            strip_text=_strip_text(summary),
            matrices=[matrix_of(summary, dimension) for dimension in summary.by],
            dump_matrix=dump_matrix(summary),
            dimension_words=DIMENSION_WORDS,
            models=MODELS,
            how_words=HOW_WORDS,
            kind_words=KIND_WORDS,
            worst=_worst(summary),
            harm=[one.value for one in HARM],
            stratified=STRATIFIED if "stratified" in summary.basis.sampler else "",
            basis=basis_text(summary),
            audit=audit_text(summary),
            areas=[(area, _hits(area)) for area in summary.areas],
            size_text=size_text,
            **(comparison_part(comparison) if comparison is not None else {"comparison": None}),
        )
    )


def _tone(summary: Summary) -> str:
    if summary.disagreements:
        return "bad"
    return "caught" if undetected(summary) else "good"


def _verdict(summary: Summary) -> str:
    if summary.disagreements:
        return "not to be believed"
    harm = sum(undetected(summary).values())
    return f"{harm:,} of {summary.faults:,} did harm undetected" if harm else "none did harm undetected"


def _setting(summary: Summary) -> list[tuple[str, str]]:
    basis = summary.basis
    return [
        ("scenario", f"{summary.scenario} {summary.options}".rstrip()),
        ("page protection", summary.protection),
        ("purgatory", summary.purgatory),
        ("faults", f"{basis.faults:,}"),
        ("out of", f"{basis.population:,}"),
        ("sampled", basis.sampler),
        ("seed", str(basis.seed)),
        ("kexecemu", basis.version),
        ("configuration", basis.config_hash[:12]),
    ]


def _rows(summary: Summary, axis: Axis) -> list[FigureRow]:
    return [
        FigureRow(
            outcome,
            count,
            share_text(summary.figures[outcome]),
            interval_text(summary.figures[outcome]),
            axis.mark(summary.figures[outcome]),
            Outcome(outcome).meaning,
        )
        for outcome, count in summary.outcomes.items()
    ]


def _dump_rows(summary: Summary, axis: Axis) -> list[FigureRow]:
    return [
        FigureRow(
            name, figure.count, share_text(figure), interval_text(figure), axis.mark(figure), DUMPS[name]
        )
        for name, figure in zip(DUMPS, summary.dump_figures.values(), strict=False)
    ]


def _worst(summary: Summary) -> list[Group]:
    groups = []
    for outcome, found in groupby(summary.worst, key=lambda one: one.outcome):
        examples = list(found)
        groups.append(
            Group(
                outcome,
                Outcome(outcome).meaning,
                summary.outcomes[outcome],
                examples[:_WORST_OPEN],
                examples[_WORST_OPEN:],
            )
        )
    return groups


def _hits(area: AreaHits) -> int:
    return sum(sum(cell.values()) for cell in area.cells)


def _strip_text(summary: Summary) -> str:
    """The strip in words, for those who cannot see it."""
    told = []
    for area in summary.areas:
        counts = Counter[str]()
        for cell in area.cells:
            counts.update(cell)
        ends = ", ".join(f"{counts[one.value]:,} {one.value}" for one in Outcome if counts[one.value])
        told.append(f"{area.name}: {ends or 'no fault'}")
    return "; ".join(told) + "."
