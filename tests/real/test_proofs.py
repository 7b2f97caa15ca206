"""What the model checker CBMC proves about the purgatory's C, from its own sources: tests/purgatory/proofs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.purgatory.conftest import TOP

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("gcc") is None, reason="gcc, whose preprocessor CBMC uses, is not installed"
    ),
]

PROOFS = TOP / "tests" / "purgatory" / "proofs"
SECONDS = 600
# Each loop as often as it can go, and no path beyond that.
BOUNDED = ("--unwinding-assertions", "--slice-formula")


@pytest.fixture(scope="module")
def tools(fetched: Callable[[str], Path]) -> Path:
    """The folder with cbmc, goto-cc and goto-instrument."""
    return fetched("cbmc").parent


def prove(cbmc: Path, *arguments: str) -> None:
    command = [str(cbmc), *arguments, *BOUNDED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert "VERIFICATION SUCCESSFUL" in done.stdout, re.findall(r".*FAILURE.*", done.stdout) or done.stderr
    assert int(re.findall(r"\*\* 0 of (\d+) failed", done.stdout)[0]) > 0


@pytest.mark.parametrize("what", ["region_sane", "regions_sane", "regions_match"])
def test_regions_are_checked_and_walked_right_whatever_is_in_the_table(tools: Path, what: str) -> None:
    """Over all 64-bit starts and lengths, wherever the purgatory lies; each region once, in order, and no other."""
    source = str(PROOFS / "regions.c")
    prove(
        tools / "cbmc", "-I", str(TOP / "purgatory"), source, "--function", f"prove_{what}", "--unwind", "33"
    )


@pytest.mark.parametrize("used", range(8))
def test_sha256_update_takes_every_byte_once_and_in_order(tools: Path, tmp_path: Path, used: int) -> None:
    """For blocks of 8 bytes and all lengths up to three; for those of 64 test_functions.py has all by enumeration."""
    whole, replaced = tmp_path / "whole.gb", tmp_path / "replaced.gb"
    include = ("-I", str(TOP / "purgatory"))
    source = PROOFS / "sha256_update.c"
    subprocess.run(
        [tools / "goto-cc", f"-DUSED={used}", *include, source, "-o", whole], check=True, capture_output=True
    )
    subprocess.run(
        [tools / "goto-instrument", "--replace-calls", "sha256_blocks:checked_blocks", whole, replaced],
        check=True,
        capture_output=True,
    )
    prove(tools / "cbmc", str(replaced), "--unwind", "26")
