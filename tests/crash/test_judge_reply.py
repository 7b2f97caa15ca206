"""The word for what a purgatory made of a fault, for each end that there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kexecemu.crash.damage import Damage
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.purgatory_check import Reply, judge_reply
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.verdict import Damaged, Verdict, VerdictState

INITRD, OWN = [Damage("initrd", 0, 4)], [Damage("purgatory", 0, 4)]
STOPPED = PurgatoryRun(PurgatoryEnd.MISMATCH, 0, 1000, None)
MISMATCH = Verdict(VerdictState.MISMATCH, 4096, bytes(32), bytes(32))


def said(damaged: int = 0, state: VerdictState = VerdictState.MISMATCH) -> PurgatoryRun:
    return replace(STOPPED, verdict=replace(MISMATCH, damaged=damaged, state=state))


@pytest.mark.parametrize(
    ("damage", "run", "reply"),
    [
        (INITRD, said(1), Reply.CAUGHT),
        (INITRD, STOPPED, Reply.CAUGHT),
        (OWN, said(Damaged.PURGATORY), Reply.CAUGHT),
        (OWN, said(Damaged.DTB_POINTER), Reply.CAUGHT),
        (OWN, said(1), Reply.FALSE_ALARM),
        (OWN, STOPPED, Reply.FALSE_ALARM),
        (OWN, replace(STOPPED, itself=True), Reply.CAUGHT),
        (OWN, replace(said(1), itself=True), Reply.FALSE_ALARM),  # what it says itself counts
        ([], None, Reply.FALSE_ALARM),
        (INITRD, None, Reply.CAUGHT),
    ],
)
def test_a_refusal_is_right_where_something_is_damaged_or_it_says_so_of_itself(
    damage: list[Damage], run: PurgatoryRun | None, reply: Reply
) -> None:
    assert judge_reply(True, Outcome.DETECTED, damage, run, None) is reply


@pytest.mark.parametrize(
    ("outcome", "run", "reply"),
    [
        (Outcome.TRAPPED, said(state=VerdictState.TRAPPED), Reply.TRAP_REPORTED),
        (Outcome.TRAPPED, said(), Reply.TRAPPED),
        (Outcome.TRAPPED, STOPPED, Reply.TRAPPED),
        (Outcome.TRAPPED, None, Reply.TRAPPED),
        (Outcome.HUNG, STOPPED, Reply.HUNG),
        (Outcome.MISBOOT, STOPPED, Reply.MISBOOT),
    ],
)
def test_one_that_started_no_kernel_and_refused_none_ended_in_a_way_of_its_own(
    outcome: Outcome, run: PurgatoryRun | None, reply: Reply
) -> None:
    assert judge_reply(True, outcome, [], run, None) is reply


@pytest.mark.parametrize(
    ("hit", "outcome", "damage", "end", "reply"),
    [
        (False, Outcome.CAPTURED, [], CaptureEnd.DONE, Reply.BOOTS),
        (True, Outcome.CAPTURED, [], CaptureEnd.DONE, Reply.HARMLESS),
        (True, Outcome.LATENT, OWN, CaptureEnd.ENTERED, Reply.HARMLESS),
        (True, Outcome.CAPTURED, [], CaptureEnd.HEADERS, Reply.HARMLESS),
        (True, Outcome.CAPTURED, [], CaptureEnd.NO_DUMP, Reply.MISSED),
        (True, Outcome.HUNG, [], CaptureEnd.BAD_ENTRY, Reply.MISSED),
        (True, Outcome.CAPTURED, INITRD, CaptureEnd.DONE, Reply.MISSED),
        (True, Outcome.SILENT, [], CaptureEnd.DONE, Reply.MISSED),
    ],
)
def test_a_kernel_that_was_started_over_damage_or_took_no_dump_was_missed(
    hit: bool, outcome: Outcome, damage: list[Damage], end: CaptureEnd, reply: Reply
) -> None:
    assert judge_reply(hit, outcome, damage, said(), CaptureRun(end, 0, 1000, None)) is reply
