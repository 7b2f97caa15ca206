"""A worker of this machine: a process that does one task after the other, as a campaign's with a machine of its own.

It has one pipe to us, whose other end nobody else holds. So whichever of the two dies, by whatever signal and in the
middle of whatever message, the other one reads the end of the pipe at once: it is known which task is lost, and a
worker is never left behind. (ProcessPoolExecutor shares one pipe for all results, and holds its writing end itself: it
waits for ever for the rest of a message whose writer was killed.)
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import connection, resource_tracker
from typing import Any, TypeVar

from kexecemu.campaign.fault import Decided
from kexecemu.campaign.job import CampaignConfig, run_chunk
from kexecemu.campaign.tasks import SECONDS, Task
from kexecemu.errors import InputError, MachineError

__all__ = ["Worker", "WorkerProcess", "ready"]

AnyWorker = TypeVar("AnyWorker", bound="Worker")

_PR_SET_PDEATHSIG = 1


class Worker:
    """A process that does one thing after the other: new, since a fork would take threads and locks along.

    work, a function that can be pickled, gets what is sent and gives what is received. It ignores our warnings: whoever
    has made the plan has said them.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, work, os.getpid()), daemon=True)
        with _unheard():
            self._process.start()
        # Held by the worker alone from here on.
        theirs.close()

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid

    def send(self, asked: Any) -> None:
        """Have something done. One that is dead has lost it, which receive() says."""
        with suppress(OSError):
            self._pipe.send(asked)

    def wait(self, seconds: float) -> bool:
        """Whether receive() would give something now, or within so many seconds."""
        return bool(ready([self], seconds))

    def receive(self) -> Callable[[], Any] | None:
        """What gives the result; None when the process died.

        That raises what the worker did. Reading is one thing and making objects of it another, so that a worker can
        have its next task in between.
        """
        try:
            data = self._pipe.recv_bytes()
        except (EOFError, OSError):
            return None
        return lambda: _result(data)

    def close(self) -> None:
        """End the process in the middle of whatever it does: it holds nothing that could be half-written."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
        self._process.close()


class WorkerProcess(Worker):
    """A campaign's worker and the task that it has."""

    def __init__(self, config: CampaignConfig) -> None:
        self.task: Task | None = None
        super().__init__(partial(_chunk, config))

    def give(self, task: Task) -> None:
        """Have a task done. One that is dead has lost it, which receive() says."""
        self.task = task
        self.send((list(task.indices), task.audit))

    def receive(self) -> Callable[[], list[Decided]] | None:
        """What gives the results of the task, of its beginning at least; None when the process died."""
        self.task = None
        return super().receive()


def ready(workers: Sequence[AnyWorker], seconds: float) -> list[AnyWorker]:
    """Those that have something to receive or are dead, after no more than so many seconds."""
    found = connection.wait([one._pipe for one in workers], timeout=seconds)
    return [one for one in workers if one._pipe in found]


def _result(data: bytes) -> Any:
    found = pickle.loads(data)
    if isinstance(found, Exception):
        raise found
    return found


@contextmanager
def _unheard() -> Iterator[None]:
    """What begins here never hears of Ctrl-C, which a terminal sends to it as well: that is the campaign's to hear."""
    resource_tracker.ensure_running()  # multiprocessing's own; starting it unblocks the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _chunk(config: CampaignConfig, asked: tuple[list[int], bool]) -> list[Decided]:
    return run_chunk(config, *asked, SECONDS)


def _work(pipe: connection.Connection, work: Callable[[Any], Any], parent: int) -> None:
    """The worker: tasks in, results out, until the other end is gone."""
    _die_with(parent)
    warnings.simplefilter("ignore", UserWarning)
    try:
        while True:
            asked, answer = pipe.recv(), None
            try:
                answer = work(asked)
            except Exception as error:
                known = isinstance(error, InputError | MachineError)
                answer = error if known else MachineError(f"{type(error).__name__}: {error}")
            pipe.send(answer)
    except (EOFError, OSError):
        pass


def _die_with(parent: int) -> None:
    """End this process when its parent ends, even in the middle of a long task; at once if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    # Where the kernel does not tell of a parent's death, and where it died before it was asked to.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
