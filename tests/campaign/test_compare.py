"""Two campaigns side by side: every fault is in one cell, each side's own catches are named, others are refused."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fake_engine
import pytest

from kexecemu.campaign.compare import class_of, compare
from kexecemu.campaign.fault import CampaignFault
from kexecemu.campaign.job import discard_engine
from kexecemu.campaign.stats import clopper_pearson
from kexecemu.campaign.store import Store, StoredRow
from kexecemu.campaign.work import Interrupted, plan_campaign, run_campaign
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError

FAULTS = 600


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    yield
    discard_engine()


def campaign(
    folder: Path, seed: int = 3, faults: int = FAULTS, sampling: str = "uniform", **kernel: object
) -> Path:
    """A finished campaign of the fake engine with a [kernel] table."""
    scenario = fake_engine.scenario("a fake campaign", sampling, **kernel)
    planned = plan_campaign(
        scenario, Path(), faults, seed, named="fake.toml", chunk=250, engine=fake_engine.make
    )
    run_campaign(planned, folder, audit=0)
    return folder


def rows(folder: Path) -> list[StoredRow]:
    with Store.read(folder) as store:
        return list(store.rows())


def test_every_outcome_has_its_class() -> None:
    assert {outcome.value: class_of(outcome) for outcome in Outcome} == {
        "captured": "harmless",
        "prevented": "caught",
        "detected": "caught",
        "masked": "harmless",
        "latent": "harmless",
        "silent": "harm",
        "trapped": "harm",
        "misboot": "harm",
        "hung": "harm",
        "error": "error",
    }


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_pte_and_purgatory_each_catch_what_the_other_does_not(tmp_path: Path, sampling: str) -> None:
    pte = campaign(tmp_path / "pte", sampling=sampling, protection="pte", purgatory="none")
    purgatory = campaign(tmp_path / "purgatory", sampling=sampling, protection="none")
    found = compare(pte, purgatory)
    expected = Counter(
        (here.outcome, there.outcome) for here, there in zip(rows(pte), rows(purgatory), strict=True)
    )
    assert {(a, b): n for a, counts in found.outcomes.items() for b, n in counts.items()} == expected
    assert sum(n for counts in found.classes.values() for n in counts.values()) == FAULTS
    assert found.only_first.count == found.classes["caught"]["harm"] > 0
    assert found.only_second.count == found.classes["harm"]["caught"] > 0
    # What the page tables catch is CPUs' stores; DMA passes them by, and that the checksum finds.
    assert {CampaignFault.parse(one.fault).by for one in found.examples_first} == {"cpu"}
    assert {CampaignFault.parse(one.fault).by for one in found.examples_second} == {"dma"}
    assert all((one.first, one.second) == ("silent", "detected") for one in found.examples_second)
    assert 0 <= found.even < 1e-3
    assert found.names == ("pte, purgatory none", "none, purgatory default")


def test_a_split_has_an_exact_interval_and_both_configurations(tmp_path: Path) -> None:
    first = campaign(tmp_path / "first", protection="pte", purgatory="none")
    second = campaign(tmp_path / "second")
    found = compare(first, second)
    low, high = clopper_pearson(found.only_first.count, FAULTS)
    assert (found.only_first.interval.low, found.only_first.interval.high) == (low, high)
    text = str(found.only_first)
    for folder in (first, second):
        with Store.read(folder) as store:
            assert store.header.config_hash[:12] in text


def test_the_order_of_the_two_only_turns_the_table(tmp_path: Path) -> None:
    first = campaign(tmp_path / "first", protection="pte", purgatory="none")
    second = campaign(tmp_path / "second")
    one, other = compare(first, second), compare(second, first)
    assert one.only_first.count == other.only_second.count
    assert one.examples_first[0].fault == other.examples_second[0].fault
    assert one.classes["harm"]["caught"] == other.classes["caught"]["harm"]
    assert one.even == other.even


def test_equal_campaigns_differ_in_nothing(tmp_path: Path) -> None:
    found = compare(campaign(tmp_path / "first"), campaign(tmp_path / "second"))
    assert all(a == b for a, counts in found.outcomes.items() for b in counts)
    assert found.only_first.count == found.only_second.count == 0
    assert found.even == 1.0
    assert found.names[0].startswith("first (") and found.names[1].startswith("second (")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 4}, "seed is 3, not 4"),
        ({"faults": FAULTS + 1}, f"faults is {FAULTS}, not {FAULTS + 1}"),
        ({"sampling": "stratified"}, "sampler is"),
    ],
)
def test_campaigns_over_other_faults_are_refused(tmp_path: Path, other: dict[str, object], said: str) -> None:
    first = campaign(tmp_path / "first")
    second = campaign(tmp_path / "second", **other)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"not the same faults: in .*first {said}"):
        compare(first, second)


def test_an_image_that_is_laid_out_differently_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = campaign(tmp_path / "first")
    monkeypatch.setattr(fake_engine, "AREAS", tuple(reversed(fake_engine.AREAS)))
    second = campaign(tmp_path / "second")
    with pytest.raises(InputError, match=r"not the same faults: number 0 is .* laid out differently"):
        compare(first, second)


def test_a_campaign_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    def interrupt(phase: str, done: int, total: int, outcomes: object) -> None:
        if 0 < done < 250:
            os.kill(os.getpid(), signal.SIGINT)

    planned = plan_campaign(fake_engine.scenario(), Path(), FAULTS, 3, chunk=250, engine=fake_engine.make)
    with pytest.raises(Interrupted):
        run_campaign(planned, tmp_path / "half", progress=interrupt)
    whole = campaign(tmp_path / "whole")
    for pair in ((tmp_path / "half", whole), (whole, tmp_path / "half")):
        with pytest.raises(InputError, match="half: not finished"):
            compare(*pair)


def test_a_folder_is_not_compared_with_itself(tmp_path: Path) -> None:
    first = campaign(tmp_path / "first")
    with pytest.raises(InputError, match="the same campaign twice"):
        compare(first, tmp_path / "." / "first")
