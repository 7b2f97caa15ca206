# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of the purgatory on one object after the other: collected once, and run in a fork for each object."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.mutation.mutants import ROOT

# test_build.py would notice anything, and say nothing of the others; test_every_byte.py is tens of thousands of runs.
TESTS = (
    "test_parts.py", "test_object.py", "test_again.py", "test_functions.py", "test_registers.py", "test_core.py",
    "test_maintenance.py", "test_edges.py", "test_run.py", "test_policies.py",
)  # fmt: skip
QUICK = 0.04  # seconds of processor: all sets of parameters of such a test are tried at once
SLOWEST = 600  # seconds by the clock: whatever happens, a run ends


@dataclass
class Task:
    """What to run on two objects."""

    full: bytes
    core: bytes
    first: Sequence[str] = ()  # names of tests that are most likely to fail
    budget: float = 0  # seconds of processor for all of it, 0: no end
    times: dict[str, float] = field(default_factory=dict)  # of each test with the original


@dataclass
class Told:
    """How it went: killed by a test, or None; what the tests took that passed."""

    killer: str | None
    times: dict[str, float]
    how: str = ""


class Loop:
    """The plugin: instead of the collected tests' own run."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self.connection, self.folder = connection, folder
        self.pipe = -1

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [
            one
            for one in items
            if "gcc" not in one.nodeid
            and "gcc_build" not in getattr(one, "fixturenames", ())
            and not one.get_closest_marker("slow")
            and not one.get_closest_marker("real")
        ]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        while (task := self.connection.recv()) is not None:
            for name, data in (("purgatory.ro", task.full), ("core.ro", task.core)):
                (self.folder / name).write_bytes(data)
            self.connection.send(self.run(session.items, task))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self.pipe, b"failed\n")
            os._exit(1)

    def run(self, items: list[pytest.Item], task: Task) -> Told:
        ordered = in_order(items, task)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            self.pipe = write
            self.child(ordered, task)
        os.close(write)
        text = b""
        end = time.monotonic() + SLOWEST
        while select.select([read], [], [], max(end - time.monotonic(), 0))[0]:
            if not (more := os.read(read, 65536)):
                break
            text += more
        else:
            os.kill(child, signal.SIGKILL)
        os.close(read)
        status = os.waitpid(child, 0)[1]
        times: dict[str, float] = {}
        current = ""
        for line in text.decode().splitlines():
            word, _, rest = line.partition(" ")
            if word == "begin":
                current = rest
            elif word == "took":
                times[current] = float(rest)
        if status:
            how = f"signal {status & 127}" if status & 127 else "fails"
            return Told(current or "?", times, how)
        return Told(None, times)

    def child(self, items: list[pytest.Item], task: Task) -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends the process, in the midst of emulation, too
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        begun = time.process_time()
        for index, item in enumerate(items):
            now = time.process_time()
            if task.budget and now - begun > task.budget:
                break
            os.write(self.pipe, f"begin {item.nodeid}\n".encode())
            if task.times:
                signal.setitimer(signal.ITIMER_PROF, 1 + 3 * task.times.get(item.nodeid, 1.0))
            following = items[index + 1] if index + 1 < len(items) else None
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            os.write(self.pipe, f"took {time.process_time() - now:.3f}\n".encode())
        os._exit(0)


def in_order(items: list[pytest.Item], task: Task) -> list[pytest.Item]:
    """Likely ones; then one set of parameters of each test, quick ones first; then the next set of each."""
    by_name = {one.nodeid: one for one in items}
    likely = [by_name[name] for name in task.first if name in by_name]
    seen: dict[str, int] = {}
    known: dict[str, float] = {}
    for name, took in task.times.items():
        known.setdefault(name.split("[")[0], took)

    def place(item: pytest.Item) -> tuple[int, float]:
        function = item.nodeid.split("[")[0]
        seen[function] = seen.get(function, -1) + 1
        took = task.times.get(item.nodeid, known.get(function, 1.0))
        return (0 if took < QUICK else seen[function]), took

    rest = [one for one in items if one not in likely]
    places = {one: place(one) for one in rest}
    return likely + sorted(rest, key=places.__getitem__)


def worker(connection: Connection, folder: Path) -> None:
    """A process of its own: pytest that waits for tasks, until it gets None."""
    os.environ["KEXECEMU_TEST_PURGATORY"] = str(folder / "purgatory.ro")
    os.environ["KEXECEMU_TEST_CORE"] = str(folder / "core.ro")
    os.chdir(ROOT)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        if not os.environ.get("KEXECEMU_MUTATION_DEBUG"):
            os.dup2(nothing.fileno(), 2)
    sys.path.insert(0, str(ROOT))
    paths = [f"tests/purgatory/{name}" for name in TESTS]
    options = ["-q", "--assert=plain", "--tb=no", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-s"]
    pytest.main([*options, *paths], plugins=[Loop(connection, folder)])
