"""From the results in a store to the summary that reports are made of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum

from kexecemu.campaign.fault import How
from kexecemu.campaign.header import Header
from kexecemu.campaign.stats import CONFIDENCE, Basis, Figure, Stratum, stratified, upper_bound
from kexecemu.campaign.store import Store, StoredRow
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


def summarise(store: Store) -> Summary:
    """A finished campaign's summary. Raises InputError when it is not finished."""
    header = store.header
    missing = header.faults - store.count()
    if missing:
        raise InputError(
            f"{store.path.parent}: {missing:,} of {header.faults:,} faults are still to be done: --resume"
        )
    basis = basis_of(header)
    counts = store.counts()
    outcomes, ways = Counter[str](), Counter[str]()
    by: dict[str, dict[str, Counter[str]]] = {one: defaultdict(Counter) for one in DIMENSIONS}
    drawn, found = Counter[int](), defaultdict[str, Counter[int]](Counter)
    dumped, crossed = defaultdict[str, Counter[int]](Counter), defaultdict[str, Counter[str]](Counter)
    reported = 0
    for stratum, segment, outcome, how, dump, said, count in counts:
        where, kind, model, writer, moment, _ = header.strata[stratum]
        outcomes[outcome] += count
        ways[how] += count
        drawn[stratum] += count
        found[outcome][stratum] += count
        dumped[dump][stratum] += count
        crossed[outcome][dump] += count
        reported += count if said and outcome == Outcome.TRAPPED else 0
        keys = {"segment": segment or where, "kind": kind, "writer": writer, "model": model, "moment": moment}
        for dimension, key in keys.items():
            by[dimension][key][outcome] += count
    examples = {
        outcome.value: tuple(
            _example(row)
            for row in store.first(outcome, _EXAMPLES_OF_HARM if outcome in _WORST else _EXAMPLES)
        )
        for outcome in Outcome
    }
    audits = store.audits()
    return Summary(
        name=header.name,
        scenario=header.scenario,
        protection=header.protection,
        purgatory=header.purgatory,
        basis=basis,
        outcomes={outcome.value: outcomes[outcome] for outcome in Outcome},
        figures={outcome.value: share(outcome.value, header, drawn, found[outcome]) for outcome in Outcome},
        how={how.value: ways[how] for how in How if ways[how]},
        by={
            dimension: {key: _in_order(counter) for key, counter in sorted(keys.items())}
            for dimension, keys in by.items()
        },
        areas=tuple(_hits(store, area) for area in sorted(header.areas, key=lambda area: area[1])),
        examples=examples,
        worst=tuple(example for outcome in _WORST for example in examples[outcome]),
        audited=len(audits),
        disagreements=tuple(
            Disagreement(one.fault, one.decided, one.how, one.run, one.detail, one.decided_dump, one.run_dump)
            for one in audits
            if not one.agrees
        ),
        table_sha256=store.table_sha256(),
        seconds=store.seconds("decide"),
        audit_seconds=store.seconds("audit"),
        options=header.options,
        dumps={dump.value: dumped[dump].total() for dump in Dump},
        dump_figures={dump.value: share(f"dump {dump.value}", header, drawn, dumped[dump]) for dump in Dump},
        outcome_dumps={
            outcome.value: {dump.value: counter[dump] for dump in Dump if counter[dump]}
            for outcome in Outcome
            if (counter := crossed.get(outcome))
        },
        reported=reported,
    )


def basis_of(header: Header) -> Basis:
    """What every figure of a campaign rests on."""
    method = f"Clopper-Pearson, {CONFIDENCE:.0%}"
    if header.stratified:
        method += f", {len(header.strata)} strata"
    return Basis(
        header.population,
        header.faults,
        header.seed,
        header.version,
        header.config_hash,
        header.sampler,
        method,
    )


def share(what: str, header: Header, drawn: Mapping[int, int], found: Mapping[int, int]) -> Figure:
    """The share of the population that has something, from how many were drawn and found in each stratum.

    A uniform sample is one of the whole, and its strata are not used.
    """
    count = sum(found.values())
    if header.stratified:
        strata = [
            Stratum(row[-1], drawn.get(number, 0), found.get(number, 0))
            for number, row in enumerate(header.strata)
        ]
    else:
        strata = [Stratum(header.population, header.faults, count)]
    at_most = None if count else upper_bound(strata)
    return Figure(what, count, stratified(strata), basis_of(header), at_most)


def _in_order(counter: Mapping[str, int], words: Iterable[StrEnum] = Outcome) -> dict[str, int]:
    return {word.value: counter[word] for word in words if counter.get(word)}


def _example(row: StoredRow) -> Example:
    return Example(
        row.fault,
        row.outcome,
        row.how,
        row.segment,
        row.phys,
        row.detail,
        row.dump,
        row.dump_reason,
        bool(row.reported),
    )


def _hits(store: Store, area: tuple[str, int, int, str]) -> AreaHits:
    name, start, end, kind = area
    cells = min(_CELLS, end - start)
    return AreaHits(
        name,
        start,
        end,
        kind,
        _cells(store.hits(start, end, cells), cells, Outcome),
        _cells(store.hits(start, end, cells, "dump"), cells, Dump),
    )


def _cells(
    hits: Iterable[tuple[int, str, int]], count: int, words: Iterable[StrEnum]
) -> tuple[Mapping[str, int], ...]:
    cells = [Counter[str]() for _ in range(count)]
    for cell, word, hit in hits:
        cells[cell][word] += hit
    return tuple(_in_order(cell, words) for cell in cells)
