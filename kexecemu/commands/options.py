"""The options of the command line, as typer wants them.

Those that decide a load are made from the table in kexecemu.scenario.options: flag() is one of them, takes_setup gives
a command all of them as one Setup, takes_changes as what is to be another way in a scenario. Other options that several
commands share are the names below; only what a single command has stands with that command.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from kexecemu.arguments import too_long
from kexecemu.commands import complete
from kexecemu.kernel.base.kconfig import split_options
from kexecemu.scenario.options import OPTIONS, Setup
from kexecemu.shown import brief
from kexecemu.visible import listener

__all__ = [
    "ExpectOption",
    "HandoffOption",
    "HtmlOption",
    "JsonOption",
    "RawConsoleOption",
    "ScenarioArgument",
    "SeedOption",
    "TimelineOption",
    "VerboseOption",
    "VmcoreOption",
    "flag",
    "from_one",
    "from_zero",
    "hearing",
    "option",
    "output",
    "processes",
    "seed_number",
    "takes_changes",
    "takes_setup",
    "whole_number",
]


_MOST_PROCESSES = 1024


def whole_number(text: str, least: int | None = None, most: int | None = None) -> int:
    """A decimal number in its bounds, for typer's parser; anything else is a wrong use of the option before it."""
    if not re.fullmatch(r"-?[0-9]+", str(text).strip(), re.ASCII):
        raise typer.BadParameter(f"{brief(text, room=60)} is not a whole number")
    if wrong := too_long(str(text).strip()):
        raise typer.BadParameter(wrong)
    value = int(text)
    if least is not None and (value < least or (most is not None and value > most)):
        upto = "on" if most is None else f"to {most:#x}"
        raise typer.BadParameter(f"a number from {least} {upto}, not {value}")
    return value


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers, as 1,3."""
    return tuple(map(whole_number, str(text).split(",")))


from_one = partial(whole_number, least=1)
from_zero = partial(whole_number, least=0)


def processes(text: str) -> int:
    """How many processes: more than a machine has is a wrong number."""
    value = from_one(text)
    if value > _MOST_PROCESSES:
        raise typer.BadParameter(f"{value} are more than the {_MOST_PROCESSES} that are allowed")
    return value


seed_number = partial(whole_number, least=0, most=(1 << 64) - 1)


ScenarioArgument = Annotated[
    str,
    typer.Argument(
        help="A TOML file, or the name of a scenario that ships (kexecemu list scenarios).",
        autocompletion=complete.scenarios,
    ),
]

# -- what decides a load -------------------------------------------------------------------------------------------

_PANELS = {"machine": "The machine", "kernel": "The first kernel", "load": "The crash kernel"}
_PARSERS: Mapping[str, Callable[[str], object]] = {
    "cpus": whole_number,
    "dm_crypt_keys": whole_number,
    "gic": whole_number,
    "bbm": whole_number,
    "seed": seed_number,
    "stuck_cpus": numbers,
}


def flag(name: str, *, text: str = "", panel: str | None = None, default: str | None = None) -> Any:
    """An option of the table for typer, by its name; text is another help, default says what holds without it.

    An empty default says nothing of it. Whatever takes it gets None where it is not given.
    """
    option = OPTIONS[name]
    if default is None:
        held = option.default if option.otherwise is None else option.otherwise
        default = option.without or ("" if held in (None, (), {}) or held is False else str(held))
    words = option.words or option.names or option.schema.get("enum", ())
    repeatable = " Repeatable." if isinstance(option.default, Mapping) else ""
    return typer.Option(
        option.flag,
        metavar=option.metavar or None,
        parser=_PARSERS.get(name),
        help=(text or option.help) + repeatable + (f" (default: {default})" if default else ""),
        autocompletion=getattr(complete, option.complete) if option.complete else complete.of(words),
        rich_help_panel=_PANELS.get(option.table) if panel is None else panel,
        show_default=False,
    )


SeedOption = Annotated[int | None, flag("seed", default="the scenario's, or 0")]

# -- what is written -----------------------------------------------------------------------------------------------


def option(name: str, text: str, metavar: str | None = None, panel: str | None = None, **more: Any) -> Any:
    """An option that a single command has, by its flag, for typer.

    A file's is not looked at by typer, which would want to read what is to be written.
    """
    return typer.Option(name, help=text, metavar=metavar, rich_help_panel=panel, readable=False, **more)


output = partial(option, metavar="FILE", panel="What is written")
"""An option, by its flag, that says where something is written."""
JsonOption = Annotated[bool, option("--json", "Print one JSON object, and nothing else.")]
TimelineOption = Annotated[Path | None, output("--timeline", "Write the events as JSON lines.")]
HtmlOption = Annotated[Path | None, output("--html", "Write a report as one HTML file.")]
VmcoreOption = Annotated[Path | None, output("--vmcore", "Write the dump.")]
_HANDOFF = "Write the machine at the jump, for QEMU to go on from there."
HandoffOption = Annotated[Path | None, output("--handoff", _HANDOFF, metavar="DIR")]
_EXPECT = "The outcome to expect, or another key of [expect] as KEY=VALUE; repeatable. All else exits with 1."
ExpectOption = Annotated[
    list[str] | None, option("--expect", _EXPECT, "OUTCOME|KEY=VALUE", autocompletion=complete.outcomes)
]
_VERBOSE = "Show the console as it is printed (on stderr), its control codes as escapes."
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help=_VERBOSE)]
RawConsoleOption = Annotated[
    bool, option("--raw-console", "As -v, byte for byte: the terminal obeys the guest.")
]


def hearing(verbose: bool, raw: bool) -> Callable[[bytes], None] | None:
    """Who hears the console live, as -v and --raw-console say; None for nobody."""
    return listener(raw) if verbose or raw else None


_Command = Callable[..., None]


def takes_setup(*without: str) -> Callable[[_Command], _Command]:
    """Give a command, whose first argument is a Setup, the options of the table in its place, without some."""
    flags = {name: flag(name) for name in OPTIONS if name not in without}
    return lambda command: _with_options(command, flags, lambda given: Setup(**given))


def takes_changes(command: _Command) -> _Command:
    """Give a command over a campaign's scenario, whose first argument is a mapping, the options that change that."""
    flags = {
        name: flag(name, default="", panel=f"{_PANELS[one.table]}, in place of the scenario's")
        for name, one in OPTIONS.items()
        if name not in _NO_CAMPAIGN
    }
    return _with_options(command, flags, lambda given: given)


# A real Linux takes seconds, and the seed is the sample's.
_NO_CAMPAIGN = ("linux", "stuck_cpus", "capture", "seed")
_HINTS = {bool: bool, Mapping[str, str]: list[str] | None, Path | None: Path | None, int: int | None}


def _with_options(
    command: _Command, flags: Mapping[str, Any], make: Callable[[dict[str, Any]], Any]
) -> _Command:
    """The command with flags in place of its first argument, which make() makes of what was given."""
    hints = get_type_hints(command, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]
    shared = []
    for name, info in flags.items():
        kind = OPTIONS[name].kind
        hint = _HINTS.get(kind, int | None if int in get_args(kind)[:1] else str | None)
        shared.append((name, False if kind is bool else None, Annotated[hint, info]))
    shared += [(one.name, one.default, hints[one.name]) for one in own]
    make_one = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    parameters = [make_one(name, default=default, annotation=hint) for name, default, hint in shared]

    @wraps(command)
    def with_options(**given: Any) -> None:
        fields = {name: given.pop(name) for name in flags}
        fields = {name: one for name, one in fields.items() if one not in (None, []) and one is not False}
        if "config" in fields:
            fields["config"] = split_options(fields["config"])
        command(make(fields), **given)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options
