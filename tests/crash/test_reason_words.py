"""Every sentence beside an outcome, word for word, with the least that it takes and what is just not enough for it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.reason import Facts, reason_of
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun, hashing_takes
from kexecemu.crash.verdict import Damaged, Verdict, VerdictFlags, VerdictState
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.linux.capture import LinuxCapture, LinuxEnd
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, Injection

DIGEST = b"d" * 32
SEGMENTS = [Segment("kernel", b"", 0x1000, 0x1000), Segment("purgatory", b"", 0x3000, 0x1000),
            Segment("page-digests", b"", 0x4000, 0x1000), Segment("copy", b"", 0x5000, 0x1000)]  # fmt: skip
IMAGE = Kimage(
    0,
    SEGMENTS,
    sha_regions=[PhysRange(0x1000, 0x2000)],
    digest=DIGEST,
    table_pages=[PhysRange(0x7000, 0x8000), PhysRange(0xE000, 0xF000)],
)
# Names of the purgatory's, one of them without a size.
TABLE = {"here": (0x3000, 8), "there": (0x3008, 8), "label": (0x3000, 0)}
CHECKER: Any = SimpleNamespace(symbol_table=lambda: TABLE)
KERNEL, OWN, DIGESTS, COPY = (Damage(one.name, 0, 4) for one in SEGMENTS)
NOTHING = Facts(IMAGE, [], [], None, None, Dump.TRUE, checker=CHECKER)
VERDICT = Verdict(VerdictState.MISMATCH, 4096, DIGEST, b"f" * 32)


def wrote(phys: int, size: int = 1, changed: bool = True, loaded_over: bool = False) -> Injection:
    before, after = bytes(size), bytes([changed]) * size
    return Injection(Fault(hex(phys), write=after, by=By.DMA), phys, before, after, loaded_over=loaded_over)


def ran(end: PurgatoryEnd, verdict: Verdict | None = None, **more: Any) -> PurgatoryRun:
    return PurgatoryRun(end, 0, 1 << 30, verdict, **more)


def said(end: PurgatoryEnd = PurgatoryEnd.MISMATCH, **verdict: Any) -> PurgatoryRun:
    return ran(end, replace(VERDICT, **verdict))


def captured(end: CaptureEnd, linux: LinuxEnd | None = None, **words: str) -> CaptureRun:
    return CaptureRun(
        end,
        0,
        1000,
        None,
        linux=LinuxCapture(linux, "there", 9, **words) if linux else None,  # type: ignore[arg-type]
    )


def why(outcome: Outcome, **facts: Any) -> str:
    return reason_of(outcome, replace(NOTHING, **facts))


MISMATCH = ran(PurgatoryEnd.MISMATCH)
INTACT = "the purgatory refused an intact image: what it compares with is not as loaded"
ITSELF = "the purgatory found that it is itself not as loaded"
LOADED = "the purgatory found that the loaded image is not as loaded"
MAP = "the purgatory refused an intact image: the map by which it reads it is not as the load made it"
TREE = "the purgatory found that it was given another device tree than the loaded one"


@pytest.mark.parametrize(
    ("run", "damage", "writes", "words"),
    [
        (MISMATCH, [KERNEL], [], LOADED),
        (MISMATCH, [OWN, OWN], [], INTACT),
        (said(found=DIGEST), [OWN], [], INTACT),
        (said(), [OWN], [], LOADED),  # it has found another digest
        (said(found=DIGEST), [OWN, KERNEL], [], LOADED),
        (replace(MISMATCH, itself=True), [KERNEL], [], ITSELF),
        (said(damaged=Damaged.PURGATORY | Damaged.DTB_POINTER | 1), [KERNEL], [], ITSELF),
        (said(damaged=Damaged.DTB_POINTER | 1), [OWN], [], TREE),
        (said(damaged=Damaged.DTB_POINTER, state=VerdictState.TRAPPED), [OWN], [], TREE),
        (said(damaged=0xFFFF), [KERNEL], [], LOADED),
        (said(state=VerdictState.TRAPPED, found=DIGEST), [OWN], [], "the purgatory met an exception in its check and "
         "reported it"),
        # In the map's page: its last byte and its first; on both sides of it; and what was there already.
        (MISMATCH, [], [wrote(0x7FFF)], MAP),
        (MISMATCH, [], [wrote(0x6000), wrote(0x6FFF, 2)], MAP),
        (MISMATCH, [], [wrote(0x6FFF), wrote(0x8000)], LOADED),
        (MISMATCH, [], [wrote(0x7000, changed=False)], LOADED),
        (MISMATCH, [KERNEL], [wrote(0x7000)], LOADED),
        (said(), [], [wrote(0x7000)], MAP),
    ],
)  # fmt: skip
def test_what_a_purgatory_objects_to_is_told(
    run: PurgatoryRun, damage: list[Damage], writes: list[Injection], words: str
) -> None:
    facts = {"damage": damage, "injections": writes}
    assert why(Outcome.DETECTED, purgatory=run, **facts) == words
    booted = why(Outcome.DETECTED, purgatory=replace(run, end=PurgatoryEnd.KERNEL), **facts)
    assert booted == f"{words}, and booted the capture kernel all the same"


@pytest.mark.parametrize(("damaged", "where"), [(0, ""), (1, " (kernel)"), (2, " (region 1)")])
def test_what_was_mended_is_named_where_the_record_names_it(damaged: int, where: str) -> None:
    run = said(PurgatoryEnd.KERNEL, flags=VerdictFlags.REPAIRED, damaged=damaged)
    words = f"{LOADED}, mended it{where}, and booted the capture kernel"
    assert why(Outcome.DETECTED, purgatory=run, damage=[KERNEL]) == words
    assert why(Outcome.DETECTED, purgatory=replace(run, end=PurgatoryEnd.MISMATCH), damage=[KERNEL]) == LOADED


LEFT_NO_RECORD = "an exception ended the purgatory, which left no record of it"


@pytest.mark.parametrize(
    ("outcome", "facts", "words"),
    [
        ("TRAPPED", {}, LEFT_NO_RECORD),
        ("TRAPPED", {"purgatory": ran(PurgatoryEnd.TRAPPED)}, LEFT_NO_RECORD),
        ("TRAPPED", {"purgatory": said(PurgatoryEnd.TRAPPED)}, LEFT_NO_RECORD),
        ("TRAPPED", {"purgatory": said(PurgatoryEnd.TRAPPED, state=VerdictState.TRAPPED)}, "an exception ended the "
         "purgatory, which reported it"),
        ("TRAPPED", {"capture": captured(CaptureEnd.TRAPPED, LinuxEnd.LOST, panic="x")}, "an exception ended the "
         "capture kernel"),
        ("TRAPPED", {"capture": captured(CaptureEnd.PANIC)}, "the capture kernel panicked"),
        ("TRAPPED", {"capture": captured(CaptureEnd.PANIC, LinuxEnd.PANIC)}, "the capture kernel panicked"),
        ("TRAPPED", {"capture": captured(CaptureEnd.PANIC, LinuxEnd.PANIC, panic="no init")}, "the capture kernel "
         "panicked: no init"),
        ("MISBOOT", {}, "the purgatory jumped to something that is not the capture kernel"),
        ("MISBOOT", {"capture": captured(CaptureEnd.ELSEWHERE)}, "control left the capture kernel's code"),
        ("MISBOOT", {"capture": captured(CaptureEnd.BAD_ENTRY)}, "the capture kernel was entered against the boot "
         "protocol"),
        ("HUNG", {"capture": captured(CaptureEnd.NO_DUMP)}, "the capture kernel came up and found no dump"),
        ("HUNG", {"capture": captured(CaptureEnd.OFF)}, "the capture kernel switched off without a word of the dump"),
        ("HUNG", {"capture": captured(CaptureEnd.OFF, LinuxEnd.OFF, last_word="no")}, "the capture kernel switched "
         "off; it said: no"),
        ("HUNG", {"capture": captured(CaptureEnd.HUNG)}, "the capture kernel got nowhere"),
        ("HUNG", {"capture": captured(CaptureEnd.HUNG, LinuxEnd.BUDGET)}, "the capture kernel had not come to an end "
         "when its budget of instructions was used up"),
        ("HUNG", {}, "the purgatory got nowhere and gave no verdict"),
        ("HUNG", {"purgatory": said(PurgatoryEnd.HUNG), "entry": 0}, "the purgatory got nowhere and gave no verdict"),
        ("HUNG", {"purgatory": ran(PurgatoryEnd.HUNG, power="cpu_off")}, "the purgatory switched its CPU off and gave "
         "no verdict"),
        ("ERROR", {}, "kexecemu itself failed"),
    ],
)  # fmt: skip
def test_what_led_astray_or_nowhere_is_told(outcome: str, facts: dict[str, Any], words: str) -> None:
    assert why(Outcome[outcome], **facts) == words


@pytest.mark.parametrize(
    ("entry", "more"), [(None, ""), (0, ": its kernel entry is 0"), (1, ""), (0x4000, "")]
)
def test_a_content_one_that_started_no_kernel_is_told_whatever_power_it_switched(
    entry: int | None, more: str
) -> None:
    for power in (None, "system_off"):
        run = replace(said(PurgatoryEnd.HUNG, state=VerdictState.MATCH), power=power)
        words = f"the purgatory found the image as loaded, but started no kernel{more}"
        assert why(Outcome.HUNG, purgatory=run, entry=entry) == words


ANEW = "the bytes that the write changed were written anew before the end"
NO_DISK = "; the capture kernel came up, read the dump's headers and switched off without copying it"
ENTERED = "; the capture kernel was entered as it should be, and not followed further"


@pytest.mark.parametrize(
    ("outcome", "writes", "words"),
    [
        (Outcome.CAPTURED, [], "nothing was harmed"),
        (Outcome.CAPTURED, [wrote(0x100)], "nothing was harmed"),
        (Outcome.PREVENTED, [wrote(0x100)], "the write faulted and memory is intact"),
        (Outcome.MASKED, [wrote(0x100, changed=False)], "the write changed nothing"),
        (Outcome.MASKED, [wrote(0x100, changed=False), wrote(0x100)], ANEW),
        (Outcome.MASKED, [wrote(0x100, changed=False, loaded_over=True)], ANEW),
    ],
)
def test_a_crash_in_which_all_went_well_is_told_by_what_became_of_the_dump(
    outcome: Outcome, writes: list[Injection], words: str
) -> None:
    done, facts = captured(CaptureEnd.DONE), {"injections": writes}
    whole = outcome.meaning if words is not ANEW else f"{ANEW}, and the dump was taken"
    assert why(outcome, capture=done, **facts) == whole
    assert why(outcome, capture=done, dump=Dump.NONE, **facts) == words
    assert why(outcome, **facts) == words
    assert why(outcome, capture=captured(CaptureEnd.HEADERS), dump=Dump.NONE, **facts) == words + NO_DISK
    assert why(outcome, capture=captured(CaptureEnd.ENTERED), **facts) == words + ENTERED


@pytest.mark.parametrize(
    ("damage", "dump", "words"),
    [
        ([], Dump.WRONG, "the dump is not what memory held at the crash, and nobody noticed"),
        ([OWN, DIGESTS, COPY], Dump.NONE, "the capture kernel took it that there was a dump, and nobody noticed that "
         "there is none"),
        ([OWN, KERNEL, COPY], Dump.WRONG, "corrupt bytes of kernel reached the capture kernel and nobody noticed"),
    ],
)  # fmt: skip
def test_what_nobody_noticed_is_told_without_what_no_capture_kernel_reads(
    damage: list[Damage], dump: Dump, words: str
) -> None:
    assert why(Outcome.SILENT, damage=damage, dump=dump) == words


TOOK = hashing_takes(0x1000)
OFF = "the purgatory's check was switched off (own bytes changed)"


@pytest.mark.parametrize(
    ("run", "checks", "words"),
    [
        (None, False, ""),
        (MISMATCH, False, ""),
        (ran(PurgatoryEnd.KERNEL), False, "the purgatory was loaded to check nothing"),
        (said(PurgatoryEnd.KERNEL, state=VerdictState.NOT_RUN), True, OFF),
        (said(PurgatoryEnd.KERNEL, state=VerdictState.CHECKING), True, OFF),
        (said(PurgatoryEnd.KERNEL, state=VerdictState.MATCH), True, ""),
        (said(PurgatoryEnd.KERNEL), True, ""),
        (said(PurgatoryEnd.KERNEL, state=VerdictState.TRAPPED), True, ""),
        (replace(ran(PurgatoryEnd.KERNEL), instructions=TOOK - 1), True, OFF),
        (replace(ran(PurgatoryEnd.KERNEL), instructions=TOOK), True, ""),
        (replace(said(PurgatoryEnd.KERNEL, state=VerdictState.MATCH), instructions=0), True, ""),
    ],
)
def test_a_purgatory_that_started_the_kernel_without_a_look_at_the_image_is_said_to_be_switched_off(
    run: PurgatoryRun | None, checks: bool, words: str
) -> None:
    silent = why(Outcome.SILENT, purgatory=run, checks=checks, damage=[KERNEL])
    assert silent == "corrupt bytes of kernel reached the capture kernel and nobody noticed" + (
        f": {words}" if words else ""
    )
    latent = why(Outcome.LATENT, purgatory=run, checks=checks)
    assert latent == (
        f"{words}; nothing else was harmed" if words else "bytes changed that nobody checks or reads"
    )


@pytest.mark.parametrize(
    ("writes", "names"),
    [
        ([wrote(0x3007)], "here"),
        ([wrote(0x3008)], "there"),
        ([wrote(0x3007, 2)], "here and there"),
        ([wrote(0x3008), wrote(0x3000), wrote(0x3009)], "there and here"),
        ([wrote(0x3000, changed=False), wrote(0x3010)], "own bytes"),
    ],
)
def test_what_of_the_purgatory_was_hit_is_named_once_each_in_the_order_of_the_writes(
    writes: list[Injection], names: str
) -> None:
    words = f"the purgatory's {names} changed, which made no difference to what it did"
    assert why(Outcome.LATENT, injections=writes) == words
    unknown = "the purgatory's own bytes changed, which made no difference to what it did"
    assert why(Outcome.LATENT, injections=writes, checker=None) == unknown


@pytest.mark.parametrize(
    ("writes", "words"),
    [
        ([wrote(0x4000), wrote(0x1000)], "bytes of kernel and page-digests changed that nothing had to be mended with"),
        ([wrote(0x5000), wrote(0x4000), wrote(0x5008)], "bytes of copy and page-digests changed that nothing had to be "
         "mended with"),
        ([wrote(0x5000), wrote(0x8FFF)], "bytes of copy changed that nothing had to be mended with"),
        ([wrote(0x1000)], "bytes changed that nobody checks or reads"),
        ([wrote(0x5000, changed=False)], "bytes changed that nobody checks or reads"),
        ([], "bytes changed that nobody checks or reads"),
        ([wrote(0x9000), wrote(0x9FFF), wrote(0x1000, changed=False)], "only the first kernel's own memory changed, "
         "before the crash, and a dump shows it so"),
        ([wrote(0x9000), wrote(0xBFFF)], "only the first kernel's own memory changed, before the crash, and a dump "
         "shows it so"),
        ([wrote(0x9FFF, 2)], "bytes changed that nobody checks or reads"),
        ([wrote(0x9000), wrote(0x8FFF)], "bytes changed that nobody checks or reads"),
    ],
)  # fmt: skip
def test_what_changed_and_did_no_harm_is_told_by_where_it_was(writes: list[Injection], words: str) -> None:
    loads = [PhysRange(0x9000, 0xA000), PhysRange(0xB000, 0xC000)]
    assert why(Outcome.LATENT, injections=writes, loads=loads) == words
