# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of kexecemu's Python on one mutant after the other: a process in a copy of the checkout that forks for each.

It reads a task a line (JSON) and answers each with a line. Everything that is not ours is imported before the fork.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest

from tests.mutation.python_mutants import functions_of

MEMORY = 4 << 30  # bytes in use: what an engine sets aside for code, a gigabyte each, does not count
SLOWEST = 900  # seconds by the clock: whatever happens, a run ends
OPTIONS = [
    "-q", "--tb=no", "--assert=plain", "-s", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:xdist",
    "-m", "not slow and not real", "--hypothesis-seed=0",
]  # fmt: skip


class Loop:
    """A plugin: says how each test went, in the order that is asked for; the first that fails ends it."""

    def __init__(self, pipe: int, task: dict[str, Any]) -> None:
        self.pipe, self.task = pipe, task
        self.tracer: coverage.Coverage | None = None
        self.begun = self.spent = 0.0

    def say(self, *words: object) -> None:
        os.write(self.pipe, (json.dumps(words) + "\n").encode())

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if "tests" in self.task:
            by_name = {one.nodeid: one for one in items}
            items[:] = [by_name[name] for name in self.task["tests"] if name in by_name]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed(f"{report.nodeid} (collected)")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        if self.task.get("budget") and self.spent > self.task["budget"]:
            self.say("over")
            os._exit(0)
        self.begun = used()
        self.say("begin", item.nodeid)
        if known := self.task.get("times", {}).get(item.nodeid):
            signal.setitimer(signal.ITIMER_PROF, 2 + 4 * known)
        done = yield
        signal.setitimer(signal.ITIMER_PROF, 0)
        took = used() - self.begun
        self.spent += took
        self.say("took", item.nodeid, round(took, 3))
        return done

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        if self.tracer is None:
            return (yield)
        # What a fixture calls, others of the same file may look at; what a test calls, it alone.
        self.tracer.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.tracer.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed(report.nodeid)
        elif report.skipped:
            self.say("skipped", report.nodeid)

    def failed(self, name: str) -> None:
        self.say("failed", name)
        if self.tracer is None:
            os._exit(1)


def used() -> float:
    """Seconds of processor of this process and of those that it has waited for."""
    times = os.times()
    return sum(times[:4])


def settle() -> None:
    """The same random examples in each run, none kept, and no time spent on making them small."""
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile(
        "mutation", derandomize=True, database=None, phases=phases, deadline=None
    )
    hypothesis.settings.load_profile("mutation")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends the process, in the midst of emulation, too


def child(pipe: int, task: dict[str, Any]) -> None:
    """Run it, and say so."""
    os.setsid()
    settle()
    loop = Loop(pipe, task)
    if "map" in task:
        loop.tracer = coverage.Coverage(
            data_file=None, source=[os.path.abspath("kexecemu")], config_file=False
        )
        loop.tracer.start()
        pytest.main([*OPTIONS, task["map"]], plugins=[loop])
        loop.tracer.stop()
        loop.say("reaches", reached(loop.tracer.get_data()))
    else:
        files = dict.fromkeys(name.split("::")[0] for name in task["tests"])
        if pytest.main([*OPTIONS, *files], plugins=[loop]) not in (0, 5):
            os._exit(1)
    os._exit(0)


def reached(data: coverage.CoverageData) -> dict[str, list[str]]:
    """For each test, "" for fixtures and imports, the functions that it calls: path, two colons, name."""
    found: dict[str, set[str]] = {}
    for file in (
        one for one in data.measured_files() if one.endswith(".py")
    ):  # not what templates compile to
        path = os.path.relpath(file)
        functions = functions_of(ast.parse(Path(file).read_bytes()))
        for line, contexts in data.contexts_by_lineno(file).items():
            names = [name for first, last, name in functions if first <= line <= last]
            for context in contexts if names else ():
                found.setdefault(context, set()).add(f"{path}::{names[-1]}")
    return {test: sorted(names) for test, names in sorted(found.items())}


def in_use(process: int) -> int:
    """Bytes of memory."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def run(task: dict[str, Any]) -> list[list[Any]]:
    """The child's lines, and at last ["status", what wait() says]."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        os.close(read)
        try:
            child(write, task)
        except BaseException:
            traceback.print_exc()  # to be seen with KEXECEMU_MUTATION_DEBUG
        finally:
            os._exit(3)
    os.close(write)
    text, end, more = b"", time.monotonic() + SLOWEST, b"?"
    while more and time.monotonic() < end and in_use(process) < MEMORY:
        if select.select([read], [], [], 0.5)[0]:
            text += (more := os.read(read, 1 << 20))
    os.close(read)
    with contextlib.suppress(ProcessLookupError):  # all that it has started, if it is still there
        os.killpg(process, signal.SIGKILL if more else signal.SIGTERM)
    status = os.waitpid(process, 0)[1]
    return [*(json.loads(line) for line in text.decode().splitlines()), ["status", status]]


def mutated(task: dict[str, Any]) -> list[list[Any]]:
    """The same with a module of the copy written anew, which is put right again."""
    path = Path(task["path"])
    before, was = path.read_bytes(), path.stat()
    try:
        path.write_text(task["text"])
        # No compiled form that lies about is of this time.
        os.utime(path, (was.st_atime, was.st_mtime + 100))
        return run(task)
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with open(os.devnull, "r+") as nothing:
        os.dup2(nothing.fileno(), 1)
        if not os.environ.get("KEXECEMU_MUTATION_DEBUG"):
            os.dup2(nothing.fileno(), 2)
    for name in ("capstone", "cryptography.x509", "elftools.elf.elffile", "jinja2", "jsonschema", "msgspec", "rich",
                 "typer", "unicorn"):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    tasks = os.fdopen(os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for line in tasks:
        task = json.loads(line)
        print(json.dumps(mutated(task) if "text" in task else run(task)), file=answers)


if __name__ == "__main__":
    assert not any(name.split(".")[0] == "kexecemu" for name in sys.modules)
    main()
