"""The options of the command line, each written once: its name, its help, what stands for its value, its completion.

A command that boots and loads takes all of SETUP_OPTIONS, as one Setup (takes_setup); options that several commands
share are the names below; only what a single command has stands with that command.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from kexecemu.commands import complete

if TYPE_CHECKING:
    from kexecemu.scenario.setup import Setup

__all__ = [
    "SETUP_OPTIONS",
    "CmdlineOption",
    "ConfigOption",
    "CpusOption",
    "EraOption",
    "ExpectOption",
    "HandoffOption",
    "HtmlOption",
    "JsonOption",
    "ProtectionOption",
    "PurgatoryOption",
    "RamOption",
    "ScenarioArgument",
    "SeedOption",
    "SetupOption",
    "TimelineOption",
    "VerboseOption",
    "VmcoreOption",
    "from_one",
    "from_zero",
    "seed_number",
    "takes_setup",
    "whole_number",
]

_MACHINE, _FIRST, _CRASH_KERNEL, _OUTPUT = (
    "The machine",
    "The first kernel",
    "The crash kernel",
    "What is written",
)


def whole_number(text: str) -> int:
    """A decimal number, for typer's parser; anything else is a wrong use of the option that it stands behind."""
    if not re.fullmatch(r"-?[0-9]+", str(text).strip(), re.ASCII):
        raise typer.BadParameter(f"{text!r} is not a whole number")
    return int(text)


def from_one(text: str) -> int:
    """A whole number that is 1 or more."""
    return _from(1, text)


def from_zero(text: str) -> int:
    """A whole number that is 0 or more."""
    return _from(0, text)


def _from(least: int, text: str, most: int | None = None) -> int:
    number = whole_number(text)
    if number < least or (most is not None and number > most):
        upto = "on" if most is None else f"to {most:#x}"
        raise typer.BadParameter(f"a number from {least} {upto}, not {number}")
    return number


def seed_number(text: str) -> int:
    """A whole number that has 64 bits and no sign."""
    return _from(0, text, (1 << 64) - 1)


ScenarioArgument = Annotated[
    str,
    typer.Argument(
        help="A TOML file, or the name of a scenario that ships (kexecemu list scenarios).",
        autocompletion=complete.scenarios,
    ),
]

# -- the machine and its kernels -----------------------------------------------------------------------------------

RamOption = Annotated[
    str | None,
    typer.Option("--ram", metavar="SIZE", help="RAM, for example 1G or 4T.", rich_help_panel=_MACHINE),
]
CpusOption = Annotated[
    int | None,
    typer.Option(
        "--cpus", metavar="N", parser=whole_number, help="Number of CPUs.", rich_help_panel=_MACHINE
    ),
]
_GicOption = Annotated[
    int | None,
    typer.Option(
        "--gic",
        metavar="2|3",
        parser=whole_number,
        help="Version of the interrupt controller.",
        rich_help_panel=_MACHINE,
    ),
]
_DtbOption = Annotated[
    Path | None,
    typer.Option(
        "--dtb", metavar="FILE", help="A device tree that describes another board.", rich_help_panel=_MACHINE
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        parser=seed_number,
        help="Seed of all randomness (default: the scenario's, or 0).",
    ),
]
EraOption = Annotated[
    str,
    typer.Option(
        "--era",
        metavar="RELEASE",
        help="The stretch of history with its rules, by a release (kexecemu list eras).",
        autocompletion=complete.eras,
        rich_help_panel=_FIRST,
    ),
]
CmdlineOption = Annotated[
    str | None,
    typer.Option(
        "--cmdline",
        metavar="TEXT",
        help="The first kernel's command line, with crashkernel=.",
        rich_help_panel=_FIRST,
    ),
]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        metavar="NAME=VALUE",
        help="A Kconfig option, as ZONE_DMA=n (kexecemu list configs); repeatable.",
        autocompletion=complete.configs,
        rich_help_panel=_FIRST,
    ),
]
ProtectionOption = Annotated[
    str | None,
    typer.Option(
        "--protection",
        metavar="WAY",
        help="none, pte, readonly or bbml2 (default: the era's or the scenario's own).",
        autocompletion=complete.protections,
        rich_help_panel=_FIRST,
    ),
]
_RngReadyOption = Annotated[
    bool,
    typer.Option(
        "--rng-ready",
        help="The random number generator is ready when the load builds its device tree: seeds are in it.",
        rich_help_panel=_FIRST,
    ),
]
_KernelOption = Annotated[
    Path | None,
    typer.Option(
        "--kernel",
        metavar="FILE",
        help="Image, or fetched:NAME (default: the capture stub that ships).",
        autocompletion=complete.fetched,
        rich_help_panel=_CRASH_KERNEL,
    ),
]
_InitrdOption = Annotated[
    Path | None,
    typer.Option(
        "--initrd",
        metavar="FILE",
        help="Its initrd (default: a small one); none for none.",
        rich_help_panel=_CRASH_KERNEL,
    ),
]
_AppendOption = Annotated[
    str | None,
    typer.Option("--append", metavar="TEXT", help="Its command line.", rich_help_panel=_CRASH_KERNEL),
]
PurgatoryOption = Annotated[
    str | None,
    typer.Option(
        "--purgatory",
        metavar="FILE",
        help="A purgatory object, or default or none (default: default, or the scenario's own).",
        autocompletion=complete.purgatories,
        rich_help_panel=_CRASH_KERNEL,
    ),
]
_SyscallOption = Annotated[
    str,
    typer.Option(
        "--syscall",
        metavar="CALL",
        help="What loads it: kexec_file_load, or kexec_load (kexec-tools' way).",
        autocompletion=complete.syscalls,
        rich_help_panel=_CRASH_KERNEL,
    ),
]

