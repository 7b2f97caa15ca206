"""Which conclusions are checked: of the faults that were decided without a run, a sample is run to the end."""

from collections import defaultdict
from itertools import zip_longest

from kexecemu.campaign.sampling import draw
from kexecemu.campaign.store import Store

__all__ = ["AUDIT", "choose"]

AUDIT = 300
"""How many faults are audited unless told otherwise: without a disagreement, at most 1 % of conclusions are wrong."""


def choose(store: Store, faults: int) -> list[int]:
    """Positions of the sample to be run in full emulation, so many or all there are; those in the store already too.

    There is one stratum for each way of concluding, outcome, dump and moment, for each such rests on reasons of its
    own, and the strata give one fault each in turn, so that rare conclusions are checked as well as common ones. The
    campaign's seed says which; fewer faults are the first ones of more.
    """
    if not faults:
        return []
    strata: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for row in store.decided():
        moment = store.header.strata[row.stratum][4]
        strata[row.how, row.outcome, row.dump, moment].append(row.position)
    drawn = [
        [
            positions[number]
            for number in draw(len(positions), min(faults, len(positions)), store.header.seed, label)
        ]
        for key, positions in sorted(strata.items())
        for label in ["audit " + " ".join(key)]
    ]
    turns = (position for turn in zip_longest(*drawn) for position in turn if position is not None)
    return [position for position, _ in zip(turns, range(faults), strict=False)]
