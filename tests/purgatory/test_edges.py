"""Edges of what the purgatory does, each by itself: the second line of defence with the first one off."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from unicorn import UC_HOOK_MEM_WRITE, Uc

from tests.purgatory.conftest import KERNEL_ENTRY, PURGATORY, RAM, Bench, Mode, Region, Run, load
from tests.purgatory.test_policies import (
    CALLER,
    COPY,
    FIRST,
    MISMATCH,
    REPAIRED,
    SECOND,
    STAMP,
    STAMPED,
    TABLE,
    TRAPPED,
    Case,
    Policy,
    bytes_of,
    from_caller,
)

SELF = 1 << 16
PAGE = 4096


@pytest.fixture(params=[Mode(), Mode(mmu=False, crypto=False)], ids=str)
def case(purgatory_ro: Path, request: pytest.FixtureRequest) -> Case:
    return Case(Bench(load(purgatory_ro, PURGATORY), PURGATORY), request.param)


def stop_of(case: Case) -> int:
    return case.bench.loaded.symbols["purgatory_stop"][0]


# -- the table of regions without a self digest ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "region",
    [
        (PURGATORY, 16),
        (PURGATORY - 8, 16),
        ((1 << 64) - PAGE, 2 * PAGE),
        (PAGE, (1 << 64) - PAGE),
        (1 << 52, 8),
    ],
    ids=["ourselves", "into us", "wraps", "all there is", "no memory"],
)
def test_a_region_that_cannot_have_been_loaded_is_not_read(case: Case, region: Region) -> None:
    run = case.bench.run([region], bytes(32), mode=case.mode)
    assert (run.verdict.state, run.verdict.damaged, run.verdict.bytes_hashed) == (MISMATCH, SELF, 0)
    assert b"purgatory: the purgatory itself is damaged" in run.console
    assert (run.pc, run.foreign) == (stop_of(case), [])


def test_a_region_that_ends_where_the_purgatory_begins_is_hashed(case: Case) -> None:
    data = bytes_of("neighbour", PAGE)
    region = case.bench.put(PURGATORY - PAGE, data)
    run = case.bench.run([region], hashlib.sha256(data).digest(), mode=case.mode)
    assert (run.pc, run.foreign) == (KERNEL_ENTRY, [])


# -- options in pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["self digest", "none"])
def test_an_exception_while_it_looks_at_itself_boots_nothing_even_anyway(case: Case, known: bool) -> None:
    """Code of ours is wrong then, or a symbol: nor is it known where to. Without a self digest nothing is looked at."""
    at = case.bench.loaded.symbols["digest_update"][0]

    def stamp(uc: Uc) -> None:
        uc.mem_write(at, bytes(4))

    symbols = {} if known else {"purgatory_self_digest": bytes(32)}
    run = case.run(Policy.BOOT_ANYWAY, before=stamp, symbols=symbols)
    assert (run.verdict.state, run.verdict.damaged) == (TRAPPED, SELF if known else 0)
    assert run.pc == (stop_of(case) if known else KERNEL_ENTRY)


@pytest.mark.parametrize("policy", Policy, ids=lambda policy: policy.name)
def test_the_early_check_changes_no_image_and_starts_nothing_whatever_the_policy(
    case: Case, policy: Policy
) -> None:
    run = case.run(policy, STAMP, before=from_caller, start="purgatory_check")
    assert (run.pc, run.registers["x0"], run.calls) == (CALLER, 1, [])
    assert run.memory(SECOND + STAMPED, 4) == b"\xde\xad\xbe\xef"
    assert not run.verdict.flags & REPAIRED


def test_what_is_repaired_is_compared_once_more(case: Case) -> None:
    """The digest of everything is another one than the pages' digests say: no page can be mended, and none is wrong."""
    digest = case.bench.loaded.symbols["purgatory_sha256_digest"]

    def stamp(uc: Uc) -> None:
        uc.mem_write(digest[0], bytes(32))

    run = case.run(Policy.REPAIR, STAMP, before=stamp, symbols={"purgatory_self_digest": bytes(32)})
    assert (run.pc, run.verdict.flags & REPAIRED) == (stop_of(case), 0)
    assert b"repaired" not in run.console
    assert run.memory(SECOND, 0x3000) == case.second  # the page itself had its digest, and is mended


