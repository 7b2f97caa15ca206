"""The judge: what the machine's state says came of a crash."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome, judge, written_bytes_differ
from kexecemu.crash.stages import LINUX_ENDS, CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.verdict import Verdict, VerdictFlags, VerdictState
from kexecemu.linux.capture import LinuxCapture, LinuxEnd, LoadDigest
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, Injection

PHYS = 0x40000000
ABORT = GuestException(0, 5, "sync", 0x96000047, 0xFFFF000000000000, 0xFFFF800008000000, 1, 0x3C5)

KERNEL, INITRD, PURGATORY = (Damage(name, 0, 4) for name in ("kernel", "initrd", "purgatory"))
MATCH, MISMATCH = (
    Verdict(state, 4096, bytes(32), bytes(32)) for state in (VerdictState.MATCH, VerdictState.MISMATCH)
)


def purgatory(end: PurgatoryEnd = PurgatoryEnd.KERNEL, verdict: Verdict | None = MATCH) -> PurgatoryRun:
    return PurgatoryRun(end, PHYS, 1000, verdict)


def capture(end: CaptureEnd = CaptureEnd.DONE) -> CaptureRun:
    return CaptureRun(end, PHYS, 1000, None)


def injection(
    before: bytes, after: bytes, exception: GuestException | None = None, phys: int = PHYS
) -> Injection:
    return Injection(Fault("initrd", write=after, by=By.DMA), phys, before, after, exception)


def outcome(
    *injections: Injection,
    damage: tuple[Damage, ...] = (),
    purgatory: PurgatoryRun | None = None,
    capture: CaptureRun | None = None,
    memory: bytes | None = None,
    dump: Dump = Dump.TRUE,
) -> Outcome:
    """The judgement; memory is what is at PHYS in the end (None: what the last injection wrote)."""
    ram = Ram([PhysRange.of(PHYS, 0x10000)])
    for one in injections:
        ram.write(one.phys, one.after)
    if memory is not None:
        ram.write(PHYS, memory)
    return judge(ram, injections, damage, purgatory, capture, dump=dump)


# -- a dump was taken ------------------------------------------------------------------------------------------

CHANGED, SAME = injection(b"a", b"b"), injection(b"a", b"a")
TRAPPED = injection(b"a", b"a", ABORT)


@pytest.mark.parametrize(
    ("injections", "damage", "expected"),
    [
        ((), (), Outcome.CAPTURED),
        ((SAME,), (), Outcome.MASKED),
        ((TRAPPED,), (), Outcome.PREVENTED),
        ((CHANGED,), (), Outcome.LATENT),
        ((CHANGED,), (PURGATORY,), Outcome.LATENT),
        ((CHANGED,), (INITRD,), Outcome.SILENT),
        ((CHANGED,), (PURGATORY, KERNEL), Outcome.SILENT),
        # Of several the worst counts.
        ((SAME, TRAPPED), (), Outcome.PREVENTED),
        ((TRAPPED, CHANGED), (), Outcome.LATENT),
        ((TRAPPED, SAME, CHANGED), (INITRD,), Outcome.SILENT),
    ],
)
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("end", [CaptureEnd.DONE, CaptureEnd.ENTERED])
def test_a_dump_that_was_taken_is_judged_by_what_the_capture_kernel_got(
    injections: tuple[Injection, ...],
    damage: tuple[Damage, ...],
    expected: Outcome,
    checked: bool,
    end: CaptureEnd,
) -> None:
    ran = purgatory() if checked else None
    assert outcome(*injections, damage=damage, purgatory=ran, capture=capture(end)) is expected


def test_a_change_that_was_gone_before_anybody_looked_is_no_change() -> None:
    assert outcome(CHANGED, capture=capture(), memory=b"a") is Outcome.MASKED


def test_two_writes_that_undo_each_other_change_nothing() -> None:
    there, back = injection(b"a", b"b"), injection(b"b", b"a")
    assert outcome(there, back, capture=capture()) is Outcome.MASKED
    assert outcome(there, back, injection(b"a", b"c"), capture=capture()) is Outcome.LATENT


def test_overlapping_writes_are_compared_with_what_was_there_first() -> None:
    wide = injection(b"abcd", b"aXYd")
    narrow = injection(b"XY", b"bc", phys=PHYS + 1)
    assert outcome(wide, narrow, capture=capture()) is Outcome.MASKED
    half = injection(b"X", b"b", phys=PHYS + 1)
    assert outcome(wide, half, capture=capture()) is Outcome.LATENT


# -- no dump ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (PurgatoryEnd.MISMATCH, Outcome.DETECTED),
        (PurgatoryEnd.RETURNED, Outcome.DETECTED),
        (PurgatoryEnd.ELSEWHERE, Outcome.MISBOOT),
        (PurgatoryEnd.TRAPPED, Outcome.TRAPPED),
        (PurgatoryEnd.HUNG, Outcome.HUNG),
    ],
)
@pytest.mark.parametrize("damage", [(), (INITRD,), (PURGATORY,)])
def test_a_purgatory_that_did_not_boot_the_kernel_decides_alone(
    end: PurgatoryEnd, expected: Outcome, damage: tuple[Damage, ...]
) -> None:
    for verdict in (None, MATCH, MISMATCH):
        assert outcome(CHANGED, damage=damage, purgatory=purgatory(end, verdict)) is expected


@pytest.mark.parametrize("end", CaptureEnd)
@pytest.mark.parametrize("state", VerdictState)
def test_a_purgatory_that_reports_and_boots_all_the_same_has_detected(
    state: VerdictState, end: CaptureEnd
) -> None:
    plain = outcome(CHANGED, damage=(INITRD,), capture=capture(end))
    for flags in (VerdictFlags(0), VerdictFlags.REPAIRED, ~VerdictFlags.REPAIRED):
        ran = purgatory(PurgatoryEnd.KERNEL, replace(MATCH, state=state, flags=flags))
        objects = state in (VerdictState.MISMATCH, VerdictState.TRAPPED) or flags is VerdictFlags.REPAIRED
        found = outcome(CHANGED, damage=(INITRD,), purgatory=ran, capture=capture(end))
        assert found is (Outcome.DETECTED if objects else plain)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (CaptureEnd.TRAPPED, Outcome.TRAPPED),
        (CaptureEnd.PANIC, Outcome.TRAPPED),
        (CaptureEnd.ELSEWHERE, Outcome.MISBOOT),
        (CaptureEnd.BAD_ENTRY, Outcome.MISBOOT),
        (CaptureEnd.HUNG, Outcome.HUNG),
    ],
)
def test_a_capture_kernel_that_came_to_grief_is_judged_by_how(end: CaptureEnd, expected: Outcome) -> None:
    for damage in ((), (KERNEL,)):
        for dump in Dump:
            assert outcome(CHANGED, damage=damage, capture=capture(end), dump=dump) is expected


def test_a_capture_kernel_without_a_dump_is_silent_corruption_if_there_is_damage_and_hung_if_there_is_none() -> (
    None
):
    no_dump = capture(CaptureEnd.NO_DUMP)
    assert outcome(CHANGED, damage=(INITRD,), capture=no_dump) is Outcome.SILENT
    assert outcome(CHANGED, capture=no_dump) is Outcome.HUNG


def test_a_crash_that_never_reached_a_capture_kernel_hung() -> None:
    assert outcome(purgatory=purgatory()) is outcome() is Outcome.HUNG


def test_every_outcome_has_the_promised_string_and_a_sentence_for_people() -> None:
    assert {one.value for one in Outcome} == {
        *("captured", "prevented", "detected", "masked", "latent"),
        *("silent", "trapped", "misboot", "hung", "error"),
    }
    assert len({one.meaning for one in Outcome}) == 10


def test_every_end_of_purgatory_and_capture_kernel_is_judged() -> None:
    for end in PurgatoryEnd:
        assert isinstance(outcome(purgatory=purgatory(end), capture=capture()), Outcome)
    for last in CaptureEnd:
        assert isinstance(outcome(capture=capture(last)), Outcome)


# -- a real Linux as capture kernel ----------------------------------------------------------------------------

LOADS = [
    LoadDigest(PhysRange.of(PHYS, 0x1000), "a" * 64),
    LoadDigest(PhysRange.of(PHYS + 0x2000, 0x1000), "b" * 64),
]


def linux(end: LinuxEnd, read: list[LoadDigest], crashed: list[LoadDigest]) -> CaptureRun:
    run = LinuxCapture(end, "where it stood", 1000, read=read, crashed=crashed)
    return CaptureRun(LINUX_ENDS[end], PHYS, 1000, None, linux=run)


def test_a_dump_that_is_not_what_memory_held_is_no_capture() -> None:
    run = linux(LinuxEnd.DONE, LOADS[:1], LOADS)
    assert outcome(capture=run, dump=Dump.TRUE) is Outcome.CAPTURED
    assert outcome(capture=run, dump=Dump.WRONG) is Outcome.SILENT
    assert outcome(TRAPPED, capture=run, dump=Dump.WRONG) is Outcome.SILENT
    # It believed that it had one:
    assert outcome(CHANGED, capture=capture(), dump=Dump.NONE) is Outcome.SILENT
    assert outcome(CHANGED, capture=capture(CaptureEnd.ENTERED), dump=Dump.NONE) is Outcome.LATENT
    # Whatever the capture kernel is: the stub's is asked as well.
    assert outcome(CHANGED, capture=capture(), dump=Dump.WRONG) is Outcome.SILENT


@pytest.mark.parametrize(
    ("injections", "damage", "expected"),
    [
        ((), (), Outcome.CAPTURED),
        ((SAME,), (), Outcome.MASKED),
        ((TRAPPED,), (), Outcome.PREVENTED),
        ((CHANGED,), (), Outcome.LATENT),
        ((CHANGED,), (INITRD,), Outcome.SILENT),
    ],
)
def test_a_linux_that_read_the_headers_and_had_no_disk_has_not_hung(
    injections: tuple[Injection, ...], damage: tuple[Damage, ...], expected: Outcome
) -> None:
    run = linux(LinuxEnd.HEADERS, [], LOADS)
    assert outcome(*injections, damage=damage, capture=run, dump=Dump.NONE) is expected


def test_a_linux_that_switches_off_without_a_word_of_the_dump_has_taken_none() -> None:
    assert outcome(capture=linux(LinuxEnd.OFF, [], LOADS)) is Outcome.HUNG
    assert outcome(capture=linux(LinuxEnd.OFF, [], LOADS), damage=(INITRD,)) is Outcome.SILENT


def test_what_memory_was_at_the_jump_counts_where_the_capture_kernel_has_used_it_since() -> None:
    ram = Ram([PhysRange.of(PHYS, 0x10000)])
    ram.write(PHYS, b"b")
    assert written_bytes_differ(ram, [CHANGED])
    ram.write(PHYS, b"a")  # by chance, whatever the capture kernel has put there
    done = linux(LinuxEnd.DONE, LOADS, LOADS)
    assert judge(ram, [CHANGED], [], None, done, differ=True) is Outcome.LATENT
    ram.write(PHYS, b"x")
    assert judge(ram, [CHANGED], [], None, done, differ=False) is Outcome.MASKED
    assert judge(ram, [CHANGED], [], None, done) is Outcome.LATENT
    assert judge(ram, [CHANGED], [PURGATORY], None, done, differ=False) is Outcome.LATENT
