"""What a tester sees of a test that fails: the crash behind a bare assert, and nothing of ours in the way."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def failing(pytester, inner):
    """Run pytest over one test file that begins with two imports; give its output."""

    def run(body: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=f"import pytest\nfrom kexecemu.testing import *\n\n{body}")
        return inner(*arguments)

    return run


def failures(result: pytest.RunResult) -> dict[str, list[str]]:
    """The lines of each failure, by the test's name."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in result.outlines:
        heading = re.fullmatch(r"_+ (?:ERROR at setup of )?(\w+) _+", line)
        if heading:
            name = heading[1]
        elif re.fullmatch(r"=+ .* =+", line):
            name = ""
        elif name:
            found.setdefault(name, []).append(line)
    return found


def section(lines: list[str]) -> list[str]:
    """What the plugin adds to a failure."""
    (start,) = (at for at, line in enumerate(lines) if re.fullmatch(r"-+ kexecemu -+", line))
    return lines[start + 1 :]


ASSERTED = {
    'end.outcome == "captured"': (
        "'detected' == 'captured'",
        "outcome is detected, expected captured",
        "kexecemu run initrd-stamped --seed 1 --expect captured",
    ),
    "end.outcome is Outcome.SILENT": (
        "'detected' is 'silent'",
        "outcome is detected, expected silent",
        "kexecemu run initrd-stamped --seed 1 --expect silent",
    ),
    '"hung" == end.outcome': (
        "'hung' == 'detected'",
        "outcome is detected, expected hung",
        "kexecemu run initrd-stamped --seed 1 --expect hung",
    ),
    '"all is well" in end.console': (
        "'all is well' in the console",
        "the console does not say 'all is well'",
        "kexecemu run initrd-stamped --seed 1 --expect detected --expect 'console=all is well'",
    ),
    '"do NOT" not in end.console': (
        "'do NOT' not in the console",
        "the console says 'do NOT'",
        "kexecemu run initrd-stamped --seed 1 --expect detected --expect 'console_absent=do NOT'",
    ),
    'end.dump == "true"': (
        "'none' == 'true'",
        "dump is none (none: the purgatory stopped and started no capture kernel), expected true",
        "kexecemu run initrd-stamped --seed 1 --expect detected --expect dump=true",
    ),
    'end.outcome in ("captured", "masked")': (
        "'detected' in ('captured', 'masked')",
        "outcome is detected, expected one of captured, masked",
        "pytest test_it.py::test_6",
    ),
    'end.outcome != "detected"': (
        "'detected' != 'detected'",
        "outcome is detected, expected not detected",
        "pytest test_it.py::test_7",
    ),
    'end.outcome == "detcted"': (
        "'detected' == 'detcted'",
        "outcome is detected, expected detcted",
        "pytest test_it.py::test_8",
    ),
}


def test_a_bare_assert_shows_what_is_wrong_the_timeline_and_how_to_have_it_again(failing):
    body = "".join(
        f"def test_{number}(kexecemu_run):\n    end = kexecemu_run('initrd-stamped')\n    assert {asserted}\n"
        for number, asserted in enumerate(ASSERTED)
    )
    result = failing(body)
    result.assert_outcomes(failed=len(ASSERTED))
    found = failures(result)
    for number, (asserted, wrong, again) in enumerate(ASSERTED.values()):
        text = found[f"test_{number}"]
        said = [line.removeprefix("E").strip() for line in text if line.startswith("E ")]
        assert said[0].removeprefix("AssertionError: ") == f"assert {asserted}"
        assert said[1] == wrong
        lines = section(text)
        assert lines[0] == "the last 15 of 17 events, time in instructions:"
        assert "outcome        detected: the purgatory found" in lines[15]
        assert lines[16] == "damage: initrd+0x1000, 4 bytes"
        assert lines[18] == f"again: {again}"
        alone = ["crash: kexecemu run initrd-stamped --seed 1"] if again.startswith("pytest") else []
        assert lines[19:-1] == alone
        assert lines[-1].startswith("kept in ")


def test_the_crash_is_found_wherever_the_test_has_it(failing):
    body = """
@pytest.fixture
def end(kexecemu_run):
    return kexecemu_run("initrd-stamped")

def is_good(end):
    assert end.outcome == "captured"

# Here the End has no name: it is found where pytest keeps what an assertion has computed.
def test_nowhere(kexecemu_run):
    assert kexecemu_run("initrd-stamped").outcome == "captured"

def test_in_a_list(kexecemu_run):
    ends = [kexecemu_run("initrd-stamped")]
    assert not ends[0].damage

def test_that_asserts_nothing(kexecemu_run):
    end = kexecemu_run("initrd-stamped")
    raise KeyError("mine")

def test_in_a_result():
    result = run_result("initrd-stamped")
    assert result.image.digest is None

def test_in_a_fixture(end):
    assert end.outcome == "captured"

def test_in_a_helper(kexecemu_run):
    is_good(kexecemu_run("initrd-stamped"))
"""
    result = failing(body)
    result.assert_outcomes(failed=6)
    for name, text in failures(result).items():
        lines = section(text)
        assert "damage: initrd+0x1000, 4 bytes" in lines, name
        assert any("kexecemu run initrd-stamped --seed 1" in line for line in lines), name


