# SPDX-License-Identifier: GPL-2.0-or-later
"""Do the tests notice? Faults put into kexecemu's Python one by one, each tried by the tests that reach it.

    python -m tests.mutation [--count 40] [--seed 1] [--rooms kernel,crash,...] [--jobs 2] [--budget 120] [--near]
    python -m tests.mutation --by-hand

Each is put into a copy of the checkout, never into the checkout itself, and tried in a process of its own with limits
of time and memory. One that a test fails on, hangs on or dies of is killed. What is left is a hole in the tests, or
equivalent: no run can tell it from the original. Those that were looked at stand in rooms_equivalent.txt with the
reason. Exit status 1 if fewer than 97 % of the others are killed.

Which tests reach a function is found by running each file of tests once under coverage, which is kept in the cache
until the file changes: those of the room's own folder first, the others' only for what these leave alive. Tests of
the text alone (style, types, documents) would notice anything and say nothing of the others: they are left out, as
are slow ones and those against real kernels. What was killed is known from then on, as long as the killer's file is
as it was; what lives is tried again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from kexecemu.fetch.cache import cache_folder
from tests.mutation.known import Known, share_of, told
from tests.mutation.mutants import ROOT
from tests.mutation.python_mutants import PythonMutant, by_hand, drawn, equivalents, sources

REQUIRED = 0.97
ROOMS = "kernel,crash,stray,campaign,machine/memory/mmu,machine/snapshot"
BUDGET = 120.0  # seconds of processor for one mutant, if it lives so long, near and far each
LIKELY = 6  # tests that killed most of the same module's are tried first
LEFT_OUT = ("benchmarks", "data", "fuzz", "mutation", "purgatory", "real", "test_docs.py", "test_docstrings.py",
            "test_readme.py", "test_rooms.py", "test_style.py", "test_tests_readme.py")  # fmt: skip


class Worker:
    """A process in a copy of the checkout that runs tests there."""

    def __init__(self, folder: Path) -> None:
        environment = dict(os.environ, PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1", COLUMNS="80")
        for name in ("PYTEST_ADDOPTS", "PYTHONHASHSEED"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutation.python_tests"],
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **task: Any) -> list[list[Any]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise SystemExit("a worker of the mutation run has died")
        answer: list[list[Any]] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate()


def copy_of_checkout(folder: Path) -> Path:
    """What git knows, and what is not yet added; compiled, so that each run only reads it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (source := ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "kexecemu", "tests"], cwd=folder, check=False)
    return folder


class Reach:
    """Which test calls which function, and how long it takes: file of tests by file of tests, from the cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, dict[str, Any]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        common = [*sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "tests").rglob("conftest.py"))]
        shared = [path.read_bytes() for path in common if not path.name.startswith("test_")]
        self._shared = hashlib.sha256(b"\0".join(shared)).hexdigest()

    def key(self, file: str) -> str:
        """Of a file of tests and all that it has in common with others."""
        return hashlib.sha256(self._shared.encode() + (ROOT / file).read_bytes()).hexdigest()[:32]

    def of(self, file: str, worker: Worker) -> dict[str, Any]:
        """{"times": {test: seconds}, "reaches": {test, "" for imports and fixtures: [function]}}."""
        with self._lock:
            lock = self._locks.setdefault(file, threading.Lock())
        with lock:
            if file not in self._files:
                self._files[file] = self._kept(file, worker)
        return self._files[file]

    def _kept(self, file: str, worker: Worker) -> dict[str, Any]:
        path = self._folder / f"{self.key(file)}.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        lines = worker.ask(map=file)
        # One that fails or is skipped as it is says nothing.
        bad = {line[1] for line in lines if line[0] in ("failed", "skipped")}
        times = {line[1]: line[2] for line in lines if line[0] == "took" and line[1] not in bad}
        reaches = next((line[1] for line in lines if line[0] == "reaches"), None)
        if reaches is None:
            last = next((line[1] for line in reversed(lines) if line[0] == "begin"), "none")
            print(f"left out: {file} does not come to its end ({lines[-1]}, last test: {last})", flush=True)
            return {"times": {}, "reaches": {}}
        if failed := sorted(line[1] for line in lines if line[0] == "failed"):
            print(f"left out, for they fail without a mutant: {', '.join(failed)}", flush=True)
        found = {"times": times, "reaches": reaches}
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(found))
        new.replace(path)
        print(f"{file}: {len(times)} tests, {sum(times.values()):.0f} seconds of processor", flush=True)
        return found


def near(path: str) -> list[str]:
    """The files of tests of a module's own room."""
    room = Path(path).parts[1].removesuffix(".py")
    return [str(one.relative_to(ROOT)) for one in sorted((ROOT / "tests" / room).glob("test_*.py"))]