def test_without_a_digest_of_its_own_nothing_is_located_or_repaired(case: Case) -> None:
    case.table = False
    run = case.run(Policy.REPAIR, STAMP, symbols={"purgatory_region_digests": bytes(512)})
    assert (run.pc, run.verdict.damaged, run.verdict.ranges) == (stop_of(case), 0, 0)
    assert run.memory(SECOND + STAMPED, 4) == b"\xde\xad\xbe\xef"


def test_the_last_byte_of_a_digest_counts_as_much_as_the_first(case: Case) -> None:
    case.table = False
    for at in (0, 7, 8, 15, 16, 23, 24, 31):
        digests = bytearray(
            hashlib.sha256(case.first).digest() + hashlib.sha256(case.second).digest() + bytes(448)
        )
        digests[at] ^= 1
        fresh = replace(case, bench=Bench(case.bench.loaded, PURGATORY))
        run = fresh.run(Policy.STOP, STAMP, symbols={"purgatory_region_digests": bytes(digests)})
        assert run.verdict.damaged == 0b11, at


# -- damage at edges ---------------------------------------------------------------------------------------------------


def flip(*places: int) -> dict[int, bytes]:
    """A byte that is not what was loaded, at each of these physical addresses."""
    whole = {FIRST: bytes_of("first", 0x2000), SECOND: bytes_of("second", 0x3000)}
    return {
        phys: bytes([whole[start][phys - start] ^ 1])
        for phys in places
        for start in whole
        if start <= phys < start + len(whole[start])
    }


@pytest.mark.parametrize(
    ("places", "damage"),
    [
        ([FIRST], [(FIRST, PAGE)]),
        ([FIRST + 0xFFF], [(FIRST, PAGE)]),
        ([FIRST + 0x1000], [(FIRST + PAGE, PAGE)]),
        ([FIRST + 0xFFF, FIRST + 0x1000], [(FIRST, 2 * PAGE)]),
        ([FIRST, SECOND], [(FIRST, PAGE), (SECOND, PAGE)]),
        ([SECOND, SECOND + 0x2FFF], [(SECOND, PAGE), (SECOND + 2 * PAGE, PAGE)]),
    ],
    ids=["first byte", "last byte of a page", "first of the next", "two pages", "two regions", "apart"],
)
def test_damage_is_told_by_pages(case: Case, places: list[int], damage: list[Region]) -> None:
    run = case.run(Policy.STOP, flip(*places))
    assert run.verdict.damage == damage
    assert run.verdict.damaged_pages == sum(size for _, size in damage) // PAGE


def several(
    case: Case, parts: list[tuple[int, bytes]], damage: dict[int, bytes], policy: Policy, copy: int = 0
) -> Run:
    """Regions at any addresses, a table of pages, and perhaps a copy."""
    digests = [
        hashlib.sha256(data[at : at + PAGE]).digest() for _, data in parts for at in range(0, len(data), PAGE)
    ]
    table = b"".join(digests).ljust(PAGE, b"\0")
    everything = [*parts, (TABLE, table)]
    regions = [case.bench.put(phys, data) for phys, data in everything]
    for phys, data in damage.items():
        case.bench.put(phys, data)
    if copy:
        case.bench.put(copy, b"".join(data for _, data in parts))
    symbols = {
        "purgatory_policy": struct.pack("<Q", policy),
        "purgatory_page_digests": struct.pack("<Q", TABLE),
        "purgatory_region_digests": b"".join(hashlib.sha256(data).digest() for _, data in everything).ljust(
            512, b"\0"
        ),
        "purgatory_copy": struct.pack("<Q", copy),
    }
    whole = hashlib.sha256(b"".join(data for _, data in everything)).digest()
    also = [(copy, sum(len(data) for _, data in parts)), *regions] if copy else []
    return case.bench.run(regions, whole, mode=case.mode, symbols=symbols, also=also)


def test_damage_across_the_edge_of_two_neighbours_is_two_ranges(case: Case) -> None:
    parts = [(FIRST, bytes_of("one", PAGE)), (FIRST + PAGE, bytes_of("two", PAGE))]
    run = several(case, parts, {FIRST + PAGE - 1: b"\0\0"}, Policy.STOP)
    assert run.verdict.damage == [(FIRST, PAGE), (FIRST + PAGE, PAGE)]
    assert (run.verdict.damaged, run.verdict.damaged_pages) == (0b11, 2)


