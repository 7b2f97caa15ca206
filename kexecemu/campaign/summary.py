"""What came of a campaign, with everything that a figure needs to be read rightly."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kexecemu.campaign.stats import Basis, Figure
from kexecemu.shown import shown

__all__ = ["DIMENSIONS", "AreaHits", "Disagreement", "Example", "Summary"]

# What outcomes are counted by, beside their sum. A segment is where the fault hit, or the fault's base where it hit
# none (crashkernel-free); a kind is that of an area (kexecemu.campaign.areas); a moment is without its number.
DIMENSIONS = ("segment", "kind", "writer", "model", "moment")


@shown()
@dataclass(frozen=True)
class Example:
    """One fault and what came of it. phys is the address of its first byte, segment "" where it hit none."""

    fault: str
    outcome: str
    how: str
    segment: str
    phys: int
    detail: str = ""
    dump: str = ""
    dump_reason: str = ""
    reported: bool = False


@dataclass(frozen=True)
class Disagreement:
    """A fault that full emulation found to end otherwise than was decided: one of them fails the campaign.

    decided and run are outcomes, the dumps what became of the dump.
    """

    fault: str
    decided: str
    how: str
    run: str
    detail: str = ""
    decided_dump: str = ""
    run_dump: str = ""


@shown()
@dataclass(frozen=True)
class AreaHits:
    """What hit one area of the fault space, for pictures.

    phys start to end (end exclusive); kind is one of kexecemu.campaign.areas.Kind. cells are equal parts of the area in
    order of address, each with the count of every outcome that is not zero; a fault counts where its first byte is.
    dumps has the same of what became of the dump.
    """

    name: str
    start: int
    end: int
    kind: str
    cells: tuple[Mapping[str, int], ...]
    dumps: tuple[Mapping[str, int], ...] = ()


@shown()
@dataclass(frozen=True)
class Summary:
    """A whole campaign.

    name            the scenario's sentence
    scenario        the scenario as it was named on the command line: what `kexecemu replay ID SCENARIO` needs
    options         what was given on the command line to change it, "" for nothing; replay needs it as well
    protection, purgatory   what was in force, in the words of the scenario
    basis           population, faults (the sample), seed, version, config_hash, sampler, method: goes with each figure
    outcomes        count of each outcome in the sample: all ten, in the order of Outcome, zeros too
    figures         outcome -> Figure (count, share of the population with its interval, str() says it all): all ten
    how             how they were found -> count, in the order of How
    by              for each of DIMENSIONS: key -> outcome -> count (zeros left out), keys sorted
    areas           the fault space in order of address, with what hit where
    examples        outcome -> the first few faults of the sample with it; harm has more of them than the rest
    worst           the examples of harm (silent, misboot, hung, trapped) and error, the worst first
    audited         how many decided faults were run to the end in full emulation
    disagreements   those that ended otherwise; empty in a campaign that can be believed
    table_sha256    over all results in the order of the sample: equal for equal campaigns, wherever they ran
    dumps           count of what became of the dump: "true", "wrong", "none", zeros too
    dump_figures    the same as figures has outcomes
    outcome_dumps   outcome -> dump -> count (zeros left out), both in order
    reported        how many of the trapped the purgatory reported itself: they are no harm that nobody noticed
    seconds, audit_seconds   by the host's clock, apart from each other: not reproducible, as is injections_per_second
    """

    name: str
    scenario: str
    protection: str
    purgatory: str
    basis: Basis
    outcomes: Mapping[str, int]
    figures: Mapping[str, Figure]
    how: Mapping[str, int]
    by: Mapping[str, Mapping[str, Mapping[str, int]]]
    areas: tuple[AreaHits, ...]
    examples: Mapping[str, tuple[Example, ...]]
    worst: tuple[Example, ...]
    audited: int
    disagreements: tuple[Disagreement, ...]
    table_sha256: str
    seconds: float
    audit_seconds: float
    options: str = ""
    dumps: Mapping[str, int] = field(default_factory=dict)
    dump_figures: Mapping[str, Figure] = field(default_factory=dict)
    outcome_dumps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    reported: int = 0

    @property
    def population(self) -> int:
        """The size of the fault space."""
        return self.basis.population

    @property
    def faults(self) -> int:
        """The size of the sample."""
        return self.basis.faults

    @property
    def injections_per_second(self) -> float | None:
        """By the host's clock, the audit apart; None when nothing was timed."""
        return self.faults / self.seconds if self.seconds > 0 else None

    def reproducer(self, example: Example | Disagreement) -> str:
        """The command that runs one fault again."""
        return f"kexecemu replay {example.fault} {self.scenario} {self.options}".rstrip()
