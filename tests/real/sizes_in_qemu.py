#!/usr/bin/env python3
"""Does a capture kernel take the dump in QEMU in the sizes of crash memory in which it does here?

    python tests/real/sizes_in_qemu.py [--count 20] [--seed 17]

Sizes between 48M and 256M are drawn by a seed, for Debian's 6.1 and 7.3 in turn, whose CMA makes that no matter of more
or less. Each machine is handed to QEMU at the jump into the purgatory, with an empty disk in the last slot. Exit status
1 if a row differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

KERNELS = {"6.1": "fetched:kernel", "7.3": "fetched:kernel-backports"}
DONE, PANIC = "kdump: end: status 0", "Kernel panic - not syncing"
SECONDS = 240


def row(era: str, size: int, folder: Path) -> tuple[str, str]:
    """What came of one size here and in QEMU: "captured", or how it ended."""
    command = [
        sys.executable,
        "-m",
        "kexecemu",
        "crash",
        "--era",
        era,
        "--kernel",
        KERNELS[era],
        "--capture",
        "linux",
    ]
    command += ["--cmdline", f"crashkernel={size}M", "--handoff", str(folder / "machine"), "--json"]
    command += ["--append", "console=ttyAMA0 nr_cpus=1 reset_devices irqpoll panic=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        return done.stderr.strip().splitlines()[-1], "not tried"
    found = json.loads(done.stdout)
    here = "captured" if (found["outcome"], found["dump"]) == ("captured", "true") else found["linux"]["end"]
    disk = folder / "disk"
    with open(disk, "wb") as file:
        file.truncate(2 << 30)
    given = ["-drive", f"file={disk},if=none,id=dump,format=raw", "-device", "virtio-blk-device,drive=dump"]
    try:
        ran = subprocess.run(
            [str(folder / "machine" / "run-qemu.sh"), *given],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
        said = ran.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
    there = "captured" if DONE in said else "panic" if PANIC in said else "silent"
    return here, there


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=17)
    given = parser.parse_args()
    chance, same = random.Random(given.seed), 0
    for number in range(given.count):
        era, size = list(KERNELS)[number % 2], chance.randrange(48, 257, 4)
        with tempfile.TemporaryDirectory(prefix="sizes-") as folder:
            here, there = row(era, size, Path(folder))
        # QEMU's console is all that is heard of it: a kernel that dies before it has one is silent there.
        agree = (here == "captured") == (there == "captured")
        same += agree
        print(f"{era} {size}M: here {here}, in QEMU {there}{'' if agree else ' DIFFERS'}", flush=True)
    print(f"{same} of {given.count} the same")
    return 0 if same == given.count else 1


if __name__ == "__main__":
    sys.exit(main())
