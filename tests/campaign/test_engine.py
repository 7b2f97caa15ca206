"""What is concluded about a fault against what full emulation finds, whatever was decided before."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
import stray_faults
from stray_faults import Marksman, fault, scenario, start

from kexecemu.campaign.engine import FaultDecider
from kexecemu.campaign.fault import CampaignFault, Decided, How
from kexecemu.campaign.hit import Hits, cut
from kexecemu.campaign.plan import can_write
from kexecemu.errors import InputError
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Injection, When
from kexecemu.stray.models import MODELS

FAULTS = 20  # of each scenario in every run of the tests
HASHED = int(os.environ.get("KEXECEMU_FAULTS", "500"))  # of each set of the purgatory's options, at least 500


@pytest.fixture(scope="module")
def checked() -> Iterator[FaultDecider]:
    engine = start(scenario())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def unchecked() -> Iterator[FaultDecider]:
    engine = start(scenario(purgatory="none"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def pte() -> Iterator[FaultDecider]:
    engine = start(scenario(protection="pte"))
    yield engine
    engine.close()


def both(engine: FaultDecider, token: str) -> Decided:
    """The conclusion, once full emulation has said the same."""
    one = fault(token)
    decided = engine.decide(one)
    assert told(engine.run(one)) == told(decided), token
    return decided


def told(one: Decided) -> tuple[object, ...]:
    """Everything but how it was found."""
    return one.outcome, one.dump, one.dump_reason, one.reported, one.segment, one.phys


def offset_of(engine: FaultDecider, phys: int) -> int:
    return phys - engine.golden.region.start


@pytest.mark.parametrize("name", stray_faults.SCENARIOS)
def test_a_conclusion_is_what_full_emulation_finds(name: str) -> None:
    engine = start(stray_faults.SCENARIOS[name])
    marksman = Marksman(engine, Random(f"6 {name}"))
    try:
        for _ in range(FAULTS):
            one = marksman.fault()
            decided, run = engine.decide(one), engine.run(one)
            assert told(decided) == told(run), f"{one.id}: {decided.how}"
    finally:
        engine.close()


@pytest.mark.parametrize("name", stray_faults.OPTIONS)
def test_no_damage_to_what_is_hashed_gets_by_silently(name: str) -> None:
    engine = start(stray_faults.scenario(stray_faults.OPTIONS[name]))
    random = Random(f"silent {name}")
    assert engine.space.places is not None
    hashed = [
        (segment.name, segment.memsz)
        for segment in engine.image.segments
        if all(segment.area.overlaps(one) for one in engine.image.sha_regions if one.overlaps(segment.area))
        and any(one.covers(segment.area) for one in engine.image.sha_regions)
    ]
    assert {"kernel", "initrd", "elfcorehdr"} <= {name for name, _ in hashed}
    try:
        for _ in range(max(HASHED, 500)):
            base, size = random.choice(hashed)
            model = random.choice(["bit-flip", "byte", "word64", "memset", "stuck-at-0"])
            variant = random.randrange(MODELS[model].variants)
            offset = random.randrange(size - MODELS[model].length(variant) + 1)
            one = CampaignFault(By.DMA, model, variant, base, offset, When.AFTER_LOAD)
            decided = engine.decide(one)
            if decided.outcome != "masked":  # what was there already
                assert decided.outcome == "detected", one.id
    finally:
        engine.close()


# -- conclusions that were wrong once ------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["capture-1000000000", "hashing-256"])
@pytest.mark.parametrize("by", ["dma", "late-cpu"])
def test_a_fault_whose_moment_never_comes_leaves_the_undisturbed_run(
    pte: FaultDecider, by: str, moment: str
) -> None:
    # stuck-at-0 is the same value in free memory, byte in the kernel is not, and a late CPU is refused.
    both(pte, f"{by}.byte.0.crashkernel+10.capture-1")
    for token in (f"{by}.byte.0.kernel+40.{moment}", f"{by}.stuck-at-0.0.crashkernel-free+10.{moment}"):
        assert both(pte, token).outcome == "captured"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_page_tables_have_their_say_until_the_jump(order: tuple[int, int]) -> None:
    engine = start(scenario(protection="pte"))
    tokens = [f"late-cpu.byte.1.{at}+100.during-panic" for at in ("crashkernel-free", "kernel")]
    try:
        free, kernel = (both(engine, token) for token in tokens)
        assert kernel.outcome == "prevented" and kernel.how is How.REFUSED
        # The CPU that panics meets its oops in the middle of the panic: nobody starts the image any more.
        assert both(engine, "cpu.byte.1.kernel+100.during-panic").outcome == "hung"
        decided = [engine.decide(fault(tokens[index])).outcome for index in order]
        assert decided == [(free, kernel)[index].outcome for index in order]
    finally:
        engine.close()


def test_a_store_over_the_edge_of_what_is_protected_is_refused_in_part(pte: FaultDecider) -> None:
    variant = next(one for one in range(MODELS["memset"].variants) if MODELS["memset"].length(one) == 1024)
    region, allowed = pte.golden.region, pte.victim.store_allowed
    edges = [
        page
        for page in range((region.start >> 12) + 1, region.end >> 12)
        if allowed(page - 1) != allowed(page)
    ]
    assert len(edges) > 1
    outcomes = set()
    for page in edges:
        below = offset_of(pte, page << 12) - 512
        decided = both(pte, f"cpu.memset.{variant + 10:x}.crashkernel+{below:x}.after-load")
        assert decided.how is How.RUN
        outcomes.add(decided.outcome)
    assert outcomes == {"latent", "prevented"}


def test_the_purgatory_s_live_stack_is_not_the_same_value_as_before_it_ran(checked: FaultDecider) -> None:
    purgatory = checked.image.segment("purgatory")
    checker = checked.image.purgatory
    assert purgatory is not None and checker is not None
    stack, size = checker.symbol_table()["purgatory_stack"]
    outcomes = set()
    for at in range(stack, stack + size, 8):
        if checked.golden.in_check.untouched(PhysRange.of(at, 8)):
            continue
        token = f"dma.stuck-at-0.2.purgatory+{at - purgatory.mem:x}.hashing-128"
        decided = both(checked, token)
        assert decided.how is How.RUN
        outcomes.add(decided.outcome)
    assert outcomes - {"masked", "captured", "latent"}, "none of it was in use"


@pytest.mark.parametrize("moment", ["hashing-128", "capture-90000"])
def test_a_bit_is_flipped_of_the_byte_that_is_there_then(checked: FaultDecider, moment: str) -> None:
    seen: list[Injection] = []
    golden = checked.golden
    memory = golden.memory if moment.startswith("hashing") else golden.entry_memory
    checked.run(fault("dma.byte.0.crashkernel-free+0.capture-1000000000"))
    after = checked.kernel.ram.read(golden.region.start, golden.region.size)
    changing = [offset for offset, byte in enumerate(after) if byte != memory[offset]]
    stale = 0
    for offset in changing[:: len(changing) // 40]:
        one = fault(f"dma.bit-flip.2.crashkernel+{offset:x}.{moment}")
        for way in (checked.decide, checked.run):
            way(one)
            assert checked.victim.end is not None
            seen += checked.victim.end.injections
        stale += seen[-1].before != memory[offset].to_bytes()
    assert all(one.before[0] ^ one.after[0] == 4 for one in seen)
    assert stale, "no byte had changed by then"


def test_one_write_over_the_border_of_two_segments_counts_for_both(unchecked: FaultDecider) -> None:
    """A run of changed bytes from unused memory into a segment that nobody reads there is damage to the segment."""
    initrd = unchecked.image.segment("initrd")
    assert initrd is not None
    variant = next(one for one in range(MODELS["memset"].variants) if MODELS["memset"].length(one) == 64)
    # 0xff over zeros and then the archive.
    token = f"dma.memset.{variant + 10:x}.crashkernel+{offset_of(unchecked, initrd.mem) - 32:x}.after-load"
    assert both(unchecked, token).outcome == "silent"
    assert both(unchecked, token.replace("after-load", "after-check")).outcome == "silent"


def test_what_the_model_writes_of_the_crash_region_is_not_untouched(checked: FaultDecider) -> None:
    """vmcoreinfo's copy is written anew in the panic, from outside of the machine."""
    safecopy = checked.image.vmcoreinfo_safecopy
    for distance in (0, 8, 0x100, 0xFF0):
        for writer in ("dma", "cpu"):
            both(
                checked, f"{writer}.byte.7.crashkernel+{offset_of(checked, safecopy) + distance:x}.after-load"
            )


