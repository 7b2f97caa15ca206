"""A campaign from its plan to its summary: the sample goes to whoever does the work, results to the store."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kexecemu.campaign.accounting import summarise
from kexecemu.campaign.audit import AUDIT, choose
from kexecemu.campaign.fault import Decided
from kexecemu.campaign.header import Header
from kexecemu.campaign.job import CampaignConfig, discard_engine, keep_engine, make_engine
from kexecemu.campaign.sampling import SAMPLER, sample_stratified, sample_uniform
from kexecemu.campaign.space import Space
from kexecemu.campaign.store import Store
from kexecemu.campaign.summary import Summary
from kexecemu.campaign.tasks import Queue, StopRequest, Task, stoppable
from kexecemu.campaign.version import own_version
from kexecemu.campaign.workers import Alone, Elsewhere, LocalWorkers, TaskRunner
from kexecemu.errors import InputError
from kexecemu.kernel.base.config import KernelConfig, Way
from kexecemu.scenario.schema import Scenario
from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.campaign.engine import FaultDecider

__all__ = ["CHUNK", "Campaign", "CampaignProgress", "Interrupted", "plan_campaign", "run_campaign"]

CHUNK = 2000
"""Faults that are decided and stored together, if that takes no longer than a task may: see tasks.py."""

# Hears "faults" or "audit", how many are done, of how many, and the count of each outcome so far.
CampaignProgress = Callable[[str, int, int, Mapping[str, int]], object]

_WIDTH = 32  # tasks at a time for an executor whose number of workers is not known


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: what had come back was stored, and the campaign can be resumed."""

    def __init__(self, done: int, faults: int) -> None:
        super().__init__(f"{done:,} of {faults:,} faults are stored")
        self.done = done
        self.faults = faults


@shown()
@dataclass(frozen=True)
class Campaign:
    """A campaign that is ready to run. sample holds numbers of the space, in the order in which they are tried.

    chunk is how many faults are decided and stored together at most; nothing that is found depends on it.
    """

    config: CampaignConfig
    header: Header
    space: Space
    sample: Sequence[int]
    chunk: int = CHUNK

    def strata(self, positions: range) -> list[int]:
        """The numbers of the strata that these positions of the sample are in."""
        firsts = [one.first for one in self.space.strata]
        return [bisect_right(firsts, self.sample[position]) - 1 for position in positions]


def plan_campaign(
    scenario: Scenario,
    folder: Path,
    faults: int,
    seed: int,
    *,
    named: str = "",
    options: str = "",
    source: str = "",
    chunk: int = CHUNK,
    engine: Callable[[Scenario, Path], FaultDecider] = make_engine,
) -> Campaign:
    """Load the scenario, check the machine, and draw the sample.

    The seed is the sample's alone: the machine has the scenario's, so that a fault's name and the scenario are enough
    to run it again. named, options and source are how the scenario was named, what was given to change it, and its
    text: for the record. The engine stays for run_campaign(), or until discard_engine(). Raises InputError for a
    scenario or a number of faults that cannot be, MachineError when the undisturbed machine does not do the same with
    and without hooks.
    """
    if faults < 1:
        raise InputError(f"a campaign has at least one fault, not {faults}")
    machine = engine(scenario, folder)
    try:
        space = machine.space
        if scenario.campaign.sampling == "stratified":
            sample = [index for index, _ in sample_stratified(space, faults, seed)]
        else:
            sample = sample_uniform(space, faults, seed)
        told = {"scenario": named, "options": options, "source": source}
        header = _header(scenario, machine, told, seed, faults)
    except BaseException:
        machine.close()
        raise
    config = CampaignConfig(scenario, folder, header.version, header.config_hash, engine)
    keep_engine(config, machine)
    return Campaign(config, header, space, sample, chunk)


def _header(
    scenario: Scenario, machine: FaultDecider, told: Mapping[str, str], seed: int, faults: int
) -> Header:
    space = machine.space
    return Header(
        version=own_version(),
        config_hash=machine.config_hash,
        # The way that is in force: the scenario's, or the one of its era.
        protection=KernelConfig(scenario.kernel.era, protection=scenario.kernel.protection).way.value,
        purgatory=_purgatory(scenario),
        population=space.size,
        sampler=f"{SAMPLER} {scenario.campaign.sampling}",
        name=scenario.name,
        strata=tuple((*row[:5], row.size) for row in space.describe()),
        areas=tuple(
            (area.name, area.phys.start, area.phys.end, area.kind.value)
            for area in {one.area: None for one in space.strata}
        ),
        seed=seed,
        faults=faults,
        **told,
    )


