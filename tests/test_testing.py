"""What users import in their tests: its examples run, its failures explain themselves and can be had again."""

from __future__ import annotations

import doctest
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from campaign_summaries import disagreeing, made_up_summary

import kexecemu.testing
from kexecemu.data import fixture_path
from kexecemu.errors import InputError
from kexecemu.testing import (
    By,
    Dump,
    Fault,
    KexecemuFailure,
    Outcome,
    When,
    assert_no,
    assert_outcome,
    campaign,
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


def test_a_keyword_that_there_is_not_is_refused():
    with pytest.raises(InputError, match=r"no option 'protektion'; there are append, "):
        run(protektion="pte")
    with pytest.raises(InputError, match=r"no option 'protektion'; there are append, "):
        campaign("campaign-16m", faults=1, protektion="pte")


def test_an_outcome_that_there_is_not_is_refused_instead_of_never_met():
    with pytest.raises(InputError, match="'detcted' is no outcome; they are captured, "):
        assert_outcome(run("golden"), "detcted")
    with pytest.raises(InputError, match="'good' says nothing of a dump; the words are true, wrong, none"):
        assert_outcome(run("golden"), "captured", dump="good")


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"outcome": "captured"}, "outcome is detected, expected captured"),
        ({"outcome": Outcome.DETECTED, "segment": "dtb"}, "damaged is initrd, expected dtb"),
        ({"outcome": "detected", "console": "all is well"}, "the console does not say 'all is well'"),
        (
            {"outcome": "detected", "console": ["stopped", "all is well"]},
            "the console does not say 'all is well'",
        ),
        (
            {"outcome": "detected", "dump": "true"},
            "dump is none (none: the purgatory stopped and started no capture kernel), expected true",
        ),
        ({"outcome": "error"}, "no scenario can expect error: that is a failure of kexecemu itself"),
        ({"outcome": "detected", "segments": ["initrd", "dtb"]}, "damaged is initrd, expected dtb"),
        ({"outcome": "detected", "console_absent": "digests do"}, "the console says 'digests do'"),
        (
            {"outcome": "detected", "verdict": ["crypto", "repaired", "early"]},
            "verdict is mmu_on, crypto, self_checked, expected repaired, early among them",
        ),
        ({"outcome": "detected", "verdict_state": "match"}, "verdict_state is mismatch, expected match"),
    ],
)
def test_each_thing_that_is_asked_for_is_looked_at(expected, said):
    end = run("initrd-stamped")
    assert_outcome(end, "detected", segment="initrd", console="digests do NOT match", dump="none")
    assert_outcome(end, "detected", dump=Dump.NONE)
    assert_outcome(
        end,
        "detected",
        segment="initrd",
        segments=["initrd"],
        console="digests do NOT match",
        console_absent=["capture:", "all is well"],
        verdict=["crypto", "mmu_on"],
        verdict_state="mismatch",
        dump="none",
    )
    assert_outcome(end, "detected", dump=Dump.NONE)
    with pytest.raises(KexecemuFailure) as failure:
        assert_outcome(end, **expected)
    assert said in str(failure.value).split("\n\n")[0].splitlines()


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (
            {"verdict": "mmu"},
            "'mmu' is no flag of a verdict; they are mmu_on, crypto, self_checked, at_el2, repaired",
        ),
        (
            {"verdict_state": "good"},
            "'good' is no state of a verdict; they are not_run, checking, match, mismatch",
        ),
    ],
)
def test_a_flag_or_a_state_that_there_is_not_is_refused(expected, said):
    with pytest.raises(InputError, match=said):
        assert_outcome(run("golden"), "captured", **expected)


def test_without_a_purgatory_there_is_no_verdict_to_expect_anything_of():
    with pytest.raises(KexecemuFailure, match="there is no record of the purgatory's"):
        assert_outcome(run(purgatory="none"), "captured", verdict="mmu_on")