def far(path: str) -> list[str]:
    """All others that may notice something."""
    every = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [one.relative_to(ROOT) for one in every if one.relative_to(ROOT).parts[1] not in LEFT_OUT]
    return [str(one) for one in files if str(one) not in near(path)]


def in_order(mutant: PythonMutant, maps: Sequence[dict[str, Any]], likely: Sequence[str]) -> dict[str, float]:
    """The tests that reach it, with their seconds: likely ones; those that call the function; the rest of their files.

    The rest, since what one test calls is kept for others at times. Files that are named after the module come first,
    then those that mention it, then cheap ones: a budget does not last for all that boot a kernel. All of them where
    none is known to reach it: in a module without functions, or in another process.
    """
    place, module = f"{mutant.path}::{mutant.function}", Path(mutant.path).stem

    def hit(
        called: str,
    ) -> bool:  # what is done as a module is imported matters to all that call something of it
        return called == place if mutant.function else called.startswith(place)

    def distance(times: dict[str, float]) -> int:
        file = ROOT / next(iter(times)).split("::")[0]
        if file.stem.removeprefix("test_") == module:
            return 0
        return 2 - (file.is_file() and re.search(rf"\b{module}\b", file.read_text()) is not None)

    first: list[tuple[int, float, dict[str, float]]] = []
    rest: list[tuple[int, float, dict[str, float]]] = []
    for one in maps:
        times: dict[str, float] = one["times"]
        reaches = {name: any(map(hit, called)) for name, called in one["reaches"].items()}
        exact = {name: times[name] for name, yes in reaches.items() if yes and name in times}
        by_fixture = reaches.get("")
        if exact or by_fixture:
            exact = dict(sorted(exact.items(), key=lambda pair: pair[1]))
            others = {
                name: took
                for name, took in sorted(times.items(), key=lambda pair: pair[1])
                if name not in exact
            }
            if far_off := distance(times):
                rest.append((far_off, sum(others.values()), others))
            else:
                exact |= others  # what its fixtures call is looked at by all of them
            first.append((far_off, sum(exact.values()), exact))
    if not first:
        taken = [sorted(one["times"].items(), key=lambda pair: pair[1]) for one in maps]
        rest = [(distance(dict(some)), sum(took for _, took in some), dict(some)) for some in taken if some]
    known: dict[str, float] = {}
    for *_, group in [*sorted(first, key=lambda one: one[:2]), *sorted(rest, key=lambda one: one[:2])]:
        known |= group
    return {name: known[name] for name in likely if name in known} | known


