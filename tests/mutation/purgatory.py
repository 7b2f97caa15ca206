#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Do the tests notice? Faults put into the purgatory's C and assembly one by one, each built and tested.

    python tests/mutation/purgatory.py [--count 40] [--seed 1] [--jobs 2] [--only TEXT] [--budget 120] [--afresh]
    python tests/mutation/purgatory.py --by-hand

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
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kexecemu.fetch.cache import cache_folder
from tests.mutation.builds import Builder, Objects
from tests.mutation.forks import Task, Told, worker
from tests.mutation.known import Known, share_of, told
from tests.mutation.mutants import ROOT, Mutant, by_hand, equivalents, mutants

REQUIRED = 0.95
LIKELY = 6  # tests that killed most are tried first
BUDGET = (
    120.0  # seconds of processor for one mutant, if it lives so long: several sets of parameters of each test
)


class Run:
    """Workers that test objects, with what they share."""

    def __init__(self, jobs: int, folder: Path, known: Known, budget: float) -> None:
        self.known, self.budget = known, budget
        self.times: dict[str, float] = {}
        self.ends: list[Connection] = []
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
        answer: Told = self.ends[0].recv()
        if answer.killer:
            raise SystemExit(f"the original fails {answer.killer} ({answer.how})")
        self.times = answer.times
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"key": key, "times": answer.times}))
        print(f"{len(answer.times)} tests, {sum(answer.times.values()):.0f} seconds of processor", flush=True)

    def all(self, drawn: list[Mutant], builders: list[Builder]) -> tuple[Counter[str], list[Mutant]]:
        """How many of them ended how, and those that live."""
        excused = equivalents()
        waiting: SimpleQueue[Mutant] = SimpleQueue()
        for one in drawn:
            waiting.put(one)
        counts: Counter[str] = Counter()
        lives: list[Mutant] = []
        original = builders[0].original.name
        seen: dict[str, str] = {}
        lock = threading.Lock()

        def serve(end: Connection, builder: Builder) -> None:
            while not waiting.empty():
                try:
                    mutant = waiting.get_nowait()
                except Empty:
                    return
                objects = builder.build(mutant)
                name = objects.name if objects else ""
                with lock:
                    known = "invalid" if objects is None else "same" if name == original else seen.get(name)
                    seen[name] = "twin"
                    if known is None and mutant.key in excused:
                        known = "equivalent"
                killed = known is None and name in self.known.killers
                if known is None and not killed and objects is not None:
                    killed = self.is_killed(end, mutant, objects)
                    if not killed:
                        print(f"lives: {mutant}", flush=True)
                        lives.append(mutant)
                with lock:
                    counts[known or ("killed" if killed else "lives")] += 1
                    if not counts.total() % 25:
                        print(f"{counts.total()} of {len(drawn)}: {told(counts)}", flush=True)

        with ThreadPoolExecutor(len(self.ends)) as pool:
            for future in [pool.submit(serve, *pair) for pair in zip(self.ends, builders, strict=True)]:
                future.result()
        return counts, lives

    def is_killed(self, end: Connection, mutant: Mutant, objects: Objects) -> bool:
        likely = self.known.likely(mutant.path, LIKELY)
        end.send(Task(objects.full, objects.core, likely, self.budget, self.times))
        answer: Told = end.recv()
        if answer.killer:
            self.known.add(objects.name, mutant.path, answer.killer)
        return answer.killer is not None

    def close(self) -> None:
        for end in self.ends:
            end.send(None)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="mutants to draw, 0 for all of them")
    parser.add_argument(
        "--by-hand", action="store_true", help="those of by_hand.txt, all of which have to be killed"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="those that have this in their line of equivalent.txt")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="print them, and try none")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of processor for what lives")
    parser.add_argument("--afresh", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--survivors", type=Path, help="write there a line for each that lives")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    every = [one for one in (by_hand() if options.by_hand else mutants()) if options.only in one.key]
    if options.by_hand:
        options.count = 0
    drawn = random.Random(options.seed).sample(every, min(options.count or len(every), len(every)))
    if options.list:
        print(*drawn, f"{len(every)} in all", sep="\n")
        return 0
    cache = cache_folder() / "mutation"
    known = Known(cache / "killed.jsonl")
    if options.afresh:
        known.path.unlink(missing_ok=True)
    known.read()
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = Path(temporary)
        run = Run(options.jobs, folder, known, options.budget)
        builders = [Builder(folder / f"build{number}", cache / "built") for number in range(options.jobs)]
        run.baseline(builders[0].original, cache / "times.json")
        counts, lives = run.all(drawn, builders)
        run.close()
    if options.survivors:
        options.survivors.write_text("".join(f"{one.key}\n" for one in lives))
    print(told(counts))
    return 0 if share_of(counts) >= (1 if options.by_hand else REQUIRED) else 1


if __name__ == "__main__":
    sys.exit(main())
