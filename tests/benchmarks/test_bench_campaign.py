"""The campaigns' benchmarks run and say what they measured; how fast anything is, is no matter of a test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kexecemu

pytestmark = pytest.mark.slow  # it measures

FOLDER = Path(__file__).parent
PACKAGES = str(Path(kexecemu.__file__).parents[1])
SMALL = ("--faults", "300", "--audit", "1", "--emulated", "1", "--qemu", "1", "--concluded", "300")
ROW = re.compile(
    r"^(?P<what>[A-Za-z].+?) {2,}(?P<faults>[\d,]+) +(?P<seconds>[\d.]+) +(?P<rate>[\d.,]+) +(?P<ratio>[\d.,]+|-)",
    re.M,
)
OURS = [
    "full emulation",
    "from a checkpoint",
    "native hash, hashlib",
    "concluded from the hash",
    "a whole campaign",
]


def run(script: str, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PACKAGES}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.skipif(
    shutil.which("qemu-system-aarch64") is None, reason="qemu-system-aarch64 is not installed"
)
def test_all_ways_are_measured_and_come_to_the_same_outcomes_as_qemu() -> None:
    # So many that some hit the purgatory, where they are latent.
    done = run("bench_campaign.py", *SMALL, "--faults", "2000")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["what"]: row for row in ROW.finditer(done.stdout)}
    assert list(rows) == ["QEMU and its gdb stub", *OURS]
    assert rows["QEMU and its gdb stub"]["ratio"] == "1.00"
    assert re.search(
        r"^cpu\.bit-flip\.\S+initrd\S+ +detected +detected +detected +detected$", done.stdout, re.M
    )
    assert re.search(r"^cpu\.bit-flip\.\S+purgatory\S+ +latent +latent +latent +latent$", done.stdout, re.M)


def test_without_qemu_the_rest_is_measured_and_nothing_is_a_ratio_to_it(tmp_path: Path) -> None:
    done = run("bench_campaign.py", *SMALL, path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["what"]: row for row in ROW.finditer(done.stdout)}
    assert list(rows) == OURS
    assert {row["ratio"] for row in rows.values()} == {"-"}
    assert "QEMU: qemu-system-aarch64 is not installed" in done.stdout


def test_the_three_ways_are_compared_and_each_misses_what_it_must() -> None:
    done = run("million.py", "--faults", "400", "--own", "40", "--audit", "1", "--workers", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    writers = {
        cells[0]: cells[1:]
        for line in done.stdout.splitlines()
        if (cells := [one.strip(" `") for one in line.strip("|").split("|")])[0] in ("cpu", "dma", "late-cpu")
    }
    pte, purgatory, both = writers["cpu"]
    assert re.fullmatch(r"\d+ prevented", pte)
    assert re.fullmatch(r"\d+ detected", purgatory)
    assert both == pte
    # The check is over when it writes; only the page tables are still there.
    pte, purgatory, both = writers["late-cpu"]
    assert re.fullmatch(r"\d+ prevented", pte)
    assert "detected" not in purgatory
    assert both == pte
    # Page tables do not stop DMA.
    pte, purgatory, both = writers["dma"]
    assert re.fullmatch(r"\d+ silent", pte)
    assert "detected" in purgatory
    assert both == purgatory
    assert re.search(
        r"Caught by the purgatory and harm with the page protection alone: \d+.*`dma\.", done.stdout
    )
