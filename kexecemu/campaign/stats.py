"""Exact intervals for what a sample says of a fault space; no figure without what it rests on.

The rates that matter here are near 0 (corruption that was missed) or near 1 (found), where the normal approximation
gives intervals of no width; so all intervals are Clopper and Pearson's (Biometrika 26, 1934), from the incomplete beta
function. A sample is drawn without replacement from a finite fault space, which is never less exact than the binomial
that they assume.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kexecemu.errors import InputError
from kexecemu.shown import shown

__all__ = ["CONFIDENCE", "Basis", "Figure", "Interval", "Stratum", "clopper_pearson", "incomplete_beta"]
__all__ += ["mcnemar", "stratified", "upper_bound"]

CONFIDENCE = 0.95
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Interval:
    """A share of the population between 0 and 1: what is likeliest, and between which values it lies."""

    low: float
    estimate: float
    high: float


@shown()
@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of the fault space: its size, how many of it were drawn, and how many of those are counted."""

    population: int
    sample: int
    count: int


@shown()
@dataclass(frozen=True, slots=True)
class Basis:
    """What a figure rests on. config_hash covers everything that decides what a fault does.

    A comparison of campaigns has two of them, and of versions where they differ, joined with " and ".
    """

    population: int
    faults: int
    seed: int
    version: str
    config_hash: str
    sampler: str
    method: str = f"Clopper-Pearson, {CONFIDENCE:.0%}"

    def __str__(self) -> str:
        hashes = " and ".join(one[:12] for one in self.config_hash.split(" and "))
        return (
            f"{self.faults:,} faults of a population of {self.population:,}, {self.sampler}, seed {self.seed}, "
            f"kexecemu {self.version}, configuration {hashes}, {self.method}"
        )


