"""An executor whose futures come back as it is written down: what is given to it, lost with it, and waited for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future
from typing import Any, ClassVar

import pytest

from kexecemu.campaign import workers
from kexecemu.campaign.job import run_chunk
from kexecemu.campaign.tasks import SECONDS, Queue, StopRequest, Task
from kexecemu.campaign.workers import Elsewhere

POLL, GRACE = 0.125, 1.25  # which a float holds exactly
SAMPLE = [10 * position for position in range(100)]
CONFIG: Any = "the configuration"
SPACE: Any = "nobody asks for it here"


class Clock:
    """time.monotonic() of the workers: only waiting takes time."""

    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


class Manual(Executor):
    """Its futures are done as it is written down, one at each wait: . result, x lost with its worker, ~ never."""

    made: ClassVar[list[Manual]] = []

    def __init__(self, script: str) -> None:
        self.script, self.flying, self.shut = script, list[tuple[Future[Any], str, list[int]]](), list[bool]()
        self.most = 0
        self.made.append(self)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        config, indices, audit, seconds = args
        assert (fn, config, audit, seconds) == (run_chunk, CONFIG, False, SECONDS)
        letter, self.script = self.script[0], self.script[1:]
        if letter == "!":
            raise BrokenExecutor
        future: Future[Any] = Future()
        self.flying.append((future, letter, list(indices)))
        self.most = max(self.most, len(self.flying))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.shut.append(wait)


def wait(
    flying: dict[Future[Any], Task], timeout: float, return_when: str
) -> tuple[set[Future[Any]], set[Future[Any]]]:
    assert (timeout, return_when) == (POLL, FIRST_COMPLETED)
    Clock.now += timeout
    assert Clock.now < 100, "they are waited for without an end"
    for executor in Manual.made:
        if executor.flying and executor.flying[0][1] != "~":
            future, letter, indices = executor.flying.pop(0)
            if not future.cancelled():
                if letter == "x":
                    future.set_exception(BrokenExecutor())
                else:
                    future.set_result(indices)
            break
    return {one for one in flying if one.done()}, set()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Manual]:
    for name, value in (("wait", wait), ("time", Clock), ("GRACE", GRACE), ("_POLL", POLL)):
        monkeypatch.setattr(workers, name, value)
    monkeypatch.setattr(Clock, "now", 0.0)
    monkeypatch.setattr(Manual, "made", [])
    return Manual.made


def apart(runner: Elsewhere, log: list[str]) -> None:
    """What it does one by one is noted, and goes well."""

    def one_by_one(task: Task, stop: StopRequest) -> Iterator[Any]:
        log.append(f"apart {list(task.positions)}")
        yield task, list(task.indices)

    runner.one_by_one = one_by_one  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("scripts", "tried", "most"),
    [
        (["....."], [], 3),
        # 1 is lost: 2 comes back first, then all of it is made anew.
        ([".x..", ".."], ["apart [1]"], 3),
        (["xxx", ".."], ["apart [2]", "apart [1]", "apart [0]"], 3),
        (["..!", ".."], ["apart [2]"], 2),
        (["!", "...."], ["apart [0]"], 0),
    ],
)
def test_an_executor_that_is_made_has_so_many_tasks_at_a_time_and_is_made_anew_when_it_broke(
    scripts: list[str], tried: list[str], most: int, made: list[Manual]
) -> None:
    left, noted = list(scripts), list[str]()
    runner = Elsewhere(CONFIG, SPACE, lambda: Manual(left.pop(0)), 3)
    apart(runner, noted)
    found = [
        one
        for task, _ in runner.results(Queue([range(5)], SAMPLE, 1), StopRequest())
        for one in task.positions
    ]
    assert sorted(found) == list(range(5)) and noted == tried
    assert made[0].most == most and len(made) == len(scripts)
    assert [one.shut for one in made] == [[False]] * (len(scripts) - 1) + [[]]
    runner.close()
    runner.close()
    assert [one.shut for one in made] == [[False]] * len(scripts)


def test_an_executor_that_was_given_stays_its_owner_s(made: list[Manual]) -> None:
    given, noted = Manual("x...."), list[str]()
    runner = Elsewhere(CONFIG, SPACE, given, 2)
    apart(runner, noted)
    assert len(list(runner.results(Queue([range(5)], SAMPLE, 1), StopRequest()))) == 5
    runner.close()
    assert noted == ["apart [0]"] and given.shut == [] and made == [given]


def test_after_a_request_to_stop_an_executor_is_waited_for_as_long_as_the_grace(made: list[Manual]) -> None:
    given, stop, noted = Manual(".~x."), StopRequest(), list[str]()
    runner = Elsewhere(CONFIG, SPACE, given, 3)
    apart(runner, noted)
    futures: list[Future[Any]] = []
    for _ in runner.results(Queue([range(9)], SAMPLE, 1), stop):
        futures = [one for one, _, _ in given.flying]
        futures[0].set_running_or_notify_cancel()  # this one is under way
        stop.asked, Clock.now = True, 50.0
    assert [one.cancelled() for one in futures] == [False, True] and noted == []
    assert Clock.now == 50 + GRACE and given.script == "."
