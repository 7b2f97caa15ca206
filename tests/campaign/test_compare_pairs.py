"""Two campaigns side by side against a naive count over the pairs of rows: every cell, side, example and figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import fake_engine
import pytest

from kexecemu.campaign.compare import Pair, _Pairs, class_of, compare
from kexecemu.campaign.job import discard_engine
from kexecemu.campaign.stats import mcnemar
from kexecemu.campaign.store import Store, StoredRow
from kexecemu.campaign.work import plan_campaign, run_campaign
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome

CAUGHT, HARMLESS = ("prevented", "detected"), ("captured", "masked", "latent")
HARM = ("silent", "misboot", "hung")
Rows = list[tuple[Any, Any]]


def kind(row: Any) -> str:
    """The class, written out."""
    if row.outcome == "trapped":
        return "caught" if row.reported else "harm"
    return "caught" if row.outcome in CAUGHT else "harm" if row.outcome in HARM else (
        "harmless" if row.outcome in HARMLESS else row.outcome
    )  # fmt: skip


def drawn(seed: int, number: int = 400) -> Rows:
    """Pairs of rows of one sample, as unlike each other as can be."""
    random = Random(seed)

    def row(position: int) -> Any:
        return SimpleNamespace(
            fault=f"fault {position}",
            outcome=random.choice(list(Outcome)).value,
            dump=random.choice(list(Dump)).value,
            reported=random.random() < 0.5,
            stratum=position % 3,
        )

    return [(row(position), row(position)) for position in range(number)]


def ahead(rows: Rows, first: bool, dumps: bool) -> Rows:
    """Where one side alone caught what does harm on the other, or has a true dump."""
    found = []
    for pair in rows:
        own, other = pair if first else pair[::-1]
        if (own.dump == "true" != other.dump) if dumps else (kind(own), kind(other)) == ("caught", "harm"):
            found.append(pair)
    return found


def pairs_of(rows: Rows) -> list[Pair]:
    return [Pair(one.fault, one.outcome, two.outcome, one.dump, two.dump) for one, two in rows]


@pytest.mark.parametrize("outcome", Outcome)
def test_an_outcome_has_its_class_whatever_was_reported_but_of_a_trap(outcome: Outcome) -> None:
    for reported in (False, True, 0, 1):
        row = SimpleNamespace(outcome=outcome.value, reported=reported)
        assert class_of(outcome.value, reported) == kind(row)
    assert class_of("trapped") == "harm"


@pytest.mark.parametrize("seed", range(3))
def test_every_pair_is_counted_in_its_cells_and_on_the_side_that_is_ahead(seed: int) -> None:
    rows, pairs = drawn(seed), _Pairs()
    for here, there in rows:
        pairs.add(here, there)
    assert pairs.outcomes == Counter((one.outcome, two.outcome) for one, two in rows)
    assert pairs.dumps == Counter((one.dump, two.dump) for one, two in rows)
    assert pairs.classes == Counter((kind(one), kind(two)) for one, two in rows)
    assert pairs.drawn == Counter(one.stratum for one, _ in rows)
    for sides, dumps in ((pairs.caught, False), (pairs.true, True)):
        for side, first in zip(sides, (True, False), strict=True):
            found = ahead(rows, first, dumps)
            assert len(found) > 5 and side.found == Counter(one.stratum for one, _ in found)
            assert side.examples == pairs_of(found[:5])
    turned = {}
    for one, two in rows:
        harm = kind(one) == "harm", kind(two) == "harm"
        if harm[0] != harm[1] and "error" not in (one.outcome, two.outcome):
            turned[one.outcome, two.outcome] = "first" if harm[0] else "second"
    cells = {(one, two): side for one, row in pairs.turns.items() for two, side in row.items()}
    assert {key: cells[key] for key in cells if "trapped" not in key} == {
        key: turned[key] for key in turned if "trapped" not in key
    }
    assert cells.keys() == turned.keys()


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    yield
    discard_engine()


def campaign(folder: Path, sampling: str, **kernel: object) -> Path:
    scenario = fake_engine.scenario("a fake campaign", sampling, **kernel)
    run_campaign(plan_campaign(scenario, Path(), 600, 3, engine=fake_engine.make), folder, audit=0)
    return folder


def rows(folder: Path) -> list[StoredRow]:
    with Store.read(folder) as store:
        return list(store.rows())


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_a_comparison_is_that_count_with_figures_of_the_sample(tmp_path: Path, sampling: str) -> None:
    first = campaign(tmp_path / "first", sampling, protection="pte", purgatory="none")
    second = campaign(tmp_path / "second", sampling)
    found = compare(first, second)
    both = list(zip(rows(first), rows(second), strict=True))
    outcomes = Counter((one.outcome, two.outcome) for one, two in both)
    assert found.outcomes == {
        one.value: row
        for one in Outcome
        if (row := {two.value: n for two in Outcome if (n := outcomes[one.value, two.value])})
    }
    dumps = Counter((one.dump, two.dump) for one, two in both)
    assert found.dumps == {
        one.value: {two.value: dumps[one.value, two.value] for two in Dump} for one in Dump
    }
    classes, names = (
        Counter((kind(one), kind(two)) for one, two in both),
        ("caught", "harmless", "harm", "error"),
    )
    assert found.classes == {one: {two: classes[one, two] for two in names} for one in names}
    sides = {
        "caught by the first alone": (found.only_first, found.examples_first, ahead(both, True, False)),
        "caught by the second alone": (found.only_second, found.examples_second, ahead(both, False, False)),
        "a true dump with the first alone": (
            found.true_first,
            found.examples_true_first,
            ahead(both, True, True),
        ),
        "a true dump with the second alone": (
            found.true_second,
            found.examples_true_second,
            ahead(both, False, True),
        ),
    }
    for what, (figure, examples, pairs) in sides.items():
        assert figure is not None
        assert (figure.what, figure.count, figure.basis) == (what, len(pairs), found.basis)
        assert list(examples) == pairs_of(pairs[:5])
    lengths = [len(pairs) for *_, pairs in sides.values()]
    assert all(lengths[:2]) and any(lengths[2:])
    assert (found.even, found.even_dumps) == (mcnemar(*lengths[:2]), mcnemar(*lengths[2:]))
    with Store.read(first) as one, Store.read(second) as two:
        assert (found.first, found.second) == (one.header, two.header)
        assert found.basis.config_hash == f"{one.header.config_hash} and {two.header.config_hash}"
        assert found.basis.version == one.header.version
