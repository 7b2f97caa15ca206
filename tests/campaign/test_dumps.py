"""What became of the dump, over a whole campaign: counted, compared, audited, and concluded soundly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import fake_engine
import msgspec
import pytest
from stray_faults import fault, scenario, start

from kexecemu.campaign.compare import Comparison, compare
from kexecemu.campaign.engine import FaultDecider
from kexecemu.campaign.fault import How
from kexecemu.campaign.job import discard_engine
from kexecemu.campaign.stats import clopper_pearson
from kexecemu.campaign.store import Store
from kexecemu.campaign.summary import Summary
from kexecemu.campaign.work import plan_campaign, run_campaign
from kexecemu.crash.dump import Dump
from kexecemu.report.campaign_words import dump_headline, headline, undetected
from kexecemu.scenario.schema import CampaignTable

FAULTS = 600


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    yield
    discard_engine()


def real(folder: Path, options: Mapping[str, str], faults: int = 60) -> Summary:
    """A campaign of single flipped bits in what is hashed, with a purgatory that keeps a second copy."""
    table = CampaignTable(where=("kernel", "initrd", "dtb", "elfcorehdr"), models=("bit-flip",), by=("dma",))
    one = msgspec.structs.replace(scenario({"COPY": "y", **options}), campaign=table)
    return run_campaign(plan_campaign(one, Path(), faults, 1, named="one.toml"), folder, audit=8)


def fake(folder: Path, name: str = "a fake campaign", audit: int = 0, **kernel: object) -> Summary:
    planned = plan_campaign(
        fake_engine.scenario(name, **kernel), Path(), FAULTS, 3, chunk=250, engine=fake_engine.make
    )
    return run_campaign(planned, folder, audit=audit)


# -- stop and repair ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stop_and_repair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, Summary, Comparison]:
    folder = tmp_path_factory.mktemp("policies")
    stop = real(folder / "stop", {"POLICY": "stop"})
    repair = real(folder / "repair", {"POLICY": "repair"})
    return stop, repair, compare(folder / "stop", folder / "repair")


def test_stop_and_repair_differ_in_the_comparison(
    stop_and_repair: tuple[Summary, Summary, Comparison],
) -> None:
    stop, repair, compared = stop_and_repair
    # The outcomes are the same, fault by fault: both have found it.
    assert stop.outcomes == repair.outcomes
    assert compared.only_first.count == compared.only_second.count == 0
    detected = stop.outcomes["detected"]
    assert detected == 60
    # The dump is what tells them apart.
    assert stop.dumps == {"true": 0, "wrong": 0, "none": 60}
    assert repair.dumps == {"true": 60, "wrong": 0, "none": 0}
    assert compared.dumps["none"]["true"] == 60
    assert compared.true_first is not None and compared.true_second is not None
    assert (compared.true_first.count, compared.true_second.count) == (0, 60)
    assert compared.even_dumps < 1e-12
    assert {(one.first_dump, one.second_dump) for one in compared.examples_true_second} == {("none", "true")}


def test_their_conclusions_are_audited_and_hold(stop_and_repair: tuple[Summary, Summary, Comparison]) -> None:
    for summary in stop_and_repair[:2]:
        assert summary.how[How.HASH.value] > 40
        assert summary.audited == 8
        assert summary.disagreements == ()


# -- conclusions ----------------------------------------------------------------------------------------------------


def engine_with(**options: str) -> FaultDecider:
    return start(scenario(options))


def test_nothing_is_concluded_where_the_purgatory_boots_what_it_found_damaged() -> None:
    engine = engine_with(POLICY="boot")
    found = {}
    try:
        # The first of a kind is run in any case; the others must be.
        for offset in (0x12, 0x40, 0x58, 0x60, 0x68, 0x90, 0xA0, 0xF00):
            one = fault(f"dma.bit-flip.4.elfcorehdr+{offset:x}.after-load")
            decided, run = engine.decide(one), engine.run(one)
            assert (decided.outcome, decided.dump) == (run.outcome, run.dump), one.id
            assert decided.how is How.RUN
            found[offset] = decided.dump
    finally:
        engine.close()
    # One word for all of a segment would be wrong for some.
    assert set(found.values()) == {"true", "wrong", "none"}


def test_a_write_that_also_hits_what_a_purgatory_mends_with_is_run() -> None:
    engine = engine_with(POLICY="repair", COPY="y")
    try:
        areas = {one.name: one.area for one in engine.image.segments}
        neighbours = [
            name for name, area in areas.items() if name != "copy" and area.end == areas["copy"].start
        ]
        for name in neighbours:
            last = areas[name].size - 4
            engine.decide(fault(f"dma.byte.1.{name}+{last:x}.after-load"))
            one = fault(f"dma.word64.1.{name}+{last:x}.after-load")
            decided, run = engine.decide(one), engine.run(one)
            assert (decided.outcome, decided.dump) == (run.outcome, run.dump)
    finally:
        engine.close()


# -- counted --------------------------------------------------------------------------------------------------------


def test_every_fault_has_a_dump_and_every_figure_its_interval(tmp_path: Path) -> None:
    summary = fake(tmp_path / "out")
    with Store.read(tmp_path / "out") as store:
        rows = list(store.rows())
    counted = Counter(row.dump for row in rows)
    assert summary.dumps == {dump.value: counted[dump.value] for dump in Dump}
    assert min(summary.dumps.values()) > 0
    for dump, figure in summary.dump_figures.items():
        assert figure.count == counted[dump]
        low, high = clopper_pearson(counted[dump], FAULTS)
        assert (figure.interval.low, figure.interval.high) == (low, high)
    crossed = Counter((row.outcome, row.dump) for row in rows)
    assert {
        (outcome, dump): n for outcome, counts in summary.outcome_dumps.items() for dump, n in counts.items()
    } == crossed
    for area in summary.areas:
        for outcomes, dumps in zip(area.cells, area.dumps, strict=True):
            assert sum(outcomes.values()) == sum(dumps.values())
    assert dump_headline(summary).startswith(f"The dump: {counted['true']:,} true, ")


def test_an_audit_that_disagrees_of_the_dump_alone_fails_the_campaign(tmp_path: Path) -> None:
    with Store.read(_faults_at(tmp_path)) as store:
        at = next(row for row in store.decided() if "kernel+" in row.fault)
    offset = at.fault.split("+")[1].split(".")[0]
    summary = fake(tmp_path / "half", f"half={offset}", audit=FAULTS)
    assert {one.fault for one in summary.disagreements} == {at.fault}
    (one,) = summary.disagreements
    assert one.decided == one.run
    assert one.run_dump == "wrong" != one.decided_dump


def _faults_at(folder: Path) -> Path:
    fake(folder / "plain")
    return folder / "plain"


def test_what_the_purgatory_reported_is_no_harm_that_nobody_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_engine, "AREAS", fake_engine.AREAS[2:3])  # the purgatory's
    summary = fake(tmp_path / "out")
    with Store.read(tmp_path / "out") as store:
        trapped = [row for row in store.rows() if row.outcome == "trapped"]
    said = [row for row in trapped if row.reported]
    assert 0 < len(said) < len(trapped)
    assert summary.reported == len(said)
    assert summary.outcomes["trapped"] == len(trapped)  # the outcome is what it was
    assert undetected(summary)["trapped"] == len(trapped) - len(said)  # type: ignore[index]
    harm, rest = headline(summary).split(";")
    assert f"{len(trapped) - len(said):,} trapped" in harm
    assert f"{len(said):,} trapped and reported by the purgatory" in rest
    # And of two campaigns it is caught, where the other does harm.
    other = fake(tmp_path / "other")
    compared = compare(tmp_path / "out", tmp_path / "other")
    assert other.reported == summary.reported
    assert compared.classes["harm"]["harm"] == sum(undetected(summary).values())