def run_campaign(
    campaign: Campaign,
    out: Path,
    *,
    resume: bool = False,
    executor: Executor | Callable[[], Executor] | None = None,
    workers: int = 1,
    audit: int = AUDIT,
    progress: CampaignProgress | None = None,
) -> Summary:
    """Decide every fault of the sample, store the results in a folder, audit the conclusions, and sum up.

    executor is any of concurrent.futures' kind, or makes one: a made one is shut down, and replaced when it breaks.
    Without one it is this process, or `workers` processes of this machine. The results are the same whoever does the
    work. Where it is this process alone, a fault that kills it takes the campaign along; resumed, what had been begun
    is done by other processes, and the fault recorded as an error.

    Raises InputError when the folder holds results and resume was not asked for, or another campaign's; Interrupted
    after Ctrl-C; WorkersDied when workers of this machine cannot be kept alive, MachineError when they have another
    machine. What has come back is stored in any case.
    """
    if audit < 0 or workers < 1:
        raise InputError("a campaign has at least one worker and no fewer than zero audits")
    try:
        with Store.begin(out, campaign.header, resume) as store, stoppable() as stop:
            runner = _runner(campaign, store, executor, workers)
            try:
                _decide(campaign, store, runner, stop, progress)
                _audit(campaign, store, runner, stop, audit, progress)
            except KeyboardInterrupt:
                stop.asked = True
            finally:
                runner.close()
            store.check_in_place()
            if stop.asked:
                raise Interrupted(store.count(), campaign.header.faults)
            return summarise(store)
    finally:
        discard_engine()


def _runner(
    campaign: Campaign, store: Store, executor: Executor | Callable[[], Executor] | None, workers: int
) -> TaskRunner:
    if executor is None and workers == 1:
        begin = store.mark_begun
        return Alone(campaign.config, campaign.space, lambda one: None if one.audit else begin(one.positions))
    discard_engine()  # the workers have their own
    if executor is None:
        return LocalWorkers(campaign.config, campaign.space, workers)
    return Elsewhere(campaign.config, campaign.space, executor, max(_WIDTH, 2 * workers))


def _decide(
    campaign: Campaign, store: Store, runner: TaskRunner, stop: StopRequest, progress: CampaignProgress | None
) -> None:
    header, sample = campaign.header, campaign.sample
    outcomes = Counter[str]()
    for row in store.counts():
        outcomes[row.outcome] += row.faults
    clock = _Clock()

    def take(positions: range, results: Sequence[Decided], begun: int = 0) -> None:
        store.add_results(positions.start, results, campaign.strata(positions), clock.lap(), begun)
        outcomes.update(str(one.outcome) for one in results)
        tell()

    def tell() -> None:
        if progress is not None:
            progress("faults", outcomes.total(), header.faults, outcomes)

    tell()
    # What was begun by a process that is dead may have killed it.
    for begun in store.begun():
        for done, results in runner.one_by_one(Task(begun, sample[begun.start : begun.stop]), stop):
            take(done.positions, results, begun.stop - done.positions.stop)
    if stop.asked:
        return
    for done, results in runner.results(Queue(store.pending(), sample, campaign.chunk), stop):
        take(done.positions, results)


def _audit(
    campaign: Campaign,
    store: Store,
    runner: TaskRunner,
    stop: StopRequest,
    faults: int,
    progress: CampaignProgress | None,
) -> None:
    if stop.asked:
        return
    done = {one.position for one in store.audits()}
    chosen = choose(store, faults)
    left = [position for position in chosen if position not in done]
    queue = Queue([range(one, one + 1) for one in left], campaign.sample, 1, audit=True)
    agreed = Counter[str]()
    clock = _Clock()
    for number, (task, results) in enumerate(runner.results(queue, stop), 1):
        (found,) = results
        store.add_audits([(task.positions.start, found)], clock.lap())
        agreed[str(found.outcome)] += 1
        if progress is not None:
            progress("audit", len(chosen) - len(left) + number, len(chosen), agreed)


class _Clock:
    """The host's. Nothing but the rate that is told to people depends on it."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        before, self.last = self.last, now
        return now - before


def _purgatory(scenario: Scenario) -> str:
    purgatory = scenario.kernel.purgatory
    if scenario.load.way != Way.PURGATORY.value:
        return str(scenario.load.way)
    words = "default" if purgatory is True else str(purgatory or "none")
    return "kexec-tools" if scenario.load.syscall == "kexec_load" and words in ("default", "none") else words
