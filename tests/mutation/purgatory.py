#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Do the tests notice? Faults put into the purgatory's C and assembly one by one, each built and tested.

    python tests/mutation/purgatory.py [--count 40] [--seed 1] [--list] [--only FILE] [--jobs 2]

A mutant that builds to the same bytes is no mutant. One that the tests fail on, or hang on, is killed. What is left is
a hole in the tests, or equivalent: no run can tell it from the original. Those that were looked at stand in
equivalent.txt with the reason. Exit status 1 if fewer than 95 % of the others are killed.

The rebuild byte for byte (test_build.py) is left out: it would notice anything, and say nothing about the tests.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
# Quick ones and those that kill most first.
TESTS = (
    "test_object.py", "test_functions.py", "test_maintenance.py", "test_edges.py", "test_run.py", "test_policies.py",
    "test_every_byte.py",
)  # fmt: skip
REAL = ("tests/real/test_hostile_state.py", "tests/purgatory/test_qemu.py")
SECONDS = 900
REQUIRED = 0.95

C_OPERATORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(?<![<>=!-])<(?![<=])", ("<=", ">")),
    (r"(?<![<>=!-])>(?![>=])", (">=", "<")),
    (r"<=", ("<",)),
    (r">=", (">",)),
    (r"==", ("!=",)),
    (r"!=", ("==",)),
    (r"&&", ("||",)),
    (r"\|\|", ("&&",)),
    (r"(?<![&])&(?![&=\w(])", ("|",)),
    (r"(?<!\|)\|(?![|=])", ("&",)),
    (r"<<", (">>",)),
    (r">>", ("<<",)),
    (r"(?<![+])\+(?![+=])", ("-",)),
    (r"(?<=[\w)] )-(?= )", ("+",)),
    (r"\+=", ("-=",)),
    (r"\|=", ("=", "&=")),
    (r"!(?=[\w(*])", ("",)),
    (r"(?<![\w.])\d+(?![\w.])", ("+1",)),
)
STATEMENT = re.compile(
    r"^\t+(?!return|break|continue|goto|case|default|u\d+ |int |const |struct |static )[\w*(][^{}]*;\s*(?:/\*.*\*/)?$"
)
ASM_SWAPS = {"b.eq": "b.ne", "b.ne": "b.eq", "b.hs": "b.lo", "cbz": "cbnz", "cbnz": "cbz", "eq": "ne"}


@dataclass(frozen=True)
class Mutant:
    """A line of a source, and what it becomes."""

    path: str  # from the checkout's top
    number: int  # of the line, from 1
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.old.strip()}  ->  {self.new.strip() or '(nothing)'}"

    @property
    def key(self) -> str:
        """What equivalent.txt knows it by: without the line's number, which changes."""
        return f"{Path(self.path).name} | {' '.join(self.old.split())} | {' '.join(self.new.split())}"


def code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines outside of comments and of the preprocessor's own, numbered."""
    comment = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if comment or stripped.startswith("/*"):
            comment = "*/" not in stripped
        elif stripped and not stripped.startswith(("#", "//", "*")):
            yield number, line


def of_c(path: str, text: str) -> Iterator[Mutant]:
    for number, line in code_lines(text):
        body = re.split(r"\s*/\*|\s*//", line)[0]
        if (
            "__asm__" in body
            or ("sizeof" in body and "=" not in body)
            or re.match(r"\s*(extern|static const u32)", body)
        ):
            continue
        quoted = [match.span() for match in re.finditer(r'"[^"]*"', body)]
        for pattern, news in C_OPERATORS:
            for match in re.finditer(pattern, body):
                if any(start <= match.start() < end for start, end in quoted):
                    continue
                for new in news:
                    changed = str(int(match[0]) + 1) if new == "+1" else new
                    yield Mutant(path, number, line, body[: match.start()] + changed + body[match.end() :])
        if STATEMENT.match(body):
            yield Mutant(path, number, line, re.match(r"\t*", body)[0] + ";")  # type: ignore[index]


