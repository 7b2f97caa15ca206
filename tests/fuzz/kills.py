#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns that are killed at random moments: the table, the lock, and what is left running.

    python tests/fuzz/kills.py --count 100 --seed 1 [--faults 300,5000,100000] [--workers 1,2]

Each kill is of a campaign of one size and one number of workers, drawn with the moment and the way by the seed: kill -9
of the campaign, kill -9 of one of its workers, Ctrl-C as a terminal sends it (to all of them), Ctrl-C twice. Afterwards

    lock     the store is opened at once: nobody holds it
    orphans  after 2 s there is no process left that the campaign had started
    stored   no result that was stored is gone, the column says how old the last were when it was killed
    Ctrl-C   status 130, one line and an end within 2 s, after the second one within 0.5 s
    worker   the campaign itself comes to its end, with status 0
    table    resumed, and killed again and again, it has the table of a campaign that nobody disturbed

Prints a row a size and number of workers; exit status 1 if something did not hold. The host's clock decides where in
the work a kill falls: the seed repeats what is tried, not to the instruction.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from kexecemu.campaign.database import FILE  # noqa: E402
from kexecemu.campaign.store import Store  # noqa: E402
from kexecemu.errors import InputError  # noqa: E402

MARK = "KEXECEMU_KILLS"
WAYS = ("kill", "kill", "kill", "worker", "ctrl-c", "ctrl-c twice")
SCENARIO = 'schema = 1\nname = "small"\n[machine]\nram = "128M"\n[kernel]\ncmdline = "crashkernel=32M"\n'


def processes(mark: str) -> list[int]:
    """All that have the mark in their environment, the newest last."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                pass  # gone, or another user's
    return sorted(found)


def is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def hears(pid: int) -> bool:
    """Has Python set a handler for SIGINT? Not while it starts, and not any more when it has ended the program."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGINT - 1))


def before_main(said: list[str]) -> bool:
    """Is it a KeyboardInterrupt from before main() was called? What Python says of it then is its own words."""
    ours = [line for line in said if str(ROOT / "kexecemu") in line]
    first = [str(ROOT / "kexecemu" / name) for name in ("__init__.py", "__main__.py")]
    return len(said) > 1 and all("in <module>" in line and any(one in line for one in first) for line in ours)