def test_a_cell_of_a_scenario_with_a_matrix_is_run_by_its_name():
    assert run("ways-of-protecting", cell="protection=none,purgatory=none").outcome == "silent"
    assert run("ways-of-protecting", cell="protection=none,purgatory=default").outcome == "detected"
    with pytest.raises(
        InputError, match="a matrix of 8 cells: name one, as in protection=none,purgatory=default"
    ):
        run("ways-of-protecting")
    with pytest.raises(InputError, match="there is no scenario that it could be a cell of"):
        run(cell="era=6.1")


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
        (((), {"config": {"ZONE_DMA": "n"}, "append": "a b", "initrd": INITRD}), "kexecemu crash"),
        (((), {"purgatory": False, "initrd": "none", "ram": 1 << 29}), "kexecemu crash"),
        (((), {"faults": [Fault("dtb", write=b"a"), Fault("dtb", write=b"b", by=By.DMA)]}), "kexecemu crash"),
        (((), {"faults": [Fault("dtb", write=b"a", by=By.DMA), Fault("dtb", write=b"b")]}), "python -c"),
        (((), {"faults": [Fault("initrd", flip=3)]}), "python -c"),
        (((), {"faults": [Fault("initrd", write=b"'\"", by=By.DMA, when=When.AFTER_CHECK)]}), "python -c"),
        (((), {"faults": [Fault("initrd+8", write=b"12345678", width=8)]}), "python -c"),
        (((), {"rng_ready": True, "gic": 3}), "kexecemu crash"),
        (((), {"initrd_size": 0x20000}), "kexecemu crash"),
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


# -- campaigns --------------------------------------------------------------------------------------------------------

STRAY = """
schema = 1
name = "stray words by DMA, before and while the purgatory hashes"
[machine]
ram = "128M"
[kernel]
cmdline = "crashkernel=32M"
[campaign]
where = ["initrd"]
models = ["word32"]
by = ["dma"]
moments = ["after-load", "hashing"]
"""


@pytest.fixture(scope="module")
def stray(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("campaign") / "stray.toml"
    path.write_text(STRAY)
    return path


def test_a_campaign_is_the_same_again_and_leaves_no_file(stray, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    one, other = (campaign(stray, faults=60, seed=4, audit=5) for _ in range(2))
    assert one.faults == 60
    assert one.audited == 5
    assert one.table_sha256 == other.table_sha256
    assert campaign(stray, faults=60, seed=5, audit=0).table_sha256 != one.table_sha256
    assert list(tmp_path.iterdir()) == []


def test_what_a_campaign_missed_is_named_with_the_line_that_runs_it(stray):
    summary = campaign(stray, faults=60, seed=4, audit=0)
    assert_no(summary, "misboot", "hung", Outcome.TRAPPED, "error")
    assert summary.outcomes["silent"] > 3  # written behind the hash
    with pytest.raises(KexecemuFailure) as failure:
        assert_no(summary, "silent")
    first, *_ = str(failure.value).splitlines()
    assert first == f"{summary.outcomes['silent']} silent, expected none: {Outcome.SILENT.meaning}"
    assert f"\nbased on {summary.basis}\n" in str(failure.value)
    lines = [line for line in str(failure.value).splitlines() if line.startswith("again: ")]
    assert lines == [
        f"again: kexecemu replay {one.fault} {stray} --not silent" for one in summary.examples["silent"][:3]
    ]


def test_one_fault_of_a_campaign_alone_ends_as_it_did_among_the_others(stray):
    summary = campaign(stray, faults=60, seed=4, audit=0)
    for outcome in ("silent", "detected"):
        (example, *_) = summary.examples[outcome]
        alone = campaign(stray, only=example.fault)
        assert {one: count for one, count in alone.outcomes.items() if count} == {outcome: 1}
        assert alone.basis.sampler == f"only {example.fault}"


@pytest.mark.parametrize("token", ["dma.word32.0.kernel+0.after-load", "dma.word32.0.initrd+1.during-panic"])
def test_a_fault_that_is_not_from_the_campaign_is_refused(stray, token):
    with pytest.raises(InputError, match="is not in the campaign's space"):
        campaign(stray, only=token)


def test_an_audit_that_disagrees_fails_whatever_was_asked_for():
    assert_no(made_up_summary(), "captured")
    with pytest.raises(
        KexecemuFailure, match=r"the audit finds silent where detected was concluded \(hash\)"
    ):
        assert_no(disagreeing(), "captured")


@pytest.mark.parametrize("outcomes", [("silnet",), ("silent", "lost"), ()])
def test_no_outcome_or_one_that_there_is_not_is_refused(outcomes):
    with pytest.raises(InputError, match="is no outcome; they are captured, "):
        assert_no(made_up_summary(), *outcomes)
