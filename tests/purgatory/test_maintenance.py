"""What no emulator shows: caches. The instructions that maintain them are listened to, with their addresses and order.

The rule is that of the architecture: what was stored while the caches are off must not be hidden by a line, what was
stored while they are on must be in memory before they go off, and what is looked at is memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from unicorn import UC_HOOK_CODE, UC_HOOK_MEM_WRITE, Uc
from unicorn import arm64_const as arm64

from tests.purgatory.conftest import KERNEL_ENTRY, PURGATORY, Bench, El, Mode, Region, load
from tests.purgatory.test_policies import CHOSEN, FIRST, SECOND, STAMP, TABLE, Case, Policy

LINE = 64  # of a Cortex-A57, by CTR_EL0
BY_ADDRESS = {0xD50B7E20: "civac", 0xD5087620: "ivac"}
PLAIN = {
    0xD508751F: "ic iallu",
    0xD508871F: "tlbi vmalle1",
    0xD50C871F: "tlbi alle2",
    0xD503379F: "dsb nsh",
    0xD5033F9F: "dsb sy",
    0xD5033FDF: "isb",
}
# MSR of the level that it runs at.
MSR = {
    El.EL1: {0xD5181000: "sctlr", 0xD518A200: "mair", 0xD5182040: "tcr", 0xD5182000: "ttbr0"},
    El.EL2: {0xD51C1000: "sctlr", 0xD51CA200: "mair", 0xD51C2040: "tcr", 0xD51C2000: "ttbr0"},
}
M, C = 1, 4


@dataclass(frozen=True)
class Event:
    """An instruction of maintenance, or the first of some stores; value is its address or what is written."""

    name: str
    value: int = 0


def listen(el: El, events: list[Event], own: Region) -> Callable[[Uc], None]:
    """A hook that notes them."""

    def on_code(uc: Uc, pc: int, _size: int, _data: object) -> None:
        (word,) = struct.unpack("<I", uc.mem_read(pc, 4))
        register = word & 31
        value = uc.reg_read(getattr(arm64, f"UC_ARM64_REG_X{register}")) if register < 31 else 0
        if word & ~31 in BY_ADDRESS:
            events.append(Event(BY_ADDRESS[word & ~31], value))
        elif word in PLAIN:
            events.append(Event(PLAIN[word]))
        elif word & ~31 in MSR[el]:
            events.append(Event(MSR[el][word & ~31], value))

    def on_store(_uc: Uc, _access: int, phys: int, _size: int, _value: int, _data: object) -> None:
        if own[0] <= phys < own[1] and events[-1].name != "store":
            events.append(Event("store", phys))

    def before(uc: Uc) -> None:
        uc.hook_add(UC_HOOK_CODE, on_code)
        uc.hook_add(UC_HOOK_MEM_WRITE, on_store)

    return before


@pytest.fixture(params=[El.EL1, El.EL2], ids=lambda el: el.name)
def case(purgatory_ro: Path, request: pytest.FixtureRequest) -> Case:
    return Case(Bench(load(purgatory_ro, PURGATORY), PURGATORY), Mode(request.param))


def trace(case: Case, policy: Policy, damage: dict[int, bytes]) -> list[Event]:
    events = [Event("entry")]
    own = (PURGATORY, PURGATORY + case.bench.loaded.memsz)
    run = case.run(policy, damage, before=listen(case.mode.el, events, own))
    assert run.pc == KERNEL_ENTRY
    return events


def lines(start: int, end: int) -> set[int]:
    return set(range(start & -LINE, end, LINE))


def covered(events: Iterable[Event], name: str) -> set[int]:
    return {one.value & -LINE for one in events if one.name == name}


def position(events: list[Event], name: str, after: int = 0) -> int:
    return next(index for index in range(after, len(events)) if events[index].name == name)


def switches(events: list[Event]) -> list[tuple[int, bool]]:
    """Where SCTLR is written, and whether MMU and caches are on from there; they go together."""
    found = [(index, one.value) for index, one in enumerate(events) if one.name == "sctlr"]
    assert all(value & (M | C) in (0, M | C) for _, value in found)
    return [(index, bool(value & M)) for index, value in found]


def around(events: list[Event]) -> Iterator[tuple[int, int]]:
    """Each stretch with the MMU on: where it goes on, where off."""
    on: int | None = None
    for index, is_on in switches(events):
        if is_on:
            on = index
        elif on is not None:
            yield on, index
            on = None
    assert on is None


def test_what_was_stamped_on_the_purgatory_is_not_left_in_a_cache(case: Case) -> None:
    """Before it stores anything, and before any code of its C is fetched."""
    events = trace(case, Policy.STOP, {})
    first_store = position(events, "store")
    before = events[:first_store]
    end = case.bench.loaded.symbols["purgatory_data_end"][0]
    assert covered(before, "civac") == lines(PURGATORY, end)
    names = [one.name for one in before if one.name != "civac"]
    assert names[-4:] == ["dsb sy", "ic iallu", "dsb nsh", "isb"]


def test_before_the_mmu_is_on_no_line_hides_what_is_read(case: Case) -> None:
    events = trace(case, Policy.STOP, {})
    symbols = case.bench.loaded.symbols
    ((on, _),) = around(events)
    last_off = max(index for index, is_on in switches(events) if index < on and not is_on)
    before = events[last_off:on]
    cleaned = covered(before, "civac")
    for phys, size in case.regions:
        assert lines(phys, phys + size) <= cleaned
    # What was stored without caches (tables, record, stack) lies under lines of before: those are dropped, not written.
    data = symbols["purgatory_verdict"][0], sum(symbols["table_area"])
    assert covered(before, "ivac") == lines(*data)
    assert {one.value & -LINE for one in before if one.name == "store"} <= lines(*data)
    dropped = max(index for index, one in enumerate(before) if one.name == "ivac")
    tlbi = "tlbi vmalle1" if case.mode.el is El.EL1 else "tlbi alle2"
    assert [one.name for one in before[dropped + 1 :]] == [
        "dsb sy", tlbi, "ic iallu", "dsb nsh", "mair", "tcr", "ttbr0", "isb",
    ]  # fmt: skip
    assert events[on + 1].name == "isb"


def test_before_the_caches_are_off_all_that_was_stored_is_in_memory(case: Case) -> None:
    events = trace(case, Policy.STOP, {})
    symbols = case.bench.loaded.symbols
    data = lines(symbols["purgatory_verdict"][0], sum(symbols["table_area"]))
    ((on, off),) = around(events)
    last_store = max(index for index in range(on, off) if events[index].name == "store")
    assert covered(events[last_store:off], "civac") == data
    assert [one.name for one in events[last_store:off] if one.name not in ("civac", "store")] == [
        "dsb sy",
        "isb",
    ]
    after = events[off : position(events, "store", off)]
    tlbi = "tlbi vmalle1" if case.mode.el is El.EL1 else "tlbi alle2"
    names = [one.name for one in after if one.name != "civac"]
    assert names == ["sctlr", "isb", "mair", "tcr", "ttbr0", "isb", tlbi, "dsb nsh", "isb", "dsb sy"]
    # Lines may have come back until the MMU was off: clean ones, which would hide what is stored from now on.
    assert covered(after, "civac") == data
    assert [one.name for one in after].index(tlbi) < [one.name for one in after].index("civac")


def test_what_is_repaired_is_in_memory_and_can_be_executed(case: Case) -> None:
    events = trace(case, Policy.REPAIR, STAMP)
    stretches = list(around(events))
    assert len(stretches) == 2
    (_, off) = stretches[-1]
    rest = events[off:]
    mended = set().union(*(lines(phys, phys + size) for phys, size in case.regions))
    assert mended <= covered(rest, "civac")
    last = max(index for index, one in enumerate(rest) if one.name == "civac" and one.value & -LINE in mended)
    names = [one.name for one in rest[last:]]
    assert "ic iallu" in names and names[names.index("ic iallu") + 1] == "dsb nsh"
    assert names[-2:] == ["sctlr", "isb"]


def test_the_record_in_the_device_tree_is_hidden_by_no_line(case: Case) -> None:
    events = trace(case, Policy.BOOT_ANYWAY, STAMP)
    ((_, off),) = around(events)
    record = lines(CHOSEN, CHOSEN + 152)
    cleaned = [index for index in range(off, len(events)) if events[index].value & -LINE in record]
    assert covered([events[index] for index in cleaned], "civac") == record
    assert len(cleaned) == 2 * len(record), "before it is stored, since the device tree was read, and after"


def test_without_the_mmu_it_is_never_switched_on(case: Case) -> None:
    plain = replace(case, mode=Mode(case.mode.el, mmu=False))
    events = trace(plain, Policy.STOP, {})
    assert not any(is_on for _, is_on in switches(events))
    cleaned = covered(events, "civac")
    for phys, size in ((FIRST, 0x2000), (SECOND, 0x3000), (TABLE, 0x1000)):
        assert lines(phys, phys + size) <= cleaned
