"""The way of one crash as a few steps, and what the purgatory's comparison came to, told in sentences."""

from dataclasses import dataclass

from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import CaptureEnd, PurgatoryEnd
from kexecemu.crash.verdict import Damaged, Verdict, VerdictFlags, VerdictState, describe_damage
from kexecemu.kernel.base.config import Protection
from kexecemu.report.picture import effect_of, size_text
from kexecemu.scenario.runner import Result
from kexecemu.stray.fault import By, Injection, When

__all__ = ["Step", "steps_of", "verdict_text"]

_PROTECTIONS = {
    Protection.NONE: "The page tables do not protect it.",
    Protection.PTE: "The pages of the segments were then made invalid in the linear map (PTE_VALID cleared).",
    Protection.READONLY: "The crash region was then made read-only in the linear map.",
    Protection.BBML2: "The blocks around the segments were then split and their pages made invalid.",
}
_EFFECTS = {
    "stopped": "stopped by the MMU",
    "partly": "stopped halfway",
    "changed": "changed memory",
    "same": "wrote what was there already",
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
    return [
        Step("Load", "good", _load_text(result)),
        Step("Stray writes", *_write_step(early)),
        Step("Panic", *_panic_step(result)),
        Step("Purgatory", *_purgatory_step(result)),
        *([Step("Writes after the jump", *_write_step(late))] if late else []),
        Step("Capture kernel", *_capture_step(result)),
    ]


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def _load_text(result: Result) -> str:
    image, model = result.image, result.model
    hashed = size_text(sum(area.size for area in image.sha_regions))
    digest = f"a digest over {hashed} is stored with them" if image.digest else "no digest is stored"
    protection = _PROTECTIONS[model.config.way if model is not None else Protection.NONE]
    return f"{_count(len(image.segments), 'segment')} are copied, {digest}. {protection}"


def _write_step(injections: list[Injection]) -> tuple[str, str]:
    if not injections:
        return "good", "None: nobody writes where they should not."
    effects = [effect_of(one) for one in injections]
    told = {text: effects.count(effect) for effect, text in _EFFECTS.items() if effect in effects}
    words = [f"{count} {text}" if len(effects) > 1 else text for text, count in told.items()]
    dma = sum(one.fault.by is By.DMA for one in injections)
    counts = {"CPU store": len(injections) - dma, "DMA write": dma}
    parts = " and ".join(_count(count, word) for word, count in counts.items() if count)
    harmed = "changed" in effects or "partly" in effects
    return "bad" if harmed else "good", f"{parts}: {', '.join(words)}."


def _panic_step(result: Result) -> tuple[str, str]:
    jumps = result.end.timeline.of("jump")
    if not jumps:
        return "bad", "The crash path does not get out of the first kernel."
    others = len(result.end.timeline.of("cpu_off"))
    stopped = f"{_count(others, 'other CPU')} switched off, " if others else ""
    off = "" if result.image.table_pages else "MMU off, "
    return "good", f"Registers saved, {stopped}{off}jump to {jumps[0].facts['pc_phys']:#x}."


def _differing(verdict: Verdict) -> str:
    if verdict.damaged & Damaged.PURGATORY:
        return "that it is not itself what was loaded"
    if verdict.damaged & Damaged.DTB_POINTER:
        return "that it was given another device tree"
    return "that the digests differ"


def _purgatory_step(result: Result) -> tuple[str, str]:
    run, verdict = result.end.purgatory, result.end.verdict
    if result.image.segment("purgatory") is None:
        if result.image.digest is None:
            return "quiet", "There is none: nothing is checked."
        found = result.end.timeline.of("refused")
        if found:
            return "caught", f"There is none: the first kernel hashes, and gives up: {found[0].facts['why']}."
        return "quiet", "There is none: the first kernel hashes before it jumps."
    if run is None:
        return "none", "Not reached."
    if run.end is PurgatoryEnd.KERNEL:
        return _went_on(verdict)
    act = {"system_off": "switches off", "system_reset": "resets"}.get(run.power or "", "stops")
    if run.end is PurgatoryEnd.MISMATCH:
        if verdict is not None and not verdict.compared:
            return "caught", f"It finds {_differing(verdict)}, and {act}."
        return "caught", f"It hashes the segments, finds a digest that it does not expect, and {act}."
    if run.end is PurgatoryEnd.RETURNED:
        return "caught", "It finds that something is wrong, and returns to the first kernel."
    if run.end is PurgatoryEnd.ELSEWHERE:
        return "bad", f"It jumps to {run.pc:#x}, which is not the kernel."
    if run.end is not PurgatoryEnd.TRAPPED and run.content:
        return "bad", "It finds the image as loaded, and starts no kernel."
    if run.end is not PurgatoryEnd.TRAPPED and run.power is not None:
        return "bad", f"It {act} without a verdict."
    if run.end is not PurgatoryEnd.TRAPPED:
        return "bad", "It gives no verdict within its budget of instructions."
    if run.fault is not None:
        # A purgatory that reports its exception stands in its last loop by now: the place is that of the exception.
        return "bad", f"An exception ends it at {run.fault.pc:#x}: {run.fault.description}."
    return "bad", f"Its record tells of an exception; it stands at {run.pc:#x}."


def _went_on(verdict: Verdict | None) -> tuple[str, str]:
    """A purgatory that jumped on to the kernel."""
    if verdict is None:
        # A foreign purgatory, or a damaged record: that it went on is all that memory tells.
        return "quiet", "It jumps on to the kernel. It left no record of whether it checked."
    if verdict.state is VerdictState.MATCH:
        return "good", "It hashes the segments, finds the digest it expects, and jumps on."
    if verdict.state is VerdictState.MISMATCH:
        if VerdictFlags.REPAIRED in verdict.flags:
            return "caught", "It finds damage, mends it from the second copy, and jumps on."
        return "caught", f"It finds {_differing(verdict)}, and jumps on all the same."
    if verdict.state is VerdictState.TRAPPED:
        return "caught", "It meets an exception in its check, and jumps on all the same."
    return "bad", "It jumps to the kernel without having finished its check."


def _capture_step(result: Result) -> tuple[str, str]:
    run = result.end.capture
    if run is None:
        return "none", "Not reached: there is no dump."
    linux, (tone, text) = run.linux, _CAPTURES[run.end]
    if run.end is CaptureEnd.DONE and run.record is not None:
        text += f" and goes through a dump of {size_text(run.record.vmcore_bytes)}."
    if linux is not None and run.end is CaptureEnd.DONE and linux.vmcore is not None:
        same = "all of it as memory was" if result.end.dump is Dump.TRUE else "some of it not as memory was"
        text = f"Linux {linux.release} copies a dump of {size_text(linux.vmcore.size)} to a disk, {same}."
    if linux is not None and linux.panic:
        text = f"It panics itself: {linux.panic}."
    if linux is not None and linux.last_word and run.end is CaptureEnd.OFF:
        text = f"It powers off without a dump, and says: {linux.last_word}."
    if result.end.outcome is Outcome.SILENT and result.end.damage:
        tone, text = "bad", f"{text} Yet it runs on corrupt bytes, and does not know."
    return tone, text


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
