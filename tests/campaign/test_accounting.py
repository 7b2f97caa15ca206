"""The summary against the rows that it is made of: every fault counted once in every table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fake_engine
import pytest

from kexecemu.campaign.accounting import HARM, summarise
from kexecemu.campaign.fault import CampaignFault
from kexecemu.campaign.job import discard_engine
from kexecemu.campaign.stats import clopper_pearson
from kexecemu.campaign.store import Store, StoredRow
from kexecemu.campaign.summary import DIMENSIONS, Summary
from kexecemu.campaign.work import plan_campaign, run_campaign
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError

FAULTS = 900


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    yield
    discard_engine()


def campaign(folder: Path, sampling: str = "uniform") -> tuple[Summary, list[StoredRow]]:
    planned = plan_campaign(
        fake_engine.scenario("a fake campaign", sampling),
        Path(),
        FAULTS,
        2,
        named="fake.toml",
        engine=fake_engine.make,
    )
    summary = run_campaign(planned, folder, audit=0)
    with Store.read(folder) as store:
        return summary, list(store.rows())


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_every_table_counts_every_fault_once(tmp_path: Path, sampling: str) -> None:
    summary, rows = campaign(tmp_path, sampling)
    counted = Counter(row.outcome for row in rows)
    assert summary.outcomes == {outcome.value: counted[outcome.value] for outcome in Outcome}
    assert list(summary.outcomes) == [outcome.value for outcome in Outcome]
    assert summary.how == {how: n for how in summary.how if (n := sum(row.how == how for row in rows))}
    assert tuple(summary.by) == DIMENSIONS
    for table in summary.by.values():
        assert sum(sum(counts.values()) for counts in table.values()) == FAULTS
    by_writer = Counter((CampaignFault.parse(row.fault).by.value, row.outcome) for row in rows)
    assert by_writer == {
        (writer, outcome): n
        for writer, counts in summary.by["writer"].items()
        for outcome, n in counts.items()
    }
    by_base = Counter((CampaignFault.parse(row.fault).base, row.outcome) for row in rows)
    assert by_base == {
        (segment, outcome): n
        for segment, counts in summary.by["segment"].items()
        for outcome, n in counts.items()
    }
    assert set(summary.by["kind"]) == {"hashed", "purgatory", "free"}


def test_areas_hold_their_hits_where_they_are(tmp_path: Path) -> None:
    summary, rows = campaign(tmp_path)
    assert [area.start for area in summary.areas] == sorted(area.start for area in summary.areas)
    assert sum(n for area in summary.areas for cell in area.cells for n in cell.values()) == FAULTS
    kernel = next(area for area in summary.areas if area.name == "kernel")
    size = (kernel.end - kernel.start) // len(kernel.cells)
    for number, cell in enumerate(kernel.cells):
        start = kernel.start + number * size
        assert cell == Counter(row.outcome for row in rows if start <= row.phys < start + size)


def test_a_uniform_samples_figures_are_clopper_and_pearsons(tmp_path: Path) -> None:
    summary, _ = campaign(tmp_path)
    for outcome, figure in summary.figures.items():
        assert figure.count == summary.outcomes[outcome]
        assert (figure.interval.low, figure.interval.high) == clopper_pearson(figure.count, FAULTS)
        assert figure.interval.estimate == figure.count / FAULTS
        assert (figure.at_most is None) == (figure.count > 0)
    assert summary.figures["error"].at_most == pytest.approx(1 - 0.05 ** (1 / FAULTS))
    assert (summary.population, summary.faults) == (summary.basis.population, FAULTS)


def test_a_stratified_samples_figures_weigh_its_strata(tmp_path: Path) -> None:
    summary, rows = campaign(tmp_path, "stratified")
    with Store.read(tmp_path) as store:
        sizes = [row[-1] for row in store.header.strata]
    drawn = Counter(row.stratum for row in rows)
    assert sum(sizes) == summary.population and len(drawn) == len(sizes)
    for outcome, figure in summary.figures.items():
        weighted = sum(sizes[row.stratum] / drawn[row.stratum] for row in rows if row.outcome == outcome)
        assert figure.interval.estimate == pytest.approx(weighted / summary.population, rel=1e-9)
        assert figure.interval.low <= figure.interval.estimate <= figure.interval.high
    # Most of the population is memory in no use, of which a stratified sample has no more than of the rest.
    latent = summary.figures["latent"]
    assert latent.interval.estimate > 0.7 > 0.4 > latent.count / FAULTS
    assert f"{len(sizes)} strata" in str(latent)


def test_the_worst_are_in_order_and_the_first_of_the_sample(tmp_path: Path) -> None:
    summary, rows = campaign(tmp_path)
    order = [*(one.value for one in HARM), "error"]
    places = [order.index(one.outcome) for one in summary.worst]
    assert places == sorted(places)
    for outcome, examples in summary.examples.items():
        first = [row for row in rows if row.outcome == outcome][: len(examples)]
        assert [one.fault for one in examples] == [row.fault for row in first]
        assert bool(examples) == bool(summary.outcomes[outcome])
    assert summary.worst[0].outcome == "silent"
    assert summary.reproducer(summary.worst[0]) == f"kexecemu replay {summary.worst[0].fault} fake.toml"


def test_a_campaign_that_is_not_finished_has_no_summary(tmp_path: Path) -> None:
    _, rows = campaign(tmp_path)
    with Store.read(tmp_path) as store:
        header = store.header
    with Store.begin(tmp_path, header, resume=True) as store:
        store.db.execute("DELETE FROM result WHERE position = ?", (rows[-1].position,))
        with pytest.raises(InputError, match="1 of 900 faults are still to be done"):
            summarise(store)
