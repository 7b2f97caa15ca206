"""kexecemu replay: one fault of a campaign again, by its name, with as much to look at as one wants."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kexecemu.campaign.replay import Replay

__all__ = ["replay_command"]

_AS_EXPECTED, _NOT_AS_EXPECTED = 0, 1


def replay_command(
    fault: Annotated[str, typer.Argument(help="The fault's name, as a campaign gives it.")],
    scenario: Annotated[str, typer.Argument(help="The campaign's scenario.")],
    trace: Annotated[bool, typer.Option("--trace", help="Say who ran, and the last instructions.")] = False,
    culprit: Annotated[
        bool, typer.Option("--culprit", help="Find the instruction that wrote the damage.")
    ] = False,
    protection: Annotated[
        str | None, typer.Option("--protection", help="As it was given to the campaign.")
    ] = None,
    purgatory: Annotated[
        str | None, typer.Option("--purgatory", help="As it was given to the campaign.")
    ] = None,
    refused: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="OUTCOME", help="An outcome that it must not have; repeatable."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run one fault of a campaign again to its end; exit status 1 if that is not what the campaign makes of it."""
    from kexecemu.campaign.engine import Engine
    from kexecemu.campaign.fault import CampaignFault
    from kexecemu.campaign.replay import replay_in
    from kexecemu.commands.campaign import overridden
    from kexecemu.errors import InputError
    from kexecemu.faults.outcome import Outcome
    from kexecemu.scenario.schema import find_scenario, read_scenario

    for outcome in refused or ():
        if outcome not in set(Outcome):
            raise InputError(f"--not {outcome!r} is no outcome; they are {', '.join(Outcome)}")
    parsed = CampaignFault.parse(fault)
    path = find_scenario(scenario)
    engine = Engine(overridden(read_scenario(path), protection, purgatory), path.parent)
    try:
        found = replay_in(engine, parsed, trace=trace, culprit=culprit)
    finally:
        engine.close()
    if json:
        from kexecemu.report.json import to_text

        sys.stdout.write(to_text(_object(found)))
    else:
        _print(found)
    unwanted = found.outcome in (refused or ())
    if unwanted and not json:
        print(f"unexpected   {found.outcome}, expected none")
    raise typer.Exit(_AS_EXPECTED if found.agrees and not unwanted else _NOT_AS_EXPECTED)


def _object(found: Replay) -> dict[str, Any]:
    return {
        "fault": found.fault.id,
        "outcome": found.outcome,
        "dump": found.dump,
        "dump_reason": found.dump_reason,
        "agrees": found.agrees,
        "concluded": found.concluded.outcome,
        "concluded_dump": found.concluded.dump,
        "how": found.concluded.how.value,
        "segment": found.concluded.segment,
        "phys": found.concluded.phys,
        "detail": found.concluded.detail,
        "culprits": [asdict(one) for one in found.culprits],
        "events": [{"when": one.when, "kind": one.kind, "text": one.text} for one in found.events],
        "trace": found.trace,
        "console": found.console,
    }


def _print(found: Replay) -> None:
    from rich.console import Console

    console = Console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    say(f"fault        {found.fault.id}")
    where = found.concluded.segment or found.fault.base
    say(f"where        {where}, physical {found.concluded.phys:#x}")
    say("")
    say("instructions  event")
    for event in found.events:
        say(f"{event.when:12,}  {event.kind:<14} {event.text}")
    if found.trace:
        say("")
        say("instructions  who ran")
        for line in found.trace:
            say(line)
    for one in found.culprits:
        say(f"culprit      at {one.when:,}: {one}")
    say("")
    say(f"outcome      {found.outcome}")
    say(f"dump         {found.dump_reason}")
    how = f"{found.concluded.outcome}, dump {found.concluded.dump}, found by {found.concluded.how.value}"
    say(f"campaign     {how}" if found.agrees else f"campaign     {how}: that is WRONG")
