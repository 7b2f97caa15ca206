"""A campaign's summary, each part of it counted by hand from the rows of its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import fake_engine
import pytest

from kexecemu.campaign.areas import Area, Kind
from kexecemu.campaign.fault import How
from kexecemu.campaign.job import discard_engine
from kexecemu.campaign.store import Store, StoredRow
from kexecemu.campaign.summary import AreaHits, Disagreement, Example, Summary
from kexecemu.campaign.work import plan_campaign, run_campaign
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.machine.ranges import PhysRange

FAULTS = 900
SMALL = Area("above-initrd", PhysRange(0x11000, 0x11028), Kind.FREE, 0x11000)  # of 40 bytes
WORST = ("silent", "misboot", "hung", "trapped", "error")


@pytest.fixture(scope="module", params=["uniform", "stratified"])
def campaign(
    request: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Summary, list[StoredRow], Any]]:
    folder = tmp_path_factory.mktemp("summary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_engine, "AREAS", (*fake_engine.AREAS, SMALL))
        scenario = fake_engine.scenario("raise=10 lie=100", request.param)
        planned = plan_campaign(
            scenario, Path(), FAULTS, 2, named="fake.toml", options="--era 6.1", engine=fake_engine.make
        )
        summary = run_campaign(planned, folder, audit=50)
    discard_engine()
    with Store.read(folder) as store:
        yield summary, list(store.rows()), store.header


def test_what_is_not_said_is_nothing() -> None:
    assert Example("a", "b", "c", "d", 5) == Example("a", "b", "c", "d", 5, "", "", "", False)
    assert Disagreement("a", "b", "c", "d") == Disagreement("a", "b", "c", "d", "", "", "")
    assert AreaHits("a", 1, 2, "b", ()).dumps == ()
    left = {one.name: one.default for one in fields(Summary) if one.default is not MISSING}
    assert left == {"options": "", "reported": 0}


def counted(words: Any, among: Any) -> dict[str, int]:
    """How often each, in a fixed order and without zeros."""
    found = Counter(words)
    return {one.value: found[one.value] for one in among if found[one.value]}


def test_outcomes_and_dumps_are_all_there_with_zeros_and_in_order(campaign: Any) -> None:
    summary, rows, header = campaign
    for found, figures, words, among, what in (
        (summary.outcomes, summary.figures, [row.outcome for row in rows], Outcome, ""),
        (summary.dumps, summary.dump_figures, [row.dump for row in rows], Dump, "dump "),
    ):
        assert list(found.items()) == [(one.value, words.count(one.value)) for one in among]
        assert {name: (one.what, one.count) for name, one in figures.items()} == {
            name: (f"{what}{name}", count) for name, count in found.items()
        }
        assert all(one.basis == summary.basis for one in figures.values())
    assert list(summary.how.items()) == list(counted([row.how for row in rows], How).items())
    assert {name: list(row.items()) for name, row in summary.outcome_dumps.items()} == {
        one.value: list(counted([row.dump for row in rows if row.outcome == one.value], Dump).items())
        for one in Outcome
        if any(row.outcome == one.value for row in rows)
    }
    assert summary.reported == sum(row.outcome == "trapped" and bool(row.reported) for row in rows)
    assert summary.reported or not header.stratified


def test_each_dimension_is_a_table_of_outcomes_with_its_keys_sorted(campaign: Any) -> None:
    summary, rows, header = campaign
    for number, name in enumerate(("segment", "kind", "model", "writer", "moment")):
        table: dict[str, list[str]] = {}
        for row in rows:
            key = header.strata[row.stratum][number]
            table.setdefault((row.segment or key) if name == "segment" else key, []).append(row.outcome)
        expected = [(key, list(counted(table[key], Outcome).items())) for key in sorted(table)]
        assert [(key, list(row.items())) for key, row in summary.by[name].items()] == expected
    assert "crashkernel-free" in summary.by["segment"]


def test_examples_are_the_first_of_the_sample_ten_of_harm_and_three_of_the_rest(campaign: Any) -> None:
    summary, rows, _ = campaign
    for outcome in Outcome:
        # Traps that nobody reported come before those that somebody did.
        own = sorted(
            (row for row in rows if row.outcome == outcome.value),
            key=lambda row: (row.outcome == "trapped" and row.reported, row.position),
        )
        expected = [
            Example(row.fault, row.outcome, row.how, row.segment, row.phys, row.detail, row.dump, row.dump_reason,
                    bool(row.reported))
            for row in own[: 10 if outcome.value in WORST else 3]
        ]  # fmt: skip
        assert list(summary.examples[outcome.value]) == expected
        assert all(type(one.reported) is bool for one in summary.examples[outcome.value])
    assert summary.worst == tuple(one for name in WORST for one in summary.examples[name])
    assert len(summary.examples["detected"]) == 3 and len(summary.examples["silent"]) == 10


def test_areas_are_cut_into_64_cells_or_as_many_as_they_have_bytes(campaign: Any) -> None:
    summary, rows, header = campaign
    assert [(one.name, one.start, one.end, one.kind) for one in summary.areas] == sorted(
        header.areas, key=lambda one: one[1]
    )
    assert [len(one.cells) for one in summary.areas] == [64, 64, 40, 64, 64]
    for area in summary.areas:
        count = len(area.cells)
        for kind, cells, among in (("outcome", area.cells, Outcome), ("dump", area.dumps, Dump)):
            assert len(cells) == count
            for number, cell in enumerate(cells):
                here = [
                    getattr(row, kind) for row in rows
                    if area.start <= row.phys < area.end
                    and (row.phys - area.start) * count // (area.end - area.start) == number
                ]  # fmt: skip
                assert list(cell.items()) == list(counted(here, among).items())


def test_what_it_rests_on_and_how_it_is_run_again(campaign: Any) -> None:
    summary, rows, header = campaign
    method = f"Clopper-Pearson, 95%, {len(header.strata)} strata"
    assert asdict(summary.basis) == {
        "population": header.population, "faults": FAULTS, "seed": 2, "version": header.version,
        "config_hash": header.config_hash, "sampler": header.sampler,
        "method": method if header.stratified else "Clopper-Pearson, 95%",
    }  # fmt: skip
    assert (summary.name, summary.scenario, summary.options) == ("raise=10 lie=100", "fake.toml", "--era 6.1")
    assert (summary.protection, summary.purgatory) == (header.protection, header.purgatory)
    assert (summary.population, summary.faults) == (header.population, FAULTS)
    assert summary.seconds > 0 and summary.audit_seconds > 0
    assert summary.injections_per_second == FAULTS / summary.seconds
    assert (
        summary.reproducer(summary.worst[0])
        == f"kexecemu replay {summary.worst[0].fault} fake.toml --era 6.1"
    )
    assert summary.audited == 50
    for one in summary.disagreements:
        (row,) = (row for row in rows if row.fault == one.fault)
        assert (one.decided, one.how, one.run, one.decided_dump, one.run_dump) == (
            row.outcome, row.how, "hung", row.dump, "none",
        )  # fmt: skip
        assert "kernel+100." in one.fault
