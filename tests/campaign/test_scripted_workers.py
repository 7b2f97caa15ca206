"""Workers whose every step is written down before: who is given what, and what is done as they die or are late."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from kexecemu.campaign import workers
from kexecemu.campaign.tasks import SECONDS, Queue, StopRequest, Task
from kexecemu.campaign.workers import Alone, LocalWorkers, TaskRunner, _Late, _Lonely
from kexecemu.errors import WorkersDied

POLL, GRACE = 0.125, 1.25  # which a float holds exactly
SAMPLE = [10 * position for position in range(100)]
CONFIG: Any = "the configuration"
SPACE: Any = SimpleNamespace(fault=lambda index: f"fault {index}")


class Clock:
    """time.monotonic() of the workers: only waiting takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Scripted:
    """A worker process. Its script has a letter for each task: . done, x it dies of it, ~ it never comes back."""

    scripts: ClassVar[list[str]] = []
    log: ClassVar[list[str]] = []
    clock: ClassVar[Clock]

    def __init__(self, config: Any) -> None:
        assert config is CONFIG
        self.name = "abcdefgh"[sum(line.startswith("start") for line in self.log)]
        self.script = self.scripts.pop(0)
        self.task: Task | None = None
        self.letter = ""
        self.log.append(f"start {self.name}")

    def give(self, task: Task) -> None:
        assert self.task is None
        self.task, self.letter, self.script = task, self.script[0], self.script[1:]
        self.log.append(f"{self.name} {','.join(map(str, task.positions))}")

    def wait(self, seconds: float) -> bool:
        if self.letter == "~":
            self.clock.now += seconds
            assert self.clock.now < 100, "it is waited for without an end"
        return self.letter != "~"

    def receive(self) -> Callable[[], list[Any]] | None:
        task, self.task = self.task, None
        assert task is not None
        return None if self.letter == "x" else lambda: list(task.indices)

    def close(self) -> None:
        self.log.append(f"close {self.name}")


def ready(busy: Sequence[Scripted], seconds: float) -> list[Scripted]:
    """All that are done at once, in their order."""
    found = [one for one in busy if one.letter != "~"]
    Scripted.clock.now += 0 if found else seconds
    assert Scripted.clock.now < 100, "they are waited for without an end"
    return found


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    clock = Clock()
    for name, value in (
        ("WorkerProcess", Scripted), ("ready", ready), ("time", clock), ("GRACE", GRACE), ("_POLL", POLL),
        ("error_of", lambda space, fault, words: f"{fault}: {words}"),
    ):  # fmt: skip
        monkeypatch.setattr(workers, name, value)
    monkeypatch.setattr(Scripted, "scripts", [])
    monkeypatch.setattr(Scripted, "log", [])
    monkeypatch.setattr(Scripted, "clock", clock, raising=False)
    yield Scripted.log
    assert sorted(line[6:] for line in Scripted.log if line.startswith("start ")) == sorted(
        line[6:] for line in Scripted.log if line.startswith("close ")
    ), "a process is left, or closed twice"


def task(*positions: int) -> Task:
    whole = range(positions[0], positions[-1] + 1)
    return Task(whole, SAMPLE[whole.start : whole.stop])


# -- one worker by itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaths", range(5))
def test_a_lonely_worker_is_asked_for_nothing_first_and_replaced_twice_if_it_dies_of_that(
    deaths: int, log: list[str]
) -> None:
    Scripted.scripts += ["x"] * deaths + [".....", "..", "...."]
    lonely: Any = _Lonely(CONFIG)
    expected = [line for one in "abc"[:deaths] for line in (f"start {one}", f"{one} ", f"close {one}")]
    if deaths >= 3:
        with pytest.raises(WorkersDied, match="a worker process dies before it has done anything"):
            lonely.try_(task(3, 4), StopRequest())
    else:
        assert lonely.try_(task(3, 4), StopRequest()) == [30, 40]
        assert lonely.try_(task(5), StopRequest()) == [50]
        one = "abc"[deaths]
        expected += [f"start {one}", f"{one} ", f"{one} 3,4", f"{one} 5"]
    assert log == expected
    lonely.close()
    lonely.close()


def test_one_that_dies_of_a_task_has_no_results_and_the_next_task_has_another(log: list[str]) -> None:
    Scripted.scripts += [".x", ".."]
    lonely: Any = _Lonely(CONFIG)
    assert lonely.try_(task(3), StopRequest()) is None
    assert lonely.try_(task(4), StopRequest()) == [40]
    lonely.close()
    assert log == ["start a", "a ", "a 3", "close a", "start b", "b ", "b 4", "close b"]


def test_one_that_is_late_is_waited_for_as_long_as_nobody_asks_to_stop_and_then_for_its_grace() -> None:
    Scripted.scripts += [".~"]
    lonely, stop = _Lonely(CONFIG), StopRequest()

    def wait(self: Scripted, seconds: float) -> bool:
        Scripted.clock.now += seconds
        stop.asked = Scripted.clock.now >= 5
        assert Scripted.clock.now < 100
        return self.letter != "~"

    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Late):
        patch.setattr(Scripted, "wait", wait)
        lonely.try_(task(3), stop)
    assert Scripted.clock.now == 5 + GRACE
    lonely.close()


