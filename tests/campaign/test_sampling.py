"""Samples: without replacement, as likely as they should be, the same for a seed whoever draws, weights that add up."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.campaign.areas import Area, Kind
from kexecemu.campaign.sampling import draw, sample_stratified, sample_uniform
from kexecemu.campaign.space import Space
from kexecemu.errors import InputError
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, When
from kexecemu.stray.models import MODELS


def space(*sizes: int) -> Space:
    """Strata of so many bytes, each with eight faults."""
    areas = [
        Area(f"area{'x' * number}", PhysRange.of(number << 40, size), Kind.HASHED, number << 40)
        for number, size in enumerate(sizes)
    ]
    return Space(areas, [MODELS["bit-flip"]], [By.DMA], [(When.AFTER_LOAD, 0)])


# -- uniform -------------------------------------------------------------------------------------------------------


def shuffled(population: int, seed: int) -> list[int]:
    """The whole shuffle, written out: what draw() says that it takes the first n of."""
    row = list(range(population))
    words = b""
    for batch in range(-(-population // 4096)):
        key = f"kexecemu shake128-shuffle-1 uniform {seed} {batch}"
        words += hashlib.shake_128(key.encode()).digest(16 * 4096)
    for at in range(population):
        other = at + int.from_bytes(words[16 * at : 16 * at + 16], "little") % (population - at)
        row[at], row[other] = row[other], row[at]
    return row


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(), st.data())
def test_a_sample_is_the_beginning_of_a_shuffle(population: int, seed: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, population))
    assert draw(population, n, seed) == shuffled(population, seed)[:n]


def test_a_long_sample_is_one_too() -> None:
    assert draw(10_000, 10_000, 5) == shuffled(10_000, 5)


@given(st.integers(1, 10**18), st.integers(0, 300), st.integers(0, 300), st.integers())
def test_a_larger_sample_begins_with_the_smaller_one(population: int, n: int, more: int, seed: int) -> None:
    small, large = min(n, population), min(n + more, population)
    drawn = draw(population, large, seed)
    assert len(set(drawn)) == large
    assert all(0 <= one < population for one in drawn)
    assert draw(population, small, seed) == drawn[:small]


def test_every_order_comes_up_as_often_as_any_other() -> None:
    rounds = 24_000
    counts = Counter(tuple(draw(4, 3, seed)) for seed in range(rounds))
    orders = list(itertools.permutations(range(4), 3))
    assert set(counts) == set(orders)
    expected = rounds / len(orders)
    chi = sum((counts[one] - expected) ** 2 / expected for one in orders)
    assert chi < 49.7  # 23 degrees of freedom: more than that is 1 in 1000


def test_a_sample_of_a_huge_space_is_spread_over_all_of_it() -> None:
    population, n = 10**15, 16_000
    counts = Counter(one * 16 // population for one in draw(population, n, 7))
    expected = n / 16
    assert (
        sum((counts[part] - expected) ** 2 / expected for part in range(16)) < 37.7
    )  # 15 degrees, 1 in 1000


def test_seeds_give_different_samples() -> None:
    samples = {tuple(draw(10**12, 20, seed)) for seed in (-1, 0, 1, 2, 10**30)}
    assert len(samples) == 5


def test_more_than_there_are_cannot_be_drawn() -> None:
    assert sorted(sample_uniform(space(3), 24, 1)) == list(range(24))
    with pytest.raises(InputError, match="25 faults cannot be drawn from 24"):
        sample_uniform(space(3), 25, 1)
    with pytest.raises(InputError, match="-1 faults cannot be drawn from 24"):
        sample_uniform(space(3), -1, 1)


def test_a_sample_never_changes() -> None:
    """A seed has to mean the same faults in every version of Python and of this."""
    assert draw(1 << 27, 4, 1) == [108768149, 9753556, 33253799, 131782806]


# -- stratified ------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # twelve strata of hundreds, on a host with other things to do
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(), st.data())
def test_weights_sum_to_the_population_and_no_fault_is_there_twice(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    made = space(*sizes)
    n = data.draw(st.integers(len(sizes), made.size))
    drawn = sample_stratified(made, n, seed)
    assert len({index for index, _ in drawn}) == len(drawn) == n
    assert math.isclose(math.fsum(weight for _, weight in drawn), made.size, rel_tol=1e-12)
    taken = Counter(made.stratum(index).first for index, _ in drawn)
    for index, weight in drawn:
        stratum = made.stratum(index)
        assert weight == stratum.size / taken[stratum.first]
    # As even as can be: one that has fewer than another by more than a rounding has no more to give.
    for stratum in made.strata:
        assert taken[stratum.first] >= min(stratum.size, max(taken.values()) - 1)


def test_weighted_counts_estimate_the_whole() -> None:
    """The mean over many seeds of the estimated number of faults with some property is the number that there are."""
    made = space(5, 40, 200)  # of 40, 320 and 1600 faults
    true = sum(index % 7 == 0 for index in range(made.size))
    estimates = [
        math.fsum(weight for index, weight in sample_stratified(made, 30, seed) if index % 7 == 0)
        for seed in range(2000)
    ]
    mean = math.fsum(estimates) / len(estimates)
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in estimates) / len(estimates))
    assert abs(mean - true) < 4 * spread / math.sqrt(len(estimates))


def test_any_beginning_of_a_stratified_sample_has_all_strata() -> None:
    made = space(5, 40, 200)
    drawn = sample_stratified(made, 300, 3)
    for at in range(0, 120, 3):
        assert {made.stratum(index).first for index, _ in drawn[at : at + 3]} == {
            one.first for one in made.strata
        }
    assert sample_stratified(made, 300, 3) == drawn
    assert sample_stratified(made, 300, 4) != drawn


def test_all_that_there_are_can_be_drawn_of_strata_too() -> None:
    made = space(1, 2, 4)
    assert sorted(sample_stratified(made, 56, 1)) == [(index, 1.0) for index in range(56)]
    assert len(sample_stratified(made, 3, 1)) == 3  # one of each


def test_strata_of_one_size_are_not_drawn_alike() -> None:
    made = space(1000, 1000)
    numbers = {index - made.stratum(index).first for index, _ in sample_stratified(made, 40, 3)}
    assert len(numbers) > 35


def test_a_stratified_sample_needs_one_fault_for_each_stratum_and_no_more_than_there_are() -> None:
    with pytest.raises(
        InputError, match="the space has 3 strata, so that a stratified sample needs as many faults"
    ):
        sample_stratified(space(5, 40, 200), 2, 1)
    with pytest.raises(InputError, match="1961 faults cannot be drawn from 1960"):
        sample_stratified(space(5, 40, 200), 1961, 1)
