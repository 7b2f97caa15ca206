"""A campaign's work on a dask.distributed cluster, which takes kexecemu[dask] here and kexecemu on its workers."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from kexecemu.errors import InputError

__all__ = ["dask_workers"]

_PATIENCE = 30  # seconds for a scheduler to answer, and for a first worker to be there


@contextmanager
def dask_workers(address: str) -> Iterator[tuple[Callable[[], Executor], int]]:
    """Give what makes an executor for the cluster of a scheduler at HOST:PORT, and how many tasks run there at a time.

    A task whose worker is lost is given to another one by the scheduler; one that takes several workers along comes
    back as distributed.scheduler.KilledWorker. Without any workers left it waits for new ones: start them with a nanny,
    which replaces those that die. A worker process does one task at a time however many threads it has.
    Raises InputError where distributed is not installed, no scheduler answers, or it has no workers.
    """
    distributed: Any  # is not always there, and has no types that could be relied on
    try:
        distributed = import_module("distributed")
    except ImportError as error:
        raise InputError(
            f"--executor dask: needs the extra dask: pip install 'kexecemu[dask]' ({error})"
        ) from None
    try:
        client = distributed.Client(
            address if "://" in address else f"tcp://{address}", timeout=_PATIENCE, set_as_default=False
        )
    except (OSError, ValueError) as error:
        raise InputError(f"--executor dask://{address}: no scheduler: {error}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise InputError(f"--executor dask://{address}: the scheduler has no workers") from None
        # Every task is one of its own, even if it is given twice: dask would remember the first one's result.
        yield lambda: client.get_executor(pure=False), sum(client.ncores().values())
