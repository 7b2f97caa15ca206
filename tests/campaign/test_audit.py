"""Which conclusions are audited: some of each way of concluding, outcome, dump and moment, however rare."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kexecemu.campaign.audit import AUDIT, choose
from kexecemu.campaign.fault import CampaignFault, Decided, How
from kexecemu.campaign.header import Header
from kexecemu.campaign.store import Store
from kexecemu.campaign.work import run_campaign
from kexecemu.commands.campaign import campaign_command
from kexecemu.stray.fault import By, When

HEADER = Header(
    version="1+abc", config_hash="c" * 64, protection="none", purgatory="default", seed=7, faults=0, population=10**6,
    sampler="shuffle uniform", name="a campaign", scenario="here.toml", source="schema = 1\n", areas=(),
)  # fmt: skip
# What a conclusion rests on, and what it does not: writer, model and place.
KIND = {"how": How.HASH, "outcome": "detected", "dump": "none", "moment": When.AFTER_LOAD}
OTHER = {"how": How.UNREAD, "outcome": "latent", "dump": "true", "moment": When.DURING_PANIC}


def audited(folder: Path, kinds: Sequence[dict[str, object]], audits: int, seed: int = 7) -> list[int]:
    """The positions that are chosen of a store with one result of each of these kinds."""
    moments = list(dict.fromkeys(str(one["moment"]) for one in kinds))
    strata = tuple(
        ("initrd", "hashed", "byte", by, moment, 1000) for by in ("dma", "cpu") for moment in moments
    )
    header = replace(HEADER, strata=strata, faults=len(kinds), seed=seed)
    results, numbers = [], []
    for position, kind in enumerate(kinds):
        moment = When(str(kind["moment"]))
        by = By(str(kind.get("by", "dma")))
        fault = CampaignFault(by, "byte", 0, "initrd", position, moment)
        results.append(
            Decided(
                fault, str(kind["outcome"]), How(str(kind["how"])), "initrd", position, dump=str(kind["dump"])
            )
        )
        numbers.append(("dma", "cpu").index(by.value) * len(moments) + moments.index(moment.value))
    with Store.begin(folder, header) as store:
        store.add_results(0, results, numbers, 0.5)
        return choose(store, audits)


@pytest.mark.parametrize("part", KIND)
@pytest.mark.parametrize("rare", [0, 57, 99], ids=["first", "between", "last"])
def test_a_conclusion_that_rests_on_other_reasons_is_audited_however_rare(
    part: str, rare: int, tmp_path: Path
) -> None:
    kinds: list[dict[str, object]] = [dict(KIND) for _ in range(100)]
    kinds[rare][part] = OTHER[part]
    for seed in range(5):
        chosen = audited(tmp_path / str(seed), kinds, 2, seed)
        assert rare in chosen and len(chosen) == 2


def test_every_combination_of_reasons_has_its_turn_before_any_has_a_second(tmp_path: Path) -> None:
    product = itertools.product(*zip(KIND.values(), OTHER.values(), strict=True))
    kinds: list[dict[str, object]] = [
        dict(zip(KIND, values, strict=True))
        for number, values in enumerate(product)
        for _ in range(1 + number)
    ]
    chosen = audited(tmp_path, kinds, 16)
    assert len({tuple(kinds[position].values()) for position in chosen}) == len(chosen) == 16


def test_who_wrote_is_no_reason_of_its_own(tmp_path: Path) -> None:
    kinds: list[dict[str, object]] = [dict(KIND, by="cpu" if not at else "dma") for at in range(100)]
    first = {audited(tmp_path / str(seed), kinds, 1, seed)[0] for seed in range(5)}
    assert len(first) > 1  # drawn of all, not the one of each writer in turn


@pytest.mark.parametrize("asked", [0, 1, 9, 10, 11])
def test_as_many_are_chosen_as_asked_for_or_as_there_are_each_once(asked: int, tmp_path: Path) -> None:
    chosen = audited(tmp_path, [dict(KIND) for _ in range(10)], asked)
    assert len(chosen) == len(set(chosen)) == min(asked, 10)
    assert set(chosen) <= set(range(10))


def test_unless_told_otherwise_as_many_are_audited_as_the_documentation_says() -> None:
    """Of so many without a disagreement no more than 1 % are wrong, with 95 % confidence."""
    page = (Path(__file__).parents[2] / "docs/campaigns.md").read_text()
    (said,) = re.findall(r"what was concluded, (\d+) faults \(`--audit`\)", page)
    command, library = (
        inspect.signature(one).parameters["audit"].default for one in (campaign_command, run_campaign)
    )
    assert AUDIT == int(said) == command == library
    assert 0.99**AUDIT < 0.05


def test_what_was_run_to_its_end_is_not_audited(tmp_path: Path) -> None:
    kinds: list[dict[str, object]] = [dict(KIND, how=How.RUN if at % 2 else How.HASH) for at in range(10)]
    assert sorted(audited(tmp_path, kinds, 10)) == [0, 2, 4, 6, 8]


def test_fewer_are_the_first_ones_of_more(tmp_path: Path) -> None:
    kinds: list[dict[str, object]] = [dict(KIND if at % 3 else OTHER) for at in range(30)]
    every = audited(tmp_path / "all", kinds, 30)
    for asked in (1, 2, 7, 29):
        assert audited(tmp_path / str(asked), kinds, asked) == every[:asked]


def test_the_first_kind_to_have_its_turn_is_the_first_by_its_words_and_not_of_the_sample(
    tmp_path: Path,
) -> None:
    kinds: list[dict[str, object]] = [dict(KIND if at % 2 else OTHER) for at in range(10)]
    first = min(
        (KIND, OTHER), key=lambda one: [str(one[part]) for part in ("how", "outcome", "dump", "moment")]
    )
    for turned in (kinds, kinds[1:] + kinds[:1]):
        (chosen,) = audited(tmp_path / str(turned is kinds), turned, 1)
        assert turned[chosen] == first
