"""Two campaigns over the same faults, fault by fault: what one way of protecting catches that the other does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kexecemu.campaign.accounting import HARM, basis_of, share
from kexecemu.campaign.header import Header
from kexecemu.campaign.stats import Basis, Figure, mcnemar
from kexecemu.campaign.store import Row, Store
from kexecemu.errors import InputError
from kexecemu.faults.outcome import Outcome
from kexecemu.shown import shown

__all__ = ["Class", "Comparison", "Pair", "class_of", "compare"]

_CAUGHT = (Outcome.PREVENTED, Outcome.DETECTED)
_EXAMPLES = 5
_SAME = ("seed", "faults", "sampler", "population")

Class = str
"""caught (prevented, detected), harmless (captured, masked, latent), harm (silent, misboot, hung, trapped) or error."""

_CLASSES = ("caught", "harmless", "harm", "error")


def class_of(outcome: str) -> Class:
    """Which of the classes an outcome is in."""
    if outcome in _CAUGHT:
        return "caught"
    if outcome == Outcome.ERROR:
        return "error"
    return "harm" if outcome in HARM else "harmless"


@dataclass(frozen=True)
class Pair:
    """One fault and what came of it in the first and in the second campaign."""

    fault: str
    first: str
    second: str


@shown()
@dataclass(frozen=True)
class Comparison:
    """Two campaigns over one sample.

    first and second are their headers; basis is of both. outcomes[first outcome][second outcome] and
    classes[first class][second class] count faults; classes has all of them, outcomes those that occur, both in fixed
    order. only_first: harm in the second campaign that the first catches; only_second the reverse; each with the first
    examples of the sample. even is the exact probability of a split at least as uneven between these two if neither way
    were better (McNemar).
    """

    first: Header
    second: Header
    basis: Basis
    outcomes: Mapping[str, Mapping[str, int]]
    classes: Mapping[Class, Mapping[Class, int]]
    only_first: Figure
    only_second: Figure
    even: float
    examples_first: tuple[Pair, ...]
    examples_second: tuple[Pair, ...]

    @property
    def names(self) -> tuple[str, str]:
        """What to call the two: their protections and purgatories, or more where these do not tell them apart."""
        plain = tuple(f"{one.protection}, purgatory {one.purgatory}" for one in (self.first, self.second))
        if plain[0] != plain[1]:
            return plain[0], plain[1]
        return f"first ({plain[0]})", f"second ({plain[1]})"


def compare(first: Path, second: Path) -> Comparison:
    """Compare the campaigns in two folders.

    Raises InputError when one is not there or not finished, and when they did not try the same faults, saying why.
    """
    if first.resolve() == second.resolve():
        raise InputError(f"{first}: the same folder twice")
    with Store.read(first) as one, Store.read(second) as other:
        for folder, store in ((first, one), (second, other)):
            if store.count() != store.header.faults:
                raise InputError(f"{folder}: not finished; go on with kexecemu campaign --resume")
        differences = one.header.differences(other.header, _SAME)
        if differences:
            raise InputError(f"not the same faults: in {first} {'; '.join(differences)} as in {second}")
        return _compare(one, other, first, second)


def _compare(one: Store, other: Store, first: Path, second: Path) -> Comparison:
    outcomes = Counter[tuple[str, str]]()
    drawn, only_first, only_second = Counter[int](), Counter[int](), Counter[int]()
    examples: dict[tuple[Class, Class], list[Pair]] = {("caught", "harm"): [], ("harm", "caught"): []}
    for here, there in zip(one.rows(), other.rows(), strict=True):
        if here.fault != there.fault:
            raise InputError(_not_the_same(here, there, first, second))
        outcomes[here.outcome, there.outcome] += 1
        drawn[here.stratum] += 1
        classes = class_of(here.outcome), class_of(there.outcome)
        if classes in examples:
            (only_first if classes[0] == "caught" else only_second)[here.stratum] += 1
            if len(examples[classes]) < _EXAMPLES:
                examples[classes].append(Pair(here.fault, here.outcome, there.outcome))
    basis = _basis(one.header, other.header)
    return Comparison(
        one.header,
        other.header,
        basis,
        {
            here.value: counts
            for here in Outcome
            if (counts := {there.value: n for there in Outcome if (n := outcomes[here, there])})
        },
        {
            here: {
                there: sum(n for (a, b), n in outcomes.items() if (class_of(a), class_of(b)) == (here, there))
                for there in _CLASSES
            }
            for here in _CLASSES
        },
        replace(share("caught by the first alone", one.header, drawn, only_first), basis=basis),
        replace(share("caught by the second alone", one.header, drawn, only_second), basis=basis),
        mcnemar(only_first.total(), only_second.total()),
        tuple(examples["caught", "harm"]),
        tuple(examples["harm", "caught"]),
    )


def _basis(first: Header, second: Header) -> Basis:
    """The sample's, and both configurations."""
    versions = dict.fromkeys((first.version, second.version))
    hashes = dict.fromkeys((first.config_hash, second.config_hash))
    return replace(basis_of(first), version=" and ".join(versions), config_hash=" and ".join(hashes))


def _not_the_same(here: Row, there: Row, first: Path, second: Path) -> str:
    return (
        f"not the same faults: number {here.position} is {here.fault} in {first}, but {there.fault} in {second}: "
        "the images are laid out differently, or the scenarios ask for other faults"
    )
