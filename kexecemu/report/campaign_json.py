"""A campaign as the one JSON object that --json prints; programs rely on its keys."""

from dataclasses import asdict
from typing import Any

from kexecemu.campaign.stats import Figure
from kexecemu.campaign.summary import Disagreement, Example, Summary

__all__ = ["campaign_object"]

_NAMED = ("name", "scenario", "options", "protection", "purgatory", "population", "faults")


def campaign_object(summary: Summary) -> dict[str, Any]:
    """What `kexecemu campaign --json` prints. Addresses are physical, as integers; ends of areas are inclusive.

    outcomes and dumps count the sample, outcome_dumps both together, reported those of the trapped that the purgatory
    reported itself; intervals are shares of the population, each {low, estimate, high}, with at_most where
    nothing was counted (else null). injections_per_second, seconds and audit_seconds are by the host's clock and differ
    from run to run; all else is the same for the same campaign.
    """
    basis = summary.basis
    return {
        **{key: getattr(summary, key) for key in _NAMED},
        **{key: getattr(basis, key) for key in ("seed", "version", "config_hash", "sampler")},
        "outcomes": dict(summary.outcomes),
        "intervals": {outcome: _interval(figure) for outcome, figure in summary.figures.items()},
        "interval_method": basis.method,
        "dumps": dict(summary.dumps),
        "dump_intervals": {dump: _interval(figure) for dump, figure in summary.dump_figures.items()},
        "outcome_dumps": {outcome: dict(counts) for outcome, counts in summary.outcome_dumps.items()},
        "reported": summary.reported,
        "how": dict(summary.how),
        "by": {
            dimension: {key: dict(counts) for key, counts in table.items()}
            for dimension, table in summary.by.items()
        },
        "areas": [
            {"name": area.name, "start": area.start, "end": area.end - 1, "kind": area.kind}
            for area in summary.areas
        ],
        "worst": [_example(summary, one) for one in summary.worst],
        **{key: getattr(summary, key) for key in ("injections_per_second", "seconds", "audited")},
        "audit_disagreements": len(summary.disagreements),
        "audit_seconds": summary.audit_seconds,
        "disagreements": [_example(summary, one) for one in summary.disagreements],
        "table_sha256": summary.table_sha256,
    }


def _interval(figure: Figure) -> dict[str, float | None]:
    return {**asdict(figure.interval), "at_most": figure.at_most}


def _example(summary: Summary, example: Example | Disagreement) -> dict[str, Any]:
    return {**asdict(example), "reproducer": summary.reproducer(example)}
