"""Which faults of a space are tried: drawn without replacement, and the same for a seed for ever.

random.sample() would do, but Python promises to keep only random.random() the same from version to version (the random
module's notes on reproducibility), and a campaign's table must not depend on who runs it. So numbers come from
SHAKE-128, and the draw is a shuffle that is never written out (Fisher and Yates), of which the first n are taken. A
larger sample with the same seed therefore begins with the smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from kexecemu.campaign.space import Space
from kexecemu.errors import InputError

__all__ = ["SAMPLER", "draw", "sample_stratified", "sample_uniform"]

SAMPLER = "shake128-shuffle-1"
"""The name of the method: two campaigns with the same one, seed and space try the same faults."""

# Bytes a number: 2**128 is so far above any space that a remainder favours none by more than 2**-64.
_WORD = 16
_BATCH = 4096


def _numbers(label: str, seed: int, n: int) -> Iterator[int]:
    """The first n of an endless row of numbers below 2**128."""
    for begin in range(0, n, _BATCH):
        key = f"kexecemu {SAMPLER} {label} {seed} {begin // _BATCH}".encode()
        data = hashlib.shake_128(key).digest(_WORD * min(_BATCH, n - begin))
        for at in range(0, len(data), _WORD):
            yield int.from_bytes(data[at : at + _WORD], "little")


def draw(population: int, n: int, seed: int, label: str = "uniform") -> list[int]:
    """n different numbers below `population`, each set of n and each order of them as likely as any other.

    The seed and the label alone say which; memory and time are those of n, whatever the population. Raises InputError
    when there are not so many.
    """
    if not 0 <= n <= population:
        raise InputError(f"{n} faults cannot be drawn from {population}")
    moved: dict[int, int] = {}  # of the shuffled row of all numbers: what is not in its own place
    drawn = []
    for at, word in enumerate(_numbers(label, seed, n)):
        other = at + word % (population - at)
        drawn.append(moved.get(other, other))
        moved[other] = moved.pop(at, at)
    return drawn


def sample_uniform(space: Space, n: int, seed: int) -> list[int]:
    """The numbers of n different faults, every fault of the space as likely as any other.

    Raises InputError when there are not so many.
    """
    return draw(space.size, n, seed)


def sample_stratified(space: Space, n: int, seed: int) -> list[tuple[int, float]]:
    """The numbers of n different faults, as many from each stratum as can be, each with its weight.

    A weight says for how many faults of the space one stands: its stratum's size by how many were drawn there. The
    weights sum to the population, and a sum of weights estimates how many faults of the whole space have some outcome
    (Powell, Cukier and Arlat, On stratified sampling for high coverage estimations, EDCC 1996).
    A stratum with less than its share is taken whole, and the others share what is left. The order goes round the
    strata. Raises InputError when n is more than there are, or less than one for each stratum.
    """
    if n > space.size:
        raise InputError(f"{n} faults cannot be drawn from {space.size}")
    if n < len(space.strata):
        raise InputError(
            f"the space has {len(space.strata)} strata, so that a stratified sample needs as many faults, not {n}"
        )
    shares = _shares([one.size for one in space.strata], n)
    pairs = enumerate(zip(space.strata, shares, strict=True))
    drawn = [draw(one.size, share, seed, f"stratum {number}") for number, (one, share) in pairs]
    return [
        (stratum.first + numbers[turn], stratum.size / len(numbers))
        for turn in range(max(shares))
        for stratum, numbers in zip(space.strata, drawn, strict=True)
        if turn < len(numbers)
    ]


def _shares(sizes: list[int], n: int) -> list[int]:
    """n given out as evenly as can be, none more than its size."""
    shares = list(sizes)
    left = n
    # From the smallest on: what it cannot take is shared by those behind it, which can take more.
    for done, number in enumerate(sorted(range(len(sizes)), key=lambda one: (sizes[one], one))):
        shares[number] = min(sizes[number], left // (len(sizes) - done))
        left -= shares[number]
    return shares
