"""The sentence beside an outcome is true of this crash, and not only of its kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import CrashedMemory, Dump, judge_dump
from kexecemu.crash.end import End
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.reason import Facts, reason_of
from kexecemu.crash.stages import LINUX_ENDS, CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.verdict import Verdict, VerdictFlags, VerdictState
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.capture import LinuxCapture, LinuxEnd
from kexecemu.scenario.runner import crash
from kexecemu.scenario.setup import Setup
from kexecemu.stray.fault import Fault

INITRD = Damage("initrd", 0, 4)
NOTHING = Facts(Kimage(0), [], [], None, None, Dump.TRUE)
MATCH = Verdict(VerdictState.MATCH, 4096, bytes(32), bytes(32))


def linux(end: LinuxEnd, **said: str) -> CaptureRun:
    return CaptureRun(LINUX_ENDS[end], 0, 1000, None, linux=LinuxCapture(end, "somewhere", 1000, **said))


def purgatory(end: PurgatoryEnd = PurgatoryEnd.KERNEL, **verdict: object) -> PurgatoryRun:
    return PurgatoryRun(end, 0, 1000, replace(MATCH, **verdict) if verdict else None)


def why(outcome: Outcome, **facts: object) -> str:
    return reason_of(outcome, replace(NOTHING, **facts))  # type: ignore[arg-type]


def dump_of(capture: CaptureRun) -> tuple[Dump, str]:
    return judge_dump(CrashedMemory(None, None), None, capture, None, ())


def ended(*faults: Fault, **setup: object) -> End:
    result = crash("a test's", Setup(ram="128M", cmdline="crashkernel=32M", **setup), list(faults))  # type: ignore[arg-type]
    result.kernel.board.close()
    return result.end


# -- a real Linux ------------------------------------------------------------------------------------------------


def test_a_capture_kernel_that_panics_says_what_it_says_itself() -> None:
    run = linux(LinuxEnd.PANIC, panic="System is deadlocked on memory")
    assert why(Outcome.TRAPPED, capture=run) == "the capture kernel panicked: System is deadlocked on memory"
    assert dump_of(run) == (Dump.NONE, "none: the capture kernel panicked: System is deadlocked on memory")


def test_one_that_had_no_disk_read_the_headers_and_switched_off() -> None:
    run = linux(LinuxEnd.HEADERS)
    for outcome, what in {
        Outcome.CAPTURED: "nothing was harmed; ",
        Outcome.MASKED: "the write changed nothing; ",
        Outcome.PREVENTED: "the write faulted and memory is intact; ",
    }.items():
        said = why(outcome, capture=run, dump=Dump.NONE)
        assert said.startswith(what)
        assert said.endswith("read the dump's headers and switched off without copying it")
    assert dump_of(run)[0] is Dump.NONE
    assert "copied nothing (no disk, or told not to)" in dump_of(run)[1]


def test_one_that_could_not_copy_is_quoted() -> None:
    run = linux(LinuxEnd.OFF, last_word="status 1, 4096 bytes to /dev/vda")
    assert why(Outcome.HUNG, capture=run).endswith("it said: status 1, 4096 bytes to /dev/vda")
    assert "status 1" in dump_of(run)[1]
    silent = why(Outcome.HUNG, capture=linux(LinuxEnd.OFF))
    assert silent == "the capture kernel switched off without a word of the dump"


# -- what was detected, and by whom ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (purgatory(PurgatoryEnd.MISMATCH), "the purgatory found that the loaded image is not as loaded"),
        (
            purgatory(state=VerdictState.MISMATCH),
            "the purgatory found that the loaded image is not as loaded, and booted the capture kernel all the same",
        ),
        (
            purgatory(state=VerdictState.MISMATCH, flags=VerdictFlags.REPAIRED),
            "the purgatory found that the loaded image is not as loaded, mended it, and booted the capture kernel",
        ),
        (
            purgatory(state=VerdictState.TRAPPED),
            "the purgatory met an exception in its check and reported it, and booted the capture kernel all the same",
        ),
    ],
)
def test_what_the_purgatory_did_about_it_is_said(run: PurgatoryRun, words: str) -> None:
    assert why(Outcome.DETECTED, purgatory=run, damage=[INITRD]) == words


def test_the_first_kernel_is_named_where_it_was_the_one_to_find_it() -> None:
    options = {"KEXEC_PURGATORY_EARLY_CHECK": "y"}
    end = ended(Fault("initrd+0x10", write=b"\xa5"), config=options)
    assert end.outcome is Outcome.DETECTED
    assert "the first kernel" in end.reason and "the purgatory found" not in end.reason
    assert end.dump is Dump.NONE


def test_an_intact_image_that_was_refused_is_called_that() -> None:
    end = ended(Fault("purgatory:sha256_digest", flip=1), syscall="kexec_load")
    assert end.outcome is Outcome.DETECTED
    assert end.reason == "the purgatory refused an intact image: what it compares with is not as loaded"


def test_an_image_of_which_more_than_the_purgatory_is_damaged_is_none_that_is_intact() -> None:
    own, run = Damage("purgatory", 0, 4), purgatory(PurgatoryEnd.MISMATCH)
    intact = "the purgatory refused an intact image: what it compares with is not as loaded"
    assert why(Outcome.DETECTED, purgatory=run, damage=[own]) == intact
    for damage in ([own, INITRD], [INITRD, own], [INITRD]):
        found = why(Outcome.DETECTED, purgatory=run, damage=damage)
        assert found == "the purgatory found that the loaded image is not as loaded"


# -- what was not -----------------------------------------------------------------------------------------------


def test_a_stray_byte_that_switches_the_check_off_is_said_to_have_done_so() -> None:
    end = ended(Fault("purgatory:skip_checks", write=b"\x01"), syscall="kexec_load")
    assert (end.outcome, end.dump) == (Outcome.LATENT, Dump.TRUE)
    assert (
        end.reason == "the purgatory's check was switched off (skip_checks changed); nothing else was harmed"
    )


def test_and_corruption_that_passes_for_it_says_why() -> None:
    stray = Fault("initrd+0x10", write=b"\xa5")
    end = ended(Fault("purgatory:skip_checks", write=b"\x01"), stray, syscall="kexec_load")
    assert end.outcome is Outcome.SILENT
    assert end.reason.endswith("the purgatory's check was switched off (skip_checks changed)")
    assert ended(stray, purgatory="none").reason == (
        "corrupt bytes of initrd reached the capture kernel and nobody noticed"
    )


def test_a_variable_that_made_no_difference_is_named_and_the_check_was_not_switched_off() -> None:
    end = ended(Fault("purgatory:arm64_sink", write=b"\0" * 8), syscall="kexec_load")
    assert end.outcome is Outcome.LATENT
    assert end.reason == "the purgatory's arm64_sink changed, which made no difference to what it did"


def test_a_trap_that_the_purgatory_reported_is_told_from_one_that_it_could_not() -> None:
    reported = purgatory(PurgatoryEnd.TRAPPED, state=VerdictState.TRAPPED)
    assert why(Outcome.TRAPPED, purgatory=reported).endswith("which reported it")
    assert why(Outcome.TRAPPED, purgatory=purgatory(PurgatoryEnd.TRAPPED)).endswith("left no record of it")


def test_no_end_speaks_of_a_dump_that_was_not_taken() -> None:
    for end in CaptureEnd:
        run = CaptureRun(end, 0, 1000, None)
        for outcome in Outcome:
            if outcome in (Outcome.DETECTED, Outcome.ERROR):
                continue
            said = why(outcome, capture=run, dump=Dump.NONE, damage=[INITRD])
            assert "the dump was taken" not in said, (outcome, end)


def test_a_budget_is_spoken_of_only_where_it_was_used_up() -> None:
    stuck = why(Outcome.HUNG, capture=linux(LinuxEnd.STUCK))
    assert stuck == "the capture kernel got nowhere"
    assert "its budget of instructions was used up" in why(Outcome.HUNG, capture=linux(LinuxEnd.BUDGET))
    assert why(Outcome.HUNG, purgatory=purgatory(PurgatoryEnd.HUNG)).startswith("the purgatory got nowhere")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["initrd"], "initrd"),
        (["initrd", "kernel"], "initrd and kernel"),
        (["kernel", "initrd", "kernel", "dtb"], "kernel, initrd and dtb"),
    ],
)
def test_segments_that_were_harmed_are_named_once_each_in_their_order(names: list[str], words: str) -> None:
    told = why(Outcome.SILENT, damage=[Damage(name, 0, 4) for name in names])
    assert told == f"corrupt bytes of {words} reached the capture kernel and nobody noticed"


@pytest.mark.parametrize(
    ("end", "dump", "lost"),
    [
        (CaptureEnd.DONE, Dump.NONE, True),
        (CaptureEnd.DONE, Dump.WRONG, False),
        (CaptureEnd.DONE, Dump.TRUE, False),
        (CaptureEnd.HEADERS, Dump.NONE, True),
        (CaptureEnd.NO_DUMP, Dump.NONE, True),
        (CaptureEnd.OFF, Dump.NONE, True),
    ],
)
def test_that_no_dump_was_taken_is_said_of_those_that_took_none(
    end: CaptureEnd, dump: Dump, lost: bool
) -> None:
    told = why(Outcome.SILENT, damage=[INITRD], capture=CaptureRun(end, 0, 1000, None), dump=dump)
    assert told.endswith("though it took no dump") is lost
