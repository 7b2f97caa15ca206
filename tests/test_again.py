"""The line at the end of a failure: pasted into a shell it fails again, in the same words."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kexecemu.data import fixture_path
from kexecemu.testing import By, Fault, KexecemuFailure, When, assert_no, assert_outcome, campaign, run

ROOT = Path(__file__).resolve().parent.parent
MATRIX = fixture_path("scenarios/ways-of-protecting.toml")
STAMP = Fault("initrd+0x1000", write=b"\xa5")


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Run a line in a shell that has kexecemu, python and pytest of this checkout in its PATH."""
    programs = tmp_path_factory.mktemp("bin")
    for name, words in (("kexecemu", "-m kexecemu"), ("python", ""), ("pytest", "-m pytest")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def run_line(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line, shell=True, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    return run_line


def words_and_line(failure: KexecemuFailure) -> tuple[list[str], str]:
    *_, last = str(failure).splitlines()
    assert last.startswith("again: ")
    return failure.wrong, last.removeprefix("again: ")


KINDS = [
    ({"outcome": "captured"}, "outcome is detected, expected captured"),
    ({"outcome": "detected", "segment": "dtb"}, "damaged is initrd, expected dtb"),
    ({"outcome": "detected", "segments": ["initrd", "kernel"]}, "damaged is initrd, expected kernel"),
    ({"outcome": "detected", "console_absent": "do NOT match"}, "the console says 'do NOT match'"),
    ({"outcome": "detected", "verdict_state": "match"}, "verdict_state is mismatch, expected match"),
    ({"outcome": "detected", "dump": "true"}, "expected true"),
    ({"outcome": "error"}, "no scenario can expect error: that is a failure of kexecemu itself"),
]
LISTS = [
    ({"outcome": "detected", "console": 'it\'s "fine" $HOME'}, "the console does not say"),
    ({"outcome": "detected", "verdict": ["crypto", "repaired"]}, "expected repaired among them"),
]


@pytest.mark.parametrize(
    ("way", "expected", "said"),
    [("run", *kind) for kind in (*KINDS, *LISTS)]
    + [(way, *kind) for way in ("crash", "python") for kind in LISTS],
)
def test_every_mismatch_is_had_again_by_its_line(shell, way, expected, said):
    if way == "run":
        end = run("initrd-stamped", seed=9)
    elif way == "crash":
        end = run(faults=[STAMP], config={"ZONE_DMA": "n"})
    else:
        end = run("golden", faults=[STAMP], ram="512M")
    with pytest.raises(KexecemuFailure) as failure:
        assert_outcome(end, **expected)
    wrong, line = words_and_line(failure.value)
    assert any(said in one for one in wrong)
    assert line.startswith({"run": "kexecemu run ", "crash": "kexecemu crash ", "python": "python -c "}[way])
    done = shell(line)
    assert done.returncode == 1, done.stdout + done.stderr
    for one in wrong:
        assert one in done.stdout + done.stderr


def test_several_mismatches_at_once_are_all_told_again(shell):
    with pytest.raises(KexecemuFailure) as failure:
        assert_outcome(
            run("stamped-without-purgatory"),
            "detected",
            segments=["dtb"],
            verdict="crypto",
            console="stopped",
        )
    wrong, line = words_and_line(failure.value)
    assert wrong == [
        "outcome is silent, expected detected",
        "damaged is initrd, expected dtb",
        "the console does not say 'stopped'",
        "there is no record of the purgatory's, so it cannot say what was expected of it",
    ]
    done = shell(line)
    assert done.returncode == 1
    assert all(f"unexpected   {one}\n" in done.stdout for one in wrong)


def test_a_cell_of_a_matrix_is_named_in_the_line(shell):
    end = run(MATRIX, cell="protection=pte,purgatory=none")
    with pytest.raises(KexecemuFailure) as failure:
        assert_outcome(end, "silent")
    _, line = words_and_line(failure.value)
    assert line == (f"kexecemu run {MATRIX} --seed 1 --cell protection=pte,purgatory=none --expect silent")
    done = shell(line)
    assert (done.returncode, "outcome is prevented, expected silent" in done.stdout) == (1, True)


def test_a_fault_of_a_campaign_that_was_missed_is_missed_again_with_status_1(shell, tmp_path):
    path = tmp_path / "stray.toml"
    path.write_text(
        'schema = 1\nname = "behind the hash"\n[machine]\nram = "128M"\n[kernel]\ncmdline = "crashkernel=32M"\n'
        '[campaign]\nwhere = ["initrd"]\nmodels = ["word32"]\nby = ["dma"]\nmoments = ["after-check"]\n'
    )
    with pytest.raises(KexecemuFailure) as failure:
        assert_no(campaign(path, faults=5, audit=0), "silent")
    _, line = words_and_line(failure.value)
    done = shell(line)
    assert done.returncode == 1, done.stderr
    assert "unexpected   silent, expected none\n" in done.stdout
    assert shell(line.replace("--not silent", "--not captured")).returncode == 0
    assert shell(line.replace("--not silent", "--not silnet")).returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"faults": [Fault("initrd", flip=3)]},
        {"faults": [Fault("initrd", write=b"'\"", by=By.DMA, when=When.AFTER_CHECK)], "rng_ready": True},
        {"faults": [Fault("initrd+8", write=b"12345678", width=8)], "initrd_size": 0x20000, "gic": 3},
        {"scenario": "initrd-stamped", "purgatory": None, "seed": 4},
        {"scenario": MATRIX, "cell": "protection=readonly,purgatory=none", "cpus": 1, "initrd_size": None},
        {"scenario": "golden", "faults": [STAMP], "initrd": str(fixture_path("guests/initrd.cpio"))},
    ],
)
def test_a_scenario_file_has_it_again_where_a_command_has_no_words(shell, tmp_path, arguments):
    end = run(**arguments)
    assert end.again.command() is None
    expected = "masked"
    with pytest.raises(KexecemuFailure) as failure:
        assert_outcome(end, expected)
    path = tmp_path / "scenario.toml"
    path.write_text(end.again.file(failure.value.expect))
    done = shell(f"kexecemu run {path}")
    assert done.returncode == 1, done.stderr
    assert f"outcome is {end.outcome.value}, expected masked" in done.stdout
    # The instructions of every event are the same: it is the same crash, not only the same end.
    for event in end.timeline:
        assert f"{event.when:12,}  {event.kind:<14} {event.text}" in done.stdout
