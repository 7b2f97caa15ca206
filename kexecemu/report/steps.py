"""The way of one crash as a few steps, each told in a sentence: what happened there, and whether it went well."""

from __future__ import annotations

from dataclasses import dataclass

from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd
from kexecemu.crash.verdict import Damaged, Verdict, VerdictFlags, VerdictState
from kexecemu.kernel.base.config import Protection
from kexecemu.report.picture import effect_of, size_text
from kexecemu.scenario.runner import Result
from kexecemu.stray.fault import By, Injection, When

__all__ = ["Step", "steps_of"]

_PROTECTIONS = {
    Protection.NONE: "The page tables do not protect it.",
    Protection.PTE: "The pages of the segments were then made invalid in the linear map (PTE_VALID cleared).",
    Protection.READONLY: "The crash region was then made read-only in the linear map.",
    Protection.BBML2: "The blocks around the segments were then split and their pages made invalid.",
}
_BEFORE_JUMP = (When.DURING_LOAD, When.AFTER_LOAD, When.BEFORE_PANIC, When.DURING_PANIC)
_CAPTURES = {
    CaptureEnd.DONE: ("good", "It finds the old kernel's memory"),
    CaptureEnd.ENTERED: (
        "good",
        "A real kernel stands at its first instruction, entered as the boot protocol wants.",
    ),
    CaptureEnd.NO_DUMP: ("bad", "It starts, but device tree or core header lead it to no dump."),
    CaptureEnd.BAD_ENTRY: ("bad", "It is entered against the boot protocol."),
    CaptureEnd.TRAPPED: ("bad", "An exception ends it."),
    CaptureEnd.ELSEWHERE: ("bad", "Control leaves its code."),
    CaptureEnd.HUNG: ("bad", "It gets nowhere within its budget of instructions."),
    CaptureEnd.HEADERS: ("quiet", "It reads the dump's headers, and powers off without copying it."),
    CaptureEnd.OFF: ("quiet", "It powers off without a dump."),
    CaptureEnd.PANIC: ("bad", "It panics itself: there is no dump."),
}


@dataclass(frozen=True)
class Step:
    """One step on the way of a crash: tone is good, caught, quiet, bad or none (not reached)."""

    title: str
    tone: str
    text: str


def steps_of(result: Result) -> list[Step]:
    """The steps of a run, from the load to the capture kernel, whether reached or not."""
    early = [one for one in result.end.injections if one.fault.when in _BEFORE_JUMP]
    late = [one for one in result.end.injections if one.fault.when not in _BEFORE_JUMP]
    steps = [
        _load_step(result),
        _write_step("Stray writes", early),
        _panic_step(result),
        _purgatory_step(result),
    ]
    if late:
        steps.append(_write_step("Writes after the jump", late))
    return [*steps, _capture_step(result)]


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def _load_step(result: Result) -> Step:
    image, model = result.image, result.model
    hashed = sum(area.size for area in image.sha_regions)
    digest = (
        f", a digest over {size_text(hashed)} is stored with them"
        if image.digest
        else ", no digest is stored"
    )
    protection = _PROTECTIONS[model.config.way if model is not None else Protection.NONE]
    return Step("Load", "good", f"{_count(len(image.segments), 'segment')} are copied{digest}. {protection}")


def _write_step(title: str, injections: list[Injection]) -> Step:
    if not injections:
        return Step(title, "good", "None: nobody writes where they should not.")
    effects = [effect_of(one) for one in injections]
    words = {"stopped": "stopped by the MMU", "partly": "stopped halfway"}
    words |= {"changed": "changed memory", "same": "wrote what was there already"}
    told = [
        f"{effects.count(effect)} {text}" if len(effects) > 1 else text
        for effect, text in words.items()
        if effect in effects
    ]
    who = _count(sum(one.fault.by is not By.DMA for one in injections), "CPU store")
    dma = _count(sum(one.fault.by is By.DMA for one in injections), "DMA write")
    parts = [text for text in (who, dma) if not text.startswith("0 ")]
    harmed = "changed" in effects or "partly" in effects
    return Step(title, "bad" if harmed else "good", f"{' and '.join(parts)}: {', '.join(told)}.")


