"""A worker and the process that it is, from both ends of their pipe."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.campaign import process
from kexecemu.campaign.process import WorkerProcess
from kexecemu.campaign.tasks import SECONDS, Task
from kexecemu.errors import MachineError

# -- the worker's side -------------------------------------------------------------------------------------------

CONFIG: Any = "the configuration"


class Pipe:
    """The worker's end: gives tasks, then nothing; takes so many answers before nobody is there any more."""

    def __init__(self, tasks: int, room: int = 99) -> None:
        self.tasks, self.room = [([number], number % 2 == 1) for number in range(tasks)], room
        self.answers: list[Any] = []

    def recv(self) -> Any:
        if not self.tasks:
            raise EOFError
        return self.tasks.pop(0)

    def send(self, answer: Any) -> None:
        if len(self.answers) == self.room:
            raise BrokenPipeError
        self.answers.append(answer)


@pytest.mark.parametrize(("room", "answered"), [(99, 4), (2, 2)])
def test_a_worker_answers_each_task_with_results_or_an_exception_that_can_be_sent(
    room: int, answered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = MachineError("no machine")

    def run_chunk(config: Any, indices: list[int], audit: bool, seconds: float) -> list[int]:
        warnings.warn("said already", UserWarning, stacklevel=1)
        assert (config, audit, seconds) == (CONFIG, indices[0] % 2 == 1, SECONDS)
        if indices == [1]:
            raise mine
        if indices == [2]:
            raise KeyError("odd")
        return indices

    parents: list[int] = []
    monkeypatch.setattr(process, "run_chunk", run_chunk)
    monkeypatch.setattr(process, "_die_with", parents.append)
    pipe: Any = Pipe(4, room)
    with warnings.catch_warnings(record=True) as heard:
        process._work(pipe, partial(process._chunk, CONFIG), 77)
    assert parents == [77] and heard == []
    found = [one if isinstance(one, list) else f"{type(one).__name__}: {one}" for one in pipe.answers]
    assert found == [[0], "MachineError: no machine", "MachineError: KeyError: 'odd'", [3]][:answered]
    assert pipe.answers[1] is mine


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_worker_asks_the_kernel_to_be_killed_with_its_parent_and_watches_for_that_itself(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    libc = SimpleNamespace(prctl=lambda *words: asked.append(words))
    threads: list[Any] = []

    def thread(**options: Any) -> Any:
        threads.append(options)
        return SimpleNamespace(start=lambda: threads.append("started"))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc if name is None else None)
    monkeypatch.setattr(threading, "Thread", thread)
    monkeypatch.setattr(sys, "platform", platform)
    process._die_with(77)
    # PR_SET_PDEATHSIG of linux/prctl.h
    assert asked == ([(1, signal.SIGKILL, 0, 0, 0)] if platform == "linux" else [])
    assert threads == [{"target": process._watch, "args": (77,), "daemon": True}, "started"]


def test_a_worker_that_watches_ends_once_its_parent_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    parents, slept = [77, 77, 1], list[float]()

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as left:
        process._watch(77)
    assert (left.value.code, slept, parents) == (1, [0.5, 0.5], [])


# -- the campaign's side -----------------------------------------------------------------------------------------


class Process:
    """A process that is none: what it is made of is kept."""

    def __init__(self, **options: Any) -> None:
        self.options, self.did, self.pid = options, list[str](), 1234
        self.blocked: set[int] = set()

    def start(self) -> None:
        self.did.append("start")
        self.blocked = {*signal.pthread_sigmask(signal.SIG_BLOCK, [])}

    def kill(self) -> None:
        self.did.append("kill")

    def join(self) -> None:
        self.did.append("join")

    def close(self) -> None:
        self.did.append("close")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    """A worker whose process does nothing; its own end of the pipe stays open here."""
    get_context = multiprocessing.get_context

    def context(method: str) -> Any:
        assert method == "spawn"
        return SimpleNamespace(Pipe=get_context(method).Pipe, Process=Process)

    monkeypatch.setattr(multiprocessing, "get_context", context)
    return WorkerProcess(CONFIG)


def test_a_worker_is_a_daemon_that_hears_no_ctrl_c_and_holds_its_end_of_the_pipe_alone(worker: Any) -> None:
    made = worker._process
    theirs, work, parent = made.options["args"]
    assert (made.options["target"], made.options["daemon"]) == (process._work, True)
    assert (work.func, work.args) == (process._chunk, (CONFIG,))
    assert (parent, theirs.closed, worker.pid) == (os.getpid(), True, 1234)
    assert signal.SIGINT in made.blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    # The other end is gone: it has something to say, that it is dead.
    assert [worker.task, worker.wait(0), process.ready([worker], 0)] == [None, True, [worker]]
    worker.give(Task(range(2), [7, 8]))
    assert worker.task == Task(range(2), [7, 8])
    assert [worker.receive(), worker.task] == [None, None]
    worker.close()
    assert worker._pipe.closed and made.did == ["start", "kill", "join", "close"]


def test_of_several_workers_those_are_ready_that_have_something_to_say(worker: Any) -> None:
    own, theirs = multiprocessing.Pipe()
    quiet: Any = SimpleNamespace(_pipe=own)
    assert process.ready([quiet, worker], 0) == [worker]
    assert process.ready([quiet], 0) == []
    theirs.send_bytes(b"")
    assert process.ready([quiet, worker], 5) == [quiet, worker]
    worker.close()


@pytest.mark.parametrize("answer", [[], ["a result"], MachineError("no machine")])
def test_an_answer_is_unpacked_by_who_asks_for_it_and_an_exception_is_raised_then(
    answer: Any, worker: Any
) -> None:
    own, theirs = multiprocessing.Pipe()
    worker._pipe.close()
    worker._pipe = own
    worker.give(Task(range(3), [7, 8, 9], audit=True))
    assert theirs.recv() == ([7, 8, 9], True)
    theirs.send(answer)
    found: Callable[[], Sequence[Any]] = worker.receive()
    if isinstance(answer, list):
        assert found() == answer
    else:
        with pytest.raises(MachineError, match=re.escape(str(answer))):
            found()
    worker.close()
