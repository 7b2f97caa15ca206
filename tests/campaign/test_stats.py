"""Intervals against published tables, exact sums of fractions, and identities; nothing printed without its basis."""

from __future__ import annotations

import itertools
import math
import re
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from kexecemu.campaign import stats
from kexecemu.campaign.stats import (
    Basis,
    Figure,
    Interval,
    Stratum,
    clopper_pearson,
    incomplete_beta,
    mcnemar,
    stratified,
    upper_bound,
)
from kexecemu.errors import InputError

HUGE = 10**15


def at_most(count: int, sample: int, share: Fraction) -> Fraction:
    """The probability of no more than count of a sample, exactly."""
    return sum(
        (math.comb(sample, k) * share**k * (1 - share) ** (sample - k) for k in range(count + 1)), Fraction(0)
    )


@pytest.mark.parametrize(
    ("count", "sample", "low", "high"),
    [  # Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 5
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0000, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_clopper_and_pearsons_interval_is_as_published(
    count: int, sample: int, low: float, high: float
) -> None:
    found = clopper_pearson(count, sample)
    assert (round(found[0], 4), round(found[1], 4)) == (low, high)


@pytest.mark.parametrize("sample", [1, 2, 9, 60])
def test_the_tails_beyond_the_interval_are_what_they_should_be(sample: int) -> None:
    for count in range(sample + 1):
        low, high = clopper_pearson(count, sample, 0.9)
        if count:
            assert float(1 - at_most(count - 1, sample, Fraction(low))) == pytest.approx(0.05, rel=1e-9)
        if count < sample:
            assert float(at_most(count, sample, Fraction(high))) == pytest.approx(0.05, rel=1e-9)
    assert clopper_pearson(0, sample)[0] == 0.0
    assert clopper_pearson(sample, sample)[1] == 1.0


@pytest.mark.parametrize("sample", [1, 7, 300, 10**4, 10**6, 10**12])
def test_the_ends_at_none_and_all_are_exact_to_the_last_bits(sample: int) -> None:
    with localcontext(prec=60):
        tail = Decimal((1 - 0.95) / 2)
        root = (tail.ln() / sample).exp()
        high, low = clopper_pearson(0, sample)[1], clopper_pearson(sample, sample)[0]
        assert abs(Decimal(high) / (1 - root) - 1) < Decimal("3e-16")
        assert abs(Decimal(low) / root - 1) < Decimal("3e-16")
    assert stratified([Stratum(HUGE, sample, 0)]) == Interval(0.0, 0.0, high)
    assert stratified([Stratum(HUGE, sample, sample)]) == Interval(low, 1.0, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "x"), [(3, 4, 0.3), (1, 5, 0.01), (1e4, 2e4, 0.33), (1e6, 1e6, 0.4999), (2, 1e8, 1e-8)]
)
def test_the_fraction_ends_when_more_of_it_makes_no_difference(
    a: float, b: float, x: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    whole = stats._nonzero

    def nonzero(value: float) -> float:
        seen.append(value)
        return whole(value)

    monkeypatch.setattr(stats, "_nonzero", nonzero)
    incomplete_beta(a, b, x)
    assert 4 < len(seen) / 2 < 30 + 10 * math.sqrt(max(a, b))


def test_intervals_mirror_each_other() -> None:
    for count, sample in [(0, 1_000_000), (3, 1_000_000), (499_000, 1_000_000), (17, 40)]:
        low, high = clopper_pearson(count, sample)
        mirrored = clopper_pearson(sample - count, sample)
        assert mirrored == (pytest.approx(1 - high, abs=1e-12), pytest.approx(1 - low, abs=1e-12))


def test_a_large_sample_comes_close_to_the_normal_approximation_where_that_holds() -> None:
    sample, count = 1_000_000, 300_000
    low, high = clopper_pearson(count, sample)
    half = 1.959964 * math.sqrt(0.3 * 0.7 / sample)
    assert low == pytest.approx(0.3 - half, abs=2e-6)
    assert high == pytest.approx(0.3 + half, abs=2e-6)


def test_a_rare_outcome_in_a_large_sample_comes_close_to_poissons_interval() -> None:
    # Garwood's exact limits for a Poisson count of 3: 0.6187 and 8.7673.
    low, high = clopper_pearson(3, 10**8)
    assert low * 10**8 == pytest.approx(0.6187, abs=1e-4)
    assert high * 10**8 == pytest.approx(8.7673, abs=1e-4)


def test_an_impossible_count_is_refused_and_an_empty_sample_says_nothing() -> None:
    with pytest.raises(InputError, match="11 of a sample of 10"):
        clopper_pearson(11, 10)
    with pytest.raises(InputError):
        clopper_pearson(-1, 10)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_the_incomplete_beta_function_has_its_closed_forms() -> None:
    for x in (0.001, 0.2, 0.5, 0.77, 0.999):
        assert incomplete_beta(1, 1, x) == pytest.approx(x, rel=1e-12)
        assert incomplete_beta(3.5, 1, x) == pytest.approx(x**3.5, rel=1e-12)
        assert incomplete_beta(0.5, 0.5, x) == pytest.approx(2 / math.pi * math.asin(math.sqrt(x)), rel=1e-12)
        assert incomplete_beta(40, 7, x) == pytest.approx(1 - incomplete_beta(7, 40, 1 - x), abs=1e-12)
    assert (incomplete_beta(2, 3, 0.0), incomplete_beta(2, 3, 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize(("sample", "bound"), [(300, 0.00994), (10_000, 0.0002995), (1_000_000, 2.9957e-6)])
def test_a_sample_without_any_bounds_the_share_from_above(sample: int, bound: float) -> None:
    found = upper_bound([Stratum(HUGE, sample, 0)])
    assert found == pytest.approx(bound, rel=1e-3)
    assert (1 - found) ** sample == pytest.approx(0.05, rel=1e-9)


def test_a_chance_in_a_million_needs_three_million_faults() -> None:
    assert upper_bound([Stratum(HUGE, 2_995_731, 0)]) < 1e-6 < upper_bound([Stratum(HUGE, 2_995_730, 0)])


def test_the_bound_of_several_strata_is_the_largest_share_that_is_likely_enough() -> None:
    strata = [Stratum(700, 20, 0), Stratum(300, 50, 0)]
    steps = [step / 2000 for step in range(2000)]
    largest = max(
        0.7 * p + 0.3 * q for p, q in itertools.product(steps, steps) if (1 - p) ** 20 * (1 - q) ** 50 >= 0.05
    )
    assert upper_bound(strata) == pytest.approx(largest, abs=1e-3)
    assert upper_bound(strata) >= largest


@pytest.mark.parametrize(
    "strata", [((700, 20), (300, 50)), ((500, 10), (500, 400)), ((990, 9), (10, 9)), ((10, 9), (990, 300))]
)
def test_it_is_so_however_unlike_they_were_drawn(strata: tuple[tuple[int, int], tuple[int, int]]) -> None:
    (weight, sample), (other_weight, other) = strata
    largest = 0.0
    for step in range(20_001):  # of what there may be in the first, up to all that is likely enough
        p = (1 - 0.05 ** (1 / sample)) * step / 20_000
        q = 1 - min(1.0, 0.05 / (1 - p) ** sample) ** (1 / other)
        largest = max(largest, (weight * p + other_weight * q) / (weight + other_weight))
    found = upper_bound([Stratum(population, drawn, 0) for population, drawn in strata])
    assert largest <= found + 1e-12 and found == pytest.approx(largest, rel=1e-6)


def test_strata_that_are_drawn_alike_are_as_good_as_one() -> None:
    parts = [Stratum(HUGE, 100, 0), Stratum(2 * HUGE, 200, 0), Stratum(5 * HUGE, 500, 0)]
    assert upper_bound(parts) == pytest.approx(upper_bound([Stratum(8 * HUGE, 800, 0)]), rel=1e-9)


def test_a_stratum_that_was_not_drawn_from_may_be_anything() -> None:
    assert upper_bound([Stratum(900, 0, 0), Stratum(100, 100, 0)]) == pytest.approx(0.9)
    found = stratified([Stratum(900, 0, 0), Stratum(100, 100, 100)])
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(1.0))


def test_one_stratum_has_clopper_and_pearsons_interval() -> None:
    found = stratified([Stratum(HUGE, 263, 81)])
    assert (found.low, found.high) == clopper_pearson(81, 263)
    assert found.estimate == 81 / 263


def test_the_interval_of_several_strata_is_the_sum_of_theirs_which_share_half_of_the_error() -> None:
    strata = [Stratum(700, 100, 5), Stratum(200, 80, 9), Stratum(100, 100, 40)]  # the last is known
    first, second = (clopper_pearson(one.count, one.sample, 1 - 0.05 / 2 / 2) for one in strata[:2])
    found = stratified(strata)
    assert found.low == pytest.approx(0.7 * first[0] + 0.2 * second[0] + 0.04)
    assert found.high == pytest.approx(0.7 * first[1] + 0.2 * second[1] + 0.04)


@pytest.mark.parametrize("parts", [2, 3])
def test_where_none_or_all_of_several_are_counted_the_largest_share_that_is_likely_is_left_out(
    parts: int,
) -> None:
    sizes = ((700, 100), (200, 80), (100, 60))[:parts]
    known = [Stratum(1000, 1000, 250)]
    whole = sum(size for size, _ in sizes) + 1000
    # Half of the error for each way, and of that half for each end.
    none = [Stratum(size, sample, 0) for size, sample in sizes]
    unseen = upper_bound([*none, Stratum(1000, 1000, 0)], 1 - 0.05 / 4)
    found = stratified(none + known)
    assert found.low == 250 / whole
    assert found.high == pytest.approx(250 / whole + unseen, rel=1e-12)
    every = [Stratum(size, sample, sample) for size, sample in sizes]
    found = stratified(every + known)
    assert found.high == pytest.approx(1 - 750 / whole, rel=1e-12)
    assert found.low == pytest.approx(1 - 750 / whole - unseen, rel=1e-12)
    # One that is not like the others, and it is the sum of their own intervals.
    for strata in ([Stratum(*sizes[0], 1), *none[1:]], [Stratum(*sizes[0], 99), *every[1:]]):
        ends = [clopper_pearson(one.count, one.sample, 1 - 0.05 / 2 / parts) for one in strata]
        weights = [one.population / whole for one in strata]
        low, high = (
            250 / whole + sum(weight * pair[end] for weight, pair in zip(weights, ends, strict=True))
            for end in (0, 1)
        )
        found = stratified(strata + known)
        assert [found.low, found.high] == pytest.approx([low, high], rel=1e-12)


def test_of_nothing_nothing_is_known_and_a_stratum_without_a_sample_counts_half() -> None:
    assert stratified([]) == stratified([Stratum(0, 0, 0)]) == Interval(0.0, 0.0, 1.0)
    assert stratified([Stratum(9, 0, 0)]) == Interval(0.0, 0.5, 1.0)
    assert upper_bound([Stratum(9, 0, 0), Stratum(1, 0, 0)]) == pytest.approx(1.0)


def test_what_was_tried_whole_is_known() -> None:
    assert stratified([Stratum(10, 10, 7)]) == Interval(0.7, 0.7, 0.7)
    assert upper_bound([Stratum(10, 10, 0)]) == 0.0


def test_strata_count_by_their_size_and_not_by_their_sample() -> None:
    # A tenth of the population is all harm, and nine tenths of the sample lie there.
    found = stratified([Stratum(900, 100, 0), Stratum(100, 90, 90)])
    assert found.estimate == pytest.approx(0.1)
    assert found.low < 0.1 < found.high


def test_the_interval_of_a_stratified_sample_holds_at_least_as_often_as_it_says() -> None:
    sizes, weights = (6, 9), (Fraction(4, 5), Fraction(1, 5))
    intervals = {
        counts: stratified(
            [
                Stratum(int(weight * HUGE), size, count)
                for weight, size, count in zip(weights, sizes, counts, strict=True)
            ],
            0.9,
        )
        for counts in itertools.product(range(sizes[0] + 1), range(sizes[1] + 1))
    }
    for shares in itertools.product([0.0, 0.004, 0.02, 0.1, 0.3, 0.5, 0.9, 0.99, 1.0], repeat=2):
        truth = sum(float(weight) * share for weight, share in zip(weights, shares, strict=True))
        holds = sum(
            math.prod(
                math.comb(size, count) * share**count * (1 - share) ** (size - count)
                for size, share, count in zip(sizes, shares, counts, strict=True)
            )
            for counts, interval in intervals.items()
            if interval.low - 1e-12 <= truth <= interval.high + 1e-12
        )
        assert holds >= 0.9, f"{shares}: {holds}"


def test_mcnemars_test_is_the_exact_sign_test() -> None:
    for first, second in itertools.product(range(8), range(8)):
        total, fewer = first + second, min(first, second)
        tail = sum(Fraction(math.comb(total, k), 2**total) for k in range(fewer + 1))
        assert mcnemar(first, second) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-12)
    assert mcnemar(0, 100_000) == 0.0
    assert mcnemar(0, 0) == 1.0


BASIS = Basis(1000, 300, 7, "1.2+abc", "0123456789abcdef", "uniform")


def test_a_figure_is_not_printed_without_what_it_rests_on() -> None:
    figure = Figure("silent", 3, stratified([Stratum(1000, 300, 3)]), BASIS)
    none = Figure("hung", 0, stratified([Stratum(1000, 300, 0)]), BASIS, upper_bound([Stratum(1000, 300, 0)]))
    for text in (str(figure), str(none)):
        for part in (
            "300 faults",
            "1,000",
            "seed 7",
            "1.2+abc",
            "0123456789ab",
            "uniform",
            "Clopper-Pearson",
        ):
            assert part in text
    basis = (
        "(300 faults of a population of 1,000, uniform, seed 7, kexecemu 1.2+abc, configuration 0123456789ab, "
        "Clopper-Pearson, 95%)"
    )
    assert re.fullmatch(r"silent: 3, 0\.\d{6} to 0\.\d{6} of the population " + re.escape(basis), str(figure))
    assert str(none) == f"hung: none, at most {none.at_most:.3g} of the population {basis}"
    assert "silent: 3, 0.002" in str(figure)
    assert "hung: none, at most 0.00994" in str(none)


def test_both_configurations_of_a_comparison_are_printed() -> None:
    both = Basis(1000, 300, 7, "1.2", "a" * 64 + " and " + "b" * 64, "uniform")
    assert "a" * 12 + " and " + "b" * 12 + "," in str(both)
