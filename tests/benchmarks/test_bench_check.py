"""The benchmark runs and measures what it says; how fast anything is, is no matter of a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kexecemu

pytestmark = pytest.mark.slow  # it measures

SCRIPT = Path(__file__).with_name("bench_check.py")
PACKAGES = str(Path(kexecemu.__file__).parents[1])

WAY = re.compile(
    r"^(?P<what>.+?) {2,}(?P<speed>[0-9.]+) +(?P<ratio>[0-9.]+) +\S+ +\S+ +(?P<per_byte>[0-9.]+)$", re.M
)
REST = re.compile(
    r"^(?P<what>hashlib|kexecemu crash, the whole command) +(?P<speed>[0-9.]+) +(?P<ratio>[0-9.]+)$", re.M
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
    ways = {row["what"].strip(): row for row in WAY.finditer(done.stdout)}
    rest = {row["what"].strip(): row for row in REST.finditer(done.stdout)}
    scalar, fast = "caches on, scalar", "caches on, SHA-2 instructions"
    assert next(iter(ways)) == fast
    assert {scalar, fast, "caches off, scalar", "caches off, SHA-2 instructions"} <= set(ways)
    assert {"hashlib", "kexecemu crash, the whole command"} <= set(rest)
    first = float(ways[fast]["speed"])
    for row in (*ways.values(), *rest.values()):
        assert abs(float(row["speed"]) / first - float(row["ratio"])) < 0.02 * float(row["ratio"]) + 0.02
    # 64 rounds and a message schedule for 64 bytes: a count far off says that something else was run.
    assert 1 < float(ways[fast]["per_byte"]) < 4
    assert 25 < float(ways[scalar]["per_byte"]) < 40


def test_a_machine_without_qemu_is_told_so_and_gets_the_rest(tmp_path: Path) -> None:
    done = run("--mib", "2", "--rounds", "1", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "QEMU: qemu-system-aarch64 is not installed" in done.stdout
    assert "hashlib" in done.stdout


def test_a_size_that_is_too_small_to_measure_is_refused() -> None:
    done = run("--mib", "1")
    assert done.returncode == 2
    assert "at least 2 MiB" in done.stderr
