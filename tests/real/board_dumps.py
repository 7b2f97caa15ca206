#!/usr/bin/env python3
"""Debian's boards, drawn by a seed: does a real Linux as capture kernel take the dump there?

    python tests/real/board_dumps.py [--count 50] [--seed 16]

Each is kexecemu crash --dtb TREE --capture linux, with crashkernel=256M and Debian's 6.12, half a minute each; a tree
without memory gets 2 GiB. Exit status 1 if a board has crash memory and no dump came of it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

from kexecemu.fetch.cache import fetched
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.boot.fdt_memory import memory_ranges

_NONE = "no crashkernel memory is reserved"


def ended(path: Path) -> str:
    """What came of one board, in a word or as it was refused."""
    command = [sys.executable, "-m", "kexecemu", "crash", "--dtb", str(path), "--era", "6.12", "--json"]
    command += ["--cmdline", "crashkernel=256M", "--capture", "linux", "--kernel", "fetched:kernel-trixie"]
    command += [] if memory_ranges(Fdt(path.read_bytes())) else ["--ram", "2G"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        return (done.stderr.strip().splitlines() or ["says nothing"])[-1]
    found = json.loads(done.stdout)
    return f"{found['outcome']}, dump {found['dump']}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=16)
    given = parser.parse_args()
    paths = sorted(fetched("trees").glob("**/*.dtb"))
    good = none = 0
    for path in random.Random(given.seed).sample(paths, given.count):
        word = ended(path)
        good += word == "captured, dump true"
        none += _NONE in word
        print(f"{path.name}: {word}", flush=True)
    print(f"{given.count} boards: {good} dumps taken and true, {none} with too little free memory for 256M")
    return 0 if good + none == given.count else 1


if __name__ == "__main__":
    sys.exit(main())