def of_assembly(path: str, text: str) -> Iterator[Mutant]:
    for number, line in code_lines(text):
        body = line.split("//")[0].rstrip()
        match = re.match(r"(\d+:)?\t(\w[\w.]*)(?:\t(.*))?$", body)
        if match is None or body.lstrip().startswith("."):
            continue
        label, operation, operands = match[1] or "", match[2], match[3] or ""
        yield Mutant(path, number, line, f"{label}\tnop")
        if operation in ASM_SWAPS:
            yield Mutant(path, number, line, f"{label}\t{ASM_SWAPS[operation]}\t{operands}")
        number_in = re.search(r"#(\d+)\b", operands)
        if number_in:
            other = operands.replace(number_in[0], f"#{int(number_in[1]) ^ 16}", 1)
            yield Mutant(path, number, line, f"{label}\t{operation}\t{other}")


def mutants() -> list[Mutant]:
    """All of them, in the order of the sources."""
    found: list[Mutant] = []
    for source in sorted((ROOT / "purgatory").glob("*.[cS]")):
        path = str(source.relative_to(ROOT))
        made = (of_c if source.suffix == ".c" else of_assembly)(path, source.read_text())
        found += dict.fromkeys(one for one in made if one.old != one.new)
    return found


def equivalents() -> set[str]:
    if not EQUIVALENT.is_file():
        return set()
    rows = EQUIVALENT.read_text().splitlines()
    return {" | ".join(row.split(" | ")[:3]) for row in rows if row and not row.startswith("#")}


def build(folder: Path) -> bytes | None:
    command = [sys.executable, "fixtures/build.py", "purgatory"]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
        return None
    return (folder / "purgatory" / "purgatory.ro").read_bytes()


def verdict(mutant: Mutant, original: bytes) -> str:
    """same, invalid, killed or lives."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as temporary:
        folder = Path(temporary)
        for name in ("purgatory", "fixtures", "kexecemu"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        source = folder / mutant.path
        lines = source.read_text().splitlines()
        lines[mutant.number - 1] = mutant.new
        source.write_text("\n".join(lines) + "\n")
        built = build(folder)
        if built is None:
            return "invalid"
        if built == original:
            return "same"
        path = folder / "purgatory" / "purgatory.ro"
        environment = {**os.environ, "KEXECEMU_TEST_PURGATORY": str(path), "KEXECEMU_HOSTILE_TRIES": "100"}
        environment |= {
            "KEXECEMU_HOSTILE_SECONDS": "20",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        quick = [f"tests/purgatory/{name}" for name in TESTS]
        for chosen in (["-k", "not gcc", *quick], ["-m", "real", *REAL]):
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *chosen]
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                return "killed"
            if done.returncode == 1:
                return "killed"
            if done.returncode not in (0, 5):
                raise SystemExit(f"{mutant}\n{done.stdout.decode()[-2000:]}")
        return "lives"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="mutants to draw, 0 for all of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="those of sources whose name has this in it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="print them, and try none")
    options = parser.parse_args()
    every = [one for one in mutants() if options.only in one.path]
    drawn = random.Random(options.seed).sample(every, min(options.count or len(every), len(every)))
    if options.list:
        print(*drawn, f"{len(every)} in all", sep="\n")
        return 0
    original = (ROOT / "purgatory" / "purgatory.ro").read_bytes()
    known = equivalents()
    counts = dict.fromkeys(("killed", "lives", "equivalent", "same", "invalid"), 0)
    with ThreadPoolExecutor(options.jobs) as pool:
        told = {one: pool.submit(verdict, one, original) for one in drawn if one.key not in known}
        for one in drawn:
            end = told[one].result() if one in told else "equivalent"
            counts[end] += 1
            if end == "lives":
                print(f"lives: {one}", flush=True)
    meant = counts["killed"] + counts["lives"]
    share = counts["killed"] / meant if meant else 1.0
    print(", ".join(f"{count} {name}" for name, count in counts.items()), f"- {share:.1%} of {meant} killed")
    return 0 if share >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
