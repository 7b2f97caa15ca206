#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A million stray writes against the page protection, the purgatory, and both: what each catches, in Markdown.

    python tests/benchmarks/million.py [--faults 1000000] [--own 10000] [--workers N] [--out DIR] [--write]

Three campaigns over the same faults (million.toml), then two over faults in the purgatory itself
(million-purgatory.toml, --own of them: each has to be run), and how they compare fault by fault. --out keeps the
campaigns' results; what is finished there is not run again. Every command is one that anybody can type.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measured_block import replace_block

import kexecemu
from kexecemu.campaign.compare import Comparison, Pair, compare
from kexecemu.campaign.stats import Figure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SEED = 1


@dataclass(frozen=True)
class Way:
    """A way of protecting the image."""

    name: str
    protection: str
    purgatory: str

    @property
    def options(self) -> list[str]:
        """For kexecemu campaign, and replay."""
        return ["--protection", self.protection, "--purgatory", self.purgatory]


PTE = Way("page protection", "pte", "none")
PURGATORY = Way("purgatory", "none", "default")
BOTH = Way("both", "pte", "default")
WAYS = (PTE, PURGATORY, BOTH)


@dataclass(frozen=True)
class Ran:
    """A finished campaign: its folder, what it printed as JSON, and the seconds of the whole command."""

    way: Way
    folder: Path
    found: dict[str, Any]
    wall: float


def run(scenario: str, way: Way, faults: int, options: argparse.Namespace, out: Path) -> Ran:
    """One campaign, or what is left to do of it."""
    folder = out / f"{Path(scenario).stem}-{way.name.replace(' ', '-')}"
    path = os.path.relpath(HERE / scenario, ROOT)
    command = [
        sys.executable,
        "-m",
        "kexecemu",
        "campaign",
        path,
        "--faults",
        str(faults),
        "--seed",
        str(SEED),
    ]
    command += ["--out", str(folder), "--audit", str(options.audit), *way.options, "--json", "--resume"]
    if options.workers:
        command += ["--workers", str(options.workers)]
    packages = str(Path(kexecemu.__file__).parents[1])
    start = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=ROOT,  # so that the commands for one fault are as short as they can be
        env={**os.environ, "PYTHONPATH": packages},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"million: {way.name}: exit status {done.returncode}: {done.stdout[-500:]}")
    return Ran(way, folder, json.loads(done.stdout), wall)


def percent(low: float, high: float) -> str:
    """An interval."""
    return f"{100 * low:.3f} to {100 * high:.3f} %"


def outcomes_table(runs: Sequence[Ran]) -> list[str]:
    """A row for each outcome that there is in any of the campaigns."""
    names = [name for name in runs[0].found["outcomes"] if any(one.found["outcomes"][name] for one in runs)]
    lines = ["| | " + " | ".join(one.way.name for one in runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for name in names:
        cells = []
        for one in runs:
            interval = one.found["intervals"][name]
            count = one.found["outcomes"][name]
            share = (
                percent(interval["low"], interval["high"])
                if count
                else f"at most {100 * interval['at_most']:.4f} %"
            )
            cells.append(f"{count:,} ({share})")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines.append(
        "| configuration | " + " | ".join(f"`{one.found['config_hash'][:12]}`" for one in runs) + " |"
    )
    speeds = [f"{one.found['seconds']:,.0f} s, {one.found['injections_per_second']:,.0f}" for one in runs]
    lines.append("| time, faults a second | " + " | ".join(speeds) + " |")
    audits = [
        f"{one.found['audited']:,}, {one.found['audit_disagreements']} wrong, {one.found['audit_seconds']:,.0f} s"
        for one in runs
    ]
    lines.append("| audited besides | " + " | ".join(audits) + " |")
    lines.append("| whole command | " + " | ".join(f"{one.wall:,.0f} s" for one in runs) + " |")
    return lines


def writers_table(runs: Sequence[Ran]) -> list[str]:
    """Harm and its absence by who wrote."""
    writers = runs[0].found["by"]["writer"]
    lines = ["| by | " + " | ".join(one.way.name for one in runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for writer in writers:
        cells = [
            ", ".join(f"{count:,} {name}" for name, count in one.found["by"]["writer"][writer].items())
            for one in runs
        ]
        lines.append(f"| `{writer}` | " + " | ".join(cells) + " |")
    return lines


def cross_table(comparison: Comparison, down: str, across: str) -> list[str]:
    """The faults by what came of them in each of two campaigns."""
    columns = list(dict.fromkeys(name for counts in comparison.outcomes.values() for name in counts))
    lines = [f"| {down} ↓ {across} → | " + " | ".join(f"`{one}`" for one in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, counts in comparison.outcomes.items():
        lines.append(f"| `{name}` | " + " | ".join(f"{counts.get(one, 0):,}" for one in columns) + " |")
    return lines


def alone(winner: str, loser: str, figure: Figure, pairs: Sequence[Pair]) -> str:
    """What one catches that is harm in the other, with an example."""
    share = percent(figure.interval.low, figure.interval.high)
    text = f"Caught by the {winner} and harm with the {loser} alone: {figure.count:,} ({share} of the population)"
    return text + (f", the first of them `{pairs[0].fault}`." if pairs else ".")


def report(runs: Sequence[Ran], own: Sequence[Ran]) -> str:
    """All tables."""
    first = runs[0].found
    lines = [
        f"{first['faults']:,} of {first['population']:,} faults, {first['sampler']}, seed {first['seed']}, "
        f"kexecemu {first['version']}, {first['interval_method']}; `tests/benchmarks/million.toml`:",
        "",
        *outcomes_table(runs),
        "",
        *writers_table(runs),
        "",
    ]
    crossed = compare(runs[0].folder, runs[1].folder)
    lines += [*cross_table(crossed, "page protection", "purgatory"), ""]
    lines += [alone("page protection", "purgatory", crossed.only_first, crossed.examples_first)]
    lines += [alone("purgatory", "page protection", crossed.only_second, crossed.examples_second), ""]
    first = own[0].found
    lines += [
        f"And in the purgatory itself, {first['faults']:,} of {first['population']:,} faults, seed {first['seed']}; "
        "`tests/benchmarks/million-purgatory.toml`:",
        "",
        *outcomes_table(own),
        "",
    ]
    crossed = compare(own[0].folder, own[1].folder)
    lines += [*cross_table(crossed, "purgatory", "both"), ""]
    lines += [alone("page protection", "purgatory", crossed.only_second, crossed.examples_second)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare and print."""
    parser = argparse.ArgumentParser(description="A million stray writes against three ways of protecting.")
    parser.add_argument(
        "--faults", type=int, default=1_000_000, help="of each of three campaigns (default: 1,000,000)"
    )
    parser.add_argument("--own", type=int, default=10_000, help="in the purgatory itself (default: 10,000)")
    parser.add_argument("--audit", type=int, default=300, help="of each campaign (default: 300)")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one a CPU)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: none are kept)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/figures.md")
    options = parser.parse_args(arguments)
    if min(options.faults, options.own) < 1:
        parser.error("at least one fault")
    with tempfile.TemporaryDirectory(prefix="million-") as name:
        out = (options.out or Path(name)).absolute()
        out.mkdir(parents=True, exist_ok=True)
        runs = [run("million.toml", way, options.faults, options, out) for way in WAYS]
        own = [run("million-purgatory.toml", way, options.own, options, out) for way in (PURGATORY, BOTH)]
        text = report(runs, own)
    print(text)
    if options.write:
        replace_block("million", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
