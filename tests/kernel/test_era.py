"""The table of eras: ordered, and each one as the era before it but for what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

import kexecemu
from kexecemu.errors import InputError
from kexecemu.kernel.base.changes import CHANGES, Rules
from kexecemu.kernel.base.era import Era, parse_release
from kexecemu.kernel.boot import vmcoreinfo_lines

PACKAGE = Path(kexecemu.__file__).parent

# What somebody writes who adds an era, and what they want to know of it then.
ENTRY = """    V9_9 = ("9.9", "a kernel to come")

    meaning: str
"""
CHANGE = """    Change((9, 9), "file_load_flags", 0x1F, "a commit"),
)
"""
PROBE = """
import dataclasses, json
from kexecemu import Board, Kernel, KernelConfig
from kexecemu.data import fixture_path
from kexecemu.kernel.base.era import Era, parse_release
from kexecemu.kernel.boot import vmcoreinfo_lines

assert Era.of_release("9.9-rc1") is max(Era) is Era("9.9") and Era.of_release("9.8.12") is sorted(Era)[-2]
with Board("256M") as board:
    kernel = Kernel.boot(board, KernelConfig("9.9"), cmdline="crashkernel=64M")
    image = kernel.kexec_file_load(fixture_path("guests/capture-Image"), b"initrd", "quiet", 2 | 0x10)
    places = [[one.name, one.mem] for one in image.segments]
    end = kernel.panic()
print(json.dumps([dataclasses.asdict(Era("9.9").rules), places, end.outcome.value]))
"""


def test_eras_are_ordered_by_when_they_began() -> None:
    assert sorted(Era) == list(Era) and min(Era) < max(Era)
    assert Era.V6_12 > Era.V6_4 >= Era("6.4") > Era.V6_1
    with pytest.raises(TypeError):
        Era.V6_1 < 6  # type: ignore[operator]  # noqa: B015


def test_the_oldest_era_is_the_rules_own_defaults_and_a_change_stays_in_force() -> None:
    assert min(Era).rules == Rules()
    assert not Era.V6_4.rules.protects_by_pte and not Era.V6_12.rules.protects_by_pte
    assert Era.V6_4.rules.file_load_flags == Rules().file_load_flags != Era.V6_12.rules.file_load_flags


def test_every_change_is_one_and_they_stand_in_order() -> None:
    now = asdict(Rules())
    for one in CHANGES:
        assert now[one.rule] != one.value and one.source, one
        now[one.rule] = one.value
    assert [one.since for one in CHANGES] == sorted(one.since for one in CHANGES)
    assert now == asdict(max(Era).rules)
    assert all(before.rules != era.rules for before, era in pairwise(Era) if era is not Era.V6_6)


@pytest.mark.parametrize("release", ["7.4.0", "8.0-rc1", "7.10"])
def test_a_release_that_is_newer_than_all_eras_is_none_of_them(release: str) -> None:
    with pytest.raises(InputError, match=f"Linux {release} is newer than the newest that is known here, 7.3"):
        Era.of_release(release)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("7.4", "newer than 7.3, the newest that is modelled"),
        ("7.10-rc1", "newer than 7.3, the newest that is modelled"),
        ("5.10", "older than 6.1, the oldest that is modelled"),
        ("5.10.221-1", "older than 6.1, the oldest that is modelled"),
        ("6.1.192", "a release of 6.1, which is the era's name: write 6.1"),
        ("6.12.118", "a release of 6.12, which is the era's name: write 6.12"),
        ("6.1.0-37-arm64", "a release of 6.1, which is the era's name: write 6.1"),
        ("7.3-rc5", "a release of 7.3, which is the era's name: write 7.3"),
        ("6.20", "not modelled: 7.0 follows 6.19"),
    ],
)
def test_an_era_that_there_is_not_is_placed_by_its_version(asked: str, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        Era.given(asked)
    assert str(refusal.value) == f"era {asked!r} is {words}"


@pytest.mark.parametrize(
    "asked", ["", "6", "6.04", "v6.4", "six", "6.4 ", "6.4\n", "\N{ARABIC-INDIC DIGIT SIX}.4"]
)
def test_what_is_no_version_is_answered_with_the_names_of_the_eras(asked: str) -> None:
    with pytest.raises(InputError) as refusal:
        Era.given(asked)
    assert str(refusal.value).startswith(f"era {asked!r} is not modelled")
    assert str(refusal.value).endswith(f"known are {', '.join(era.value for era in Era)}")


def test_every_release_at_which_something_changes_begins_an_era() -> None:
    eras = {era.since for era in Era}
    assert {one.since for one in CHANGES} <= eras
    # What VMCOREINFO has is dated apart, in brackets before its lines.
    brackets = re.findall(r"^\[(.*?)\]", vmcoreinfo_lines._LINES, re.M)
    dated = {parse_release(text) for one in brackets for text in re.findall(r"[0-9]+\.[0-9]+", one)}
    assert len(dated) > 5 and dated <= eras


def test_what_is_no_release_belongs_to_no_era() -> None:
    with pytest.raises(InputError, match="no release of Linux"):
        Era.of_release("trixie")


def test_a_new_era_is_one_entry_and_inherits_what_it_does_not_mention(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "kexecemu", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("fixtures", "purgatory"):
        (tmp_path / folder).symlink_to(PACKAGE.parent / folder)
    base = tmp_path / "kexecemu" / "kernel" / "base"
    for name, place, words in (("era", "    meaning: str\n", ENTRY), ("changes", "),\n)\n", f"),\n{CHANGE}")):
        text = (base / f"{name}.py").read_text()
        assert text.count(place) == 1
        (base / f"{name}.py").write_text(text.replace(place, words))
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    rules, places, outcome = json.loads(done.stdout)
    inherited = json.loads(json.dumps(asdict(max(Era).rules)))
    assert rules == {**inherited, "file_load_flags": 0x1F}
    assert outcome == "captured"
    with kexecemu.Board("256M") as board:
        config = kexecemu.KernelConfig(max(Era))
        kernel = kexecemu.Kernel.boot(board, config, cmdline="crashkernel=64M")
        image = kernel.kexec_file_load(kexecemu.data.fixture_path("guests/capture-Image"), b"initrd", "quiet")
        assert image is not None and places == [[one.name, one.mem] for one in image.segments]