@pytest.mark.parametrize("length", [1, 7, 8, PAGE - 1, PAGE + 1, 2 * PAGE - 8, 2 * PAGE + 3])
def test_the_last_page_of_a_region_may_be_a_part_of_one(case: Case, length: int) -> None:
    data = bytes_of("part", length)
    last = (length - 1) // PAGE * PAGE
    stamp = {FIRST + length - 1: bytes([data[-1] ^ 0x80])}
    run = several(case, [(FIRST, data), (SECOND, bytes_of("next", PAGE))], stamp, Policy.STOP)
    assert run.verdict.damage == [(FIRST + last, length - last)]
    assert not run.foreign and not run.unaligned


@pytest.mark.parametrize("copy", [COPY, COPY + 4, COPY + 1])
@pytest.mark.parametrize("start", [FIRST, FIRST + 4, FIRST + 3])
def test_a_repair_is_aligned_whatever_copy_and_region_are(case: Case, start: int, copy: int) -> None:
    data = bytes_of("odd", PAGE + 5)
    parts = [(start, data), (SECOND, bytes_of("next", 8))]
    damage = {
        start + 2: b"\0\1\2",
        start + PAGE + 4: bytes([data[-1] ^ 1]),
    }  # in the last part of a page, too
    run = several(case, parts, damage, Policy.REPAIR, copy)
    assert (run.pc, run.memory(start, len(data))) == (KERNEL_ENTRY, data)
    assert run.unaligned == [] and run.foreign == []


def test_a_repair_goes_by_words_where_it_can_and_is_counted_once(case: Case) -> None:
    sizes: list[int] = []

    def hook(_uc: Uc, _access: int, _phys: int, size: int, _value: int, _data: object) -> None:
        sizes.append(size)

    def watch(uc: Uc) -> None:
        uc.hook_add(UC_HOOK_MEM_WRITE, hook, begin=SECOND, end=SECOND + 0x2FFF)

    run = case.run(Policy.REPAIR, STAMP, before=watch)
    assert (run.pc, run.verdict.flags & REPAIRED) == (KERNEL_ENTRY, REPAIRED)
    assert sizes == [8] * (PAGE // 8)
    assert run.verdict.bytes_hashed == sum(size for _, size in case.regions)


@pytest.mark.parametrize("pages", [16, 17])
def test_the_record_has_sixteen_ranges_and_stays_within_itself(case: Case, pages: int) -> None:
    """Every second page is damaged; the count goes on, the list does not."""
    data = bytes_of("many", 2 * pages * PAGE)
    places = [FIRST + 2 * number * PAGE + 9 for number in range(pages)]
    stamps = {place: bytes([data[place - FIRST] ^ 4]) for place in places}
    start, size = case.bench.loaded.symbols["purgatory_verdict"]
    values = {value for place in places for value in (place & -PAGE, PAGE)}
    outside: list[int] = []

    def hook(_uc: Uc, _access: int, phys: int, _size: int, value: int, _data: object) -> None:
        if value in values:
            outside.append(phys)

    def watch(uc: Uc) -> None:
        uc.hook_add(UC_HOOK_MEM_WRITE, hook, begin=start + size, end=start + size + 63)

    table, copied = TABLE + 0x50000, case.bench
    digests = b"".join(hashlib.sha256(data[at : at + PAGE]).digest() for at in range(0, len(data), PAGE))
    digests = digests.ljust(PAGE, b"\0")
    regions = [copied.put(FIRST, data), copied.put(table, digests)]
    for phys, written in stamps.items():
        copied.put(phys, written)
    symbols = {
        "purgatory_page_digests": struct.pack("<Q", table),
        "purgatory_region_digests": b"".join(hashlib.sha256(d).digest() for d in (data, digests)).ljust(
            512, b"\0"
        ),
    }
    run = copied.run(
        regions,
        hashlib.sha256(data + digests).digest(),
        mode=case.mode,
        symbols=symbols,
        before=watch,
        uart=0,
    )
    assert run.verdict.damaged_pages == pages
    assert run.verdict.damage == [(place & -PAGE, PAGE) for place in places[:16]]
    assert outside == []


def test_the_regions_fit_where_the_tests_put_them() -> None:
    assert FIRST + 80 * PAGE <= TABLE + 0x50000 < PURGATORY and RAM < FIRST
