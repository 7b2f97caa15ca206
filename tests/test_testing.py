"""What users import in their tests: its examples run, its failures explain themselves and can be had again."""

from __future__ import annotations

import doctest
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import kexecemu.testing
from kexecemu.data import fixture_path
from kexecemu.errors import InputError
from kexecemu.scenario.setup import Setup
from kexecemu.testing import (
    By,
    Fault,
    KexecemuFailure,
    Outcome,
    SetupOptions,
    When,
    assert_outcome,
    failure_text,
    kernel,
    run,
)

ROOT = Path(__file__).resolve().parent.parent


def again(end) -> str:
    return failure_text(end, []).splitlines()[-1].removeprefix("again: ")


def test_the_examples_in_the_docstrings_run():
    done = doctest.testmod(kexecemu.testing)
    assert done.attempted >= 9
    assert done.failed == 0


def test_the_keywords_are_those_of_a_setup():
    assert SetupOptions.__annotations__.keys() == {one.name for one in fields(Setup)}


def test_a_keyword_that_there_is_not_is_refused():
    with pytest.raises(InputError, match=r"no option 'protektion'; there are append, "):
        run(protektion="pte")


def test_an_outcome_that_there_is_not_is_refused_instead_of_never_met():
    with pytest.raises(InputError, match="'detcted' is no outcome; they are captured, "):
        assert_outcome(run("golden"), "detcted")


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"outcome": "captured"}, "outcome is detected, expected captured"),
        ({"outcome": Outcome.DETECTED, "segment": "dtb"}, "damaged is initrd, expected dtb"),
        ({"outcome": "detected", "console": "all is well"}, "the console does not say 'all is well'"),
        ({"outcome": "detected", "console": ["stopped", "all is well"]}, "the console does not say 'all is well'"),
        ({"outcome": "error"}, "no scenario can expect error: that is a failure of kexecemu itself"),
    ],
)
def test_each_thing_that_is_asked_for_is_looked_at(expected, said):
    end = run("initrd-stamped")
    assert_outcome(end, "detected", segment="initrd", console="digests do NOT match")
    with pytest.raises(KexecemuFailure) as failure:
        assert_outcome(end, **expected)
    assert said in str(failure.value).split("\n\n")[0].splitlines()


def test_a_failure_ends_with_the_timeline_the_damage_and_the_way_to_have_it_again():
    text = failure_text(run("initrd-stamped", seed=9), ["all of it"])
    first, events, last = text.split("\n\n")
    assert first == "all of it"
    assert events.splitlines()[0] == "the last 15 of 17 events, time in instructions:"
    assert "outcome        detected: " in events.splitlines()[-2]
    assert events.splitlines()[-1] == "damage: initrd+0x1000, 4 bytes"
    assert last == "again: kexecemu run initrd-stamped --seed 9"


def test_much_damage_is_counted_and_not_listed():
    stripes = bytes(range(1, 81))
    end = run(faults=[Fault(f"crashkernel+{0x10000 + 16 * at}", write=stripes[:8]) for at in range(12)])
    lines = [line for line in failure_text(end, []).splitlines() if line.startswith("damage: ")]
    assert len(lines) == 9
    assert lines[-1] == f"damage: and {len(end.damage) - 8} more"


def test_the_end_of_a_kernel_of_ones_own_cannot_be_had_again_by_a_line():
    loaded = kernel()
    text = failure_text(loaded.panic(), ["wrong"])
    loaded.board.close()
    assert "outcome        captured" in text
    assert "again" not in text


INITRD = str(fixture_path("guests/initrd.cpio"))


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (((), {"cpus": 2, "seed": 5, "faults": [Fault("initrd+1", write=b"\xab")]}), "kexecemu crash"),
        (((), {"options": {"ZONE_DMA": "n"}, "append": "a b", "initrd": INITRD}), "kexecemu crash"),
        (((), {"purgatory": False, "no_initrd": True, "ram": 1 << 29}), "kexecemu crash"),
        (((), {"faults": [Fault("dtb", write=b"a"), Fault("dtb", write=b"b", by=By.DMA)]}), "kexecemu crash"),
        (((), {"faults": [Fault("dtb", write=b"a", by=By.DMA), Fault("dtb", write=b"b")]}), "python -c"),
        (((), {"faults": [Fault("initrd", flip=3)]}), "python -c"),
        (((), {"faults": [Fault("initrd", write=b"'\"", by=By.DMA, when=When.AFTER_CHECK)]}), "python -c"),
        (((), {"faults": [Fault("initrd+8", write=b"12345678", width=8)]}), "python -c"),
        (((), {"rng_ready": True}), "python -c"),
        ((("golden",), {"seed": 3}), "kexecemu run"),
        ((("initrd-stamped",), {"purgatory": "none"}), "python -c"),
        (((fixture_path("scenarios/golden.toml"),), {"dtb": None, "kernel": None}), "python -c"),
    ],
)
def test_the_line_that_does_it_again_gives_the_same_outcome(arguments, first):
    positional, keywords = arguments
    end = run(*positional, **keywords)
    line = again(end)
    assert line.startswith(first + " ") or line == first
    command = shlex.split(line)
    words = [sys.executable, *(["-m"] if command[0] == "kexecemu" else command[1:2])]
    words += command if command[0] == "kexecemu" else command[2:]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if first == "python -c":
        assert done.stdout == f"{end.outcome.value}\n"
    else:
        assert f"\noutcome      {end.outcome.value}: " in done.stdout
        # The instructions of every event are the same: it is the same crash, not only the same end.
        for event in end.timeline:
            assert f"{event.when:12,}  {event.kind:<14} {event.text}" in done.stdout
