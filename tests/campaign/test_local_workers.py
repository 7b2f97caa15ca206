"""Local workers after a request to stop, with processes that are none: a task under way, one that never comes back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from kexecemu.campaign import workers
from kexecemu.campaign.tasks import Queue, StopRequest, Task
from kexecemu.campaign.workers import LocalWorkers

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
