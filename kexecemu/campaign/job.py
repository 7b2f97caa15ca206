"""What one process of a campaign does: decide some faults, with an engine that it keeps for the next ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from kexecemu.campaign.fault import CampaignFault, Decided, How
from kexecemu.campaign.space import Space
from kexecemu.campaign.version import own_version
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError, MachineError
from kexecemu.scenario.schema import Scenario
from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.campaign.engine import FaultDecider

__all__ = ["CampaignConfig", "discard_engine", "error_of", "keep_engine", "make_engine", "run_chunk"]


def make_engine(scenario: Scenario, folder: Path) -> FaultDecider:
    """The engine that campaigns use. Raises MachineError when its golden runs differ, InputError for bad input."""
    from kexecemu.campaign.engine import FaultDecider

    return FaultDecider(scenario, folder)


@shown()
@dataclass(frozen=True)
class CampaignConfig:
    """All that a process needs to know; it is sent to other machines too.

    folder is where the scenario's relative paths start. version and config_hash are those of the process that planned
    the campaign: another one that comes to a different hash does not take part. engine makes one, and is found by its
    name in other processes.
    """

    scenario: Scenario
    folder: Path
    version: str
    config_hash: str
    engine: Callable[[Scenario, Path], FaultDecider] = make_engine


# One engine a process, for the campaign that it was last asked about. An engine is one machine: threads of a process
# (dask has several unless told otherwise) take turns.
_turn = threading.Lock()
_kept: tuple[CampaignConfig, FaultDecider] | None = None


def run_chunk(
    config: CampaignConfig,
    indices: Sequence[int],
    audit: bool,
    seconds: float = inf,
    results: list[Decided] | None = None,
) -> list[Decided]:
    """What comes of the faults with these numbers of the space; with audit by running each to its end.

    After so many seconds it comes back with those that are done, at least one. results is filled on the way, for who
    wants to have them when the work is interrupted. An exception on the way is that fault's outcome, error. Raises
    MachineError, in words that can be sent between processes, when there is no engine to be had here or it is not the
    campaign's.
    """
    results = [] if results is None else results
    with _turn:
        _engine(config)  # though there be no faults: then it is asked whether there is one
        end = time.monotonic() + seconds
        for index in indices:
            engine = _engine(config)
            fault = engine.space.fault(index)
            try:
                results.append(engine.run(fault) if audit else engine.decide(fault))
            except Exception as error:
                results.append(error_of(engine.space, fault, f"{type(error).__name__}: {error}"))
                if not isinstance(error, InputError):
                    # Whatever state it left the machine in, the next fault must not see it.
                    _forget()
            if time.monotonic() >= end:
                break
    return results


def error_of(space: Space, fault: CampaignFault, detail: str) -> Decided:
    """A fault that could not be decided, and why."""
    try:
        phys = space.places.area(fault.base).start + fault.offset if space.places is not None else 0
    except InputError:
        phys = 0
    none = "none: kexecemu itself failed"
    return Decided(fault, Outcome.ERROR.value, How.RUN, "", phys, " ".join(detail.split()), dump_reason=none)


def keep_engine(config: CampaignConfig, engine: FaultDecider) -> None:
    """Use this engine for the campaign in this process, instead of making one."""
    global _kept
    with _turn:
        _forget()
        _kept = config, engine


def discard_engine() -> None:
    """Close the engine that this process keeps, if it keeps one."""
    with _turn:
        _forget()


def _forget() -> None:
    global _kept
    if _kept is not None:
        _, engine = _kept
        _kept = None
        engine.close()


def _engine(config: CampaignConfig) -> FaultDecider:
    global _kept
    if _kept is not None and _kept[0] == config:
        return _kept[1]
    _forget()
    if config.version != own_version():
        raise MachineError(f"a worker has kexecemu {own_version()}, the campaign is one of {config.version}")
    try:
        engine = config.engine(config.scenario, config.folder)
    except Exception as error:
        # Not all exceptions survive the way to another process.
        raise MachineError(
            f"a worker has no machine to try faults on: {type(error).__name__}: {error}"
        ) from None
    if engine.config_hash != config.config_hash:
        engine.close()
        raise MachineError(
            "a worker has loaded something else than the campaign's image: configuration "
            f"{engine.config_hash[:12]}, not {config.config_hash[:12]}"
        )
    _kept = config, engine
    return engine
