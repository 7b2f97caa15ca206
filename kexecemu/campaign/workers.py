"""Who does the work of a campaign: this process, local ones, or any executor; and what is done when a worker dies."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from types import FrameType

from kexecemu.campaign.fault import Decided
from kexecemu.campaign.job import CampaignConfig, error_of, run_chunk
from kexecemu.campaign.space import Space
from kexecemu.errors import MachineError
from kexecemu.shown import shown

__all__ = ["Alone", "StopRequest", "Task", "TaskRunner", "Workers", "local_pool", "stoppable"]

_POLL = 0.5  # seconds after which Ctrl-C is noticed at the latest


@shown()
@dataclass(frozen=True)
class Task:
    """Some faults to be decided, or with audit to be run to their ends. number is the caller's own."""

    number: int
    indices: Sequence[int]
    audit: bool = False


Result = tuple[Task, list[Decided]]


class StopRequest:
    """Whether Ctrl-C was pressed: what is under way is finished then, and nothing new begun."""

    asked = False


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C into a request to stop; a second one is KeyboardInterrupt as ever.

    In another thread than the main one Python delivers no Ctrl-C, and nothing is turned into anything.
    """
    stop = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _live_and_die_with_the_parent() -> None:
    """In a worker: Ctrl-C is the parent's to hear, and a parent that was killed takes its workers along.

    They would wait for ever for what it sends: each holds the other end of that pipe open itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def local_pool(workers: int) -> ProcessPoolExecutor:
    """Processes of this machine. They begin as new ones: a fork would take the engine's threads and locks along."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_live_and_die_with_the_parent)


@shown("space")
class TaskRunner:
    """Gives results for tasks, in any order; every task once."""

    def __init__(self, config: CampaignConfig, space: Space) -> None:
        self.config = config
        self.space = space

    def results(self, tasks: Iterable[Task], stop: StopRequest) -> Iterator[Result]:
        """The results as they come; after a request to stop those that are under way, and no more."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the workers."""

    def one_by_one(self, task: Task) -> list[Decided]:
        """The results of a task that was lost with the process that had it, or may have killed it.

        A process of its own tries it again; when that dies too, others do one fault at a time, and a fault whose
        process dies twice is recorded as an error. Raises MachineError when a process dies before it has done
        anything, for then it is not the faults that kill.
        """
        lonely = _Lonely(self.config, task.audit)
        try:
            whole = lonely.try_(task.indices)
            if whole is not None:
                return whole
            results = []
            for index in task.indices:
                one = lonely.try_([index]) or lonely.try_([index])
                if one is None:
                    fault = self.space.fault(index)
                    one = [error_of(self.space, fault, "the process that tried it died, twice")]
                results += one
            return results
        finally:
            lonely.close()


class _Lonely:
    """A pool of one process, which is replaced when it dies."""

    def __init__(self, config: CampaignConfig, audit: bool) -> None:
        self.config = config
        self.audit = audit
        self.pool: ProcessPoolExecutor | None = None

    def try_(self, indices: Sequence[int]) -> list[Decided] | None:
        """The results, or None when the process died."""
        if self.pool is None:
            self.pool = local_pool(1)
            try:
                self.pool.submit(run_chunk, self.config, [], False).result()
            except BrokenExecutor:
                raise MachineError("a worker process dies before it has done anything") from None
        try:
            return self.pool.submit(run_chunk, self.config, indices, self.audit).result()
        except BrokenExecutor:
            self.close()
            return None

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


class Alone(TaskRunner):
    """This process. before hears of each task before it is begun, so that a death in it is not repeated for ever."""

    def __init__(
        self, config: CampaignConfig, space: Space, before: Callable[[Task], None] | None = None
    ) -> None:
        super().__init__(config, space)
        self.before = before

    def results(self, tasks: Iterable[Task], stop: StopRequest) -> Iterator[Result]:
        """One task after the other."""
        for task in tasks:
            if stop.asked:
                return
            if self.before is not None:
                self.before(task)
            yield task, run_chunk(self.config, task.indices, task.audit)


class Workers(TaskRunner):
    """An executor's workers. make gives an executor, and another one when that is broken, to be shut down afterwards.

    Where an executor is given instead it stays its owner's, and what it does not do any more is done by processes of
    this machine. width is how many tasks it is given at a time, so that none of its workers waits.
    """

    def __init__(
        self, config: CampaignConfig, space: Space, make: Executor | Callable[[], Executor], width: int
    ) -> None:
        super().__init__(config, space)
        self.make = make
        self.width = width
        self.executor: Executor | None = None

    def results(self, tasks: Iterable[Task], stop: StopRequest) -> Iterator[Result]:
        """As they come; a task that was lost with its worker comes last."""
        waiting = deque(tasks)
        flying: dict[Future[list[Decided]], Task] = {}
        lost: list[Task] = []
        while waiting or flying or lost:
            if stop.asked:
                waiting.clear()
                lost.clear()
                for future in flying:
                    future.cancel()
            while waiting and not lost and len(flying) < self.width:
                task = waiting.popleft()
                try:
                    flying[self._submit(task)] = task
                except BrokenExecutor:
                    lost.append(task)
            done, _ = wait(flying, timeout=_POLL, return_when=FIRST_COMPLETED)
            for future in done:
                task = flying.pop(future)
                result = _result(future)
                if result is not None:
                    yield task, result
                elif not stop.asked:
                    lost.append(task)
            if lost and not flying:
                self.close()
                for task in lost:
                    if stop.asked:
                        break
                    yield task, self.one_by_one(task)
                lost.clear()

    def _submit(self, task: Task) -> Future[list[Decided]]:
        if self.executor is None:
            self.executor = self.make if isinstance(self.make, Executor) else self.make()
        return self.executor.submit(run_chunk, self.config, task.indices, task.audit)

    def close(self) -> None:
        """Shut down what was made here."""
        if self.executor is not None and self.executor is not self.make:
            self.executor.shutdown(wait=True)
        self.executor = None


def _result(future: Future[list[Decided]]) -> list[Decided] | None:
    """A future's result, or None when it was lost with its worker."""
    try:
        return future.result()
    except (BrokenExecutor, CancelledError):
        return None
    except Exception as error:
        # What dask says when a task has taken several workers along; it need not be installed for us to know the name.
        if type(error).__name__ == "KilledWorker" or _raised_by_dask(error):
            return None
        raise


def _raised_by_dask(error: Exception) -> bool:
    """It comes from dask's own code and not from the task.

    When a worker dies with its result on the way, distributed 2026.8 may take that result for an exception's three
    parts and fail to unpack it (distributed.cfexecutor._cascade_future()).
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("distributed.")
