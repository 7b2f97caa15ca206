"""A campaign, or two over the same faults, as one self-contained HTML file: what came of it, and what that rests on.

The template asks for nothing from outside and needs no script. What the host's clock says is left out, so that equal
campaigns give equal files, wherever they ran.
"""

from collections import Counter
from itertools import groupby
from typing import Any

from kexecemu.campaign.accounting import HARM
from kexecemu.campaign.compare import Comparison, Pair
from kexecemu.campaign.summary import Summary
from kexecemu.crash.outcome import Outcome
from kexecemu.report import campaign_words as words
from kexecemu.report.campaign_picture import AXIS_WIDTH, axis_of, named_dumps, strip_of
from kexecemu.report.comparison_picture import Turn, dump_turn_of, flow_of, turn_of
from kexecemu.report.page import render_page
from kexecemu.stray.models import MODELS

__all__ = ["render_campaign", "render_comparison"]


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
        **(_comparison_part(comparison) if comparison is not None else {"comparison": None}),
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
        counts = sum(map(Counter, area.cells), Counter[str]())
        ends = ", ".join(f"{counts[one.value]:,} {one.value}" for one in Outcome if counts[one.value])
        told.append(f"{area.name}: {ends or 'no fault'}")
    return "; ".join(told) + "."


# -- two campaigns -----------------------------------------------------------------------------------------------------


def render_comparison(comparison: Comparison) -> str:
    """The report as one HTML document. Equal campaigns give the same text."""
    setting = _pair_setting(comparison)
    return render_page("comparison.html", pair_setting=setting, **_comparison_part(comparison))


def _comparison_part(comparison: Comparison) -> dict[str, Any]:
    """What templates/comparison_part.html needs."""
    first, second = names = _names(comparison)
    alone = {
        f"{first}, where {second} does harm": comparison.only_first,
        f"{second}, where {first} does harm": comparison.only_second,
    }
    true = (first, second, comparison.true_first), (second, first, comparison.true_second)
    wrong = "where {} has none or a wrong one"
    alone_true = {
        f"{one}, {wrong.format(other)}": figure for one, other, figure in true if figure is not None
    }
    turn = _turn(comparison)
    dumps = {f"dump {here}": named_dumps(counts) for here, counts in comparison.dumps.items()}
    return {
        "comparison": comparison,
        "names": names,
        "flow": flow_of(comparison.outcomes, turn),
        "turn_of": turn,
        "dump_table": dumps,
        "dump_flow": flow_of(dumps, dump_turn_of, words.DUMPS),
        "dump_turn_of": dump_turn_of,
        "dump_columns": list(words.DUMPS),
        "alone_true": alone_true,
        "pair_columns": words.occurring(comparison.outcomes.values()),
        "pair_axis": axis_of({**alone, **alone_true}),
        "pair_axis_width": AXIS_WIDTH,
        "alone": alone,
        "examples": {
            f"Caught with {first} alone": comparison.examples_first,
            f"Caught with {second} alone": comparison.examples_second,
            f"A true dump with {first} alone": comparison.examples_true_first,
            f"A true dump with {second} alone": comparison.examples_true_second,
        },
        "commands_of": lambda pair: _commands(pair, comparison),
    }


def _turn(comparison: Comparison) -> Turn:
    """As the comparison counted, which knows what of the trapped was reported."""
    if not comparison.turns:
        return turn_of
    return lambda here, there: comparison.turns.get(here, {}).get(there, "")


def _names(comparison: Comparison) -> tuple[str, str]:
    """The two, as they can stand in a sentence."""
    first, second = comparison.names
    if first.startswith("first"):
        return f"the {first}", f"the {second}"
    return f"protection {first}", f"protection {second}"


def _pair_setting(comparison: Comparison) -> list[tuple[str, str]]:
    first, second = comparison.first, comparison.second
    return [
        ("scenario", " and ".join(dict.fromkeys((first.scenario, second.scenario)))),
        *words.basis_rows(comparison.basis),
        ("configurations", f"{first.config_hash[:12]}, {second.config_hash[:12]}"),
    ]


def _commands(pair: Pair, comparison: Comparison) -> list[str]:
    """What runs the fault again in either campaign; their headers have both words ready for a shell."""
    both = comparison.first, comparison.second
    return [f"kexecemu replay {pair.fault} {one.scenario} {one.options}".rstrip() for one in both]
