"""What the purgatory's comparison came to, in a sentence or two for the report of a run."""

from __future__ import annotations

from kexecemu.crash.stages import PurgatoryEnd
from kexecemu.crash.verdict import Damaged, Verdict, VerdictFlags, VerdictState, describe_damage
from kexecemu.report.picture import size_text
from kexecemu.scenario.runner import Result

__all__ = ["verdict_text"]


def verdict_text(result: Result) -> str:
    """What was compared and how it went, or why nothing was."""
    stored, verdict, run = result.image.digest, result.end.verdict, result.end.purgatory
    if stored is None:
        return (
            "There is no purgatory, so nothing was hashed at the load and nothing is compared at the crash."
        )
    if run is None:
        return "The purgatory was not reached: nothing was compared."
    if verdict is None:
        return _no_record(result)
    if verdict.state is VerdictState.MATCH:
        return f"The digests match: {size_text(verdict.bytes_hashed)} in memory are as they were loaded."
    if verdict.state is VerdictState.MISMATCH:
        return _mismatch(result, verdict, stored)
    if verdict.state is VerdictState.TRAPPED:
        return f"An exception ended the comparison (ESR {verdict.esr:#x} at {verdict.elr:#x})."
    return "The purgatory did not finish its comparison."


def _mismatch(result: Result, verdict: Verdict, stored: bytes) -> str:
    if verdict.damaged & Damaged.PURGATORY:
        return "The purgatory's own code or symbols are not as they were loaded: nothing else was compared."
    if verdict.damaged & Damaged.DTB_POINTER:
        return "The purgatory was given another device tree than the loaded one: nothing was compared."
    where = describe_damage(verdict, result.image)
    if VerdictFlags.REPAIRED in verdict.flags:
        return f"The digests differed ({where}), were mended from the second copy, and match now."
    if verdict.found == stored:
        return (
            "A false alarm: what was found is what the load stored, so the image is intact. "
            "The purgatory's own copy of the digest is not."
        )
    if verdict.expected == stored:
        named = f" Damaged: {where}." if where else ""
        return f"The digests differ: memory is not as it was loaded.{named}"
    return "The digests differ, and the purgatory's copy of the stored digest was changed too."


def _no_record(result: Result) -> str:
    """What can be said of a purgatory that left no verdict."""
    loaded, run = result.image.purgatory, result.end.purgatory
    if loaded is not None and loaded.has_symbol("purgatory_verdict"):
        return "The purgatory's record of what it compared was overwritten."
    if run is not None and run.end is PurgatoryEnd.MISMATCH:
        return "The digests differ. This purgatory keeps no record of them; the console may show them."
    return "This purgatory keeps no record of what it compared."