@dataclass
class Case:
    """One size and number of workers."""

    scenario: Path
    folder: Path
    faults: int
    workers: int
    seconds: float = 0.0
    table: str = ""
    kills: Counter[str] = field(default_factory=Counter)
    tables: int = 0
    wrong: list[str] = field(default_factory=list)
    latest: float = 0.0

    @property
    def out(self) -> Path:
        return self.folder / f"{self.faults}-{self.workers}"

    def start(self, mark: str, out: Path) -> subprocess.Popen[str]:
        """A campaign in a session of its own, as one in a terminal has it."""
        words = ["--faults", str(self.faults), "--seed", "1", "--workers", str(self.workers), "--audit", "4"]
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kexecemu",
                "campaign",
                str(self.scenario),
                *words,
                "--out",
                str(out),
                "--resume",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), MARK: mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )

    def undisturbed(self) -> None:
        """Once, for the table and the time it takes."""
        begin = time.monotonic()
        process = self.start("undisturbed", self.folder / f"whole-{self.faults}-{self.workers}")
        said = process.communicate()[1]
        assert process.returncode == 0, said
        self.seconds = time.monotonic() - begin
        with Store.read(self.folder / f"whole-{self.faults}-{self.workers}") as store:
            self.table = store.table_sha256()

    def stored(self) -> int:
        """How many results there are; the lock has to be free."""
        try:
            with Store.read(self.out) as store:
                return store.count()
        except InputError as error:
            if "no campaign there" not in str(error):
                self.wrong.append(str(error))
            return 0

    def kill(self, way: str, moment: float) -> None:
        """One kill, and everything that has to hold after it."""
        before, mark = self.stored(), uuid.uuid4().hex
        started = time.time()
        process = self.start(mark, self.out)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            self.kills[way] += 1
        else:
            way = "nothing"  # it was over before
        deaf = not hears(process.pid)
        begin = time.monotonic()
        log = self.out / f"{FILE}-wal"
        workers = [pid for pid in processes(mark) if is_worker(pid)] if way == "worker" else []
        if way == "kill":
            process.kill()
            # A log from before this start says nothing of it.
            if log.exists() and before < self.faults and log.stat().st_mtime > started:
                self.latest = max(self.latest, time.time() - log.stat().st_mtime)
        elif workers:
            os.kill(workers[int(moment * 1000) % len(workers)], signal.SIGKILL)
        elif way.startswith("ctrl-c"):
            os.killpg(process.pid, signal.SIGINT)
            if way == "ctrl-c twice":
                time.sleep(0.02)
                deaf |= not hears(process.pid)
                begin = time.monotonic()
                os.killpg(process.pid, signal.SIGINT)
        said = process.communicate()[1].strip().splitlines()
        took = time.monotonic() - begin
        if not (way.startswith("ctrl-c") and deaf and (process.returncode, said) == (-signal.SIGINT, [])):
            self.look(way, process.returncode, said, took)
        after = self.stored()
        if after < before:
            self.wrong.append(f"{way}: {before - after} results are gone")
        time.sleep(max(0.0, 2.0 - (time.monotonic() - begin)) if processes(mark) else 0)
        if left := processes(mark):
            self.wrong.append(f"{way} after {moment:.2f} s: {len(left)} orphans after 2 s")
        if after == self.faults and process.returncode == 0:
            self.compare()

    def look(self, way: str, status: int, said: list[str], took: float) -> None:
        """The end of the campaign's own process."""
        if way.startswith("ctrl-c") and before_main(said):
            return
        wanted = {"kill": (-signal.SIGKILL,), "nothing": (0,), "worker": (0,)}.get(way, (130, 0))
        if status not in wanted or len(said) != (status == 130):
            self.wrong.append(f"{way}: status {status}, {said}")
        bound = {"ctrl-c": 2.0, "ctrl-c twice": 0.5}.get(way)
        if bound is not None and took > bound:
            self.wrong.append(f"{way}: took {took:.2f} s")

    def compare(self) -> None:
        """A finished campaign against the one that nobody disturbed; then it begins anew."""
        with Store.read(self.out) as store:
            if store.table_sha256() != self.table:
                self.wrong.append("another table")
        self.tables += 1
        for path in self.out.iterdir():
            path.unlink()

    def finish(self) -> None:
        """Whatever is left of it is done now."""
        if self.out.exists() and self.stored():
            process = self.start("finish", self.out)
            said = process.communicate()[1]
            if process.returncode:
                self.wrong.append(f"resumed: status {process.returncode}, {said.strip()}")
            self.compare()


def attack(count: int, seed: int, sizes: list[int], workers: list[int], folder: Path) -> list[Case]:
    """So many kills over campaigns of all sizes and numbers of workers."""
    draw = random.Random(seed)
    scenario = folder / "small.toml"
    scenario.write_text(SCENARIO)
    cases = [Case(scenario, folder, size, width) for size in sizes for width in workers]
    for case in cases:
        case.undisturbed()
    for number in range(count):
        case = cases[number % len(cases)]
        case.kill(draw.choice(WAYS), draw.uniform(0.0, 1.05 * case.seconds))
        if sys.stderr.isatty():
            print(f"\r{number + 1} of {count}", end="", file=sys.stderr)
    for case in cases:
        case.finish()
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", default="300,5000,100000")
    parser.add_argument("--workers", default="1,2")
    given = parser.parse_args()
    numbers = [[int(one) for one in words.split(",")] for words in (given.faults, given.workers)]
    with tempfile.TemporaryDirectory() as folder:
        cases = attack(given.count, given.seed, *numbers, Path(folder))
    print(
        f"\r{'faults':>8} {'workers':>7}  {'kill':>4} {'worker':>6} {'ctrl-c':>6} {'twice':>5}  tables  longest lost"
    )
    for case in cases:
        kills = [case.kills[one] for one in ("kill", "worker", "ctrl-c", "ctrl-c twice")]
        row = f"{case.faults:>8} {case.workers:>7}  {kills[0]:>4} {kills[1]:>6} {kills[2]:>6} {kills[3]:>5}"
        print(f"{row}  {case.tables:>6}  {case.latest:.2f} s")
        for wrong in case.wrong:
            print(f"    {wrong}")
    return 1 if any(case.wrong for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