def test_damage_to_the_verdict_s_place_after_the_check_is_none_to_the_image() -> None:
    engine = start(scenario({"CHOSEN": "y"}))
    try:
        record = engine.image.verdict_record
        assert record is not None
        for distance in range(-8, record.size + 8, 8):
            both(
                engine, f"dma.word64.4.crashkernel+{offset_of(engine, record.start) + distance:x}.after-check"
            )
    finally:
        engine.close()


@pytest.mark.parametrize("moment", ["during-panic", "after-load"])
def test_tables_that_an_early_check_has_built_are_built_again_alike(moment: str) -> None:
    engine = start(scenario({"EARLY_CHECK": "y"}))
    try:
        tables = engine.victim.page_tables
        assert tables is not None
        for phys in range(tables.start, tables.end, tables.size // 24 & ~7):
            both(engine, f"dma.byte.3.crashkernel+{offset_of(engine, phys):x}.{moment}")
    finally:
        engine.close()


def test_tables_that_are_in_use_while_it_hashes_are_not_overwritten_any_more(checked: FaultDecider) -> None:
    tables, ram = checked.victim.page_tables, checked.kernel.ram
    assert tables is not None
    checked.run(fault("dma.byte.1.crashkernel-free+0.after-check"))
    live = [phys for phys in range(tables.start, tables.end - 7, 8) if ram.read_u64(phys) & 1]
    for phys in (live[0], live[len(live) // 2], live[-1]):
        decided = both(checked, f"dma.stuck-at-0.0.crashkernel+{offset_of(checked, phys):x}.hashing-16")
        assert decided.how is How.RUN


@pytest.mark.parametrize("step", [1, 8, 16, 64, 255])
def test_a_write_while_hashing_is_seen_or_not_exactly_as_far_as_hashing_is(
    checked: FaultDecider, step: int
) -> None:
    for region in checked.image.sha_regions:
        middle = (region.start + region.end) // 2
        # Behind the Image's header lies the capture stub's record, which nobody reads but us.
        for phys in (region.start, region.start + 64, region.start + 256, middle, region.last):
            both(checked, f"dma.bit-flip.0.crashkernel+{offset_of(checked, phys):x}.hashing-{step}")


def test_what_the_capture_kernel_has_written_is_not_what_was_loaded_there(checked: FaultDecider) -> None:
    """Zeros over what was loaded as zeros are no same value where the stub's record is by then."""
    kernel = checked.image.segment("kernel")
    assert kernel is not None
    checked.run(fault("dma.byte.1.crashkernel-free+0.after-check"))
    now = checked.kernel.ram.read(kernel.mem, 512)
    offset = next(at for at, byte in enumerate(now) if byte & 1 and not kernel.buf[at])
    assert both(checked, f"dma.stuck-at-0.0.kernel+{offset:x}.capture-128").how is How.RUN


# -- any order -----------------------------------------------------------------------------------------------------


def test_what_a_purgatory_has_done_is_known_in_the_middle_of_it_to_the_instruction(
    checked: FaultDecider,
) -> None:
    """It counts: one that stops before it can have hashed has refused nothing."""
    checker, segment = checked.image.purgatory, checked.image.segment("purgatory")
    assert checker is not None and segment is not None
    offset = checker.symbol_phys("purgatory_kernel_entry") - segment.mem
    for step in (1, 37, 200):
        one = fault(f"dma.bit-flip.0.purgatory+{offset:x}.hashing-{step}")
        runs = []
        for follow in (checked.decide, checked.run):
            assert follow(one).how is How.RUN
            run = checked.victim.end.purgatory
            assert run is not None
            runs.append(run.instructions)
        assert runs[0] == runs[1]


def test_a_branch_to_where_a_mismatch_stops_is_no_refusal_for_either() -> None:
    engine = start(stray_faults.SCENARIOS["kexec-tools' purgatory"])
    checker, segment = engine.image.purgatory, engine.image.segment("purgatory")
    assert checker is not None and segment is not None
    # The first branch of purgatory(), one bit further: to its last message.
    offset = checker.symbol_phys("purgatory") + 0x20 + 1 - segment.mem
    try:
        assert both(engine, f"dma.bit-flip.0.purgatory+{offset:x}.after-load").outcome == "hung"
    finally:
        engine.close()


@pytest.mark.parametrize("early", [False, True], ids=["late check", "early check"])
@pytest.mark.parametrize("protection", ["none", "pte"])
def test_who_writes_and_when_decides_whatever_is_known_of_the_bytes(protection: str, early: bool) -> None:
    """Every writer at both moments into hashed bytes, as the first and as one of many of its kind.

    That damage to a segment is found is run once: neither a refused store nor one into memory that is not hashed may
    be taken for it, whoever came before.
    """
    one = scenario({"EARLY_CHECK": "y"} if early else {}, protection=protection)
    engine = start(one)
    stores = ("cpu", "late-cpu")
    base = "dma.bit-flip.3.initrd+1000"
    try:
        for order in ("first", "known"):
            for by in (*stores, "alias", "dma"):
                for moment in ("after-load", "during-panic"):
                    if not can_write(By(by), When(moment)):
                        continue
                    if order == "first":
                        engine._known.clear()  # as in a campaign that begins with this fault
                    for at in (0x1008, 0x1010):
                        found = both(engine, f"{by}.bit-flip.3.initrd+{at:x}.{moment}").outcome
                        if by not in stores or protection == "none":
                            assert found == "detected", (by, moment, order)
                        else:
                            assert found in ("prevented", "hung"), (by, moment, order)
            for moment in ("after-load", "during-panic"):
                assert both(engine, f"{base}.{moment}").outcome == "detected"
    finally:
        engine.close()


@pytest.mark.parametrize("moment", ["after-load", "during-panic", "after-check", "capture-1000"])
@pytest.mark.parametrize("options", [{}, {"EARLY_CHECK": "y"}], ids=["late check", "early check"])
def test_the_same_value_is_that_of_the_moment(options: dict[str, str], moment: str) -> None:
    """Control pages, vmcoreinfo's copy and the purgatory are written on the way: not hashed, so never checked either.

    Of each the first and the last byte, and those that a moment has otherwise than the one before it.
    """
    engine = start(scenario(options))
    assert engine.space.places is not None
    hits = Hits(engine.victim, engine.space.places)
    golden, purgatory = engine.golden, engine.image.segment("purgatory")
    assert purgatory is not None
    copy = PhysRange.of(engine.image.vmcoreinfo_safecopy, 4096)
    seen: Counter[str] = Counter()
    try:
        for area in (*engine.image.control_pages, copy, purgatory.area):
            held = [engine.victim.unloaded_memory(area), engine.victim.base_memory(area)]
            held += [golden.held(area), golden.held(area, at_entry=True)]
            places = {0, area.size - 1}
            for number, (one, other) in enumerate(pairwise(held)):
                changed = [at for at in range(area.size) if one[at] != other[at]]
                seen[f"{area is copy} {number}"] += len(changed)
                places.update(changed[:1] + changed[-1:] if number else [])
            for at in sorted(places):
                offset = offset_of(engine, area.start) + at
                for value in sorted({one[at] for one in held}):
                    decided = both(engine, f"dma.byte.{value:x}.crashkernel+{offset:x}.{moment}")
                    (injection,) = engine.victim.end.injections
                    assert decided.how is not How.SAME_VALUE or not injection.changed, decided.fault.id
                    hit = hits.of(decided.fault)
                    assert not hits.is_known(hit) or hit.before == injection.before, decided.fault.id
        # Some of it does change after the load, and on the way through the check.
        assert seen["True 1"] and seen["False 2"]
    finally:
        engine.close()


@pytest.mark.parametrize("policy", ["stop", "boot", "repair"])
def test_what_becomes_of_the_dump_behind_an_objection_depends_on_the_byte(policy: str) -> None:
    """The last byte of a segment, which nobody reads, and its first ones, in either order."""
    options = {"POLICY": policy} | ({"COPY": "y"} if policy == "repair" else {})
    dumps = set()
    for forward in (True, False):
        engine = start(scenario(options))
        try:
            for name in ("kernel", "elfcorehdr", "initrd"):
                segment = engine.image.segment(name)
                assert segment is not None
                offsets = [segment.memsz - 1, 0, 2, 4, 0x18, 0x38]
                for offset in offsets if forward else reversed(offsets):
                    decided = both(engine, f"dma.bit-flip.1.{name}+{offset:x}.after-load")
                    assert decided.outcome == "detected"
                    dumps.add(decided.dump)
        finally:
            engine.close()
    assert dumps == {"stop": {"none"}, "boot": {"none", "true", "wrong"}, "repair": {"true"}}[policy]


@pytest.mark.parametrize("by", ["cpu", "late-cpu"])
def test_a_store_at_either_edge_of_a_hashed_segment_is_refused_like_one_inside(
    pte: FaultDecider, by: str
) -> None:
    """Its first and last bytes, and those over an edge of a page in it, with what damage leads to known before."""
    hashed = [one for one in pte.image.segments if pte._hash.place_of(one.area) is not None]
    assert {"kernel", "initrd"} <= {one.name for one in hashed}
    for segment in hashed:
        pte.decide(fault(f"dma.bit-flip.3.{segment.name}+10.during-panic"))
        for model, size in (("bit-flip", 1), ("word64", 8)):
            over = [0x1000 - size // 2] if segment.memsz > 0x1000 else []
            for offset in (0, segment.memsz - size, *over):
                decided = both(pte, f"{by}.{model}.3.{segment.name}+{offset:x}.during-panic")
                assert decided.outcome in ("prevented", "hung"), decided.fault.id


def decisions(engine: FaultDecider, faults: list[CampaignFault]) -> list[Decided]:
    return [engine.decide(one) for one in faults]


@pytest.mark.parametrize("name", ["as it ships", "everything", "readonly", "no purgatory"])
def test_what_is_decided_does_not_depend_on_what_was_decided_before(name: str) -> None:
    one, other = start(stray_faults.SCENARIOS[name]), start(stray_faults.SCENARIOS[name])
    random = Random(name)
    marksman = Marksman(one, random)
    faults = [marksman.fault() for _ in range(40)]
    try:
        first = decisions(one, faults)
        again = faults[:]
        random.shuffle(again)
        for each in again[:5]:
            other.run(each)
        second = {decided.fault: decided for decided in decisions(other, again)}
        assert first == [second[each] for each in faults]
        assert first == decisions(one, faults)
        assert one.config_hash == other.config_hash
    finally:
        one.close()
        other.close()


def test_without_the_native_library_everything_is_decided_alike(
    checked: FaultDecider, monkeypatch: pytest.MonkeyPatch
) -> None:
    marksman = Marksman(checked, Random("native"))
    faults = [marksman.fault() for _ in range(15)]
    expected = decisions(checked, faults)
    monkeypatch.setenv("KEXECEMU_NO_NATIVE", "1")
    engine = start(scenario())
    try:
        assert engine.kernel.board.boot_cpu.counter.library is None
        assert decisions(engine, faults) == expected
    finally:
        engine.close()


def test_a_run_leaves_the_machine_as_it_was(checked: FaultDecider) -> None:
    def state() -> object:
        checked.victim.snapshots.restore(checked.golden.loaded)
        taken = checked.victim.snapshots.take()
        return taken.pages, checked.kernel.board.time, checked.kernel.board.uart.text

    before = state()
    marksman = Marksman(checked, Random("machine"))
    for _ in range(10):
        checked.run(marksman.fault())
    assert state() == before


# -- small things --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("dma.no-model.0.kernel+0.after-load", "no fault model"),
        ("dma.bit-flip.8.kernel+0.after-load", "8"),
        ("dma.bit-flip.0.basement+0.after-load", "no place"),
        ("dma.bit-flip.0.dtb+ffffffff.after-load", "has only"),
    ],
)
def test_a_fault_that_cannot_be_is_refused(checked: FaultDecider, token: str, words: str) -> None:
    for ask in (checked.decide, checked.run):
        with pytest.raises(InputError, match=words):
            ask(fault(token))


def test_a_scenario_with_faults_of_its_own_or_a_linux_is_no_campaign() -> None:
    with pytest.raises(InputError, match="no faults of its own"):
        start(scenario(fault=[{"at": "kernel", "write": "ff"}]))
    with pytest.raises(InputError, match="capture stub"):
        start(scenario(load={"capture": "linux"}))


def test_cutting_keeps_every_byte_and_leaves_no_border_inside() -> None:
    random = Random(3)
    for _ in range(300):
        starts = random.sample(range(0, 200, 2), 6)
        areas = [PhysRange(one, one + random.randrange(1, 9)) for one in starts]
        borders = sorted(random.sample(range(210), random.randrange(12)))
        pieces = cut(areas, borders)
        assert sorted(byte for one in areas for byte in range(one.start, one.end)) == sorted(
            byte for one in pieces for byte in range(one.start, one.end)
        )
        assert all(not one.start < border < one.end for one in pieces for border in borders)
        assert all(one.size for one in pieces)


@pytest.mark.parametrize(
    ("token", "outcome"),
    [
        ("dma.bit-flip.0.initrd+100.during-load", "masked"),  # the load writes over it
        ("dma.bit-flip.0.crashkernel-free+100.during-load", "latent"),
        ("alias.memset.6.below-elfcorehdr+5.during-load", "masked"),  # zeros over zeros, and a segment beside
        ("cpu.memset.b.below-initrd+4.during-load", "masked"),
        ("cpu.memset.b.above-initrd+0.during-load", "latent"),
    ],
)
def test_a_write_before_the_load_is_there_only_where_the_load_writes_nothing(
    pte: FaultDecider, token: str, outcome: str
) -> None:
    assert both(pte, token).outcome == outcome
