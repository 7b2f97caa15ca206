"""What can be concluded is, without a run, and what has to be run begins where it cannot have mattered yet.

That what is concluded is right, test_engine.py finds by running it all; these are about what is not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stray_faults
from stray_faults import fault, scenario, start

from kexecemu.campaign.engine import FaultDecider
from kexecemu.campaign.fault import MOMENTS, How
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, When

MACHINES = {
    "checked": scenario(),
    "pte": scenario(protection="pte"),
    "none": scenario(purgatory="none"),
    "early": scenario({"EARLY_CHECK": "y"}),
    "boot": scenario({"POLICY": "boot"}),
    "repair": scenario({"POLICY": "repair", "COPY": "y"}),
    "kexec-tools": stray_faults.SCENARIOS["kexec-tools' purgatory"],
    "map": scenario(way="purgatory-trans-pgd"),
}
HASHED = ("kernel+9000", "initrd+1000", "dtb+40", "elfcorehdr+f00")


@pytest.fixture(scope="module")
def machine() -> Iterator[Callable[[str], FaultDecider]]:
    made: dict[str, FaultDecider] = {}

    def get(name: str) -> FaultDecider:
        if name not in made:
            made[name] = start(MACHINES[name])
        return made[name]

    yield get
    for engine in made.values():
        engine.close()


class Spy:
    """What an engine runs, and how often it looks at a fault the general way."""

    def __init__(self, engine: FaultDecider, patch: pytest.MonkeyPatch) -> None:
        self.late: list[bool] = []
        self.general = 0
        run, of = engine.victim.run, engine._hits.of

        def spied_run(write: Fault, area: PhysRange, *, late: bool) -> Any:
            self.late.append(late)
            return run(write, area, late=late)

        def spied_of(one: Any) -> Any:
            self.general += 1
            return of(one)

        patch.setattr(engine.victim, "run", spied_run)
        patch.setattr(engine._hits, "of", spied_of)


# By the machine and the moment: a letter for each of a hashed byte, free memory, and the purgatory's code.
# h by hash, u unread, o overwritten, r run, - there is no purgatory to hash.
WAYS = {
    "after-load": {
        "checked": "hur",
        "pte": "hur",
        "none": "uu-",
        "early": "hur",
        "boot": "rur",
        "repair": "hur",
    },
    "during-panic": {
        "checked": "hur",
        "pte": "hur",
        "none": "uu-",
        "early": "hur",
        "boot": "rur",
        "repair": "hur",
    },
    "hashing-0": {"checked": "hur", "pte": "hur", "early": "hur", "boot": "rur", "repair": "hur"},
    "after-check": dict.fromkeys(MACHINES, "uuu") | {"none": "uu-"},
    "capture-1000": dict.fromkeys(MACHINES, "uuu") | {"none": "uu-"},
    "during-load": dict.fromkeys(MACHINES, "ouo") | {"none": "ou-"},
}
HOW = {"h": How.HASH, "u": How.UNREAD, "o": How.OVERWRITTEN, "r": How.RUN}


@pytest.mark.parametrize("name", ["checked", "pte", "none", "early", "boot", "repair"])
def test_each_place_at_each_moment_is_concluded_in_its_way_and_nothing_is_run_twice(
    name: str, machine: Callable[[str], FaultDecider], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = machine(name)
    places = [*HASHED[1:], "crashkernel-free+1000", "purgatory+10"]
    for moment, ways in WAYS.items():
        if name not in ways:
            continue
        letters = ways[name][0] * 3 + ways[name][1:]
        for place, letter in zip(places, letters, strict=True):
            if letter == "-":
                continue
            one = fault(f"dma.bit-flip.3.{place}.{moment}")
            assert engine.decide(one).how is HOW[letter], (place, moment)
            with pytest.MonkeyPatch.context() as patch:
                spy = Spy(engine, patch)
                assert engine.decide(one).how is HOW[letter]
                assert spy.late == ([True] if letter == "r" else []), (place, moment)


def test_a_campaign_s_own_run_begins_at_the_load(machine: Callable[[str], FaultDecider]) -> None:
    engine = machine("checked")
    for token in ("dma.bit-flip.3.initrd+1000.after-check", "dma.bit-flip.3.purgatory+10.hashing-128"):
        with pytest.MonkeyPatch.context() as patch:
            spy = Spy(engine, patch)
            assert engine.run(fault(token)).how is How.RUN and spy.late == [False]


@pytest.mark.parametrize(
    ("name", "token", "how"),
    [
        ("checked", "dma.stuck-at-0.0.crashkernel-free+10.after-load", How.SAME_VALUE),
        ("checked", "dma.stuck-at-0.0.initrd+18800.after-load", How.SAME_VALUE),  # behind its file
        ("checked", "cpu.stuck-at-0.0.initrd+18800.during-panic", How.SAME_VALUE),
        ("checked", "dma.stuck-at-0.0.initrd+18800.after-check", How.SAME_VALUE),
        ("checked", "dma.stuck-at-0.0.initrd+18800.hashing-128", How.SAME_VALUE),
        ("checked", "dma.stuck-at-0.0.crashkernel-free+10.during-load", How.SAME_VALUE),
        ("pte", "cpu.bit-flip.3.initrd+1000.after-load", How.REFUSED),
        ("pte", "late-cpu.bit-flip.3.initrd+1000.during-panic", How.REFUSED),
        ("pte", "late-cpu.word64.3.initrd+ffc.during-panic", How.REFUSED),
        ("pte", "alias.bit-flip.3.initrd+1000.after-load", How.HASH),
        ("pte", "cpu.bit-flip.3.crashkernel-free+1000.after-load", How.UNREAD),
        ("checked", "dma.bit-flip.3.initrd+1000.hashing-128", How.HASH),  # what is hashed late
        ("checked", "dma.bit-flip.3.kernel+9000.hashing-200", How.UNREAD),  # and what was hashed by then
        ("none", "dma.bit-flip.3.kernel+9000.after-load", How.UNREAD),
        ("none", "dma.bit-flip.3.kernel+0.after-load", How.RUN),
        ("checked", "dma.bit-flip.3.crashkernel-free+10.hashing-256", How.RUN),  # which never comes
        ("checked", "dma.memset.f.initrd+1000.after-load", How.HASH),  # 256 bytes
        ("checked", "dma.word64.3.initrd+18ff8.after-load", How.HASH),
        ("kexec-tools", "dma.bit-flip.3.crashkernel-free+1000.after-load", How.UNREAD),
        ("kexec-tools", "dma.bit-flip.3.initrd+1000.after-check", How.UNREAD),
        ("map", "dma.bit-flip.3.crashkernel-free+1000.after-load", How.UNREAD),
        ("map", "dma.bit-flip.3.initrd+1000.after-load", How.HASH),
    ],
)
def test_a_conclusion_needs_no_more_than_what_it_rests_on(
    name: str, token: str, how: How, machine: Callable[[str], FaultDecider]
) -> None:
    assert machine(name).decide(fault(token)).how is how


@pytest.mark.parametrize(("name", "built"), [("checked", "oorru"), ("early", "rrrru")])
def test_the_purgatory_s_tables_are_overwritten_until_they_are_built_and_unread_where_none_is(
    name: str, built: str, machine: Callable[[str], FaultDecider]
) -> None:
    """An early check has built them once before, so that what is there is read."""
    engine = machine(name)
    tables, golden = engine.victim.page_tables, engine.golden
    assert tables is not None
    first = next(one for one in golden.in_check.touched() if tables.covers(one)).start
    for at, letters in ((first, built), (tables.end - 8, "uuuuu"), (tables.end - 0x1000, "uuuuu")):
        for letter, moment in zip(
            letters, ("after-load", "during-panic", "hashing-0", "hashing-16", "after-check"), strict=True
        ):
            one = fault(f"dma.byte.3.crashkernel+{at - golden.region.start:x}.{moment}")
            assert engine.decide(one).how is HOW[letter], (hex(at), moment)


# -- the common case ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checked", "early", "repair", "map"])
def test_a_small_write_into_what_is_hashed_is_looked_up_once_its_like_was_run(
    name: str, machine: Callable[[str], FaultDecider], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = machine(name)
    for place in HASHED:
        base = place.partition("+")[0]
        size = next(one.memsz for one in engine.image.segments if one.name == base)
        for by, moment in (
            ("dma", "after-load"),
            ("cpu", "after-load"),
            ("alias", "during-panic"),
            ("cpu", "during-panic"),
        ):
            engine.decide(fault(f"{by}.bit-flip.2.{place}.{moment}"))
            with pytest.MonkeyPatch.context() as patch:
                spy = Spy(engine, patch)
                for word in (
                    f"bit-flip.7.{place}", f"memset.d.{place}", f"bit-flip.0.{base}+0", f"byte.fe.{base}+{size - 1:x}",
                    f"memset.d.{base}+{size - 64:x}",
                ):  # fmt: skip
                    assert engine.decide(fault(f"{by}.{word}.{moment}")).how is How.HASH
                assert (spy.late, spy.general) == ([], 0), (place, by, moment)
                for word in (
                    f"memset.e.{place}",
                    f"memset.d.{base}+{size - 63:x}",
                ):  # 128 bytes; over its end
                    engine.decide(fault(f"{by}.{word}.{moment}"))
                assert spy.general == 2
                engine.decide(fault(f"dma.bit-flip.2.{place}.hashing-0"))
                assert spy.general == 3


def test_the_common_case_says_the_segment_and_the_place_and_nothing_of_what_is_refused(
    machine: Callable[[str], FaultDecider],
) -> None:
    engine = machine("pte")
    initrd = engine.image.segment("initrd")
    assert initrd is not None
    for token in ("dma.bit-flip.1.initrd+1000.after-load", "dma.bit-flip.2.initrd+1234.after-load"):
        decided = engine.decide(fault(token))
        assert (decided.segment, decided.phys) == ("initrd", initrd.mem + decided.fault.offset)
    assert engine.decide(fault("cpu.bit-flip.2.initrd+1234.after-load")).how is How.REFUSED
    assert set(engine._quick) == {"kernel", "elfcorehdr", "initrd", "dtb"}
    assert machine("none")._quick == {}


# -- from where a run begins -------------------------------------------------------------------------------------


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("reached", [True, False])
def test_a_run_begins_at_the_last_moment_at_which_the_write_cannot_have_mattered(
    granted: bool, reached: bool, machine: Callable[[str], FaultDecider]
) -> None:
    engine = machine("checked")
    golden, victim = engine.golden, engine.victim
    initrd, copy = engine.image.segment("initrd"), engine.image.vmcoreinfo_safecopy
    assert initrd is not None
    inside, outside, own = PhysRange.of(initrd.mem, 8), PhysRange.of(0x41000000, 8), PhysRange.of(copy, 8)
    half = victim._checkpoint(128)
    for when, step, area, expected in (
        (When.AFTER_LOAD, 0, inside, golden.jump),
        (When.AFTER_LOAD, 0, own, golden.loaded),  # the crash path comes by there
        (When.AFTER_LOAD, 0, outside, golden.loaded),
        (When.DURING_PANIC, 0, inside, golden.jump),
        (When.DURING_PANIC, 0, own, golden.jump),
        (When.DURING_PANIC, 0, outside, golden.jump),
        (When.WHILE_HASHING, 0, inside, golden.jump),
        (When.WHILE_HASHING, 128, inside, half if reached else golden.jump),
        (When.AFTER_CHECK, 0, outside, golden.entry),
        (When.IN_CAPTURE, 99, inside, golden.entry),
    ):
        write = Fault("initrd", flip=1, by=By.DMA, when=when, step=step)
        snapshot, passed = victim._begin(write, area, granted, reached)
        assert snapshot is (expected if granted else golden.loaded), (when, step, area)
        assert passed.hashing == golden.passed.hashing
        assert passed is not golden.passed
        if not granted or expected is golden.loaded:
            assert (passed.left, passed.crashed, passed.purgatory) == (None, None, None)
        else:
            assert passed.left is golden.passed.left
            # What is written outside before the jump is a part of what a dump has to show.
            before = area is outside and when is When.DURING_PANIC
            assert passed.crashed is (None if before else golden.passed.crashed)
            assert passed.purgatory is (golden.passed.purgatory if expected is golden.entry else None)
            steps = {id(half): 128, id(golden.entry): golden.passed.step}
            assert passed.step == steps.get(id(expected))


def test_a_write_into_the_map_that_the_load_has_made_is_run_from_there(
    machine: Callable[[str], FaultDecider],
) -> None:
    engine = machine("map")
    golden, victim, (page, *_) = engine.golden, engine.victim, engine.image.table_pages
    for when, area, loaded in (
        (When.DURING_PANIC, PhysRange.of(page.start - 8, 16), True),
        (When.DURING_PANIC, PhysRange.of(page.end - 1, 1), True),
        (When.AFTER_CHECK, PhysRange.of(page.start, 8), False),
    ):
        begin, _ = victim._begin(Fault("initrd", flip=1, by=By.DMA, when=when), area, True, True)
        assert (begin is golden.loaded) is loaded


def test_an_engine_that_is_closed_holds_no_memory_of_the_host() -> None:
    engine = start(MACHINES["none"])
    ram = engine.kernel.ram
    host = "kexecemu-ram"
    before = Path("/proc/self/maps").read_text().count(host)
    engine.close()
    assert ram.closed and Path("/proc/self/maps").read_text().count(host) < before


def test_what_a_write_finds_is_the_memory_of_its_moment(machine: Callable[[str], FaultDecider]) -> None:
    engine = machine("checked")
    golden, victim, memory = engine.golden, engine.victim, engine._hits._memory
    purgatory = engine.image.segment("purgatory")
    assert purgatory is not None
    copy = PhysRange.of(engine.image.vmcoreinfo_safecopy, 4096)
    outside = PhysRange.of(0x41000000, 4096)
    seen = set()
    for area in (copy, purgatory.area, outside, PhysRange(golden.region.start - 8, golden.region.start + 8)):
        inside = golden.region.covers(area)
        base, unloaded = victim.base_memory(area), victim.unloaded_memory(area)
        jump = golden.held(area) if inside else base
        entry = golden.held(area, at_entry=True) if inside else base
        seen.add((base != jump, jump != entry, base != unloaded))
        found = {when: memory(when, area) for when in MOMENTS}
        assert found == {
            When.DURING_LOAD: unloaded, When.AFTER_LOAD: base, When.DURING_PANIC: jump, When.WHILE_HASHING: jump,
            When.AFTER_CHECK: entry, When.IN_CAPTURE: entry,
        }  # fmt: skip
    assert all(any(one[number] for one in seen) for number in range(3))  # it is not the same everywhere