def test_a_lost_task_that_is_late_is_given_up_without_a_result() -> None:
    Scripted.scripts += [".~"]
    stop = StopRequest()
    runner = TaskRunner(CONFIG, SPACE)
    steps = runner.one_by_one(task(3, 5), stop)
    stop.asked = True
    assert list(steps) == []
    assert Scripted.log == []  # what was not begun is not
    stop.asked = False

    class Asked(StopRequest):
        """Asked for once something is under way."""

        @property
        def asked(self) -> bool:  # type: ignore[override]
            return Scripted.clock.now > 0

    assert list(runner.one_by_one(task(3, 5), Asked())) == []
    assert Scripted.clock.now == POLL + GRACE


def test_a_fault_that_kills_twice_alone_is_an_error_and_the_count_begins_anew_with_the_next(
    log: list[str],
) -> None:
    # a with all of it; b and c with 3 alone; d with 4, e with 4 again, which goes well, and with 5.
    Scripted.scripts += [".x", ".x", ".x", ".x", "..x", "..."]
    found = list(TaskRunner(CONFIG, SPACE).one_by_one(task(3, 4, 5), StopRequest()))
    assert [(list(one.positions), results) for one, results in found] == [
        ([3], ["fault 30: the process that tried it died, twice"]),
        ([4], [40]),
        ([5], [50]),
    ]
    tried = [line for line in log if line[1] == " " and line[2:]]
    assert tried == ["a 3,4,5", "b 3", "c 3", "d 4", "e 4", "e 5", "f 5"]


# -- this process ------------------------------------------------------------------------------------------------


def test_alone_each_task_is_told_of_before_it_is_begun_and_what_is_not_done_of_it_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    def run_chunk(
        config: Any, indices: Sequence[int], audit: bool, seconds: float, results: list[Any]
    ) -> None:
        assert (config, audit, seconds) == (CONFIG, True, SECONDS)
        told.append(f"run {list(indices)}")
        results += list(indices)[:2]

    monkeypatch.setattr(workers, "run_chunk", run_chunk)
    stop = StopRequest()
    alone = Alone(CONFIG, SPACE, lambda one: told.append(f"before {list(one.positions)}"))
    found: list[Any] = []
    for done, results in alone.results(Queue([range(6)], SAMPLE, 3, audit=True), stop):
        found.append((list(done.positions), results))
        stop.asked = len(found) == 2
    assert found == [([0, 1], [0, 10]), ([2], [20])]
    assert told == ["before [0, 1, 2]", "run [0, 10, 20]", "before [2]", "run [20]"]


@pytest.mark.parametrize("done", [0, 1, 3])
def test_alone_what_was_done_when_it_is_interrupted_is_kept(
    done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_chunk(
        config: Any, indices: Sequence[int], audit: bool, seconds: float, results: list[Any]
    ) -> None:
        results += list(indices)[:done]
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "run_chunk", run_chunk)
    found: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        for one, results in Alone(CONFIG, SPACE).results(Queue([range(6)], SAMPLE, 4), StopRequest()):
            found.append((one.positions, results))
    assert found == ([(range(done), SAMPLE[:done])] if done else [])


# -- processes of this machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scripts", "count", "events"),
    [
        (["...", "..."], 2, "start a; a 0; start b; b 1; a 2; b 3; a 4; close a; close b"),
        (["....."], 1, "start a; a 0; a 1; a 2; a 3; a 4; close a"),
        # b dies of 1: c tries it apart when a has come back, and nothing new is begun before that.
        (["....", "x", "..", "."], 2, "start a; a 0; start b; b 1; a 2; close b; start c; c ; c 1; close c; a 3; "
         "start d; d 4; close a; close d"),
        # Both die: one after the other is tried apart.
        (["x", "x", "..", "..", "..", "."], 2, "start a; a 0; start b; b 1; close a; close b; start c; c ; c 0; close "
         "c; start d; d ; d 1; close d; start e; e 2; start f; f 3; e 4; close e; close f"),
    ],
)  # fmt: skip
def test_each_has_a_task_as_long_as_there_are_some_and_what_is_lost_is_tried_when_all_are_back(
    scripts: list[str], count: int, events: str, log: list[str]
) -> None:
    Scripted.scripts += scripts
    local = LocalWorkers(CONFIG, SPACE, count)
    found = [
        one
        for task, _ in local.results(Queue([range(5)], SAMPLE, 1), StopRequest())
        for one in task.positions
    ]
    local.close()
    assert sorted(found) == list(range(5))
    assert log == events.split("; ")
    assert local.workers == []


def test_no_more_processes_are_started_than_there_are_tasks(log: list[str]) -> None:
    Scripted.scripts += ["."] * 9
    local = LocalWorkers(CONFIG, SPACE, 9)
    assert len(list(local.results(Queue([range(2)], SAMPLE, 1), StopRequest()))) == 2
    local.close()
    assert log == ["start a", "a 0", "start b", "b 1", "close a", "close b"]


def test_after_a_request_to_stop_a_lost_task_stays_lost_and_a_late_one_is_left(log: list[str]) -> None:
    Scripted.scripts += ["~", "x", ".."]
    local, stop = LocalWorkers(CONFIG, SPACE, 2), StopRequest()
    queue = Queue([range(5)], SAMPLE, 1)
    local._give(queue)
    stop.asked = True
    assert list(local.results(queue, stop)) == []
    assert Scripted.clock.now == GRACE
    local.close()
    assert log == ["start a", "a 0", "start b", "b 1", "close b", "close a"]