# -- what is written -----------------------------------------------------------------------------------------------

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
TimelineOption = Annotated[
    Path | None,
    typer.Option(
        "--timeline", metavar="FILE", help="Write the events as JSON lines.", rich_help_panel=_OUTPUT
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a report as one HTML file.", rich_help_panel=_OUTPUT),
]
VmcoreOption = Annotated[
    Path | None,
    typer.Option("--vmcore", metavar="FILE", help="Write the dump.", rich_help_panel=_OUTPUT),
]
HandoffOption = Annotated[
    Path | None,
    typer.Option(
        "--handoff",
        metavar="DIR",
        help="Write the machine at the jump, for QEMU to go on from there.",
        rich_help_panel=_OUTPUT,
    ),
]
ExpectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--expect",
        metavar="OUTCOME|KEY=VALUE",
        help="The outcome to expect, or another key of [expect] as KEY=VALUE; repeatable. All else exits with 1.",
        autocompletion=complete.outcomes,
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the console as it is printed (on stderr).")
]


@dataclass(frozen=True)
class SetupOption:
    """One option of a load: the field of Setup that it sets, its form for typer, its default."""

    field: str
    hint: Any
    default: Any


SETUP_OPTIONS = (
    SetupOption("kernel", _KernelOption, None),
    SetupOption("initrd", _InitrdOption, None),
    SetupOption("append", _AppendOption, None),
    SetupOption("purgatory", PurgatoryOption, None),
    SetupOption("syscall", _SyscallOption, "kexec_file_load"),
    SetupOption("era", EraOption, "6.4"),
    SetupOption("cmdline", CmdlineOption, None),
    SetupOption("config", ConfigOption, None),
    SetupOption("protection", ProtectionOption, None),
    SetupOption("rng_ready", _RngReadyOption, False),
    SetupOption("ram", RamOption, None),
    SetupOption("cpus", CpusOption, None),
    SetupOption("gic", _GicOption, None),
    SetupOption("dtb", _DtbOption, None),
    SetupOption("seed", SeedOption, None),
)


def takes_setup(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first argument is a Setup, the options of the table in its place."""
    # Setup is only there for the type checker: to import it takes as long as everything else together.
    hints = get_type_hints(command, localns={"Setup": object}, include_extras=True)
    own = [
        one.replace(annotation=hints[one.name])
        for one in list(inspect.signature(command).parameters.values())[1:]
    ]
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(one.field, kind, default=one.default, annotation=one.hint) for one in SETUP_OPTIONS
    ]
    parameters = [*shared, *(one.replace(kind=kind) for one in own)]

    @wraps(command)
    def with_options(**given: Any) -> None:
        fields = {one.field: given.pop(one.field) for one in SETUP_OPTIONS}
        command(_setup(fields), **given)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options


def _setup(given: dict[str, Any]) -> Setup:
    """The Setup that options describe: what was not given is as Setup has it."""
    from kexecemu.kernel.config import split_options
    from kexecemu.scenario.setup import Setup

    fields = {name: value for name, value in given.items() if value is not None}
    fields["options"] = split_options(fields.pop("config", ()))
    if str(fields.get("initrd")) == "none":
        del fields["initrd"]
        fields["no_initrd"] = True
    return Setup(**fields)
