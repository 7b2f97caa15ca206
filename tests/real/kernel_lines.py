#!/usr/bin/env python3
"""Real kernels beside the model, line by line of Linux and machine by machine: how many facts are equal.

    python tests/real/kernel_lines.py [--only 7.3] [--machines 3] [--write]
    python tests/real/kernel_lines.py --machines 6 --own 7.3=IMAGE --own 6.12=IMAGE

Each is kexecemu compare-linux: the kernel boots on our board, kexec-tools loads a crash kernel, and the model is booted
and loaded alike. Sizes of RAM are no round ones. Kernels of one's own (--own) load by kexec_file_load. --write puts the
table into docs/real-kernels.md. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

KERNELS = ("6.1", "6.12", "6.18", "7.3")
MACHINES = (
    ("1004M", 2, "crashkernel=192M"),
    ("777M", 1, "crashkernel=160M"),
    ("3073M", 8, "crashkernel=256M,high"),
    ("5000M", 3, "crashkernel=512M,high crashkernel=100M,low"),
    ("5000M", 1, "crashkernel=256M,high crashkernel=0,low"),
    ("1333M", 4, "crashkernel=200M@0x60000000"),
    ("2032M", 2, "crashkernel=1G-4G:192M,4G-:256M"),
    ("999M", 5, "crashkernel=180001K"),
    ("6001M", 2, "crashkernel=3500M"),
    ("1500M", 1, "crashkernel=192M cma=100M"),
    ("1008M", 6, "crashkernel=192M mem=900M"),
    ("900M", 2, "crashkernel=160M crashkernel=64M,cma"),
)
_DOC = Path(__file__).resolve().parents[2] / "docs/real-kernels.md"
_BEGIN, _END = "<!-- kernel lines: tests/real/kernel_lines.py -->\n", "<!-- end of kernel lines -->\n"


def compared(era: str, image: str, ram: str, cpus: int, cmdline: str) -> tuple[bool, str]:
    """Whether nothing differs, and how many facts are equal, or what went wrong; image is "" for Debian's."""
    command = [
        sys.executable,
        "-m",
        "kexecemu",
        "compare-linux",
        "--kernel",
        image or f"fetched:{era}",
        "--json",
    ]
    command += ["--ram", ram, "--cpus", str(cpus), "--cmdline", cmdline]
    command += ["--syscall", "kexec_file_load"] if image else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        return False, (done.stderr.strip().splitlines() or ["says nothing"])[-1][:80]
    found = json.loads(done.stdout)
    rows, counts = found["rows"], found["counts"]
    reserved = next(row for row in rows if row["name"] == "crashk_res")["real"] != "-"
    word = "" if reserved else "reserves nothing: "
    return done.returncode == 0, f"{word}{counts['equal']} of {counts['equal'] + counts['different']}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="lines of Linux, with commas")
    parser.add_argument("--machines", type=int, default=len(MACHINES), help="the first so many")
    parser.add_argument("--write", action="store_true", help="put the table into the documentation")
    parser.add_argument("--own", action="append", default=[], metavar="LINE=IMAGE", help="another kernel")
    given = parser.parse_args()
    kernels: list[tuple[str, str]] = [tuple(one.split("=", 1)) for one in given.own]
    if not kernels:
        kernels = [(one, "") for one in KERNELS if not given.only or one in given.only.split(",")]
    elif given.write:
        parser.error("--write is for Debian's kernels")
    lines = [f"| machine | {' | '.join(era for era, _ in kernels)} |", f"| --- |{' --- |' * len(kernels)}"]
    wrong = 0
    for ram, cpus, cmdline in MACHINES[: given.machines]:
        row = [f"{ram}, {cpus} CPU{'s' if cpus > 1 else ''}, `{cmdline}`"]
        for era, image in kernels:
            good, word = compared(era, image, ram, cpus, cmdline)
            wrong += not good
            row.append(word)
            print(f"{era} {row[0]}: {word}", file=sys.stderr, flush=True)
        lines.append(f"| {' | '.join(row)} |")
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if given.write:
        text = _DOC.read_text()
        before, rest = text.split(_BEGIN)
        _DOC.write_text(before + _BEGIN + "\n" + table + "\n" + _END + rest.split(_END)[1])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
