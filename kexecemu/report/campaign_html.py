"""A campaign as one self-contained HTML file: what was run, what came of it and where, and what that rests on.

The template asks for nothing from outside and needs no script. What the host's clock says is left out, so that equal
campaigns give equal files, wherever they ran.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from kexecemu.campaign.accounting import HARM
from kexecemu.campaign.compare import Comparison
from kexecemu.campaign.summary import Summary
from kexecemu.crash.outcome import Outcome
from kexecemu.report import campaign_words as words
from kexecemu.report.campaign_picture import AXIS_WIDTH, axis_of, strip_of
from kexecemu.report.comparison_html import comparison_part
from kexecemu.report.page import render_page
from kexecemu.stray.models import MODELS

__all__ = ["render_campaign"]


def render_campaign(summary: Summary, comparison: Comparison | None = None) -> str:
    """The report as one HTML document, with a comparison with another campaign where one is given.

    Equal campaigns give the same text.
    """
    tone, verdict = _verdict(summary)
    return render_page(
        "campaign.html",
        summary=summary,
        words=words,
        tone=tone,
        verdict=verdict,
        setting=_setting(summary),
        axis=axis_of({**summary.figures, **summary.dump_figures}),
        axis_width=AXIS_WIDTH,
        rows=words.outcome_rows(summary),
        dump_rows=words.dump_rows(summary),
        strip=strip_of(summary.areas),
        strip_text=_strip_text(summary),
        matrices=[words.matrix_of(summary, dimension) for dimension in summary.by],
        dump_matrix=words.dump_matrix(summary),
        models=MODELS,
        worst=[(Outcome(one), list(found)) for one, found in groupby(summary.worst, lambda it: it.outcome)],
        worst_open=3,
        harm=[one.value for one in HARM],
        basis=words.basis_text(summary),
        areas=[(area, sum(sum(cell.values()) for cell in area.cells)) for area in summary.areas],
        **(comparison_part(comparison) if comparison is not None else {"comparison": None}),
    )


def _verdict(summary: Summary) -> tuple[str, str]:
    """Its tone, and how it is told."""
    if summary.disagreements:
        return "bad", "not to be believed"
    harm = sum(words.undetected(summary).values())
    if not harm:
        return "good", "none did harm undetected"
    return "caught", f"{harm:,} of {summary.faults:,} did harm undetected"


def _setting(summary: Summary) -> list[tuple[str, str]]:
    return [
        ("scenario", f"{summary.scenario} {summary.options}".rstrip()),
        ("page protection", summary.protection),
        ("purgatory", summary.purgatory),
        *words.basis_rows(summary.basis),
        ("configuration", summary.basis.config_hash[:12]),
    ]


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