@shown()
@dataclass(frozen=True, slots=True)
class Figure:
    """A count with its interval, which cannot be printed without its basis.

    at_most is set where nothing was counted: the one-sided upper bound of the share.
    """

    what: str
    count: int
    interval: Interval
    basis: Basis
    at_most: float | None = None

    def __str__(self) -> str:
        if self.at_most is not None:
            said = f"none, at most {self.at_most:.3g} of the population"
        else:
            said = f"{self.count:,}, {self.interval.low:.6f} to {self.interval.high:.6f} of the population"
        return f"{self.what}: {said} ({self.basis})"


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), a and b above 0.

    By the continued fraction of DLMF 8.17.22, evaluated with Lentz's method; where that converges slowly, by the
    symmetry I_x(a, b) = 1 - I_(1-x)(b, a).
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _beta_fraction(b, a, 1.0 - x)
    return _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    factor = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    upper, lower, value = 1.0, 0.0, 1.0
    # The fraction needs about the square root of the larger parameter in terms.
    for term in range(200 + 20 * math.isqrt(int(a + b) + 1)):
        step = term // 2
        if term == 0:
            numerator = 1.0
        elif term % 2 == 0:
            numerator = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        else:
            numerator = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        lower = 1.0 / _nonzero(1.0 + numerator * lower)
        upper = _nonzero(1.0 + numerator / upper)
        value *= upper * lower
        if term and abs(upper * lower - 1.0) < 1e-15:
            break
    return factor * (value - 1.0) / a


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def clopper_pearson(count: int, sample: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact two-sided interval of a share of which count were found in a sample.

    Raises InputError when count is not within the sample.
    """
    if not 0 <= count <= sample:
        raise InputError(f"{count} of a sample of {sample}")
    tail = (1.0 - confidence) / 2.0
    # The ends where a closed form is exact; elsewhere quantiles of beta distributions.
    if count == 0:
        low = 0.0
    elif count == sample:
        low = tail ** (1.0 / sample)
    else:
        low = _beta_quantile(tail, count, sample - count + 1)
    if count == sample:
        high = 1.0
    elif count == 0:
        high = -math.expm1(math.log(tail) / sample)
    else:
        high = _beta_quantile(1.0 - tail, count + 1, sample - count)
    return low, high


def _beta_quantile(probability: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    # Until they are neighbours.
    while low < (middle := (low + high) / 2.0) < high:
        if incomplete_beta(a, b, middle) < probability:
            low = middle
        else:
            high = middle
    return middle


def stratified(strata: Sequence[Stratum], confidence: float = CONFIDENCE) -> Interval:
    """The share of the whole population, from samples of its parts.

    The estimate weights every stratum with its size (Powell and others, Estimators for fault tolerance coverage
    evaluation, 1995). The interval is exact or too wide, never too narrow, whatever the shares: with one stratum it is
    Clopper and Pearson's; with more it is the sum of intervals that hold all at once (Bonferroni), but where all of the
    counts are zero, or all are full, the largest share that leaves that likely enough, which is far less. As that
    choice looks at the data, each way gets half of the error that is allowed. A stratum that was drawn whole is known,
    and adds no width.
    """
    population = sum(one.population for one in strata)
    if population == 0:
        return Interval(0.0, 0.0, 1.0)
    unsure = [one for one in strata if one.sample < one.population]
    known = sum(one.count for one in strata if one.sample == one.population) / population
    estimate = known + sum(
        one.population / population * (one.count / one.sample if one.sample else 0.5) for one in unsure
    )
    low = high = known
    parts = len(unsure)
    tail = (1.0 - confidence) / (2.0 if parts == 1 else 4.0)
    for one in unsure:
        ends = clopper_pearson(one.count, one.sample, 1.0 - 2.0 * tail / parts)
        low += one.population / population * ends[0]
        high += one.population / population * ends[1]
    if parts > 1 and not any(one.count for one in unsure):
        high = known + _largest_unseen(unsure, population, tail)
    if parts > 1 and all(one.count == one.sample for one in unsure):
        whole = sum(one.population for one in unsure) / population
        low = known + whole - _largest_unseen(unsure, population, tail)
    return Interval(max(0.0, low), estimate, min(1.0, high))


def upper_bound(strata: Sequence[Stratum], confidence: float = CONFIDENCE) -> float:
    """The exact one-sided upper bound of a share of which the samples hold none.

    With one stratum of n faults it is 1 - (1 - confidence)^(1/n).
    """
    unsure = [one for one in strata if one.sample < one.population]
    return _largest_unseen(unsure, sum(one.population for one in strata), 1.0 - confidence)


def _largest_unseen(strata: Sequence[Stratum], population: int, likely: float) -> float:
    """The largest share of the population of which samples from the strata hold none with that probability.

    Maximises sum(w p) where product((1 - p)^n) = likely: at the maximum 1 - p is proportional to n / w, or 1.
    """
    weights = [one.population / population for one in strata]
    if any(one.sample == 0 for one in strata):
        seen = [(weight, one) for weight, one in zip(weights, strata, strict=True) if one.sample]
        rest = _largest_unseen([one for _, one in seen], population, likely)
        return rest + sum(weight for weight, one in zip(weights, strata, strict=True) if not one.sample)
    if not strata:
        return 0.0
    ratios = [one.sample / weight for weight, one in zip(weights, strata, strict=True)]

    # log1p() and expm1() all the way: with many faults the share is as small as what 1.0 is exact to.
    def logarithms(scale: float) -> list[float]:
        """Of 1 - p, for scale = -log(the factor of proportion)."""
        return [min(0.0, math.log(ratio) - scale) for ratio in ratios]

    low = math.log(min(ratios))  # all of them 0
    high = low - math.log(likely)  # the least ratio's is log(likely) alone, so that the sum is beyond it
    while low < (middle := (low + high) / 2.0) < high:
        total = sum(one.sample * value for one, value in zip(strata, logarithms(middle), strict=True))
        low, high = (middle, high) if total > math.log(likely) else (low, middle)
    return sum(weight * -math.expm1(value) for weight, value in zip(weights, logarithms(high), strict=True))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided probability of so uneven a split when both were as good (McNemar's test, binomial form)."""
    sample, fewer = only_first + only_second, min(only_first, only_second)
    if 2 * fewer >= sample - 1:
        return 1.0
    # P(X <= fewer) of a binomial with p = 1/2 is I_(1/2)(sample - fewer, fewer + 1).
    return min(1.0, 2.0 * incomplete_beta(sample - fewer, fewer + 1, 0.5))
