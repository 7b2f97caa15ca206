"""The benchmark runs and measures what it says; how fast anything is, is no matter of a test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kexecemu

SCRIPT = Path(__file__).with_name("bench_check.py")
PACKAGES = str(Path(kexecemu.__file__).parents[1])

NUMBERS = re.compile(
    r"^(?P<what>.+?) +(?P<speed>[0-9.]+) +(?P<ratio>[0-9.]+) +(?P<seconds>[0-9.]+)$", re.MULTILINE
)


def run(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PACKAGES}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_table_has_every_row_with_ratios_to_the_first() -> None:
    done = run("--mib", "2", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in NUMBERS.finditer(done.stdout)}
    assert next(iter(rows)) == "guest's check in kexecemu"
    expected = {"guest's check in kexecemu", "hashlib", "kexecemu crash, the whole command"}
    if shutil.which("qemu-system-aarch64"):
        # It ends only by what stands behind the purgatory's check, so this row is proof of a match in QEMU.
        expected.add("QEMU from start to power off")
    assert expected <= set(rows)
    first = float(rows["guest's check in kexecemu"]["speed"])
    for row in rows.values():
        assert abs(float(row["speed"]) / first - float(row["ratio"])) < 0.02 * float(row["ratio"]) + 0.02
    # 64 rounds and a message schedule for 64 bytes: a count far off says that something else was run.
    per_byte = re.search(r"instructions per byte of the check: ([0-9.]+)", done.stdout)
    assert per_byte is not None and 10 < float(per_byte[1]) < 60


def test_a_machine_without_qemu_is_told_so_and_gets_the_rest(tmp_path: Path) -> None:
    done = run("--mib", "2", "--rounds", "1", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "guest's check in QEMU: qemu-system-aarch64 is not installed" in done.stdout
    assert "hashlib" in done.stdout


def test_a_size_that_is_too_small_to_measure_is_refused() -> None:
    done = run("--mib", "1")
    assert done.returncode == 2
    assert "at least 2 MiB" in done.stderr
