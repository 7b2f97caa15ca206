"""What the reports of a campaign have in common: words, shares with their intervals, tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kexecemu.campaign.accounting import HARM
from kexecemu.campaign.fault import How
from kexecemu.campaign.stats import Basis, Figure
from kexecemu.campaign.summary import Disagreement, Summary
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.shown import shown

__all__ = [
    "DIMENSION_WORDS",
    "DUMPS",
    "HOW_WORDS",
    "KIND_WORDS",
    "STRATIFIED",
    "Matrix",
    "audit_text",
    "basis_rows",
    "basis_text",
    "disagreement_text",
    "dump_headline",
    "dump_matrix",
    "dump_rows",
    "headline",
    "interval_text",
    "matrix_of",
    "occurring",
    "outcome_rows",
    "plural",
    "share_text",
    "tone_of",
    "undetected",
]

_TONES = {
    Outcome.CAPTURED: "good",
    Outcome.PREVENTED: "good",
    Outcome.DETECTED: "caught",
    Outcome.MASKED: "quiet",
    Outcome.LATENT: "quiet",
    Outcome.ERROR: "none",
}

HOW_WORDS: Final[Mapping[str, str]] = {
    How.RUN: "emulated to the end, from the last moment at which the write could not have mattered yet",
    How.SAME_VALUE: "the bytes were there already",
    How.REFUSED: "the page tables do not let the store through",
    How.HASH: "what is hashed is another, and so is the state of SHA-256 behind it",
    How.UNREAD: "nothing reads the bytes from then on",
    How.OVERWRITTEN: "the bytes are written anew before anything reads them",
}

KIND_WORDS: Final[Mapping[str, str]] = {
    "hashed": "covered by the image's digest",
    "unhashed": "of a segment, but covered by no digest",
    "purgatory": "the purgatory's own code, tables, digest and stack",
    "control": "the kernel's own pages of the crash image, covered by no digest",
    "free": "in the crash region, in use by nothing before the capture kernel",
    "edge": "just outside, where an off-by-one lands",
}

DIMENSION_WORDS: Final[Mapping[str, str]] = {
    "segment": "where it hit",
    "kind": "what becomes of the bytes",
    "writer": "who wrote",
    "model": "what was written",
    "moment": "when",
    "dump": "what became of the dump",
    "outcome": "what became of the dump, by outcome",
}

STRATIFIED: Final = (
    "Counts are of the sample; each stratum's share is weighted with its size in the population."
)

DUMPS: Final[Mapping[str, str]] = {f"dump {dump.value}": dump.meaning for dump in Dump}
"""What became of the dump, as tables and pictures name it, and what that means."""

_DUMP_TONES = {"dump true": "good", "dump wrong": "bad", "dump none": "caught"}


def tone_of(word: str) -> str:
    """How good or bad an outcome or one of DUMPS is: good, caught, quiet, bad, or none for a failure of our own."""
    return _DUMP_TONES.get(word) or _TONES.get(Outcome(word), "bad")


def undetected(summary: Summary) -> dict[Outcome, int]:
    """The harm that nobody noticed, the worst first, zeros left out: what the purgatory reported is not among it."""
    counts = {one: summary.outcomes[one] for one in HARM}
    counts[Outcome.TRAPPED] -= summary.reported
    return {outcome: count for outcome, count in counts.items() if count}


def plural(count: int, word: str) -> str:
    """The count with its word: "1 fault", "2,000 faults"."""
    return f"{count:,} {word}{'s' if count != 1 else ''}"


def _decimals(width: float) -> int:
    """How many decimals a percentage needs so that a difference of `width` (a share) has two digits."""
    if width <= 0.0:
        return 3
    return min(9, max(1, 1 - math.floor(math.log10(100.0 * width))))


def _percent(share: float, decimals: int) -> str:
    """A share in percent, without the sign. What is not nothing is never shown as 0.0: it has one digit at least."""
    number = f"{100.0 * share:.{decimals}f}"
    if share > 0.0 and not float(number):
        number = f"{100.0 * share:.{-math.floor(math.log10(100.0 * share))}f}"
    return number


def share_text(figure: Figure) -> str:
    """The likeliest share of the population: "99.812 %", or "none" where nothing was counted."""
    if figure.at_most is not None:
        return "none"
    interval = figure.interval
    return f"{_percent(interval.estimate, _decimals(interval.high - interval.low))} %"


def interval_text(figure: Figure) -> str:
    """Between what the share lies: "99.803 to 99.821 %", or "at most 0.030 %" where nothing was counted."""
    if figure.at_most is not None:
        return f"at most {_percent(figure.at_most, _decimals(figure.at_most))} %"
    low, high = figure.interval.low, figure.interval.high
    decimals = _decimals(high - low)
    return f"{_percent(low, decimals)} to {_percent(high, decimals)} %"


def basis_text(summary: Summary) -> str:
    """What a count rests on, in short; the shares' method is left out."""
    basis = summary.basis
    return (
        f"{basis.faults:,} of {basis.population:,}, {basis.sampler}, seed {basis.seed}, "
        f"kexecemu {basis.version}, {basis.config_hash[:12]}"
    )


