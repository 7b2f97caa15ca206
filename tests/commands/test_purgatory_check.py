"""`kexecemu purgatory check`: the words are right, and they follow from what the purgatory really did."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kexecemu.commands.purgatory_check import _table, unmet
from kexecemu.crash import running
from kexecemu.crash.damage import Damage
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.purgatory_check import RUNS, Reply, judge_reply
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.verdict import Damaged, Verdict, VerdictState
from kexecemu.data import fixture_path, purgatory_path
from kexecemu.errors import MachineError
from kexecemu.kernel.image.purgatory import parse_purgatory
from kexecemu.scenario.purgatory_bench import Check, _Bench, instructions_per_byte
from kexecemu.scenario.runner import Result
from kexecemu.scenario.runner import crash as run_crash
from kexecemu.scenario.setup import Setup
from kexecemu.stray.fault import Fault

pytestmark = pytest.mark.slow  # a purgatory is tried against every fault, several times

KEXEC_TOOLS = fixture_path("guests/kexec-tools-purgatory.ro")
CODE = "purgatory's code, 32 bits"


def kexecemu(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kexecemu", "purgatory", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def both() -> list[dict[str, Any]]:
    """Ours and the stand-in for kexec-tools', measured."""
    done = kexecemu("default", KEXEC_TOOLS, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["purgatories"]
    return found


def replies(purgatory: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {one["fault"]: one["replies"] for one in purgatory["faults"]}


def test_kexec_tools_blind_spots_are_those_that_its_source_has(both: list[dict[str, Any]]) -> None:
    _, other = both
    found = replies(other)
    code = found.pop(CODE)
    assert sum(code.values()) == 32 and code["false alarm"] and code["trapped"]
    assert {fault: next(iter(reply)) for fault, reply in found.items()} == {
        "nothing": "boots",
        "kernel, first word": "caught",
        "kernel, a bit in the middle": "caught",
        "kernel, last byte": "caught",
        "initrd, a word": "caught",
        "device tree, a word": "caught",
        "elfcorehdr, a word": "caught",
        "stored digest, a byte": "false alarm",
        "regions[0].len = 0": "false alarm",
        "regions[0].start = 0xdeadbeef": "trapped",
        "regions[0].len = 0xdeadbeef": "hung",
        "kernel's entry + 0x1000": "misboot",
        "device tree's address + 0x1000": "missed",
        "console's address = 0xdeadbeef": "trapped",
        "check switched off, and initrd": "missed",
        "stack": "harmless",
        "free memory": "harmless",
        "initrd, the same value": "harmless",
    }


def test_ours_catches_what_is_hashed_and_lets_a_good_image_boot(both: list[dict[str, Any]]) -> None:
    found = replies(both[0])
    assert found["nothing"] == {"boots": 1}
    for fault in ("kernel, first word", "kernel, last byte", "initrd, a word", "elfcorehdr, a word"):
        assert found[fault] == {"caught": 1}
    assert found["check switched off, and initrd"] == {"caught": 1}
    assert found["initrd, the same value"] == {"harmless": 1}
    assert not any("missed" in reply for reply in found.values())
    assert sum(sum(reply.values()) for reply in found.values()) == RUNS


def test_what_a_byte_costs_is_measured_without_what_a_run_costs(both: list[dict[str, Any]]) -> None:
    ours, other = both
    assert ours["instructions_per_byte"] < 4
    assert 25 < other["instructions_per_byte"] < 35
    assert 25 < ours["scalar_instructions_per_byte"] < 31
    assert other["scalar_instructions_per_byte"] is None
    assert ours["alignment_faults"] == other["alignment_faults"] == 0
    assert ours["refused_by_silicon"] == other["refused_by_silicon"] == []


def test_the_table_says_what_the_object_says_and_the_same_every_time(both: list[dict[str, Any]]) -> None:
    done = kexecemu(KEXEC_TOOLS)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["fault", KEXEC_TOOLS.name]
    for fault, reply in replies(both[1]).items():
        (at,) = (number for number, line in enumerate(lines) if line.startswith(fault + " ") or line == fault)
        if fault == CODE:
            counted = [line.rsplit(maxsplit=1) for line in lines[at + 1 : at + 1 + len(reply)]]
            assert {name.strip(): int(count) for name, count in counted} == reply
        else:
            assert lines[at].removeprefix(fault).strip() == next(iter(reply))
    assert f"instructions per byte{both[1]['instructions_per_byte']:>16.2f}" in done.stdout


@pytest.fixture
def unaligned(tmp_path: Path) -> Path:
    """A purgatory with one unaligned load, in each run that boots."""
    # Its last instructions set x1, x2 and x3 to 0; here x1 gets its 0 from the zeros behind the stack.
    zeros = bytes.fromhex("e1031faa e2031faa e3031faa")
    data = KEXEC_TOOLS.read_bytes()
    assert data.count(zeros) == 1
    file = tmp_path / "unaligned.ro"
    file.write_bytes(data.replace(zeros, bytes.fromhex("e11340f8") + zeros[4:]))
    return file


def test_an_unaligned_load_is_counted_and_named(unaligned: Path) -> None:
    done = kexecemu(unaligned, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["purgatories"]
    assert replies(found)["nothing"] == {"boots": 1}  # the engine lets it pass
    assert found["alignment_faults"] == 1
    (refused,) = found["refused_by_silicon"]
    assert refused["at"] == "purgatory_start+0x14"
    assert refused["kind"] == "unaligned"
    assert refused["instruction"] == "ldur x1, [sp, #1]"
    assert refused["address"] % 16 == 1


def test_the_environment_variable_makes_it_an_error_of_every_run(
    unaligned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(purgatory: Path, *faults: str) -> Result:
        setup = Setup(purgatory=purgatory, syscall="kexec_load")
        return run_crash("", setup, [Fault(one, flip=1) for one in faults])

    monkeypatch.delenv("KEXECEMU_CHECK_ACCESSES", raising=False)
    assert crash(unaligned).end.outcome is Outcome.CAPTURED
    monkeypatch.setenv("KEXECEMU_CHECK_ACCESSES", "1")
    with pytest.raises(
        MachineError, match=r"silicon refuses: ldur x1, \[sp, #1\] at 0x\w+: not aligned to 8"
    ):
        crash(unaligned)
    assert crash(KEXEC_TOOLS).end.outcome is Outcome.CAPTURED
    # What damaged code does is not its author's fault.
    assert crash(unaligned, "purgatory:skip_checks").end.outcome is Outcome.LATENT


def test_what_nobody_could_load_exits_with_2(tmp_path: Path) -> None:
    broken = tmp_path / "broken.ro"
    broken.write_bytes(
        purgatory_path().read_bytes().replace(b"purgatory_sha_regions\0", b"purgatory_sha_regionz\0")
    )
    for path, words in ((broken, "has the symbols of no interface"), (tmp_path, "directory")):
        done = kexecemu("default", path)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1 and words in done.stderr


def test_the_loading_kernels_options_are_taken_and_wrong_ones_refused() -> None:
    done = kexecemu("default", "--config", "KEXEC_PURGATORY_CRYPTO=n", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["purgatories"]
    assert found["instructions_per_byte"] == found["scalar_instructions_per_byte"] > 25
    done = kexecemu("default", "--config", "KEXEC_PURGATORY_CRYPTO")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def purgatory_run(end: PurgatoryEnd, verdict: Verdict | None = None) -> PurgatoryRun:
    return PurgatoryRun(end, 0, 0, verdict)


def capture_run(end: CaptureEnd) -> CaptureRun:
    return CaptureRun(end, 0, 0, None)


INITRD, OWN = [Damage("initrd", 0, 1)], [Damage("purgatory", 0, 1)]


@pytest.mark.parametrize(
    ("outcome", "damage", "end", "capture", "reply"),
    [
        (Outcome.DETECTED, INITRD, PurgatoryEnd.MISMATCH, None, Reply.CAUGHT),
        (Outcome.DETECTED, OWN, PurgatoryEnd.MISMATCH, None, Reply.FALSE_ALARM),
        (Outcome.DETECTED, [], PurgatoryEnd.MISMATCH, None, Reply.FALSE_ALARM),
        (Outcome.SILENT, INITRD, PurgatoryEnd.KERNEL, CaptureEnd.DONE, Reply.MISSED),
        (Outcome.SILENT, [], PurgatoryEnd.KERNEL, CaptureEnd.DONE, Reply.MISSED),  # the dump is wrong
        (Outcome.TRAPPED, INITRD, PurgatoryEnd.KERNEL, CaptureEnd.TRAPPED, Reply.MISSED),
        (Outcome.MISBOOT, OWN, PurgatoryEnd.KERNEL, CaptureEnd.BAD_ENTRY, Reply.MISSED),
        (Outcome.LATENT, OWN, PurgatoryEnd.KERNEL, CaptureEnd.DONE, Reply.HARMLESS),
        (Outcome.MISBOOT, OWN, PurgatoryEnd.ELSEWHERE, None, Reply.MISBOOT),
        (Outcome.TRAPPED, OWN, PurgatoryEnd.TRAPPED, None, Reply.TRAPPED),
        (Outcome.HUNG, OWN, PurgatoryEnd.HUNG, None, Reply.HUNG),
    ],
)
def test_the_word_follows_from_who_was_damaged_and_who_noticed(
    outcome: Outcome, damage: list[Damage], end: PurgatoryEnd, capture: CaptureEnd | None, reply: Reply
) -> None:
    run = capture_run(capture) if capture is not None else None
    assert judge_reply(True, outcome, damage, purgatory_run(end), run) is reply


def test_a_refusal_is_right_when_the_purgatory_says_that_it_is_damaged_itself() -> None:
    for damaged, reply in (
        (Damaged.PURGATORY, Reply.CAUGHT),
        (Damaged.DTB_POINTER, Reply.CAUGHT),
        (0, Reply.FALSE_ALARM),
        (1, Reply.FALSE_ALARM),  # it blames a region that is as loaded
    ):
        verdict = Verdict(VerdictState.MISMATCH, 0, b"", b"", damaged=int(damaged))
        run = purgatory_run(PurgatoryEnd.MISMATCH, verdict)
        assert judge_reply(True, Outcome.DETECTED, OWN, run, None) is reply


def test_a_trap_that_the_record_tells_of_is_another_thing_than_a_silent_one() -> None:
    for state, reply in (
        (VerdictState.TRAPPED, Reply.TRAP_REPORTED),
        (VerdictState.CHECKING, Reply.TRAPPED),
    ):
        run = purgatory_run(PurgatoryEnd.TRAPPED, Verdict(state, 0, b"", b""))
        assert judge_reply(True, Outcome.TRAPPED, OWN, run, None) is reply


# -- what is required ------------------------------------------------------------------------------------------------


ROWS = {
    "nothing": [Reply.BOOTS],
    "initrd, a word": [Reply.CAUGHT],
    CODE: [Reply.CAUGHT, Reply.MISBOOT, Reply.TRAP_REPORTED],
    "stored digest, a byte": [Reply.FALSE_ALARM],
    "stack": [],
}


@pytest.mark.parametrize(
    ("requirement", "changes", "rows"),
    [
        ("caught", {}, []),
        ("caught", {"initrd, a word": [Reply.MISSED]}, ["initrd, a word (missed)"]),
        ("caught", {"initrd, a word": [Reply.HUNG]}, ["initrd, a word (hung)"]),
        ("caught", {"initrd, a word": [Reply.TRAP_REPORTED]}, []),
        ("boots", {}, []),
        ("boots", {"nothing": [Reply.FALSE_ALARM]}, ["nothing (false alarm)"]),
        ("no-false-alarm", {}, ["stored digest, a byte (false alarm)"]),
        ("no-false-alarm", {"stored digest, a byte": [Reply.CAUGHT]}, []),
        ("no-misboot", {}, [f"{CODE} (misboot)"]),
        ("no-trap-reported", {}, [f"{CODE} (trap reported)"]),
        ("no-missed", {}, []),
    ],
)
def test_a_requirement_names_the_rows_that_do_not_meet_it(
    requirement: str, changes: dict[str, list[Reply]], rows: list[str]
) -> None:
    assert unmet(requirement, {**ROWS, **changes}) == rows


def test_what_is_required_and_not_so_is_one_line_and_exit_1() -> None:
    done = kexecemu("default", KEXEC_TOOLS, "--require", "boots,caught", "--json")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kexecemu: not as required: caught: {KEXEC_TOOLS.name}: regions[0].start")
    assert "check switched off, and initrd (missed)" in line and "default" not in line
    ours, other = json.loads(done.stdout)["purgatories"]
    assert ours["unmet"] == {"boots": [], "caught": []}
    assert len(other["unmet"]["caught"]) == 6 and other["unmet"]["boots"] == []


def test_what_is_required_and_so_is_exit_0() -> None:
    done = kexecemu(
        "default", "--require", "caught", "--require", "boots,no-missed,no-false-alarm,no-misboot"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_requirement_that_is_none_is_refused_before_anything_runs() -> None:
    done = kexecemu("default", "--require", "caught,silent")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kexecemu: --require 'silent' is not one of caught, boots, no-missed,")


def test_a_blank_says_why_it_is_one(tmp_path: Path) -> None:
    """A purgatory of another make: its check has no switch."""
    data = KEXEC_TOOLS.read_bytes()
    assert data.count(b"skip_checks\0") == 1
    data = data.replace(b"skip_checks\0", b"skip_checkz\0")
    other = tmp_path / "other.ro"
    other.write_bytes(data)
    done = kexecemu(other)
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert ["check switched off, and initrd", "-"] in lines
    assert "\n- says that there is nothing to tell:\n" in done.stdout
    assert "\n  check switched off, and initrd: other.ro: it has no symbol skip_checks\n" in done.stdout
    assert "\n  without SHA-2 instructions: other.ro: it cannot be told to do without them\n" in done.stdout


def test_a_slow_purgatory_that_boots_has_its_instructions_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is usual is enough for the image of the rows, and not for the larger one that the count takes."""
    core = purgatory_path("core")
    obj = parse_purgatory(core.read_bytes())
    usual = instructions_per_byte(core, obj, "kernel")
    assert usual is not None
    bench = _Bench(core, obj, "kernel", {})
    small = bench.measure(0x4000)
    assert small is not None
    monkeypatch.setattr(running, "_BUDGET_PER_BYTE", 0)
    monkeypatch.setattr(running, "_BUDGET_BASE", small[0] + 20_000)
    assert bench.measure(0x4000) == small and bench.measure(0x24000) is None
    assert instructions_per_byte(core, obj, "kernel") == usual


def test_a_count_that_cannot_be_had_says_why() -> None:
    none = Check("x", "kernel", {"nothing": [Reply.BOOTS]}, None, None, [], 0, 0)
    dead = replace(none, replies={"nothing": [Reply.FALSE_ALARM]})
    for check, said in (
        (none, "does not come to an end with a larger initrd"),
        (dead, "does not boot an untouch"),
    ):
        lines = [
            line
            for line in _table([check])
            if line.startswith(("  instructions per byte: ", "  without SHA-2 instructions: "))
        ]
        assert [said in line for line in lines[-2:]] == [True, True]
