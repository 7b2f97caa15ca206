"""What the [campaign] table of a scenario asks for, checked before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from kexecemu.campaign.areas import WHERE
from kexecemu.campaign.fault import MOMENTS
from kexecemu.errors import InputError
from kexecemu.kernel.image.kimage import SEGMENT_NAMES
from kexecemu.scenario.schema import Scenario
from kexecemu.shown import shown
from kexecemu.stray.fault import By, When, can_write, parse_when
from kexecemu.stray.models import Model, find_model
from kexecemu.suggest import there_are

__all__ = ["HASHING_STEPS", "Plan", "plan_of"]

# "hashing" without a number: the middle of each sixteenth, so that as much has been read as is still to come.
HASHING_STEPS = tuple(range(8, 256, 16))

# All that there can be; whether a segment was loaded is for the machine to say.
_PLACES = (*SEGMENT_NAMES, *WHERE)


@shown()
@dataclass(frozen=True)
class Plan:
    """The campaign that a scenario describes: words of where, models, writers, moments with their numbers."""

    where: tuple[str, ...]
    models: tuple[Model, ...]
    writers: tuple[By, ...]
    moments: tuple[tuple[When, int], ...]
    sampling: str


def plan_of(scenario: Scenario) -> Plan:
    """The plan in a scenario; raises InputError that names the key for what makes no sense.

    A writer that writes at none of the moments, and a moment at which none of the writers does, are refused; other
    pairs that cannot be (a CPU of the first kernel after the jump, beside DMA there) are no part of the fault space.
    """
    table = scenario.campaign
    for key in ("where", "models", "by", "moments"):
        words: tuple[str, ...] = getattr(table, key)
        if not words:
            raise InputError(f"campaign.{key}: is empty")
        twice = next((word for at, word in enumerate(words) if word in words[:at]), None)
        if twice is not None:
            raise InputError(f"campaign.{key}: {twice!r} is there twice")
    for word in table.where:
        if word not in _PLACES:
            raise InputError(f"campaign.where: no place {word!r}{there_are(word, _PLACES)}")
    try:
        models = tuple(map(find_model, table.models))
    except InputError as error:
        raise InputError(f"campaign.models: {error}") from None
    for name in table.by:
        if name not in set(By):
            raise InputError(f"campaign.by: no writer {name!r}{there_are(name, By)}")
    writers = tuple(map(By, table.by))
    moments = _moments(table.moments)
    _check_pairs(writers, moments)
    purgatory = scenario.load.syscall == "kexec_load" or scenario.kernel.purgatory not in (False, "none")
    if When.WHILE_HASHING in dict(moments) and not purgatory:
        raise InputError("campaign.moments: nothing is hashed without a purgatory")
    if By.LATE_CPU in writers and scenario.machine.dtb is None and (scenario.machine.cpus or 1) < 2:
        raise InputError("campaign.by: a late-cpu is a second one: [machine] cpus has to be 2 or more")
    return Plan(table.where, models, writers, moments, table.sampling)


def _moments(words: Sequence[str]) -> tuple[tuple[When, int], ...]:
    moments: list[tuple[When, int]] = []
    for word in words:
        if word == When.WHILE_HASHING:
            found = [(When.WHILE_HASHING, step) for step in HASHING_STEPS]
        else:
            found = [parse_when(word, "campaign.moments", MOMENTS, ", and hashing for 16 steps of it")]
        if any(one in moments for one in found):
            raise InputError(f'campaign.moments: {word!r} is among the steps of "hashing" or there twice')
        moments += found
    return tuple(moments)


def _check_pairs(writers: Sequence[By], moments: Sequence[tuple[When, int]]) -> None:
    for by in writers:
        if not any(can_write(by, moment) for moment, _ in moments):
            when = ", ".join(dict.fromkeys(moment.value for moment, _ in moments))
            late = "does not stop at the crash and is one of many until then"
            why = late if by is By.LATE_CPU else "has stopped then"
            raise InputError(f"campaign.by: {by.value} cannot write at {when}: it {why}")
    for moment, _ in moments:
        if not any(can_write(by, moment) for by in writers):
            raise InputError(f"campaign.moments: at {moment.value} none of {', '.join(writers)} can write")
