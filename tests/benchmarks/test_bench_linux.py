"""The benchmark of real kernels says what it lacks, and measures what it says where it has all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kexecemu

pytestmark = pytest.mark.slow  # it measures

SCRIPT = Path(__file__).with_name("bench_linux.py")
PACKAGES = str(Path(kexecemu.__file__).parents[1])


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, "PYTHONPATH": PACKAGES, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_what_is_not_fetched_is_said(tmp_path: Path) -> None:
    done = run(KEXECEMU_CACHE=str(tmp_path))
    assert done.returncode == 1
    assert "fetch kernel busybox kexec-tools" in done.stderr


def test_a_chain_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    done = run("--chain", "long")
    assert done.returncode == 2
    assert "no chain 'long'; there are stock, KASLR, digests" in done.stderr


@pytest.mark.real
def test_the_copy_is_measured_with_its_rate() -> None:
    done = run("--chain", "none", "--copy-mib", "256", "--no-python")
    if "not fetched" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    match = re.search(r"^kexecemu +([0-9,]+) +([0-9.]+) +(\d+)$", done.stdout, re.MULTILINE)
    assert match is not None, done.stdout
    size, seconds, rate = int(match[1].replace(",", "")), float(match[2]), int(match[3])
    assert size >= 256 << 20
    assert abs(size / (1 << 20) / seconds - rate) < 0.05 * rate + 1
