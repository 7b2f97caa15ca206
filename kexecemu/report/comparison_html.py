"""Two campaigns over the same faults as one self-contained HTML file: what each catches that the other does not.

The drawing and its tables are a part that the page of one campaign can show as well (see campaign_html).
"""

from __future__ import annotations

from typing import Any

from kexecemu.campaign.compare import Comparison, Pair
from kexecemu.report.campaign_picture import AXIS_WIDTH, axis_of
from kexecemu.report.campaign_words import DUMPS, basis_rows, occurring
from kexecemu.report.comparison_picture import Turn, dump_turn_of, flow_of, turn_of
from kexecemu.report.page import render_page

__all__ = ["comparison_part", "render_comparison"]


def render_comparison(comparison: Comparison) -> str:
    """The report as one HTML document. Equal campaigns give the same text."""
    setting = _setting(comparison)
    return render_page("comparison.html", pair_setting=setting, **comparison_part(comparison))


def comparison_part(comparison: Comparison) -> dict[str, Any]:
    """What templates/comparison_part.html needs."""
    first, second = names = _names(comparison)
    alone = {
        f"{first}, where {second} does harm": comparison.only_first,
        f"{second}, where {first} does harm": comparison.only_second,
    }
    without = "where {} has none or a wrong one"
    true = {
        f"{first}, {without.format(second)}": comparison.true_first,
        f"{second}, {without.format(first)}": comparison.true_second,
    }
    alone_true = {what: figure for what, figure in true.items() if figure is not None}
    turn = _turn(comparison)
    dumps = {
        f"dump {here}": {f"dump {there}": count for there, count in counts.items()}
        for here, counts in comparison.dumps.items()
    }
    return {
        "comparison": comparison,
        "names": names,
        "flow": flow_of(comparison.outcomes, turn),
        "turn_of": turn,
        "dump_table": dumps,
        "dump_flow": flow_of(dumps, dump_turn_of, DUMPS),
        "dump_turn_of": dump_turn_of,
        "dump_columns": list(DUMPS),
        "alone_true": alone_true,
        "pair_columns": occurring(comparison.outcomes.values()),
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


def _setting(comparison: Comparison) -> list[tuple[str, str]]:
    first, second = comparison.first, comparison.second
    return [
        ("scenario", " and ".join(dict.fromkeys((first.scenario, second.scenario)))),
        *basis_rows(comparison.basis),
        ("configurations", f"{first.config_hash[:12]}, {second.config_hash[:12]}"),
    ]


def _commands(pair: Pair, comparison: Comparison) -> list[str]:
    """What runs the fault again in either campaign; their headers have both words ready for a shell."""
    both = comparison.first, comparison.second
    return [f"kexecemu replay {pair.fault} {one.scenario} {one.options}".rstrip() for one in both]
