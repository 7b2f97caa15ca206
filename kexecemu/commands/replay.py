"""kexecemu replay: one fault of a campaign again, by its name, with as much to look at as one wants."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexecemu.commands.options import JsonOption, ScenarioArgument, option, takes_changes
from kexecemu.commands.outputs import print_json
from kexecemu.errors import InputError
from kexecemu.suggest import did_you_mean
from kexecemu.visible import visible_line

if TYPE_CHECKING:
    from kexecemu.campaign.replay import Replay

__all__ = ["EXAMPLES", "replay_command"]

EXAMPLES = """\
kexecemu replay dma.bit-flip.3.initrd+1a2b.after-load campaign-16m
One fault of the campaign over a scenario that ships, to its end.
kexecemu replay cpu.bit-flip.2.purgatory+400.after-load campaign-16m --trace --culprit
The last instructions before the end, and the one that wrote the damage.
"""


@takes_changes
def replay_command(
    changes: Mapping[str, Any],
    fault: Annotated[str, typer.Argument(help="The fault's name, as a campaign gives it.")],
    scenario: ScenarioArgument,
    trace: Annotated[bool, option("--trace", "Say who ran, and the last instructions.")] = False,
    culprit: Annotated[bool, option("--culprit", "Find the instruction that wrote the damage.")] = False,
    refused: Annotated[
        list[str] | None, option("--not", "An outcome that it must not have; repeatable.", "OUTCOME")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run one fault of a campaign again to its end; exit status 1 if that is not what the campaign makes of it."""
    from kexecemu.campaign.engine import FaultDecider
    from kexecemu.campaign.fault import CampaignFault
    from kexecemu.campaign.replay import replay_in
    from kexecemu.commands.run import located
    from kexecemu.crash.outcome import Outcome
    from kexecemu.scenario.toml import changed_scenario

    for outcome in refused or ():
        if outcome not in set(Outcome):
            like = did_you_mean(outcome, list(Outcome))
            raise InputError(f"--not {outcome!r} is no outcome{like}; they are {', '.join(Outcome)}")
    parsed = CampaignFault.parse(fault)
    path, campaign = changed_scenario(scenario, changes)
    with located(path, campaign), closing(FaultDecider(campaign, path.parent)) as engine:
        found = replay_in(engine, parsed, trace=trace, culprit=culprit)
    if json:
        print_json(_object(found))
    else:
        _print(found)
    unwanted = found.outcome in (refused or ())
    if unwanted and not json:
        print(f"unexpected   {found.outcome}, expected none")
    raise typer.Exit(0 if found.agrees and not unwanted else 1)


def _object(found: Replay) -> dict[str, Any]:
    concluded = found.concluded
    return {
        "fault": found.fault.id,
        "outcome": found.outcome,
        "dump": found.dump,
        "dump_reason": found.dump_reason,
        "agrees": found.agrees,
        "concluded": concluded.outcome,
        "concluded_dump": concluded.dump,
        **{key: getattr(concluded, key) for key in ("how", "segment", "phys", "detail")},
        "culprits": [asdict(one) for one in found.culprits],
        "events": [{"when": one.when, "kind": one.kind, "text": one.text} for one in found.events],
        "trace": found.trace,
        "console": found.console,
    }


def _print(found: Replay) -> None:
    from kexecemu.report.terminal import account
    from kexecemu.report.text import print_events

    concluded = found.concluded
    print(f"fault        {found.fault.id}")
    where = visible_line(concluded.segment or found.fault.base)
    print(f"where        {where}, physical {concluded.phys:#x}\n")
    print_events(account(), found.events)
    if found.trace:
        heading = ["instructions  who ran"] * (len(found.trace) > 1)
        print("", *heading, *map(visible_line, found.trace), sep="\n")
    for one in found.culprits:
        print(f"culprit      at {one.when:,}: {visible_line(str(one))}")
    print(f"\noutcome      {found.outcome}")
    print(f"dump         {visible_line(found.dump_reason)}")
    how = f"{concluded.outcome}, dump {concluded.dump}, found by {concluded.how.value}"
    print(f"campaign     {how}" if found.agrees else f"campaign     {how}: that is WRONG")
