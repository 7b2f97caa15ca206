"""What is left of a failed test: a folder of its own, named in the report and in the junit file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from kexecemu.data import fixture_path

pytest_plugins = ["pytester"]

WRONG = (
    fixture_path("scenarios/golden.toml").read_text().replace('outcome = "captured"', 'outcome = "silent"')
)
TESTS = """
import pytest
from kexecemu.testing import Fault

@pytest.mark.parametrize("ram", ["128M", "../../a:b c"])
def test_dumps(kexecemu_run, ram):
    end = kexecemu_run("golden", ram="128M", cmdline="crashkernel=32M")
    assert end.outcome == "silent"

def test_finds(kexecemu_run):
    end = kexecemu_run("initrd-stamped")
    assert end.outcome == "silent"

def test_is_good(kexecemu_run):
    assert kexecemu_run("initrd-stamped").outcome == "detected"

@pytest.mark.xfail
def test_is_known(kexecemu_run):
    assert kexecemu_run("initrd-stamped").outcome == "silent"
"""


@pytest.fixture
def failing(pytester, inner):
    """Run pytest over the tests above and a scenario that fails."""
    pytester.makepyfile(test_it=TESTS)
    (pytester.path / "one.scenario.toml").write_text(WRONG)

    def run(*arguments: str) -> pytest.RunResult:
        return inner("--junitxml=junit.xml", *arguments)

    return run


def properties(pytester) -> dict[str, list[tuple[str, str]]]:
    cases = ElementTree.parse(pytester.path / "junit.xml").iter("testcase")
    return {
        one.get("name", ""): [(p.get("name"), p.get("value")) for p in one.iter("property")] for one in cases
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_each_failed_test_has_a_folder_of_its_own_with_all_that_there_is(failing, pytester, workers):
    result = failing(
        "--kexecemu-artefacts", "kept/here", *(["-p", "xdist", "-n", str(workers)] if workers else [])
    )
    result.assert_outcomes(failed=4, passed=1, xfailed=1)
    kept = pytester.path / "kept/here"
    names = sorted(path.name for path in kept.iterdir())
    assert [re.sub(r"-[0-9a-f]{8}$", "", name) for name in names] == [
        "one.scenario.toml-a-crash-with-nothing-wrong-the-dump-is-taken",
        "test-it.py-test-dumps-..-..-a-b-c",
        "test-it.py-test-dumps-128M",
        "test-it.py-test-finds",
    ]
    for folder in kept.iterdir():
        files = {path.name for path in folder.iterdir()}
        has_dump, has_scenario = "finds" not in folder.name, "one.scenario" not in folder.name
        assert files == {"report.html", "console.txt", "timeline.jsonl"} | (
            {"vmcore"} if has_dump else set()
        ) | ({"scenario.toml"} if has_scenario else set())
        assert "purgatory: digests" in (folder / "console.txt").read_text()
        assert json.loads((folder / "timeline.jsonl").read_text().splitlines()[-1])["kind"] == "outcome"
        assert "<html" in (folder / "report.html").read_text()
        if has_dump:
            assert (folder / "vmcore").read_bytes()[:4] == b"\x7fELF"
        assert any(line.startswith(f"kept in kept/here/{folder.name}: ") for line in result.outlines)


def test_the_junit_file_names_the_outcome_of_each_test_and_the_files_of_failed_ones(failing, pytester):
    failing("--kexecemu-artefacts", "kept")
    found = properties(pytester)
    # Whoever adds "dump" to an End has it here as well.
    plain = {name: [pair for pair in pairs if pair[0] != "kexecemu_dump"] for name, pairs in found.items()}
    assert plain["test_is_good"] == [("kexecemu_outcome", "detected")]
    finds = dict(plain["test_finds"])
    assert len(finds) == len(plain["test_finds"])
    folder = finds["kexecemu_artefacts"]
    assert finds == {
        "kexecemu_outcome": "detected",
        "kexecemu_artefacts": folder,
        "kexecemu_report": f"{folder}/report.html",
        "kexecemu_console": f"{folder}/console.txt",
        "kexecemu_timeline": f"{folder}/timeline.jsonl",
        "kexecemu_scenario": f"{folder}/scenario.toml",
    }
    assert (pytester.path / folder / "report.html").is_file()
    (scenario,) = (pairs for name, pairs in plain.items() if name.startswith("a crash with nothing wrong"))
    assert {"kexecemu_outcome", "kexecemu_vmcore"} <= dict(scenario).keys()


def test_the_scenario_in_the_folder_fails_in_the_same_words(failing, pytester):
    failing("--kexecemu-artefacts", "kept", "-k", "128M")
    (path,) = pytester.path.glob("kept/*/scenario.toml")
    done = subprocess.run(
        [sys.executable, "-m", "kexecemu", "run", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "outcome is captured, expected silent" in done.stdout


def test_an_ini_value_does_the_same_from_the_root_folder(failing, pytester):
    pytester.makeini("[pytest]\nkexecemu_artefacts = kept\n")
    failing("-k", "finds")
    assert len(list((pytester.path / "kept").iterdir())) == 1


def test_without_it_all_but_the_dump_is_in_pytest_s_temporary_folder(failing, pytester):
    result = failing("-k", "128M", "--basetemp", "temporary")
    result.stdout.fnmatch_lines(
        [
            "kept in temporary/kexecemu/test-it.py-test-dumps-128M-*: report.html, console.txt, timeline.jsonl, *.toml"
        ]
    )
    assert len(list(pytester.path.glob("temporary/kexecemu/*/report.html"))) == 1


def test_a_folder_that_cannot_be_written_is_said_and_the_failure_stays_what_it_is(failing, pytester):
    (pytester.path / "file").write_text("")
    result = failing("-k", "finds", "--kexecemu-artefacts", "file")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*outcome is detected, expected silent", "not kept: *: Not a directory"])
    assert ("kexecemu_outcome", "detected") in properties(pytester)["test_finds"]


def test_what_a_former_run_has_left_of_a_test_goes(failing, pytester):
    failing("-k", "128M", "--kexecemu-artefacts", "kept")
    assert len(list(pytester.path.glob("kept/*/vmcore"))) == 1
    changed = TESTS.replace(
        'kexecemu_run("golden", ', 'kexecemu_run("golden", faults=[Fault("initrd", flip=1)], '
    )
    pytester.makepyfile(test_it=changed)
    failing("-k", "128M", "--kexecemu-artefacts", "kept")
    assert len(list(pytester.path.glob("kept/*/console.txt"))) == 1
    assert list(pytester.path.glob("kept/*/vmcore")) == []
