#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Do the tests notice? Faults put into the purgatory's C and assembly one by one, each built and tested.

    python tests/mutation/purgatory.py [--count 40] [--seed 1] [--list] [--only FILE] [--jobs 2] [--whole] [--afresh]

A mutant that builds to the same bytes is no mutant, and one that builds to another's bytes is that one. One that the
tests fail on, hang on or crash on is killed. What is left is a hole in the tests, or equivalent: no run can tell it
from the original. Those that were looked at stand in equivalent.txt with the reason. Exit status 1 if fewer than 95 %
of the others are killed.

What was killed once is known from a file in the cache, so that a run that was stopped goes on where it was; what lives
is tried again. The rebuild byte for byte (test_build.py) is left out: it would notice anything, and say nothing about
the tests. So is all that needs QEMU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kexecemu.fetch.cache import cache_folder
from tests.mutation.builds import Builder, Objects
from tests.mutation.forks import Task, Told, worker
from tests.mutation.mutants import ROOT, Mutant, equivalents, mutants

REQUIRED = 0.95
LIKELY = 40  # tests that killed most are tried first
BUDGET = (
    12.0  # seconds of processor for one mutant, if it lives so long: about one set of parameters of each test
)


@dataclass
class Known:
    """What earlier runs found out, one line of JSON each: what killed which objects."""

    path: Path
    killers: dict[str, str] = field(default_factory=dict)  # by Objects.name
    by_source: dict[str, Counter[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> None:
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                self._note(row["objects"], row["source"], row["killer"])

    def _note(self, objects: str, source: str, killer: str) -> None:
        self.killers[objects] = killer
        for name in (source, ""):
            self.by_source.setdefault(name, Counter())[killer] += 1

    def add(self, objects: Objects, source: str, killer: str) -> None:
        with self.lock:
            self._note(objects.name, source, killer)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"objects": objects.name, "source": source, "killer": killer}) + "\n")

    def likely(self, source: str) -> list[str]:
        """Tests that killed most of the same source's, and then of all."""
        with self.lock:
            both = [self.by_source.get(name, Counter()).most_common(LIKELY) for name in (source, "")]
        return list(dict.fromkeys(name for some in both for name, _ in some))[:LIKELY]


def built(drawn: list[Mutant], builders: list[Builder]) -> Iterator[tuple[Mutant, Objects | None]]:
    """Each with its objects, in order."""
    free: SimpleQueue[Builder] = SimpleQueue()
    for builder in builders:
        free.put(builder)

    def build(mutant: Mutant) -> Objects | None:
        builder = free.get()
        try:
            return builder.build(mutant)
        finally:
            free.put(builder)

    with ThreadPoolExecutor(len(builders)) as pool:
        yield from zip(drawn, pool.map(build, drawn), strict=True)


class Run:
    """Workers that test objects, with what they share."""

    def __init__(self, jobs: int, folder: Path, known: Known, whole: bool) -> None:
        self.known, self.budget = known, 0.0 if whole else BUDGET
        self.times: dict[str, float] = {}
        self.ends: list[multiprocessing.connection.Connection] = []
        context = multiprocessing.get_context("fork")
        for number in range(jobs):
            here, there = context.Pipe()
            (own := folder / f"worker{number}").mkdir()
            context.Process(target=worker, args=(there, own), daemon=True).start()
            there.close()
            self.ends.append(here)

    def baseline(self, original: Objects, kept: Path) -> None:
        """The tests pass on what is no mutant, and take so long: known already where nothing has changed."""
        tests = b"".join(path.read_bytes() for path in sorted((ROOT / "tests/purgatory").glob("*.py")))
        key = f"{hashlib.sha256(tests).hexdigest()[:32]} {original.name} {self.budget}"
        if kept.is_file() and (known := json.loads(kept.read_text()))["key"] == key:
            self.times = known["times"]
            return
        self.ends[0].send(Task(original.full, original.core, budget=self.budget))
        told: Told = self.ends[0].recv()
        if told.killer:
            raise SystemExit(f"the original fails {told.killer} ({told.how})")
        self.times = told.times
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"key": key, "times": told.times}))
        print(f"{len(told.times)} tests, {sum(told.times.values()):.0f} seconds of processor", flush=True)

    def all(self, tasks: list[tuple[Mutant, Objects]]) -> dict[str, str | None]:
        """Of each objects' name its killer, or None."""
        waiting: SimpleQueue[tuple[Mutant, Objects]] = SimpleQueue()
        for one in tasks:
            waiting.put(one)
        ends: dict[str, str | None] = {}

        def serve(end: multiprocessing.connection.Connection) -> None:
            while True:
                try:
                    mutant, objects = waiting.get_nowait()
                except Empty:
                    return
                likely = self.known.likely(mutant.path)
                end.send(Task(objects.full, objects.core, likely, self.budget, self.times))
                told: Told = end.recv()
                ends[objects.name] = told.killer
                if told.killer:
                    self.known.add(objects, mutant.path, told.killer)
                else:
                    print(f"lives: {mutant}", flush=True)
                if not len(ends) % 25:
                    print(f"{len(ends)} of {len(tasks)}", flush=True)

        with ThreadPoolExecutor(len(self.ends)) as pool:
            for future in [pool.submit(serve, end) for end in self.ends]:
                future.result()
        return ends

    def close(self) -> None:
        for end in self.ends:
            end.send(None)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="mutants to draw, 0 for all of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="those that have this in their line of equivalent.txt")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="print them, and try none")
    parser.add_argument("--whole", action="store_true", help="all tests, not only a part, for what lives")
    parser.add_argument("--afresh", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--survivors", type=Path, help="write there a line for each that lives")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    every = [one for one in mutants() if options.only in one.key]
    drawn = random.Random(options.seed).sample(every, min(options.count or len(every), len(every)))
    if options.list:
        print(*drawn, f"{len(every)} in all", sep="\n")
        return 0
    cache = cache_folder() / "mutation"
    known = Known(cache / "killed.jsonl")
    if options.afresh:
        known.path.unlink(missing_ok=True)
    known.read()
    excused = equivalents()
    counts = dict.fromkeys(("killed", "lives", "equivalent", "same", "invalid", "twin"), 0)
    tasks: dict[str, tuple[Mutant, Objects]] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = Path(temporary)
        run = Run(options.jobs, folder, known, options.whole)
        builders = [Builder(folder / f"build{number}", cache / "built") for number in range(options.jobs)]
        original = builders[0].original
        for mutant, objects in built(drawn, builders):
            if objects is None:
                counts["invalid"] += 1
            elif objects.name == original.name:
                counts["same"] += 1
            elif mutant.key in excused:
                counts["equivalent"] += 1
            elif objects.name in tasks:
                counts["twin"] += 1
            else:
                tasks[objects.name] = mutant, objects
        left = [one for name, one in tasks.items() if name not in known.killers]
        print(f"{len(drawn)} drawn, {len(tasks)} to be told apart, {len(left)} to be tried", flush=True)
        run.baseline(original, cache / "times.json")
        ends = run.all(left)
        run.close()
    lives = [tasks[name][0] for name, killer in ends.items() if killer is None]
    counts["lives"] = len(lives)
    counts["killed"] = len(tasks) - len(lives)
    if options.survivors:
        options.survivors.write_text("".join(f"{one.key}\n" for one in lives))
    share = counts["killed"] / len(tasks) if tasks else 1.0
    print(
        ", ".join(f"{count} {name}" for name, count in counts.items()),
        f"- {share:.1%} of {len(tasks)} killed",
    )
    return 0 if share >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
