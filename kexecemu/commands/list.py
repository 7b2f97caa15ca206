"""kexecemu list: the names that scenarios and options take, each with what it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexecemu.commands import complete
from kexecemu.commands.options import JsonOption
from kexecemu.commands.outputs import print_json
from kexecemu.errors import InputError
from kexecemu.suggest import there_are

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["EXAMPLES", "LISTS", "list_command"]

EXAMPLES = """\
kexecemu list scenarios
What can be run by its name, and what comes of it.
kexecemu list configs --json
The Kconfig options that the model knows, for a program.
"""

Rows = list[dict[str, Any]]


def _scenarios() -> Rows:
    from kexecemu.data import shipped_scenarios
    from kexecemu.scenario.read import find_scenario, read_scenario

    rows = []
    for name in shipped_scenarios():
        path = find_scenario(name)
        scenario = read_scenario(path)
        outcome = scenario.expect.outcome.value if scenario.expect else None
        rows.append({"name": name, "outcome": outcome, "sentence": scenario.name, "path": str(path)})
    return rows


def _models() -> Rows:
    from kexecemu.stray.models import model_rows

    return [row._asdict() for row in model_rows()]


def _configs() -> Rows:
    from kexecemu.kernel.base.kconfig import option_rows

    return [row._asdict() for row in option_rows()]


def _eras() -> Rows:
    from kexecemu.kernel.base.config import Era, KernelConfig

    ways = {era: KernelConfig(era).way.value for era in Era}
    return [{"name": era.value, "protection": way, "meaning": era.meaning} for era, way in ways.items()]


def _outcomes() -> Rows:
    from kexecemu.crash.outcome import Outcome

    return [{"name": outcome.value, "meaning": outcome.meaning} for outcome in Outcome]


def _limits() -> Rows:
    from kexecemu.limits import LIMITS

    return [{"name": one.name, "warned": one.asked, "meaning": one.meaning} for one in LIMITS]


LISTS: Mapping[str, Callable[[], Rows]] = {
    "scenarios": _scenarios,
    "models": _models,
    "configs": _configs,
    "eras": _eras,
    "outcomes": _outcomes,
    "limits": _limits,
}


# What a line begins with, and how wide that is; a sentence follows.
_COLUMNS = {
    "scenarios": {"name": 32, "outcome": 10},
    "configs": {"name": 30, "default": 7},
    "eras": {"name": 5, "protection": 8},
    "outcomes": {"name": 10},
    "limits": {"name": 17},
}


def list_command(
    what: Annotated[
        str | None, typer.Argument(help=f"{', '.join(LISTS)}.", autocompletion=complete.of(LISTS))
    ] = None,
    json: JsonOption = False,
) -> None:
    """List scenarios, fault models, Kconfig options, eras, outcomes or what is not modelled, with what each is."""
    if what is None:
        raise InputError(f"list what? There are {', '.join(LISTS)}")
    if what not in LISTS:
        raise InputError(f"no list of {what!r}{there_are(what, LISTS)}")
    rows = LISTS[what]()
    if json:
        print_json({what: rows})
        return
    from kexecemu.report.terminal import account

    console = account()
    if what == "models":
        _print_models(console, rows)
        return
    for row in rows:
        told = [(row[key] or "-").ljust(width) for key, width in _COLUMNS[what].items()]
        values = f" ({row['values']})" if what == "configs" else ""
        _say(
            console,
            " ".join(told) + " ",
            (row["sentence"] if what == "scenarios" else row["meaning"]) + values,
        )


def _print_models(console: Console, rows: Rows) -> None:
    _say(console, f"{'model':<15} {'kinds':>6} {'bytes':>10}")
    for row in rows:
        shortest, longest = row["shortest"], row["longest"]
        length = str(shortest) if shortest == longest else f"{shortest} to {longest}"
        _say(console, f"{row['name']:<15} {row['variants']:>6,} {length:>10}  ", row["summary"])
        _say(console, f"{'':<33}  ", f"after {row['source']}")


def _say(console: Console, head: str, body: str = "") -> None:
    from rich.markup import escape

    from kexecemu.report.terminal import say

    say(console, escape(head), escape(body))