def test_of_two_crashes_the_one_that_was_compared_is_shown_else_both(failing):
    body = """
def test_one(kexecemu_run):
    one, two = kexecemu_run("golden"), kexecemu_run("initrd-stamped")
    assert two.outcome == "silent"

def test_both(kexecemu_run):
    one, two = kexecemu_run("golden"), kexecemu_run("initrd-stamped")
    assert one.instructions == two.instructions

def test_neither(kexecemu_run):
    kexecemu_run("golden")
    assert [1] == [2]

def test_not_the_one_that_was_caught(kexecemu_run):
    end = kexecemu_run("golden")
    with pytest.raises(AssertionError):
        assert end.outcome == "silent"
    assert end.instructions == 1
"""
    found = failures(failing(body))
    lines = section(found["test_one"])
    assert "again: kexecemu run initrd-stamped --seed 1 --expect silent" in lines
    assert not any("golden" in line for line in lines)
    told = ("crash 1 of 2:", "crash: kexecemu run golden --seed 1", "crash 2 of 2:")
    told = (*told, "crash: kexecemu run initrd-stamped --seed 1")
    assert [line for line in section(found["test_both"]) if line.startswith("crash ") or line in told] == [
        *told
    ]
    assert not any("- kexecemu -" in line for line in found["test_neither"])
    again = [one for one in section(found["test_not_the_one_that_was_caught"]) if one.startswith("again: ")]
    assert again == ["again: pytest test_it.py::test_not_the_one_that_was_caught"]


def test_a_crash_of_a_kernel_of_ones_own_is_had_again_by_its_test(failing):
    body = """
@pytest.fixture
def end(kexecemu_kernel):
    kernel = kexecemu_kernel(protection="pte")
    kernel.stray_write("initrd", b"x")
    return kernel.panic()

def test_bare(end):
    assert end.outcome == "detected"

def test_ours(end):
    assert_outcome(end, "detected")
"""
    result = failing(body)
    for name, lines in failures(result).items():
        assert any("outcome is prevented, expected detected" in line for line in lines)
        assert any(line.endswith(f"again: pytest test_it.py::{name}") for line in lines)


INPUT_ERRORS = {
    'kexecemu_run(era="5.9")': "InputError: era '5.9' is older than 6.1, the oldest that is modelled",
    'kexecemu_run(faults=[Fault("nowhere", write=b"x")])': "InputError: target nowhere: no such segment or symbol;",
    'kexecemu_run("goldne")': "InputError: no scenario ",
    'kexecemu_run(initrd_size="100M", cmdline="crashkernel=64M")': "KexecError: ",
    'run(protektion="pte")': "InputError: no option 'protektion'",
    'assert_outcome(kexecemu_run("golden"), "capturd")': "InputError: 'capturd' is no outcome",
}


def test_an_input_error_is_the_tests_line_and_one_sentence(failing):
    body = "".join(
        f"def test_{number}(kexecemu_run):\n    {line}\n" for number, line in enumerate(INPUT_ERRORS)
    )
    result = failing(body)
    result.assert_outcomes(failed=len(INPUT_ERRORS))
    found = failures(result)
    for number, (line, said) in enumerate(INPUT_ERRORS.items()):
        text = found[f"test_{number}"]
        assert f">       {line}" in text
        (told,) = (one for one in text if one.startswith("E "))
        assert said in told
        assert not any(
            "kexecemu/" in one or "direct cause" in one or "During handling" in one for one in text
        )
        assert len(text) < 10


def test_all_of_our_frames_are_there_for_who_wants_them(failing):
    result = failing('def test_it(kexecemu_run):\n    kexecemu_run(era="5.9")\n', "--full-trace")
    result.stdout.fnmatch_lines(["*kexecemu/kernel/base/config.py:*"])


def test_an_error_of_input_in_a_fixture_of_the_tester_s_is_as_short(failing):
    body = """
@pytest.fixture
def loaded(kexecemu_kernel):
    return kexecemu_kernel(era="5.9")

def test_it(loaded):
    pass
"""
    result = failing(body)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [">*return kexecemu_kernel(era=*", "E*InputError: era '5.9' is older than 6.1*"]
    )
    result.stdout.no_fnmatch_line("*kexecemu/testing.py*")


def test_a_line_that_is_shown_fails_again_in_the_same_words(failing, pytester, monkeypatch):
    """Of a scenario file that was written for it, and of a test."""
    body = """
def test_it(kexecemu_run):
    end = kexecemu_run(faults=[Fault("initrd+8", flip=3)])
    assert {}
"""
    for asserted, said in (
        ('"fine" in end.console', "the console does not say 'fine'"),
        ('end.outcome in ("silent", "hung")', "outcome is detected, expected one of silent, hung"),
    ):
        result = failing(body.format(asserted))
        (line,) = (one for one in result.outlines if one.startswith("again: "))
        program, *words = shlex.split(line.removeprefix("again: "))
        plugin = ["-p", "kexecemu.pytest_plugin", "--basetemp", "other"] if program == "pytest" else []
        done = subprocess.run(
            [sys.executable, "-m", program, *words, *plugin],
            cwd=pytester.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert said in done.stdout
