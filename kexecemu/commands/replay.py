"""kexecemu replay: one fault of a campaign again, by its name, with as much to look at as one wants."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexecemu.commands.options import JsonOption, ScenarioArgument, takes_changes
from kexecemu.commands.outputs import print_json
from kexecemu.errors import InputError
from kexecemu.suggest import did_you_mean

if TYPE_CHECKING:
    from kexecemu.campaign.replay import Replay

__all__ = ["EXAMPLES", "replay_command"]

EXAMPLES = """\
kexecemu replay dma.bit-flip.3.initrd+1a2b.after-load campaign-16m
One fault of the campaign over a scenario that ships, to its end.
kexecemu replay cpu.bit-flip.2.purgatory+3a8.after-load campaign-16m --trace --culprit
The last instructions before the end, and the one that wrote the damage.
"""

_AS_EXPECTED, _NOT_AS_EXPECTED = 0, 1


@takes_changes
def replay_command(
    changes: Mapping[str, Any],
    fault: Annotated[str, typer.Argument(help="The fault's name, as a campaign gives it.")],
    scenario: ScenarioArgument,
    trace: Annotated[bool, typer.Option("--trace", help="Say who ran, and the last instructions.")] = False,
    culprit: Annotated[
        bool, typer.Option("--culprit", help="Find the instruction that wrote the damage.")
    ] = False,
    refused: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="OUTCOME", help="An outcome that it must not have; repeatable."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run one fault of a campaign again to its end; exit status 1 if that is not what the campaign makes of it."""
    from kexecemu.campaign.engine import FaultDecider
    from kexecemu.campaign.fault import CampaignFault
    from kexecemu.campaign.replay import replay_in
    from kexecemu.commands.run import located
    from kexecemu.crash.outcome import Outcome
    from kexecemu.scenario.read import find_scenario, read_scenario
    from kexecemu.scenario.toml import changed

    for outcome in refused or ():
        if outcome not in set(Outcome):
            like = did_you_mean(outcome, list(Outcome))
            raise InputError(f"--not {outcome!r} is no outcome{like}; they are {', '.join(Outcome)}")
    parsed = CampaignFault.parse(fault)
    path = find_scenario(scenario)
    campaign = changed(read_scenario(path), changes)
    with located(path, campaign), closing(FaultDecider(campaign, path.parent)) as engine:
        found = replay_in(engine, parsed, trace=trace, culprit=culprit)
    if json:
        print_json(_object(found))
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
    from kexecemu.report.terminal import account
    from kexecemu.report.text import print_events

    say = print
    say(f"fault        {found.fault.id}")
    where = found.concluded.segment or found.fault.base
    say(f"where        {where}, physical {found.concluded.phys:#x}")
    say("")
    print_events(account(), found.events)
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
