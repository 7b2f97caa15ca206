"""The table of the ways of checking: every row has an answer for each way, and what is plain is as it should be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kexecemu

pytestmark = pytest.mark.slow  # 450 crashes

SCRIPT = Path(__file__).with_name("bench_ways.py")
DOCS = Path(kexecemu.__file__).parents[1] / "docs" / "purgatory.md"


@pytest.fixture(scope="module")
def printed() -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(kexecemu.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(printed: str, row: str) -> list[str]:
    line = next(line for line in printed.splitlines() if line.startswith(row))
    return re.split(r" {2,}", line.removeprefix(row).strip())


def test_each_way_boots_what_is_intact_and_finds_what_was_stamped_before_its_check(printed: str) -> None:
    assert cells(printed, "nothing") == ["boots"] * 3
    for row in ("kernel, first word", "kernel, last byte", "device tree, a word", "elfcorehdr, a word"):
        assert cells(printed, row) == ["caught"] * 3
    assert cells(printed, "initrd, a word, at the jump") == ["caught", "caught", "missed"]
    assert cells(printed, "initrd, a word, after the check") == ["missed"] * 3


def test_no_row_of_damaged_code_has_a_miss(printed: str) -> None:
    rows = printed[printed.index("the code that checks, 32 bits") : printed.index("page tables of its own")]
    assert "and a word of the initrd" in rows and "missed" not in rows


def test_the_documentation_has_the_table(printed: str) -> None:
    assert printed in DOCS.read_text()
