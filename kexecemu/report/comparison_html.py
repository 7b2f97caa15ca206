"""Two campaigns over the same faults as one self-contained HTML file: what each catches that the other does not.

The drawing and its tables are a part that the page of one campaign can show as well (see campaign_html).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kexecemu.campaign.compare import Comparison, Pair
from kexecemu.campaign.header import Header
from kexecemu.campaign.stats import Figure
from kexecemu.report.campaign_picture import AXIS_WIDTH, Axis, FigureRow, axis_of
from kexecemu.report.campaign_words import DUMPS, interval_text, occurring, share_text
from kexecemu.report.comparison_picture import Turn, dump_turn_of, flow_of, turn_of

__all__ = ["comparison_part", "environment", "render_comparison"]


@cache
def environment() -> Environment:
    """The templates of campaigns, which escape everything that they are given."""
    return Environment(
        loader=PackageLoader("kexecemu.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_comparison(comparison: Comparison) -> str:
    """The report as one HTML document. Equal campaigns give the same text."""
    page = environment().get_template("comparison.html")
    return page.render(pair_setting=_setting(comparison), **comparison_part(comparison))


def comparison_part(comparison: Comparison) -> dict[str, Any]:
    """What templates/comparison_part.html needs."""
    first, second = names = _names(comparison)
    figures = {
        f"{first}, where {second} does harm": comparison.only_first,
        f"{second}, where {first} does harm": comparison.only_second,
    }
    true = {
        f"{side}, where {other} has none or a wrong one": figure
        for side, other, figure in (
            (first, second, comparison.true_first),
            (second, first, comparison.true_second),
        )
        if figure is not None
    }
    axis = axis_of({**figures, **true})
    examples = [
        (f"Caught with {first} alone", comparison.examples_first),
        (f"Caught with {second} alone", comparison.examples_second),
        (f"A true dump with {first} alone", comparison.examples_true_first),
        (f"A true dump with {second} alone", comparison.examples_true_second),
    ]
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
        "alone_true": [_row(what, figure, axis) for what, figure in true.items()],
        "even_dumps": f"{comparison.even_dumps:.2g}",
        "pair_columns": occurring(comparison.outcomes.values()),
        "pair_axis": axis,
        "pair_axis_width": AXIS_WIDTH,
        "alone": [_row(what, figure, axis) for what, figure in figures.items()],
        "even": f"{comparison.even:.2g}",
        "examples": [
            (title, [_with_commands(pair, comparison) for pair in pairs])
            for title, pairs in examples
            if pairs
        ],
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
    basis = comparison.basis
    scenarios = dict.fromkeys((comparison.first.scenario, comparison.second.scenario))
    return [
        ("scenario", " and ".join(scenarios)),
        ("faults", f"{basis.faults:,}"),
        ("out of", f"{basis.population:,}"),
        ("sampled", basis.sampler),
        ("seed", str(basis.seed)),
        ("kexecemu", basis.version),
        ("configurations", f"{comparison.first.config_hash[:12]}, {comparison.second.config_hash[:12]}"),
    ]


def _row(what: str, figure: Figure, axis: Axis) -> FigureRow:
    return FigureRow(what, figure.count, share_text(figure), interval_text(figure), axis.mark(figure))


def _with_commands(pair: Pair, comparison: Comparison) -> tuple[Pair, str, str]:
    return pair, _command(pair, comparison.first), _command(pair, comparison.second)


def _command(pair: Pair, header: Header) -> str:
    """What runs the fault again in one of the campaigns; its header has both words ready for a shell."""
    return f"kexecemu replay {pair.fault} {header.scenario} {header.options}".rstrip()
