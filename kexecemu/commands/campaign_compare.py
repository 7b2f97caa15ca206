"""kexecemu campaign-compare: two campaigns over the same faults side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexecemu.commands.options import HtmlOption, JsonOption
from kexecemu.commands.outputs import Written, check_outputs, print_json, print_written

if TYPE_CHECKING:
    from kexecemu.campaign.compare import Comparison

__all__ = ["EXAMPLES", "compare_command"]

EXAMPLES = """\
kexecemu campaign-compare with without
The same faults in two campaigns: what only one catches.
kexecemu campaign-compare with without --html comparison.html
The same with a picture, as one HTML file.
"""


def compare_command(
    first: Annotated[Path, typer.Argument(help="The folder of a finished campaign.")],
    second: Annotated[Path, typer.Argument(help="The folder of another one over the same faults.")],
    json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """What each of two campaigns catches that the other does not, fault by fault."""
    from kexecemu.campaign.compare import compare
    from kexecemu.campaign.database import FILE
    from kexecemu.report.campaign_html import render_comparison

    stores = {"a campaign's results": first / FILE, "the other campaign's results": second / FILE}
    check_outputs({"--html": html}, stores)
    comparison = compare(first, second)
    written = Written()
    written.write("--html", html, lambda: render_comparison(comparison))
    if json:
        print_json(_comparison_object(comparison), written.files)
    else:
        _print_comparison(comparison)
        print_written(written.files)
    written.exit()


def _comparison_object(comparison: Comparison) -> dict[str, Any]:
    basis = comparison.basis

    def side(which: str) -> dict[str, Any]:
        header, figure = getattr(comparison, which), getattr(comparison, f"only_{which}")
        true = getattr(comparison, f"true_{which}")
        told = ("scenario", "protection", "purgatory", "version", "config_hash")
        return {
            **{key: getattr(header, key) for key in told},
            "caught_alone": figure.count,
            "interval": [figure.interval.low, figure.interval.high],
            "examples": [asdict(one) for one in getattr(comparison, f"examples_{which}")],
            "true_dump_alone": true.count if true is not None else 0,
            "true_dump_interval": [true.interval.low, true.interval.high] if true is not None else None,
            "true_dump_examples": [asdict(one) for one in getattr(comparison, f"examples_true_{which}")],
        }

    return {
        **{key: getattr(basis, key) for key in ("population", "faults", "seed", "sampler", "method")},
        "first": side("first"),
        "second": side("second"),
        "outcomes": comparison.outcomes,
        "classes": comparison.classes,
        "mcnemar": comparison.even,
        "dumps": comparison.dumps,
        "dumps_mcnemar": comparison.even_dumps,
    }


def _print_comparison(comparison: Comparison) -> None:
    names, classes = comparison.names, comparison.classes
    _say(f"first   {names[0]}: {comparison.first.scenario}")
    _say(f"second  {names[1]}: {comparison.second.scenario}")
    _say(str(comparison.basis))
    _say("")
    outcomes = dict.fromkeys(there for counts in comparison.outcomes.values() for there in counts)
    _print_crossed(comparison.outcomes, list(outcomes))
    _say(f"caught by both     {classes['caught']['caught']:,}")
    _say(f"harm in both       {classes['harm']['harm']:,}")
    harm = "caught that are harm in the other"
    _print_alone(comparison, harm, "only", "examples")
    _say(f"so uneven a split by chance: {comparison.even:.3g} (McNemar, exact)")
    if comparison.true_first is None or comparison.true_second is None:
        return
    _say("")
    _print_crossed(comparison.dumps, list(comparison.dumps), "dump ")
    true = "with a true dump where the other has none, or a wrong one"
    _print_alone(comparison, true, "true", "examples_true")
    _say(f"so uneven a split by chance: {comparison.even_dumps:.3g} (McNemar, exact)")


def _say(text: str) -> None:
    from rich.markup import escape

    from kexecemu.report.terminal import account, say_labelled

    say_labelled(account(), escape(text))


def _print_crossed(found: Mapping[str, Mapping[str, int]], columns: list[str], prefix: str = "") -> None:
    from kexecemu.report.terminal import account, print_table

    _say("first, down; second, across")
    rows = []
    for here, counts in found.items():
        rows.append([(prefix + here, ""), *((f"{counts.get(column, 0):,}", "") for column in columns)])
    print_table(account(), ("", *(prefix + column for column in columns)), rows)
    _say("")


def _print_alone(comparison: Comparison, what: str, counted: str, shown: str) -> None:
    """What only one of the two does, with its examples: the fields that begin with counted and with shown."""
    for which in ("first", "second"):
        figure = getattr(comparison, f"{counted}_{which}")
        share = f"{figure.interval.low:.3g} to {figure.interval.high:.3g} of the population"
        _say(f"{f'{which} alone':<18} {figure.count:,} {what} ({share})")
        for pair in getattr(comparison, f"{shown}_{which}"):
            dumps = f", dump {pair.first_dump} / {pair.second_dump}" if pair.first_dump else ""
            _say(f"    {pair.fault}  {pair.first} / {pair.second}{dumps}")
