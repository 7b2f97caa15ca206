"""From the results in a store to the summary that reports are made of."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

from kexecemu.campaign.fault import How
from kexecemu.campaign.header import Header
from kexecemu.campaign.stats import CONFIDENCE, Basis, Figure, Stratum, stratified, upper_bound
from kexecemu.campaign.store import Counted, Store
from kexecemu.campaign.summary import DIMENSIONS, AreaHits, Disagreement, Example, Summary
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError

__all__ = ["HARM", "basis_of", "share", "summarise"]

# What a campaign is there to find, the worst first: a crash whose dump is wrong is worse than none.
HARM = (Outcome.SILENT, Outcome.MISBOOT, Outcome.HUNG, Outcome.TRAPPED)
_WORST = (*HARM, Outcome.ERROR)
_EXAMPLES_OF_HARM, _EXAMPLES = 10, 3
_CELLS = 64

_Row = TypeVar("_Row")
_Column = TypeVar("_Column")


def summarise(store: Store) -> Summary:
    """A finished campaign's summary. Raises InputError when it is not finished."""
    header = store.header
    missing = header.faults - store.count()
    if missing:
        raise InputError(
            f"{store.path.parent}: {missing:,} of {header.faults:,} faults are still to be done: --resume"
        )
    counts, audits = store.counts(), store.audits()
    drawn = _table(counts, lambda one: "", lambda one: one.stratum)[""]
    found = _table(counts, lambda one: one.outcome, lambda one: one.stratum)
    dumped = _table(counts, lambda one: one.dump, lambda one: one.stratum)
    crossed = _table(counts, lambda one: one.outcome, lambda one: one.dump)
    ways = _table(counts, lambda one: "", lambda one: one.how)[""]
    examples = {
        outcome.value: tuple(
            Example(row.fault, *row[3:10], reported=bool(row.reported))
            for row in store.first(outcome, _EXAMPLES_OF_HARM if outcome in _WORST else _EXAMPLES)
        )
        for outcome in Outcome
    }
    return Summary(
        name=header.name,
        scenario=header.scenario,
        protection=header.protection,
        purgatory=header.purgatory,
        basis=basis_of(header),
        outcomes={outcome.value: found[outcome].total() for outcome in Outcome},
        figures={outcome.value: share(outcome.value, header, drawn, found[outcome]) for outcome in Outcome},
        how=_in_order(ways, How),
        by={dimension: _by(counts, header, dimension) for dimension in DIMENSIONS},
        areas=tuple(_hits(store, area) for area in sorted(header.areas, key=lambda area: area[1])),
        examples=examples,
        worst=tuple(example for outcome in _WORST for example in examples[outcome]),
        audited=len(audits),
        disagreements=tuple(Disagreement(*one[1:]) for one in audits if not one.agrees),
        table_sha256=store.table_sha256(),
        seconds=store.seconds("decide"),
        audit_seconds=store.seconds("audit"),
        options=header.options,
        dumps={dump.value: dumped[dump].total() for dump in Dump},
        dump_figures={dump.value: share(f"dump {dump.value}", header, drawn, dumped[dump]) for dump in Dump},
        outcome_dumps={one.value: _in_order(crossed[one], Dump) for one in Outcome if one in crossed},
        reported=sum(one.faults for one in counts if one.reported and one.outcome == Outcome.TRAPPED),
    )


def _table(
    counts: Iterable[Counted], row: Callable[[Counted], _Row], column: Callable[[Counted], _Column]
) -> Mapping[_Row, Counter[_Column]]:
    """How many results there are by two things that can be said of each."""
    table = defaultdict[_Row, Counter[_Column]](Counter)
    for one in counts:
        table[row(one)][column(one)] += one.faults
    return table


def _by(counts: Iterable[Counted], header: Header, dimension: str) -> dict[str, dict[str, int]]:
    """The outcomes by one of DIMENSIONS."""
    number = ("segment", "kind", "model", "writer", "moment").index(dimension)  # as strata have them

    def key(one: Counted) -> str:
        return (one.segment if dimension == "segment" else "") or str(header.strata[one.stratum][number])

    table = _table(counts, key, lambda one: one.outcome)
    return {name: _in_order(table[name]) for name in sorted(table)}


def basis_of(header: Header) -> Basis:
    """What every figure of a campaign rests on."""
    method = f"Clopper-Pearson, {CONFIDENCE:.0%}"
    if header.stratified:
        method += f", {len(header.strata)} strata"
    sample = header.population, header.faults, header.seed
    return Basis(*sample, header.version, header.config_hash, header.sampler, method)


def share(what: str, header: Header, drawn: Mapping[int, int], found: Mapping[int, int]) -> Figure:
    """The share of the population that has something, from how many were drawn and found in each stratum.

    A uniform sample is one of the whole, and its strata are not used.
    """
    count = sum(found.values())
    if header.stratified:
        rows = enumerate(header.strata)
        strata = [Stratum(row[-1], drawn.get(at, 0), found.get(at, 0)) for at, row in rows]
    else:
        strata = [Stratum(header.population, header.faults, count)]
    at_most = None if count else upper_bound(strata)
    return Figure(what, count, stratified(strata), basis_of(header), at_most)


def _in_order(counter: Mapping[str, int], words: Iterable[StrEnum] = Outcome) -> dict[str, int]:
    return {word.value: counter[word] for word in words if counter.get(word)}


def _hits(store: Store, area: tuple[str, int, int, str]) -> AreaHits:
    _, start, end, _ = area
    cells = min(_CELLS, end - start)
    outcomes = _cells(store.hits(start, end, cells), cells, Outcome)
    return AreaHits(*area, outcomes, _cells(store.hits(start, end, cells, "dump"), cells, Dump))


def _cells(
    hits: Iterable[tuple[int, str, int]], count: int, words: Iterable[StrEnum]
) -> tuple[Mapping[str, int], ...]:
    cells = [Counter[str]() for _ in range(count)]
    for cell, word, hit in hits:
        cells[cell][word] += hit
    return tuple(_in_order(cell, words) for cell in cells)
