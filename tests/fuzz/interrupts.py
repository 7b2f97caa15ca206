#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C at random moments of every command: status, words, time, what is left on disk and what is left running.

    python tests/fuzz/interrupts.py --count 200 --seed 1 [--real] [--only WORD]

Each command is first run undisturbed, which says how long it takes, and then again and again with SIGINT after a random
part of that. It has to be over within a second, with status 130 and one line on stderr (or have come to its own end
just before), to leave no file in its folder but those that it also leaves undisturbed, whole, and no process. --real
adds those that need real kernels and QEMU. Exit status 1 if something did not hold.
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
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from fuzz.kills import MARK, before_main, processes  # noqa: E402

FIRST = 0.12
"""Seconds that Python itself takes to start: before it runs a line of ours nobody can say anything about Ctrl-C."""

PYTEST = """
import kexecemu.testing

def test_a_crash():
    for _ in range(6):
        kexecemu.testing.run("campaign-16m")
"""

BUILT = next(iter(sorted(Path("~/.cache/kexecemu/built").expanduser().glob("6.12-*"))), Path("6.12"))
"""A kernel that `kexecemu kernel build` has left."""

COMMANDS = {
    "run": "run initrd-stamped --html run.html --timeline t.json --vmcore core",
    "run --json": "run campaign-16m --json",
    "crash": "crash --ram 1G --initrd big --vmcore core --write initrd+0x1000=ff",
    "crash --handoff": "crash --handoff handoff",
    "load": "load --initrd big --dump-segments segments",
    "linear-map": "linear-map --ram 64G --config RODATA_FULL_DEFAULT_ENABLED=y --ptdump",
    "replay": "replay dma.byte.10.initrd+10.after-load campaign-16m --trace --culprit",
    "verify-image": "verify-image big --ca nobody.pem",
    "purgatory check": "purgatory check",
    "purgatory build": "purgatory build --out built.ro",
    "list": "list scenarios",
    "campaign": "campaign campaign-16m --faults 20000 --seed 1 --out c --workers 2 --html c.html --rows c.csv",
}
REAL = {
    "compare-linux": "compare-linux",
    "crash --linux": "crash --linux fetched:kernel --ram 512M --cmdline crashkernel=192M",
    "kernel boot": f"kernel boot {BUILT}",
    "kernel judge": f"kernel judge {BUILT} --on qemu",
    "fetch": "fetch busybox",
}


@dataclass
class Tried:
    """What came of a command."""

    words: str
    seconds: float = 0.0
    count: int = 0
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)


def start(words: str, folder: Path, mark: str) -> subprocess.Popen[str]:
    pytest = ["pytest", "-q", "-p", "no:cacheprovider", "-p", "kexecemu.pytest_plugin", "test_it.py"]
    program = pytest if words == "pytest" else ["kexecemu", *words.split()]
    return subprocess.Popen(
        [sys.executable, "-m", *program],
        cwd=folder,
        # Other plugins have ends of their own: hypothesis is imported when a test fails.
        env={**os.environ, "PYTHONPATH": str(ROOT), MARK: mark, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Ignored where we are a shell's job in the background, which it would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def folder_for(base: Path) -> Path:
    """A folder with what the commands read."""
    folder = Path(tempfile.mkdtemp(dir=base))
    with open(folder / "big", "wb") as file:
        file.truncate(48 << 20)
    (folder / "test_it.py").write_text(PYTEST)
    return folder


def left(folder: Path) -> dict[str, int]:
    """Files and their sizes."""
    return {
        str(one.relative_to(folder)): one.stat().st_size for one in sorted(folder.rglob("*")) if one.is_file()
    }


def attack(words: str, count: int, draw: random.Random, base: Path) -> Tried:
    """One command, interrupted so often."""
    tried = Tried(words)
    folder = folder_for(base)
    begin = time.monotonic()
    process = start(words, folder, uuid.uuid4().hex)
    said = process.communicate()[1]
    tried.seconds, whole = time.monotonic() - begin, left(folder)
    usual = process.returncode, len(said.splitlines())
    for _ in range(count):
        folder, mark = folder_for(base), uuid.uuid4().hex
        before = left(folder)
        process = start(words, folder, mark)
        moment = draw.uniform(FIRST, max(FIRST, tried.seconds))
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            pass
        else:
            process.communicate()
            continue
        begin = time.monotonic()
        os.kill(process.pid, signal.SIGINT)  # and nobody else: what it has started is its own affair
        said = process.communicate()[1]
        took = time.monotonic() - begin
        tried.count += 1
        tried.longest = max(tried.longest, took)
        at = f"after {moment:.2f} s"
        ended = process.returncode, len(said.splitlines())
        # pytest has a status and words of its own. When all is done Python itself lets the signal end it.
        over = (2, 0) if words == "pytest" else (130, 1)
        if ended not in (over, usual, (-signal.SIGINT, usual[1])) and not before_main(said.splitlines()):
            tried.wrong.append(f"{at}: status {ended[0]}, {said.strip()[-300:]!r}")
        if took > (2.0 if words.startswith("campaign") else 1.0):
            tried.wrong.append(f"{at}: took {took:.2f} s")
        half = {
            name: size
            for name, size in left(folder).items()
            if name not in before and whole.get(name) != size
        }
        if half and not words.startswith("campaign"):
            tried.wrong.append(f"{at}: left {half}")
        time.sleep(0.1)
        if orphans := processes(mark):
            tried.wrong.append(f"{at}: {len(orphans)} processes are left")
    return tried


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    commands = {**COMMANDS, "pytest": "pytest", **(REAL if given.real else {})}
    commands = {name: words for name, words in commands.items() if given.only in name}
    draw, wrong = random.Random(given.seed), False
    print(f"{'command':<20} {'undisturbed':>11}  {'Ctrl-C':>6}  {'longest':>7}")
    with tempfile.TemporaryDirectory() as base:
        for name, words in commands.items():
            tried = attack(words, -(-given.count // len(commands)), draw, Path(base))
            print(
                f"{name:<20} {tried.seconds:>9.2f} s  {tried.count:>6}  {tried.longest:>5.2f} s", flush=True
            )
            for one in tried.wrong:
                wrong = True
                print(f"    {one}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
