"""How purgatory and capture kernel ended, told from a machine in each state: what is enough, and one less."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.crash.dump import Dump
from kexecemu.crash.end import End
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import (
    LINUX_ENDS,
    CaptureEnd,
    PurgatoryEnd,
    PurgatoryRun,
    capture_end,
    entry_violations,
    hashing_takes,
    itself_changed,
    purgatory_end,
    told_to_hash,
)
from kexecemu.crash.stub import CaptureRecord, CaptureState, Violation
from kexecemu.crash.verdict import Verdict, VerdictFlags, VerdictState
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.linux.capture import LinuxEnd
from kexecemu.machine.cpu.exceptions import GuestException, Pstate
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.timeline import Timeline

BASE, BACK, KERNEL = 0x40000000, 0x40008000, 0x40009000
B_SELF, WFI, WFE, NOP = 0x14000000, 0xD503207F, 0xD503205F, 0xD503201F
RUN = PurgatoryRun(PurgatoryEnd.KERNEL, 0, 0, None)
VERDICTS = {state: Verdict(state, 0, b"", b"") for state in VerdictState}
MISMATCH, HUNG = PurgatoryEnd.MISMATCH, PurgatoryEnd.HUNG


class Foreign:
    """A linked purgatory of 0x200 bytes of file in 0x400 bytes of memory, which is entered at 0x40."""

    def __init__(self, **symbols: tuple[int, int]) -> None:
        self.buf = bytearray(0x200)
        self.segment = Segment("purgatory", self.buf, BASE, 0x400)
        self.entry = BASE + 0x40
        self.symbols = {name: (BASE + at, size) for name, (at, size) in symbols.items()}
        self.ram = Ram([PhysRange(BASE - 0x1000, BASE + 0x10000)])
        self.spins = True

    def load(self, **words: int) -> Foreign:
        """These instructions, each at _OFFSET in hex; then all of it is copied into memory."""
        for at, word in words.items():
            place = int(at[1:], 16)
            self.buf[place : place + 4] = word.to_bytes(4, "little")
        self.ram.write(BASE, bytes(self.buf))
        return self

    def has_symbol(self, name: str) -> bool:
        return name in self.symbols

    def symbol_phys(self, name: str) -> int:
        return self.symbols[name][0]

    def symbol_table(self) -> dict[str, tuple[int, int]]:
        return self.symbols

    @property
    def image(self) -> Kimage:
        regions = [PhysRange.of(0x1000, 0x800), PhysRange.of(0x9000, 0x100)]
        return Kimage(0, kernel_entry=KERNEL, sha_regions=regions, purgatory=self)  # type: ignore[arg-type]

    def ends(
        self, stop: CpuStop, instructions: int = 1 << 20, verdict: Verdict | None = None, **more: Any
    ) -> PurgatoryEnd:
        cpu: Any = SimpleNamespace(ram=self.ram, spins=lambda: self.spins, word_at=self.ram.read_u32)
        return purgatory_end(cpu, self.image, stop, instructions, verdict, BACK, **more)


def idle(at: int) -> CpuStop:
    return CpuStop(CpuStopKind.IDLE, BASE + at + 4, 9)


def spun(at: int) -> CpuStop:
    return CpuStop(CpuStopKind.DEADLINE, BASE + at, 9)


def fault(pc: int) -> CpuStop:
    abort = GuestException(0, 5, "sync", 0x96000047, 0xFFFF000000000000, pc, 1, 0x3C5)
    return CpuStop(CpuStopKind.FAULT, 0x200, 9, abort)


# -- by where it stands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "verdict", "end"),
    [
        (CpuStop(CpuStopKind.LEFT, KERNEL, 9), None, "KERNEL"),
        (CpuStop(CpuStopKind.LEFT, KERNEL, 9), "MISMATCH", "KERNEL"),
        (CpuStop(CpuStopKind.LEFT, KERNEL + 4, 9), None, "ELSEWHERE"),
        (CpuStop(CpuStopKind.LEFT, BACK, 9), None, "ELSEWHERE"),
        (CpuStop(CpuStopKind.LEFT, BACK, 9), "CHECKING", "ELSEWHERE"),
        (CpuStop(CpuStopKind.LEFT, BACK, 9), "MISMATCH", "RETURNED"),
        (CpuStop(CpuStopKind.LEFT, BACK, 9), "TRAPPED", "RETURNED"),
        # Where nothing can be fetched: the kernel's entry is no kernel then.
        (fault(BACK), "MISMATCH", "RETURNED"),
        (fault(BACK), None, "ELSEWHERE"),
        (fault(KERNEL), None, "ELSEWHERE"),
        (fault(BASE + 0x400), None, "ELSEWHERE"),
        (fault(BASE + 0x3FC), None, "TRAPPED"),
        (fault(BASE), "MISMATCH", "TRAPPED"),
    ],
)
def test_a_purgatory_that_is_left_or_faults_ends_by_where(
    stop: CpuStop, verdict: str | None, end: str
) -> None:
    found = VERDICTS[VerdictState[verdict]] if verdict else None
    for own in (Foreign(), Foreign(purgatory_verdict=(0x100, 88))):
        assert own.ends(stop, verdict=found) is PurgatoryEnd[end]


@pytest.mark.parametrize("trapped", [False, True])
def test_one_with_a_record_ends_as_that_says_and_one_without_by_its_vectors(trapped: bool) -> None:
    ours, foreign = (Foreign(**some).load(_80=WFI) for some in ({"purgatory_verdict": (0x100, 88)}, {}))
    for state, verdict in VERDICTS.items():
        end = {VerdictState.MISMATCH: MISMATCH, VerdictState.TRAPPED: PurgatoryEnd.TRAPPED}.get(state, HUNG)
        assert ours.ends(idle(0x80), verdict=verdict, trapped=trapped) is end
    assert ours.ends(idle(0x80), trapped=trapped) is HUNG
    assert foreign.ends(idle(0x80), trapped=trapped) is (PurgatoryEnd.TRAPPED if trapped else MISMATCH)
    assert foreign.ends(idle(0x80)) is MISMATCH


@pytest.mark.parametrize(
    ("stop", "words", "end"),
    [
        (idle(0x80), {"_80": WFI}, MISMATCH),
        (idle(0x80), {"_80": WFE}, MISMATCH),
        (idle(0x80), {"_80": NOP}, HUNG),
        (idle(0x80), {"_84": WFI}, HUNG),
        (spun(0x80), {"_80": B_SELF}, MISMATCH),
        (spun(0x80), {"_80": WFE}, MISMATCH),
        (spun(0x84), {"_80": WFE, "_84": B_SELF - 1 & 0x17FFFFFF}, MISMATCH),  # WFE, and back to it
        (spun(0x84), {"_80": WFI, "_84": NOP}, MISMATCH),
        (spun(0x84), {"_80": NOP, "_84": NOP}, HUNG),
        (spun(0x88), {"_80": WFE, "_88": NOP}, HUNG),
        # The first and the last word of its file, and beyond.
        (idle(0), {"_0": WFI}, MISMATCH),
        (idle(0x1FC), {"_1fc": WFI}, MISMATCH),
        (idle(0x200), {}, HUNG),
        (idle(0x3FC), {}, HUNG),
        (spun(0), {"_0": NOP}, HUNG),
    ],
)
def test_a_foreign_one_refuses_in_a_loop_that_it_was_loaded_with(
    stop: CpuStop, words: dict[str, int], end: PurgatoryEnd
) -> None:
    assert Foreign().load(**words).ends(stop) is end
    stray = Foreign().load(**words)
    place = next((int(at[1:], 16) for at in words), 0x200)
    stray.ram.write_u32(BASE + place, B_SELF if words.get(f"_{place:x}") != B_SELF else WFI)
    assert stray.ends(stop) is HUNG
    busy = Foreign().load(**words)
    busy.spins = False
    assert busy.ends(stop) is (end if stop.kind is CpuStopKind.IDLE else HUNG)


def test_a_loop_before_its_first_word_is_none_that_it_was_loaded_with() -> None:
    own = Foreign().load(_1f8=WFI, _1fc=WFI)
    for at in (-4, -8):
        own.ram.write_u32(BASE + at, WFI)
        assert own.ends(idle(at)) is HUNG


@pytest.mark.parametrize(
    ("symbols", "refused"),
    [
        ({"purgatory_stop": (0x80, 8)}, [0x80, 0x84]),
        ({"purgatory_stop": (0x80, 8), "purgatory": (0x100, 0x10)}, [0x80, 0x84]),
        ({"purgatory": (0x78, 0x10)}, [0x78, 0x7C, 0x80, 0x84]),
        ({"purgatory": (0x100, 0)}, list(range(0x70, 0x94, 4))),  # of no size: it may be anywhere
        ({}, list(range(0x70, 0x94, 4))),
    ],
)
def test_its_loop_is_where_its_symbols_say_that_it_stops(
    symbols: dict[str, tuple[int, int]], refused: list[int]
) -> None:
    own = Foreign(**symbols).load(**{f"_{at:x}": WFI for at in range(0x70, 0x94, 4)})
    assert [at for at in range(0x70, 0x94, 4) if own.ends(idle(at)) is MISMATCH] == refused


# -- by what it can have hashed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 119, 120, 0x1000, 0x900])
def test_a_hash_takes_16_instructions_for_each_block_of_what_is_padded_with_a_bit_and_its_length(
    size: int,
) -> None:
    padded = size + 1 + (55 - size) % 64 + 8
    assert padded % 64 == 0 and padded - size >= 9 and hashlib.sha256().block_size == 64
    assert hashing_takes(size) == 16 * (padded // 64)


@pytest.mark.parametrize(
    ("symbols", "table", "size"),
    [
        ({}, {}, 0x900),
        ({"sha256_regions": (0xC0, 256)}, {0: 0x800, 1: 0x100}, 0x900),
        ({"purgatory_sha_regions": (0xC0, 256)}, {0: 0x800, 1: 0x40}, 0x840),
        ({"purgatory_sha_regions": (0xC0, 256), "sha256_regions": (0x140, 256)}, {0: 0, 1: 0x101}, 0x100),
        ({"sha256_regions": (0xC0, 256)}, {0: 1 << 60, 1: 0}, 0x800),
        ({"sha256_regions": (0xC0, 256)}, {0: 5, 1: 6}, 11),
    ],
)
def test_it_refuses_once_it_can_have_hashed_what_its_table_has_and_was_loaded(
    symbols: dict[str, tuple[int, int]], table: dict[int, int], size: int
) -> None:
    own = Foreign(**symbols).load(_80=WFI)
    for number, length in table.items():
        own.ram.write_u64(BASE + 0xC0 + 16 * number + 8, length)
    assert told_to_hash(own.ram, own.image) == size
    assert own.ends(idle(0x80), hashing_takes(size)) is MISMATCH
    assert own.ends(idle(0x80), hashing_takes(size) - 1) is HUNG


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("at", [0x3F, 0x40, 0x100, 0x15F, 0x160])
def test_one_with_a_digest_of_itself_refuses_sooner_where_that_or_what_it_covers_changed(
    stored: bool, at: int
) -> None:
    own = Foreign(purgatory_self_digest=(0x140, 32))
    own.buf[0x140:0x160] = b"d" * 32 if stored else bytes(32)
    own.load(_80=WFI)
    assert not itself_changed(own.ram, own)  # type: ignore[arg-type]
    own.ram.write(BASE + at, b"\x5a")
    changed = stored and 0x40 <= at < 0x160
    assert itself_changed(own.ram, own) is changed  # type: ignore[arg-type]
    least = hashing_takes(0x120 if changed else 0x900)
    assert own.ends(idle(0x80), least) is MISMATCH
    assert own.ends(idle(0x80), least - 1) is HUNG


def test_one_without_such_a_digest_says_nothing_of_itself() -> None:
    own = Foreign().load(_80=WFI)
    own.ram.write(BASE, b"\x5a" * 0x60)
    assert not itself_changed(own.ram, own)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("power", "act"),
    [(None, "stopped"), ("system_off", "switched the machine off"), ("system_reset", "reset the machine"),
     ("cpu_off", "switched its CPU off")],
)  # fmt: skip
def test_what_it_did_in_the_end_is_told_by_the_power_that_it_asked_for(power: str | None, act: str) -> None:
    assert replace(RUN, power=power).act == act


# -- the end of it all -------------------------------------------------------------------------------------------


def test_an_end_has_no_dump_and_nobody_objected_unless_it_says_so() -> None:
    end = End(Outcome.HUNG, "why", [], [], "", Timeline(lambda: 0), 0)
    assert (end.dump, end.dump_reason, end.capture, end.vmcore) == (Dump.NONE, "", None, None)
    assert (end.verdict, end.reported) == (None, False)
    assert (replace(end, purgatory=RUN).verdict, replace(end, purgatory=RUN).reported) == (None, False)
    for state, verdict in VERDICTS.items():
        for said in (verdict, replace(verdict, flags=VerdictFlags.REPAIRED)):
            told = replace(end, purgatory=replace(RUN, verdict=said))
            assert told.verdict is said and told.reported is said.objects
            assert told.purgatory is not None
            assert told.purgatory.content is (state is VerdictState.MATCH)
    assert "vmcore" not in repr(end) and "timeline" in repr(end)


# -- the capture kernel ------------------------------------------------------------------------------------------

RECORD = CaptureRecord(
    CaptureState.DONE, Violation(0), (0, 0, 0, 0), 0, 0, 0, 0, PhysRange(0, 0), (0, 0), ((0, 0), (0, 0)), 0, 0, 0
)  # fmt: skip
BY_STATE = {
    CaptureState.DONE: CaptureEnd.DONE,
    CaptureState.NO_DUMP: CaptureEnd.NO_DUMP,
    CaptureState.CONTRACT_VIOLATED: CaptureEnd.BAD_ENTRY,
    CaptureState.TRAPPED: CaptureEnd.TRAPPED,
}


def test_each_end_of_a_linux_is_one_of_a_capture_kernel() -> None:
    names = "DONE DONE, NO_DUMP NO_DUMP, HEADERS HEADERS, OFF OFF, PANIC PANIC, LOST TRAPPED, STUCK HUNG, BUDGET HUNG"
    pairs = [one.split() for one in names.split(", ")]
    assert {LinuxEnd[linux]: CaptureEnd[end] for linux, end in pairs} == LINUX_ENDS


@pytest.mark.parametrize("met", [None, fault(KERNEL).fault])
@pytest.mark.parametrize("kind", CpuStopKind)
def test_a_stub_ends_by_its_record_unless_it_faulted_ran_away_or_used_up_its_budget(
    kind: CpuStopKind, met: GuestException | None
) -> None:
    ended = {
        CpuStopKind.FAULT: CaptureEnd.TRAPPED,
        CpuStopKind.LEFT: CaptureEnd.TRAPPED if met else CaptureEnd.ELSEWHERE,
        CpuStopKind.DEADLINE: CaptureEnd.HUNG,
    }.get(kind)
    stop = CpuStop(kind, KERNEL, 9)
    assert capture_end(stop, None, met) is (ended or CaptureEnd.HUNG)
    for state in CaptureState:
        own = BY_STATE.get(state, CaptureEnd.HUNG)
        expected = own if state is CaptureState.TRAPPED else ended or own
        assert capture_end(stop, replace(RECORD, state=state), met) is expected
        violated = replace(RECORD, state=state, violations=Violation.MMU_ON)
        bad = expected is CaptureEnd.DONE
        assert capture_end(stop, violated, met) is (CaptureEnd.BAD_ENTRY if bad else expected)


def test_what_is_wrong_at_a_kernel_s_entry_is_told_one_by_one() -> None:
    def wrong(
        x: tuple[int, int, int, int] = (0x5000, 0, 0, 0), sctlr: int = 0, pstate: int = 0x3C5
    ) -> list[str]:
        cpu: Any = SimpleNamespace(x=lambda number: x[number], sysreg={"SCTLR_EL1": sctlr}.get, pstate=pstate)
        return entry_violations(cpu, Kimage(0, dtb_mem=0x5000))

    assert wrong() == wrong(sctlr=0x30D00800) == []
    assert wrong((0x5008, 0, 0, 0)) == ["x0 is 0x5008, not the device tree at 0x5000"]
    assert wrong((0x5000, 1, 0x20, 3)) == ["x1 is 0x1, not 0", "x2 is 0x20, not 0", "x3 is 0x3, not 0"]
    assert wrong(sctlr=0x30D00801) == ["the MMU is on"]
    for bit in (0x40, 0x80, 0x100, 0x200):
        assert wrong(pstate=0x3C5 & ~bit) == ["exceptions are not all masked"]
    assert Pstate.DAIF == 0x3C0