class Trial:
    """Mutants, tried by workers."""

    def __init__(self, workers: Sequence[Worker], cache: Path, options: argparse.Namespace) -> None:
        self.workers, self.options = workers, options
        self.reach = Reach(cache / "reach")
        self.known = Known(cache / "rooms-killed.jsonl")
        if options.afresh:
            self.known.path.unlink(missing_ok=True)
            shutil.rmtree(cache / "reach", ignore_errors=True)
        self.known.read()
        self.counts: Counter[str] = Counter()
        self.lives: list[PythonMutant] = []
        self._lock = threading.Lock()

    def all(self, mutants: Sequence[PythonMutant]) -> None:
        """Try them all."""
        excused, waiting = equivalents(), SimpleQueue[Callable[[Worker], None]]()
        for one in mutants:
            waiting.put(lambda worker, one=one: self._one(worker, one, excused, len(mutants)))  # type: ignore[misc]

        def serve(worker: Worker) -> None:
            while not waiting.empty():
                waiting.get()(worker)

        with ThreadPoolExecutor(len(self.workers)) as pool:
            for future in [pool.submit(serve, worker) for worker in self.workers]:
                future.result()

    def _one(self, worker: Worker, mutant: PythonMutant, excused: dict[str, str], total: int) -> None:
        killer, tried = None, 0
        if mutant.key not in excused:
            killer, tried = self._killer(worker, mutant)
        end = "equivalent" if mutant.key in excused else "killed" if killer else "lives"
        with self._lock:
            self.counts[end] += 1
            if end == "lives":
                self.lives.append(mutant)
                print(f"lives ({tried} tests): {mutant}", flush=True)
            elif self.options.verbose:
                print(f"{end}: {mutant}: {killer or excused[mutant.key]}", flush=True)
            if not self.counts.total() % 25:
                print(f"{self.counts.total()} of {total}: {told(self.counts)}", flush=True)

    def _killer(self, worker: Worker, mutant: PythonMutant) -> tuple[str | None, int]:
        """The test that kills it, and how many tests were tried."""
        known = self.known.killers.get(mutant.name)
        if known is not None and self._is_as_it_was(known):
            return known.split(" ", 1)[1], 0
        total = 0
        for files in (near(mutant.path), [] if self.options.near else far(mutant.path)):
            maps = [self.reach.of(file, worker) for file in files]
            likely = [name.split(" ", 1)[1] for name in self.known.likely(mutant.path, LIKELY)]
            tests = in_order(mutant, maps, likely)
            if not tests:
                continue
            lines = worker.ask(
                path=mutant.path, text=mutant.text, tests=list(tests), times=tests, budget=self.options.budget
            )
            total += sum(line[0] == "begin" for line in lines)
            if (lines[-1][1] and not any(line[0] == "over" for line in lines)) or any(
                line[0] == "failed" for line in lines
            ):
                killer = next(
                    (line[1] for line in reversed(lines) if line[0] in ("failed", "begin")), "import "
                )
                file = killer.split("::")[0].removesuffix(" (collected)")
                key = self.reach.key(file) if (ROOT / file).is_file() else "-"
                self.known.add(mutant.name, mutant.path, f"{key} {killer}")
                return killer, total
        return None, total

    def _is_as_it_was(self, killer: str) -> bool:
        """A known killer, as it is kept: its file's key and its name."""
        key, name = killer.split(" ", 1)
        file = name.split("::")[0].removesuffix(" (collected)")
        return (ROOT / file).is_file() and self.reach.key(file) == key


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--count", type=int, default=40, help="mutants to draw, 0 for all of them")
    parser.add_argument(
        "--by-hand", action="store_true", help="those of rooms_by_hand.txt, all of which must be killed"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rooms", default=ROOMS, help="rooms and modules below kexecemu/, with commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--budget", type=float, default=BUDGET, help="seconds of processor for what lives, near and far each"
    )
    parser.add_argument("--near", action="store_true", help="by the tests of a module's own room alone")
    parser.add_argument("--list", action="store_true", help="print them, and try none")
    parser.add_argument("--only", default="", help="those that have this in their line")
    parser.add_argument("--afresh", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--verbose", action="store_true", help="print what killed each")
    parser.add_argument(
        "--survivors",
        type=Path,
        help="write there a line for each that lives, as rooms_equivalent.txt has it",
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    chosen = (
        by_hand()
        if options.by_hand
        else drawn(sources(options.rooms.split(",")), options.count, options.seed)
    )
    chosen = [one for one in chosen if options.only in str(one)]
    if options.list:
        print(*chosen, f"{len(chosen)} in all", sep="\n")
        return 0
    cache = cache_folder() / "mutation"
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        workers = [
            Worker(copy_of_checkout(Path(temporary) / f"copy{number}")) for number in range(options.jobs)
        ]
        trial = Trial(workers, cache, options)
        try:
            trial.all(chosen)
        finally:
            for worker in workers:
                worker.close()
    if options.survivors:
        options.survivors.write_text("".join(f"{one.key}\n" for one in trial.lives))
    print(told(trial.counts))
    return 0 if share_of(trial.counts) >= (1 if options.by_hand else REQUIRED) else 1
