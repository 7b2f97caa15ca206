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


def counted(count: int, interval: dict[str, float]) -> str:
    """A count of the sample with the interval of its share, or the bound where there is none."""
    if not count:
        return f"0 (at most {100 * interval['at_most']:.4f} %)"
    return f"{count:,} ({percent(interval['low'], interval['high'])})"


def dumps_of(counts: dict[str, int]) -> str:
    """What became of the dump of those faults: "true", or "12 true, 3 wrong" where it is not the same for all."""
    found = {dump: count for dump, count in counts.items() if count}
    return next(iter(found)) if len(found) == 1 else ", ".join(f"{n:,} {dump}" for dump, n in found.items())


def outcomes_table(runs: Sequence[Ran]) -> list[str]:
    """A row for each outcome that there is in any of the campaigns, with its dumps; then the dumps of all."""
    names = [name for name in runs[0].found["outcomes"] if any(one.found["outcomes"][name] for one in runs)]
    lines = [
        "| | " + " | ".join(f"{one.way.name} | dump" for one in runs) + " |",
        "|---" * (2 * len(runs) + 1) + "|",
    ]
    for name in names:
        cells = []
        for one in runs:
            cells.append(counted(one.found["outcomes"][name], one.found["intervals"][name]))
            cells.append(dumps_of(one.found["outcome_dumps"].get(name, {})))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    for dump in runs[0].found["dumps"]:
        cells = [counted(one.found["dumps"][dump], one.found["dump_intervals"][dump]) for one in runs]
        lines.append(f"| dump `{dump}` | " + " | | ".join(cells) + " | |")
    reported = [f"{one.found['reported']:,}" for one in runs]
    if any(one.found["reported"] for one in runs):
        lines.append("| `trapped`, and the purgatory reported it | " + " | | ".join(reported) + " | |")
    lines.append(
        "| configuration | " + " | | ".join(f"`{one.found['config_hash'][:12]}`" for one in runs) + " | |"
    )
    speeds = [f"{one.found['seconds']:,.0f} s, {one.found['injections_per_second']:,.0f}" for one in runs]
    lines.append("| time, faults a second | " + " | | ".join(speeds) + " | |")
    audits = [
        f"{one.found['audited']:,}, {one.found['audit_disagreements']} wrong, {one.found['audit_seconds']:,.0f} s"
        for one in runs
    ]
    lines.append("| audited besides | " + " | | ".join(audits) + " | |")
    lines.append("| whole command | " + " | | ".join(f"{one.wall:,.0f} s" for one in runs) + " | |")
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
    """The faults by what came of them in each of two campaigns: their outcomes, then their dumps."""
    columns = list(dict.fromkeys(name for counts in comparison.outcomes.values() for name in counts))
    dumps = list(comparison.dumps)
    heads = [f"`{one}`" for one in columns] + [f"dump `{one}`" for one in dumps]
    lines = [f"| {down} ↓ {across} → | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, counts in comparison.outcomes.items():
        cells = [f"{counts.get(one, 0):,}" for one in columns] + [""] * len(dumps)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    for name, counts in comparison.dumps.items():
        cells = [""] * len(columns) + [f"{counts[one]:,}" for one in dumps]
        lines.append(f"| dump `{name}` | " + " | ".join(cells) + " |")
    return lines


def alone(winner: str, loser: str, figure: Figure, pairs: Sequence[Pair]) -> str:
    """What one catches that is harm in the other, with an example."""
    share = percent(figure.interval.low, figure.interval.high)
    text = f"Caught by the {winner} and harm with the {loser} alone: {figure.count:,} ({share} of the population)"
    return text + (f", the first of them `{pairs[0].fault}`." if pairs else ".")


def true_alone(winner: str, loser: str, figure: Figure | None) -> str:
    """The true dumps of one that the other has not."""
    assert figure is not None
    share = percent(figure.interval.low, figure.interval.high)
    return f"A true dump with the {winner} and none, or a wrong one, with the {loser}: {figure.count:,} ({share})."


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
    lines += [alone("purgatory", "page protection", crossed.only_second, crossed.examples_second)]
    lines += [true_alone("page protection", "purgatory", crossed.true_first)]
    lines += [true_alone("purgatory", "page protection", crossed.true_second), ""]
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
    lines += [true_alone("page protection beside it", "purgatory alone", crossed.true_second)]
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