def _panic_step(result: Result) -> Step:
    jumps = result.end.timeline.of("jump")
    if not jumps:
        return Step("Panic", "bad", "The crash path does not get out of the first kernel.")
    others = len(result.end.timeline.of("cpu_off"))
    stopped = f"{_count(others, 'other CPU')} switched off, " if others else ""
    where = f"{jumps[0].facts['pc_phys']:#x}"
    return Step("Panic", "good", f"Registers saved, {stopped}MMU off, jump to {where}.")


def _differing(verdict: Verdict) -> str:
    if verdict.damaged & Damaged.PURGATORY:
        return "that it is not itself what was loaded"
    if verdict.damaged & Damaged.DTB_POINTER:
        return "that it was given another device tree"
    return "that the digests differ"


def _purgatory_step(result: Result) -> Step:
    run, verdict = result.end.purgatory, result.end.verdict
    title = "Purgatory"
    if result.image.segment("purgatory") is None:
        return Step(title, "quiet", "There is none: nothing is checked.")
    if run is None:
        return Step(title, "none", "Not reached.")
    if run.end is PurgatoryEnd.KERNEL:
        if verdict is None:
            # A foreign purgatory, or a damaged record: that it went on is all that memory tells.
            return Step(title, "quiet", "It jumps on to the kernel. It left no record of whether it checked.")
        if verdict.state is VerdictState.MATCH:
            return Step(title, "good", "It hashes the segments, finds the digest it expects, and jumps on.")
        if verdict.state is VerdictState.MISMATCH:
            if VerdictFlags.REPAIRED in verdict.flags:
                return Step(title, "caught", "It finds damage, mends it from the second copy, and jumps on.")
            return Step(title, "caught", f"It finds {_differing(verdict)}, and jumps on all the same.")
        if verdict.state is VerdictState.TRAPPED:
            return Step(title, "caught", "It meets an exception in its check, and jumps on all the same.")
        return Step(title, "bad", "It jumps to the kernel without having finished its check.")
    if run.end is PurgatoryEnd.MISMATCH:
        act = {"system_off": "switches off", "system_reset": "resets"}.get(run.power or "", "stops")
        if verdict is not None and not verdict.compared:
            return Step(title, "caught", f"It finds {_differing(verdict)}, and {act}.")
        return Step(
            title, "caught", f"It hashes the segments, finds a digest that it does not expect, and {act}."
        )
    if run.end is PurgatoryEnd.RETURNED:
        return Step(title, "caught", "It finds that something is wrong, and returns to the first kernel.")
    ends = {PurgatoryEnd.ELSEWHERE: f"It jumps to {run.pc:#x}, which is not the kernel."}
    if run.fault is not None:
        # A purgatory that reports its exception stands in its last loop by now: the place is that of the exception.
        ends[PurgatoryEnd.TRAPPED] = f"An exception ends it at {run.fault.pc:#x}: {run.fault.description}."
    else:
        ends[PurgatoryEnd.TRAPPED] = f"Its record tells of an exception; it stands at {run.pc:#x}."
    return Step(title, "bad", ends.get(run.end, "It gives no verdict within its budget of instructions."))


def _capture_step(result: Result) -> Step:
    run = result.end.capture
    title = "Capture kernel"
    if run is None:
        return Step(title, "none", "Not reached: there is no dump.")
    tone, text = _CAPTURES[run.end]
    if run.end is CaptureEnd.DONE and run.record is not None:
        text += f" and goes through a dump of {size_text(run.record.vmcore_bytes)}."
    if run.end is CaptureEnd.DONE and run.linux is not None and run.linux.vmcore is not None:
        same = "all of it as memory was" if result.end.dump is Dump.TRUE else "some of it not as memory was"
        text = f"Linux {run.linux.release} copies a dump of {size_text(run.linux.vmcore.size)} to a disk, {same}."
    if run.linux is not None and run.linux.panic:
        text = f"It panics itself: {run.linux.panic}."
    if run.linux is not None and run.linux.last_word and run.end is CaptureEnd.OFF:
        text = f"It powers off without a dump, and says: {run.linux.last_word}."
    if result.end.outcome is Outcome.SILENT and result.end.damage:
        tone, text = "bad", f"{text} Yet it runs on corrupt bytes, and does not know."
    return Step(title, tone, text)
