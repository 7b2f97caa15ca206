"""Parts of a campaign's work: what its header says, who does it, what is told on the way, and what is begun apart."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_engine
import msgspec
import pytest

from kexecemu.campaign import job, work
from kexecemu.campaign.fault import Decided
from kexecemu.campaign.job import discard_engine
from kexecemu.campaign.sampling import sample_stratified, sample_uniform
from kexecemu.campaign.store import Store
from kexecemu.campaign.tasks import StopRequest, Task
from kexecemu.campaign.version import own_version
from kexecemu.campaign.work import Interrupted, _purgatory, _runner, plan_campaign, run_campaign
from kexecemu.campaign.workers import Alone, Elsewhere, LocalWorkers
from kexecemu.errors import InputError
from kexecemu.scenario.schema import Load, Scenario


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    yield
    discard_engine()


def plan(
    faults: int = 300,
    sampling: str = "uniform",
    chunk: int = 100,
    name: str = "a fake campaign",
    **kernel: Any,
) -> Any:
    scenario = fake_engine.scenario(name, sampling, **kernel)
    return plan_campaign(scenario, Path("there"), faults, 5, chunk=chunk, engine=fake_engine.make)


@pytest.mark.parametrize(
    ("kernel", "load", "word"),
    [
        ({}, {}, "default"),
        ({"purgatory": True}, {}, "default"),
        ({"purgatory": False}, {}, "none"),
        ({"purgatory": "none"}, {}, "none"),
        ({"purgatory": "own.ro"}, {}, "own.ro"),
        ({}, {"syscall": "kexec_load"}, "kexec-tools"),
        ({"purgatory": "none"}, {"syscall": "kexec_load"}, "kexec-tools"),
        ({"purgatory": "own.ro"}, {"syscall": "kexec_load"}, "own.ro"),
        ({"purgatory": "none"}, {"way": "machine-kexec"}, "machine-kexec"),
        ({}, {"way": "purgatory-trans-pgd"}, "purgatory-trans-pgd"),
    ],
)
def test_the_purgatory_of_a_scenario_is_called_by_what_is_run(
    kernel: dict[str, Any], load: dict[str, Any], word: str
) -> None:
    plain = Scenario(schema=1, name="x", load=Load(**load))
    scenario = msgspec.structs.replace(plain, kernel=msgspec.structs.replace(plain.kernel, **kernel))
    assert _purgatory(scenario) == word


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_a_plan_says_what_the_campaign_is_and_which_faults(sampling: str) -> None:
    scenario = fake_engine.scenario("a name", sampling, protection="pte")
    made = plan_campaign(
        scenario, Path("there"), 300, 5, named="n.toml", options="--x", source="text", engine=fake_engine.make
    )
    machine, header, space = fake_engine.make(scenario, Path()), made.header, made.space
    assert (header.version, header.config_hash) == (own_version(), machine.config_hash)
    assert (header.protection, header.purgatory, header.name) == ("pte", "default", "a name")
    assert (header.seed, header.faults, header.population) == (5, 300, machine.space.size)
    assert (header.scenario, header.options, header.source) == ("n.toml", "--x", "text")
    assert header.sampler == f"shake128-shuffle-1 {sampling}" and header.stratified is (
        sampling == "stratified"
    )
    assert header.strata == tuple(
        (row.where, row.kind, row.model, row.by, row.moment, row.size) for row in space.describe()
    )
    assert header.areas == tuple(
        (one.name, one.phys.start, one.phys.end, one.kind.value) for one in fake_engine.AREAS
    )
    drawn = (
        [at for at, _ in sample_stratified(space, 300, 5)]
        if sampling == "stratified"
        else sample_uniform(space, 300, 5)
    )
    assert (list(made.sample), made.chunk) == (drawn, 2000)
    assert made.config == job.CampaignConfig(
        scenario, Path("there"), own_version(), header.config_hash, fake_engine.make
    )
    strata = made.strata(range(50, 300))
    assert strata == [space.strata.index(space.stratum(index)) for index in drawn[50:]]
    assert job._kept is not None and job._kept[0] == made.config  # its engine is kept for the run


def test_a_plan_that_comes_to_nothing_closes_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(fake_engine.FakeEngine, "close", lambda self: closed.append(True))
    with pytest.raises(InputError, match="cannot be drawn"):
        plan(10**9)
    assert closed == [True]
    for faults in (0, -1):
        with pytest.raises(InputError, match=f"a campaign has at least one fault, not {faults}"):
            plan(faults)
    assert plan(1).header.faults == 1


def test_what_is_done_is_told_from_nothing_to_all_and_then_what_is_audited(tmp_path: Path) -> None:
    told: list[tuple[str, int, int, dict[str, int]]] = []

    def progress(phase: str, done: int, total: int, outcomes: Mapping[str, int]) -> None:
        told.append((phase, done, total, dict(outcomes)))

    summary = run_campaign(plan(), tmp_path, audit=7, progress=progress)
    faults, audits = ([one for one in told if one[0] == phase] for phase in ("faults", "audit"))
    assert told == faults + audits
    assert [one[1:3] for one in faults] == [(0, 300), (64, 300), (164, 300), (264, 300), (300, 300)]
    assert all(sum(one[3].values()) == one[1] for one in told)
    assert faults[-1][3] == {name: count for name, count in summary.outcomes.items() if count}
    assert [one[1:3] for one in audits] == [(number, 7) for number in range(1, 8)]
    told.clear()
    run_campaign(plan(), tmp_path, audit=9, resume=True, progress=progress)
    assert [one[:3] for one in told] == [("faults", 300, 300), ("audit", 8, 9), ("audit", 9, 9)]
    assert told[0][3] == faults[-1][3]
    with pytest.raises(InputError, match="a campaign has at least one worker and no fewer than zero audits"):
        run_campaign(plan(), tmp_path, audit=-1)


def test_who_does_the_work_is_chosen_by_executor_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    planned, begun, discarded = plan(), list[range](), list[bool]()
    store: Any = SimpleNamespace(mark_begun=begun.append)
    monkeypatch.setattr(work, "discard_engine", lambda: discarded.append(True))
    alone: Any = _runner(planned, store, None, 1)
    assert type(alone) is Alone and not discarded
    before: Any = alone.before
    before(Task(range(3, 5), [1, 2]))
    before(Task(range(7, 9), [1, 2], audit=True))
    assert begun == [range(3, 5)]
    local: Any = _runner(planned, store, None, 2)
    assert (type(local), local.count, len(discarded)) == (LocalWorkers, 2, 1)
    with ThreadPoolExecutor(1) as executor:
        for workers, width in ((1, 32), (16, 32), (17, 34)):
            elsewhere: Any = _runner(planned, store, executor, workers)
            assert (type(elsewhere), elsewhere.width, elsewhere.make) == (Elsewhere, width, executor)
    assert len(discarded) == 4


class Runner:
    """Gives what it is told, and keeps what it was asked."""

    def __init__(self, stop: StopRequest, ask: int = 99) -> None:
        self.stop, self.ask, self.asked = stop, ask, list[str]()

    def one_by_one(self, task: Task, stop: StopRequest) -> Iterator[tuple[Task, list[Decided]]]:
        self.asked.append(f"apart {task.positions.start}-{task.positions.stop}")
        for number in range(len(task.positions)):
            if len(self.asked) + number >= self.ask:
                stop.asked = True
                return
            yield task.part(number, number + 1), [decided(task.indices[number])]

    def results(self, queue: Any, stop: StopRequest) -> Iterator[tuple[Task, list[Decided]]]:
        self.asked.append("the rest")
        while queue:
            task = queue.take()
            yield queue.came_back(task, len(task.positions)), [decided(index) for index in task.indices]


def decided(index: int) -> Any:
    engine = fake_engine.make(fake_engine.scenario(), Path())
    return engine.decide(engine.space.fault(index))


@pytest.mark.parametrize(("ask", "left", "asked"), [
    (99, [], ["apart 10-13", "the rest"]), (2, [range(11, 13)], ["apart 10-13"]), (1, [range(10, 13)], ["apart 10-13"]),
])  # fmt: skip
def test_what_was_begun_and_not_done_is_tried_apart_before_all_else(
    ask: int, left: list[range], asked: list[str], tmp_path: Path
) -> None:
    planned = plan(40)
    with Store.begin(tmp_path, planned.header) as store:
        store.mark_begun(range(10, 13))
        stop = StopRequest()
        runner: Any = Runner(stop, ask)
        work._decide(planned, store, runner, stop, None)
        assert (runner.asked, store.begun()) == (asked, left)
        assert store.count() == (40 if not left else 3 - len(left[0]))
        rows: Sequence[Any] = list(store.rows())
        assert [row.stratum for row in rows] == [
            planned.strata(range(row.position, row.position + 1))[0] for row in rows
        ]
        assert Counter(row.fault for row in rows) == Counter(
            planned.space.fault(planned.sample[row.position]).id for row in rows
        )
        work._audit(planned, store, runner, stop, 3, None)
        assert runner.asked == asked + (["the rest"] if not left else [])


def test_ctrl_c_says_how_many_are_stored() -> None:
    stopped = Interrupted(1234, 5678901)
    assert (str(stopped), stopped.done, stopped.faults) == (
        "1,234 of 5,678,901 faults are stored",
        1234,
        5678901,
    )
    assert isinstance(stopped, KeyboardInterrupt)


def test_a_clock_says_what_has_passed_since_it_was_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 7.5, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = work._Clock()
    assert [clock.lap(), clock.lap()] == [2.5, 0.5]