def basis_rows(basis: Basis) -> list[tuple[str, str]]:
    """The same as the head of a page has it, each with its label."""
    return [
        ("faults", f"{basis.faults:,}"),
        ("out of", f"{basis.population:,}"),
        ("sampled", basis.sampler),
        ("seed", str(basis.seed)),
        ("kexecemu", basis.version),
    ]


def outcome_rows(summary: Summary) -> list[tuple[str, Figure, str]]:
    """Each outcome with its figure and what it means."""
    return [(one, summary.figures[one], Outcome(one).meaning) for one in summary.outcomes]


def dump_rows(summary: Summary) -> list[tuple[str, Figure, str]]:
    """Each of DUMPS with its figure and what it means; none for a summary that says nothing of them."""
    return [(f"dump {one}", figure, DUMPS[f"dump {one}"]) for one, figure in summary.dump_figures.items()]


@shown()
@dataclass(frozen=True)
class Matrix:
    """Counts of outcomes by one dimension: columns are the outcomes that occur, in their order; total is of a row."""

    dimension: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...], int], ...]


def occurring(counts: Iterable[Mapping[str, int]], words: Iterable[str] = Outcome) -> tuple[str, ...]:
    """The outcomes, or other words, that occur in any of the counts, in the order of Outcome, or of those."""
    found = {word for one in counts for word, count in one.items() if count}
    return tuple(str(word) for word in words if word in found)


def matrix_of(summary: Summary, dimension: str) -> Matrix:
    """The table of one dimension. Segments come in the order of address, other keys as they are sorted."""
    table = summary.by[dimension]
    columns = occurring(table.values())
    keys = list(table)
    if dimension == "segment":
        order = list(dict.fromkeys(area.name for area in summary.areas))
        keys.sort(key=lambda key: order.index(key) if key in order else len(order))
    return _matrix(dimension, columns, columns, {key: table[key] for key in keys})


def _matrix(
    dimension: str, columns: tuple[str, ...], words: Sequence[str], table: Mapping[str, Mapping[str, int]]
) -> Matrix:
    """words are what the table counts, columns how they are named."""
    rows = ((key, tuple(one.get(word, 0) for word in words), sum(one.values())) for key, one in table.items())
    return Matrix(dimension, columns, tuple(rows))


def headline(summary: Summary) -> str:
    """The campaign in a sentence: absolute counts, what does harm first."""
    told = [f"{count:,} {outcome.value}" for outcome, count in undetected(summary).items()]
    harm = ", ".join(told) if told else "none that does harm undetected (silent, misboot, hung or trapped)"
    other = {outcome: count for outcome, count in summary.outcomes.items() if count and outcome not in HARM}
    rest = [f"{count:,} {outcome}" for outcome, count in other.items()]
    if summary.reported:
        rest.append(f"{summary.reported:,} trapped and reported by the purgatory")
    return f"Of {plural(summary.faults, 'stray write')}: {harm}; {', '.join(rest) or 'nothing else'}."


def dump_headline(summary: Summary) -> str:
    """What became of the dumps, in a sentence; "" for a summary that says nothing of them."""
    told = [f"{count:,} {dump}" for dump, count in summary.dumps.items() if count]
    return f"The dump: {', '.join(told)}." if told else ""


def dump_matrix(summary: Summary) -> Matrix:
    """Outcomes by what became of the dump; all of DUMPS are columns."""
    return _matrix("outcome", tuple(DUMPS), tuple(Dump), summary.outcome_dumps)


def disagreement_text(one: Disagreement) -> tuple[str, str]:
    """What was decided and what it is, with the dump where only that is another one."""
    if one.decided != one.run:
        return one.decided, one.run
    return f"{one.decided}, dump {one.decided_dump}", f"{one.run}, dump {one.run_dump}"


def audit_text(summary: Summary) -> str:
    """What the audit found, in a sentence."""
    decided = summary.faults - summary.how.get(How.RUN, 0)
    if not summary.audited:
        if not decided:
            return "Nothing was decided without a run, so there was nothing to audit."
        return f"{plural(decided, 'fault')} decided without a run, and none of them audited."
    asked = f"{summary.audited:,} of {plural(decided, 'fault')} that had been decided without a run were run to the end"
    if not summary.disagreements:
        return f"{asked}: every one ended as decided."
    return f"{asked}: {len(summary.disagreements):,} ended otherwise, so this campaign cannot be believed."
