"""What a campaign still has to do, cut into tasks of half a second, and how Ctrl-C ends that."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from kexecemu.interrupt import again_in, on_ctrl_c, patience
from kexecemu.shown import shown

__all__ = ["GRACE", "SECONDS", "Queue", "StopRequest", "Task", "stoppable"]

SECONDS = 0.5
"""After so long a task comes back with what is done of it: kill -9 loses no more than that, and one fault."""

GRACE = 1.2
"""Seconds after the first Ctrl-C in which what is under way may come to its end."""

_FIRST = 64  # faults of the first task: nobody knows yet how long one takes


@shown()
@dataclass(frozen=True)
class Task:
    """Some faults to be decided, or with audit to be run to their ends: where they stand in the sample, and which."""

    positions: range
    indices: Sequence[int]
    audit: bool = False

    def part(self, start: int, stop: int) -> Task:
        """The faults from one to another, counted within this task."""
        return Task(self.positions[start:stop], self.indices[start:stop], self.audit)


class Queue:
    """Positions of a sample that nobody has been given yet.

    A task has as many as were done lately in half a second, and no more than `most`. Nothing but the time that it takes
    depends on how they are cut.
    """

    def __init__(
        self, waiting: Iterable[range], sample: Sequence[int], most: int, audit: bool = False
    ) -> None:
        self._waiting = deque(waiting)
        self._sample, self._most, self._audit = sample, most, audit
        self._size = min(_FIRST, most)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self) -> Task:
        """The next task; IndexError when there is none."""
        whole = self._waiting.popleft()
        positions = whole[: self._size]
        if len(whole) > len(positions):
            self._waiting.appendleft(whole[len(positions) :])
        return Task(positions, self._sample[positions.start : positions.stop], self._audit)

    def came_back(self, task: Task, done: int) -> Task:
        """So many of a task are done: the part that is, the rest waits again."""
        if done < len(task.positions):
            self._size = max(1, done)
            self._waiting.appendleft(task.positions[done:])
        elif done == self._size:
            self._size = min(self._most, 2 * done)
        return task.part(0, done)


class StopRequest:
    """Whether Ctrl-C was pressed: what is under way is finished then, and nothing new begun."""

    asked = False


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C into a request to stop; a second one is KeyboardInterrupt as ever, and comes by itself.

    In another thread than the main one Python delivers no Ctrl-C, and nothing is turned into anything.
    """
    stop = StopRequest()
    over = False
    cancel: list[Callable[[], object]] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if over:
            return  # the one that comes by itself, too late
        if stop.asked:
            on_ctrl_c(number, frame)
            return
        stop.asked = True
        # A fault may take longer than anybody waits; what was decided before it is kept all the same.
        cancel.append(again_in(GRACE))

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        with patience(GRACE + 0.5, 0.3):
            yield stop
    finally:
        over = True
        for one in cancel:
            one()
        signal.signal(signal.SIGINT, before)
