# SPDX-License-Identifier: GPL-2.0-or-later
"""Trying the inputs of a format, in processes of their own, and counting what comes of it."""

from __future__ import annotations

import hashlib
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz.formats import FORMATS  # noqa: E402
from fuzz.mutate import Mutator  # noqa: E402

LIMIT = 2.0
"""Seconds of a processor that one input may take."""


class Hang(BaseException):
    """An input took too long."""


@dataclass
class Tally:
    """What came of a format's inputs. outside has kinds and places of exceptions, with the first such input's file."""

    name: str
    inputs: int = 0
    hangs: list[str] = field(default_factory=list)
    outside: dict[str, str] = field(default_factory=dict)
    peak: int = 0

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not self.hangs and not self.outside


def corpus(name: str) -> list[bytes]:
    """The inputs of a format that ever failed, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def inputs(
    name: str, seed: int, wanted: int, seconds: float, start: int = 0, step: int = 1
) -> Iterator[bytes]:
    """The corpus, and then so many inputs or as many as come in so many seconds."""
    if start == 0:
        yield from corpus(name)
    one = FORMATS[name]
    mutator = Mutator(name, seed, one.seeds(), one.ways, one.most)
    end = time.monotonic() + seconds
    for number in count(start, step):
        if number >= wanted if wanted else time.monotonic() >= end:
            return
        yield mutator.make(number)


def attack(
    name: str, seed: int, wanted: int, seconds: float, found: Path, start: int = 0, step: int = 1
) -> Tally:
    """Try a format's inputs, all or each so manieth of them."""
    tally = Tally(name)
    run = FORMATS[name].make()
    for good in FORMATS[name].seeds():
        _one(run, good, Tally(name), found)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGVTALRM, _too_long)
    for data in inputs(name, seed, wanted, seconds, start, step):
        tally.inputs += 1
        _one(run, data, tally, found)
    tally.peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return tally


def _too_long(*_: object) -> None:
    raise Hang


def _one(run: Callable[[bytes], object], data: bytes, tally: Tally, found: Path) -> None:
    from kexecemu.errors import KexecemuError

    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
            run(data)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except KexecemuError:
        pass
    except Hang:
        tally.hangs.append(_keep(tally.name, data, found))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "kexecemu" in Path(frame.filename).parts] or frames
        kind = f"{type(error).__name__} in {Path(ours[-1].filename).name}:{ours[-1].lineno}: {str(error)[:100]!r}"
        if _place(kind) not in set(map(_place, tally.outside)):
            tally.outside[kind] = _keep(tally.name, data, found)


def _place(kind: str) -> str:
    return kind.partition(": ")[0]


def _keep(name: str, data: bytes, found: Path) -> str:
    path = found / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def fuzz(names: list[str], seed: int, wanted: int, seconds: float, jobs: int, found: Path) -> list[Tally]:
    """All formats, each in processes of its own, one after the other; a tenth as many inputs of the heavy ones."""
    tallies = []
    for name in names:
        share = -(-wanted // 10) if FORMATS[name].heavy else wanted
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            parts = [
                pool.submit(attack, name, seed, share, seconds, found, start, jobs) for start in range(jobs)
            ]
            whole = Tally(name)
            for part in parts:
                one = part.result()
                whole.inputs += one.inputs
                whole.hangs += one.hangs
                known = set(map(_place, whole.outside))
                whole.outside |= {
                    kind: path for kind, path in one.outside.items() if _place(kind) not in known
                }
                whole.peak = max(whole.peak, one.peak)
        tallies.append(whole)
        print(row(whole), flush=True)
        for kind, path in [*whole.outside.items(), *(("takes too long", path) for path in whole.hangs[:3])]:
            print(f"    {kind}  {path}", flush=True)
    return tallies


HEADING = f"{'format':<12} {'inputs':>10}  {'outside':>7}  {'hangs':>5}  {'peak memory':>11}"


def row(tally: Tally) -> str:
    """One line of the table."""
    counts = f"{tally.inputs:>10,}  {len(tally.outside):>7}  {len(tally.hangs):>5}"
    return f"{tally.name:<12} {counts}  {tally.peak / (1 << 20):>7.0f} MiB"


def markdown(tallies: list[Tally], words: str) -> str:
    """The table for the page, with the options that it was made with."""
    lines = ["| format | inputs | outside exceptions | hangs | peak memory |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {one.name} | {one.inputs:,} | {len(one.outside)} | {len(one.hangs)} | {one.peak / (1 << 20):.0f} MiB |"
        for one in tallies
    ]
    return "\n".join([*lines, "", f"`python -m tests.fuzz {words}`"]) + "\n"
