"""Who does the work of a campaign: this process, local ones, or any executor; and what is done when a worker dies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait

from kexecemu.campaign.fault import Decided
from kexecemu.campaign.job import CampaignConfig, error_of, run_chunk
from kexecemu.campaign.process import WorkerProcess, ready
from kexecemu.campaign.space import Space
from kexecemu.campaign.tasks import GRACE, SECONDS, Queue, StopRequest, Task
from kexecemu.errors import WorkersDied
from kexecemu.shown import shown

__all__ = ["Alone", "Elsewhere", "LocalWorkers", "TaskRunner"]

_STARTS = 3  # processes that may die before they have done anything
_POLL = 0.1  # seconds after which Ctrl-C is noticed at the latest

Result = tuple[Task, list[Decided]]
"""What is done of a task, with its results: as many as it has positions."""


@shown("space")
class TaskRunner:
    """Gives results for what is in a queue, in any order, everything once."""

    def __init__(self, config: CampaignConfig, space: Space) -> None:
        self.config = config
        self.space = space

    def results(self, queue: Queue, stop: StopRequest) -> Iterator[Result]:
        """The results as they come; after a request to stop those that are under way, and no more."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the workers."""

    def one_by_one(self, task: Task, stop: StopRequest) -> Iterator[Result]:
        """The results of a task that was lost with the process that had it, or may have killed it, from its beginning.

        A process of its own tries it again; when that dies too, others do one fault at a time, and a fault whose
        process dies twice is recorded as an error. Raises WorkersDied when three processes in a row die before they
        have done anything, for then it is not the faults that kill; one may have been hit by somebody.
        """
        lonely = _Lonely(self.config)
        done, alone, deaths = 0, False, 0
        try:
            while done < len(task.positions) and not stop.asked:
                part = task.part(done, done + 1 if alone else len(task.positions))
                results = lonely.try_(part, stop)
                if results is None and not alone:
                    alone = True
                    continue
                if results is None:
                    deaths += 1
                    if deaths < 2:
                        continue
                    (index,) = part.indices
                    fault = self.space.fault(index)
                    results = [error_of(self.space, fault, "the process that tried it died, twice")]
                deaths = 0
                yield part.part(0, len(results)), results
                done += len(results)
        except _Late:
            pass
        finally:
            lonely.close()


class _Late(Exception):
    """After a request to stop a worker has not come back in time."""


class _Lonely:
    """One worker, which is replaced when it dies."""

    def __init__(self, config: CampaignConfig) -> None:
        self.config = config
        self.worker: WorkerProcess | None = None

    def try_(self, task: Task, stop: StopRequest) -> list[Decided] | None:
        """The results, or None when the process died."""
        for _ in range(_STARTS if self.worker is None else 0):
            self.worker = WorkerProcess(self.config)
            if self._ask(task.part(0, 0), stop) is not None:
                break
        if self.worker is None:
            raise WorkersDied("a worker process dies before it has done anything")
        return self._ask(task, stop)

    def _ask(self, task: Task, stop: StopRequest) -> list[Decided] | None:
        assert self.worker is not None
        self.worker.give(task)
        late: float | None = None
        while not self.worker.wait(_POLL):
            if stop.asked:
                late = late or time.monotonic() + GRACE
                if time.monotonic() >= late:
                    raise _Late
        results = self.worker.receive()
        if results is not None:
            return results()
        self.close()
        return None

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


class Alone(TaskRunner):
    """This process. before hears of each task before it is begun, so that a death in it is not repeated for ever."""

    def __init__(
        self, config: CampaignConfig, space: Space, before: Callable[[Task], None] | None = None
    ) -> None:
        super().__init__(config, space)
        self.before = before

    def results(self, queue: Queue, stop: StopRequest) -> Iterator[Result]:
        """One task after the other; when one is interrupted, what had been done of it."""
        while queue and not stop.asked:
            task = queue.take()
            if self.before is not None:
                self.before(task)
            results: list[Decided] = []
            try:
                run_chunk(self.config, task.indices, task.audit, SECONDS, results)
            except KeyboardInterrupt:
                if results:
                    yield task.part(0, len(results)), results
                raise
            yield queue.came_back(task, len(results)), results


class LocalWorkers(TaskRunner):
    """Processes of this machine, so many of them. One that dies is replaced, and what it had is tried apart."""

    def __init__(self, config: CampaignConfig, space: Space, count: int) -> None:
        super().__init__(config, space)
        self.count = count
        self.workers: list[WorkerProcess] = []

    def results(self, queue: Queue, stop: StopRequest) -> Iterator[Result]:
        """As they come; a task that was lost with its worker comes when the others have come back."""
        lost: list[Task] = []
        late: float | None = None
        while True:
            if stop.asked:
                late = late or time.monotonic() + GRACE
            elif not lost:
                self._give(queue)
            busy = [one for one in self.workers if one.task is not None]
            if not busy and lost and not stop.asked:
                yield from self.one_by_one(lost.pop(0), stop)
            elif not busy or (late is not None and time.monotonic() >= late):
                return
            for worker in ready(busy, _POLL):
                task, results = worker.task, worker.receive()
                assert task is not None
                if results is None:
                    self.workers.remove(worker)
                    worker.close()
                    lost.append(task)
                    continue
                if not stop.asked and not lost:
                    self._give(queue)
                found = results()
                yield queue.came_back(task, len(found)), found

    def _give(self, queue: Queue) -> None:
        """A task to each worker that has none, and a worker for each task that has none."""
        for worker in self.workers:
            if queue and worker.task is None:
                worker.give(queue.take())
        while queue and len(self.workers) < self.count:
            worker = WorkerProcess(self.config)
            self.workers.append(worker)
            worker.give(queue.take())

    def close(self) -> None:
        """End them, whatever they do: there is nobody to take it."""
        for worker in self.workers:
            worker.close()
        self.workers.clear()


class Elsewhere(TaskRunner):
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

    def results(self, queue: Queue, stop: StopRequest) -> Iterator[Result]:
        """As they come; a task that was lost with its worker comes last."""
        flying: dict[Future[list[Decided]], Task] = {}
        lost: list[Task] = []
        late: float | None = None
        while (queue or flying or lost) and (late is None or (flying and time.monotonic() < late)):
            if stop.asked:
                late = late or time.monotonic() + GRACE
                lost.clear()
                for future in flying:
                    future.cancel()
            while queue and not lost and len(flying) < self.width and not stop.asked:
                task = queue.take()
                try:
                    flying[self._submit(task)] = task
                except BrokenExecutor:
                    lost.append(task)
            done, _ = wait(flying, timeout=_POLL, return_when=FIRST_COMPLETED)
            for future in done:
                task = flying.pop(future)
                result = _result(future)
                if result is not None:
                    yield queue.came_back(task, len(result)), result
                elif not stop.asked:
                    lost.append(task)
            if lost and not flying:
                self.close()
                while lost and not stop.asked:
                    yield from self.one_by_one(lost.pop(), stop)

    def _submit(self, task: Task) -> Future[list[Decided]]:
        if self.executor is None:
            self.executor = self.make if isinstance(self.make, Executor) else self.make()
        return self.executor.submit(run_chunk, self.config, task.indices, task.audit, SECONDS)

    def close(self) -> None:
        """Shut down what was made here; what is under way there is nobody's any more."""
        if self.executor is not None and self.executor is not self.make:
            self.executor.shutdown(wait=False)
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
