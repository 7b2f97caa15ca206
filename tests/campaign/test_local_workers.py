"""What becomes of tasks whose workers die or do not come back, with processes that are none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from kexecemu.campaign import workers
from kexecemu.campaign.tasks import Queue, StopRequest, Task
from kexecemu.campaign.workers import LocalWorkers, TaskRunner

GRACE = 0.1


class Stuck:
    """A worker that takes a task, and comes back with it after so many looks at it; 0: never."""

    looks = 0

    def __init__(self, config: object) -> None:
        self.task: Task | None = None
        self.left = self.looks

    def give(self, task: Task) -> None:
        self.task = task

    def receive(self) -> Any:
        task, self.task = self.task, None
        assert task is not None
        return lambda: list(task.indices)

    def close(self) -> None:
        pass


def ready(busy: Sequence[Stuck], seconds: float) -> list[Stuck]:
    time.sleep(0.01)
    for one in busy:
        one.left -= 1
        assert one.left > -100, "it is waited for longer than its grace"
    return [one for one in busy if one.left == 0]


@pytest.mark.parametrize(("looks", "given"), [(0, 0), (1, 5), (3, 5)])
def test_after_a_request_to_stop_what_is_under_way_may_end_within_its_grace_and_nothing_is_begun(
    looks: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stuck, "looks", looks)
    monkeypatch.setattr(workers, "WorkerProcess", Stuck)
    monkeypatch.setattr(workers, "ready", ready)
    monkeypatch.setattr(workers, "GRACE", GRACE)
    local = LocalWorkers(None, None, 2)  # type: ignore[arg-type]
    queue, stop = Queue([range(100)], range(100), 5), StopRequest()
    local._give(queue)
    stop.asked = True
    found = list(local.results(queue, stop))
    assert [len(results) for _, results in found] == [given] * (2 if given else 0)
    assert queue.take().positions == range(10, 15)


class Dying:
    """In the place of _Lonely: comes back with a task unless one of these faults is in it, which kill so often."""

    deadly: ClassVar[dict[int, int]] = {}

    def __init__(self, config: object) -> None:
        self.tried: list[list[int]] = config  # type: ignore[assignment]

    def try_(self, task: Task, stop: StopRequest) -> list[Any] | None:
        self.tried.append(list(task.positions))
        for position in task.positions:
            if self.deadly.get(position, 0):
                self.deadly[position] -= 1
                return None
        return list(task.indices)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("deadly", "tried"),
    [
        ({}, [[3, 4, 5, 6]]),
        ({5: 1}, [[3, 4, 5, 6], [3], [4], [5], [6]]),  # it was not the fault
        (
            {5: 2},
            [[3, 4, 5, 6], [3], [4], [5], [5], [6]],
        ),  # once with the others, once alone: and it is given one more
        ({5: 9}, [[3, 4, 5, 6], [3], [4], [5], [5], [6]]),
        ({3: 9, 4: 9}, [[3, 4, 5, 6], [3], [3], [4], [4], [5], [6]]),
    ],
)
def test_a_task_that_was_lost_is_tried_again_then_each_fault_alone_and_one_that_kills_twice_is_an_error(
    deadly: dict[int, int], tried: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_Lonely", Dying)
    monkeypatch.setattr(workers, "error_of", lambda space, fault, words: words)
    monkeypatch.setattr(Dying, "deadly", dict(deadly))
    seen: list[list[int]] = []
    space = SimpleNamespace(fault=lambda index: index)
    runner = TaskRunner(seen, space)  # type: ignore[arg-type]
    found = list(runner.one_by_one(Task(range(3, 7), [13, 14, 15, 16]), StopRequest()))
    assert seen == tried
    results = {task.positions[at]: one for task, some in found for at, one in enumerate(some)}
    errors = {at for at, times in deadly.items() if times > 2}
    died = "the process that tried it died, twice"
    assert results == {at: died if at in errors else at + 10 for at in range(3, 7)}
    assert sum(len(some) for _, some in found) == 4  # everything once
