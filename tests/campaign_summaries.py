"""A campaign's summary as a real one would be, for tests of the reports; made without running anything.

The numbers have the shape that is expected of 20,000 uniform faults with a purgatory and without page protection: what
hits hashed bytes is found, free memory is latent, and what is left to go wrong hits the purgatory itself.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import cache

from kexecemu.campaign.compare import Comparison, Pair
from kexecemu.campaign.header import Header
from kexecemu.campaign.stats import Basis, Figure, Interval, Stratum, stratified, upper_bound
from kexecemu.campaign.summary import DIMENSIONS, AreaHits, Disagreement, Example, Summary
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome

__all__ = ["PAIRS", "disagreeing", "made_up_comparison", "made_up_header", "made_up_summary"]

_MIB = 1 << 20
_REGION = 0x6000_0000
# name, offset in the region, size, kind
AREAS = (
    ("below-crashkernel", -8, 8, "edge"),
    ("kernel", 0, 9 * _MIB, "hashed"),
    ("initrd", 9 * _MIB, 7 * _MIB, "hashed"),
    ("crashkernel-free", 16 * _MIB, 110 * _MIB, "free"),
    ("dtb", 126 * _MIB, 0x1000, "hashed"),
    ("crashkernel", 126 * _MIB + 0x1000, 0x1000, "control"),
    ("purgatory", 127 * _MIB, 0x1D000, "purgatory"),
    ("elfcorehdr", 127 * _MIB + 0x1D000, 0x1000, "hashed"),
    ("above-crashkernel", 128 * _MIB, 8, "edge"),
)
_WEIGHTS = (1, 900, 700, 500, 60, 20, 240, 60, 1)
_WRITERS = ("alias", "cpu", "dma")
_MODELS = ("bit-flip", "byte", "memset", "stamp", "word64")
_MOMENTS = ("after-load", "during-panic", "hashing")
_ENDS = {
    "hashed": (("detected", "hash", 955), ("masked", "same-value", 40), ("silent", "run", 5)),
    "free": (("latent", "unread", 1000),),
    "control": (("latent", "unread", 700), ("hung", "run", 200), ("misboot", "run", 100)),
    "edge": (("latent", "unread", 1000),),
    "purgatory": (
        ("latent", "run", 420),
        ("masked", "same-value", 260),
        ("detected", "run", 180),
        ("trapped", "run", 90),
        ("hung", "run", 38),
        ("misboot", "run", 9),
        ("silent", "run", 2),
        ("error", "run", 1),
    ),
}
_DETAILS = {
    "silent": "hashed before the write: the digest is of what was there",
    "hung": "no verdict within the budget of instructions",
    "trapped": "Undefined instruction at purgatory_start+0x1c",
    "misboot": "control went to 0x0",
    "error": "engine: <unmapped> & lost",
}


# What became of the dump: of those with two words the first fault in four has the second.
_DUMPS = {
    **dict.fromkeys(("captured", "prevented", "masked", "latent"), ("true", "true")),
    **dict.fromkeys(("detected", "trapped", "misboot", "hung", "error"), ("none", "none")),
    "silent": ("true", "wrong"),
}


def made_up_summary(seed: int = 1, faults: int = 20_000, **changes: object) -> Summary:
    """The summary; fields that are given replace what it would have."""
    return replace(_made_up(seed, faults), **changes)  # type: ignore[arg-type]


@cache
def _made_up(seed: int, faults: int) -> Summary:
    draw = random.Random(seed)
    outcomes, how = Counter[str](), Counter[str]()
    by: dict[str, dict[str, Counter[str]]] = {dimension: {} for dimension in DIMENSIONS}
    cells = [[Counter[str]() for _ in range(min(64, size))] for _, _, size, _ in AREAS]
    dumps, crossed = Counter[str](), {outcome.value: Counter[str]() for outcome in Outcome}
    dumped = [[Counter[str]() for _ in range(min(64, size))] for _, _, size, _ in AREAS]
    examples: dict[str, list[Example]] = {outcome.value: [] for outcome in Outcome}
    for _ in range(faults):
        (number,) = draw.choices(range(len(AREAS)), _WEIGHTS)
        name, start, size, kind = AREAS[number]
        ends = _ENDS[kind]
        ((outcome, way, _),) = draw.choices(ends, [weight for _, _, weight in ends])
        offset = draw.randrange(size)
        writer, model, moment = draw.choice(_WRITERS), draw.choice(_MODELS), draw.choice(_MOMENTS)
        token = f"{writer}.{model}.{draw.randrange(8):x}.{name}+{offset:x}.{moment}"
        token += "-128" if moment == "hashing" else ""
        keys = {"segment": name, "kind": kind, "writer": writer, "model": model, "moment": moment}
        for dimension in DIMENSIONS:
            by[dimension].setdefault(keys[dimension], Counter())[outcome] += 1
        dump = _DUMPS[outcome][outcomes[outcome] % 4 == 0]
        outcomes[outcome] += 1
        how[way] += 1
        dumps[dump] += 1
        crossed[outcome][dump] += 1
        dumped[number][offset * len(cells[number]) // size][dump] += 1
        cells[number][offset * len(cells[number]) // size][outcome] += 1
        if len(examples[outcome]) < 10:
            phys = _REGION + start + offset
            why = f"{dump} <because> of it"
            examples[outcome].append(
                Example(token, outcome, way, name, phys, _DETAILS.get(outcome, ""), dump, why)
            )
    basis = Basis(3_298_534_883_328, faults, seed, "0.1.0", "5f2c9b1e" * 8, "uniform-1")
    decided = faults - how["run"]
    return Summary(
        name="a campaign over a 16 MiB image, with <purgatory> & without page protection",
        scenario="campaign-16m",
        protection="none",
        purgatory="default",
        basis=basis,
        outcomes={one.value: outcomes[one.value] for one in Outcome},
        figures={one.value: _figure(one.value, outcomes[one.value], basis) for one in Outcome},
        how={one: how[one] for one in ("run", "same-value", "hash", "unread") if how[one]},
        by={
            dimension: {key: _in_order(counts) for key, counts in sorted(table.items())}
            for dimension, table in by.items()
        },
        areas=tuple(
            AreaHits(
                name,
                _REGION + start,
                _REGION + start + size,
                kind,
                tuple(map(_in_order, hits)),
                tuple({dump.value: cell[dump] for dump in Dump if cell[dump]} for cell in there),
            )
            for (name, start, size, kind), hits, there in zip(AREAS, cells, dumped, strict=True)
        ),
        examples={outcome: tuple(found) for outcome, found in examples.items()},
        worst=tuple(
            one for outcome in ("silent", "misboot", "hung", "trapped", "error") for one in examples[outcome]
        ),
        audited=min(300, decided),
        disagreements=(),
        table_sha256="c0ffee" * 10 + "beef",
        seconds=2.0,
        audit_seconds=31.4,
        dumps={one.value: dumps[one] for one in Dump},
        dump_figures={one.value: _figure(f"dump {one.value}", dumps[one], basis) for one in Dump},
        outcome_dumps={
            outcome: {one.value: counts[one] for one in Dump if counts[one]}
            for outcome, counts in crossed.items()
            if counts
        },
    )


def disagreeing() -> Summary:
    """A campaign whose audit found that one fault ends otherwise than decided."""
    wrong = Disagreement(
        "dma.byte.1.initrd+5.after-load", "detected", "hash", "silent", "the digests <match>"
    )
    return made_up_summary(disagreements=(wrong,))


def _figure(outcome: str, count: int, basis: Basis) -> Figure:
    strata = [Stratum(basis.population, basis.faults, count)]
    return Figure(outcome, count, stratified(strata), basis, None if count else upper_bound(strata))


def _in_order(counts: Counter[str]) -> dict[str, int]:
    return {one.value: counts[one.value] for one in Outcome if counts[one.value]}


PAIRS = {
    "detected": {"prevented": 400, "detected": 500, "silent": 2},
    "latent": {"prevented": 30, "latent": 900},
    "silent": {"prevented": 120, "silent": 40},
    "trapped": {"latent": 7, "error": 1},
}


def made_up_header(protection: str, purgatory: str, **more: str) -> Header:
    return Header("0.1.0", "ab" * 32, protection, purgatory, 1, 2000, 10**9, "uniform-1", 500, **more)


def made_up_comparison(**changes: object) -> Comparison:
    """Two campaigns of which the second catches more."""
    basis = made_up_summary().basis
    values: dict[str, object] = {
        "first": made_up_header("none", "default", scenario="'a b.toml'"),
        "second": made_up_header("pte", "<default>", scenario="'a b.toml'", options="--protection pte"),
        "basis": basis,
        "outcomes": PAIRS,
        "classes": {here: dict.fromkeys(("caught", "harmless", "harm"), 7) for here in ("caught", "harm")},
        "only_first": Figure("x", 2, Interval(1e-4, 1e-3, 2e-3), basis),
        "only_second": Figure("y", 0, Interval(0.0, 0.0, 2e-3), basis, at_most=1.5e-3),
        "even": 1.5e-31,
        "examples_first": (Pair("dma.byte.1.dtb+5.after-load", "detected", "silent"),),
        "examples_second": (),
    }
    return Comparison(**{**values, **changes})  # type: ignore[arg-type]
