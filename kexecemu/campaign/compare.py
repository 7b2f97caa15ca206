"""Two campaigns over the same faults, fault by fault: what one way of protecting catches that the other does not."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kexecemu.campaign.accounting import HARM, basis_of, share
from kexecemu.campaign.database import FILE
from kexecemu.campaign.header import Header
from kexecemu.campaign.stats import Basis, Figure, mcnemar
from kexecemu.campaign.store import Store, StoredRow
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError
from kexecemu.files import file_identity
from kexecemu.shown import shown

__all__ = ["Class", "Comparison", "Pair", "class_of", "compare"]

_CAUGHT = (Outcome.PREVENTED, Outcome.DETECTED)
_EXAMPLES = 5
_SAME = ("seed", "faults", "sampler", "population")

Class = str
"""caught (prevented, detected, a trap that the purgatory reported), harmless (captured, masked, latent), harm (silent,
misboot, hung, any other trap) or error."""

_CLASSES = ("caught", "harmless", "harm", "error")


def class_of(outcome: str, reported: bool | int = False) -> Class:
    """Which of the classes an outcome is in; reported: the purgatory said itself that something was wrong."""
    if outcome in _CAUGHT or (reported and outcome == Outcome.TRAPPED):
        return "caught"
    if outcome == Outcome.ERROR:
        return "error"
    return "harm" if outcome in HARM else "harmless"


@dataclass(frozen=True)
class Pair:
    """One fault and what came of it in the first and in the second campaign: the outcomes, and the dumps."""

    fault: str
    first: str
    second: str
    first_dump: str = ""
    second_dump: str = ""


@shown()
@dataclass(frozen=True)
class Comparison:
    """Two campaigns over one sample.

    first and second are their headers; basis is of both. outcomes[first outcome][second outcome] and
    classes[first class][second class] count faults; classes has all of them, outcomes those that occur, both in fixed
    order. only_first: harm in the second campaign that the first catches; only_second the reverse; each with the first
    examples of the sample. even is the exact probability of a split at least as uneven between these two if neither way
    were better (McNemar).

    dumps[first][second] counts what became of the dump in both; true_first is a true dump with the first alone,
    true_second with the second alone, with their examples, and even_dumps is for these what even is for the other two.
    turns[first outcome][second outcome] says on which side alone faults with these two do harm: "first" or "second".
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
    dumps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    true_first: Figure | None = None
    true_second: Figure | None = None
    even_dumps: float = 1.0
    examples_true_first: tuple[Pair, ...] = ()
    examples_true_second: tuple[Pair, ...] = ()
    turns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

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
    if file_identity(first / FILE) == file_identity(second / FILE):
        raise InputError(f"{first}: the same campaign twice")
    with Store.read(first) as one, Store.read(second) as other:
        for folder, store in ((first, one), (second, other)):
            if store.count() != store.header.faults:
                raise InputError(f"{folder}: not finished; go on with kexecemu campaign --resume")
        differences = one.header.differences(other.header, _SAME)
        if differences:
            raise InputError(f"not the same faults: in {first} {'; '.join(differences)} as in {second}")
        return _compare(one, other, first, second)


class _Pairs:
    """What is counted of two campaigns, pair by pair of their results."""

    def __init__(self) -> None:
        self.outcomes, self.classes, self.dumps = (Counter[tuple[str, str]]() for _ in range(3))
        self.drawn = Counter[int]()
        # For each: where the first campaign alone is ahead, and where the second is.
        self.caught, self.true = (_Side(), _Side()), (_Side(), _Side())
        self.turns: dict[str, dict[str, str]] = defaultdict(dict)

    def add(self, here: StoredRow, there: StoredRow) -> None:
        self.outcomes[here.outcome, there.outcome] += 1
        self.dumps[here.dump, there.dump] += 1
        self.drawn[here.stratum] += 1
        kinds = class_of(here.outcome, here.reported), class_of(there.outcome, there.reported)
        self.classes[kinds] += 1
        if "error" not in kinds and (kinds[0] == "harm") != (kinds[1] == "harm"):
            self.turns[here.outcome][there.outcome] = "first" if kinds[0] == "harm" else "second"
        if set(kinds) == {"caught", "harm"}:
            self.caught[kinds[1] == "caught"].add(here, there)
        if here.dump != there.dump and Dump.TRUE in (here.dump, there.dump):
            self.true[there.dump == Dump.TRUE].add(here, there)


def _compare(one: Store, other: Store, first: Path, second: Path) -> Comparison:
    pairs = _Pairs()
    for here, there in zip(one.rows(), other.rows(), strict=True):
        if here.fault != there.fault:
            raise InputError(
                f"not the same faults: number {here.position} is {here.fault} in {first}, but {there.fault} in "
                f"{second}: the images are laid out differently, or the scenarios ask for other faults"
            )
        pairs.add(here, there)
    versions = dict.fromkeys((one.header.version, other.header.version))
    hashes = dict.fromkeys((one.header.config_hash, other.header.config_hash))
    # The sample's, and both configurations.
    basis = replace(basis_of(one.header), version=" and ".join(versions), config_hash=" and ".join(hashes))

    def figure(what: str, side: _Side) -> Figure:
        return replace(share(f"{what} alone", one.header, pairs.drawn, side.found), basis=basis)

    outcomes, classes, dumps = pairs.outcomes, pairs.classes, pairs.dumps
    caught, true = pairs.caught, pairs.true
    told = {here.value: {there.value: outcomes[here, there] for there in Outcome} for here in Outcome}
    return Comparison(
        one.header,
        other.header,
        basis,
        {
            here: {there: n for there, n in row.items() if n}
            for here, row in told.items()
            if any(row.values())
        },
        {here: {there: classes[here, there] for there in _CLASSES} for here in _CLASSES},
        figure("caught by the first", caught[0]),
        figure("caught by the second", caught[1]),
        mcnemar(*(side.found.total() for side in caught)),
        tuple(caught[0].examples),
        tuple(caught[1].examples),
        {here.value: {there.value: dumps[here, there] for there in Dump} for here in Dump},
        figure("a true dump with the first", true[0]),
        figure("a true dump with the second", true[1]),
        mcnemar(*(side.found.total() for side in true)),
        tuple(true[0].examples),
        tuple(true[1].examples),
        pairs.turns,
    )


class _Side:
    """Faults in which one campaign is ahead of the other, by stratum, and the first of them."""

    def __init__(self) -> None:
        self.found = Counter[int]()
        self.examples: list[Pair] = []

    def add(self, here: StoredRow, there: StoredRow) -> None:
        self.found[here.stratum] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(Pair(here.fault, here.outcome, there.outcome, here.dump, there.dump))
