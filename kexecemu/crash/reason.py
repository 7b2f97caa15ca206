"""Why a crash ended as it did, in a sentence that is true of this one and not only of its kind."""

from collections.abc import Sequence
from dataclasses import dataclass

from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import ONLY_FOR_THE_PURGATORY, Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun, hashing_takes
from kexecemu.crash.verdict import Damaged, VerdictFlags, VerdictState, describe_damage
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.linux.capture import LinuxEnd
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown
from kexecemu.stray.fault import Injection

__all__ = ["Facts", "reason_of"]


@shown()
@dataclass(frozen=True)
class Facts:
    """What a sentence is made of: an End's parts, and what was loaded. loads is the memory that a dump holds."""

    image: Kimage
    injections: Sequence[Injection]
    damage: Sequence[Damage]
    purgatory: PurgatoryRun | None
    capture: CaptureRun | None
    dump: Dump
    loads: Sequence[PhysRange] = ()
    checker: LoadedPurgatory | None = None
    checks: bool = True
    """False for a purgatory that was loaded to check nothing."""
    entry: int | None = None
    """Where the purgatory would have jumped, by its variable in the end; None without one."""


_WRITTEN_ANEW = "the bytes that the write changed were written anew before the end"


def reason_of(outcome: Outcome, facts: Facts) -> str:
    """The sentence, without a full stop; what became of the dump is told beside it."""
    if outcome is Outcome.DETECTED:
        return _detected(facts)
    if outcome is Outcome.TRAPPED:
        return _trapped(facts)
    if outcome in (Outcome.MISBOOT, Outcome.HUNG):
        return _astray(outcome, facts)
    if outcome is Outcome.SILENT:
        return _silent(facts)
    if outcome is Outcome.LATENT:
        return _latent(facts)
    end = facts.capture.end if facts.capture is not None else None
    anew = outcome is Outcome.MASKED and any(one.changed or one.loaded_over for one in facts.injections)
    if end is CaptureEnd.DONE and facts.dump is Dump.TRUE:
        return f"{_WRITTEN_ANEW}, and the dump was taken" if anew else outcome.meaning
    what = {
        Outcome.CAPTURED: "nothing was harmed",
        Outcome.PREVENTED: "the write faulted and memory is intact",
        Outcome.MASKED: _WRITTEN_ANEW if anew else "the write changed nothing",
    }.get(outcome, outcome.meaning)
    more = {
        CaptureEnd.ENTERED: "; the capture kernel was entered as it should be, and not followed further",
        CaptureEnd.HEADERS: "; the capture kernel came up, read the dump's headers and switched off without copying it",
    }
    return what + (more.get(end, "") if end is not None else "")


def _detected(facts: Facts) -> str:
    run = facts.purgatory
    assert run is not None  # what the first kernel finds has words of its own
    verdict = run.verdict
    # What it hashes is as loaded, and it is not. Where nothing differs any more it was right when it looked.
    intact = bool(facts.damage) and all(one.segment == "purgatory" for one in facts.damage)
    found = "the purgatory found that the loaded image is not as loaded"
    if run.itself or (verdict is not None and verdict.damaged & Damaged.PURGATORY):
        found = "the purgatory found that it is itself not as loaded"
    elif verdict is not None and verdict.damaged & Damaged.DTB_POINTER:
        found = "the purgatory found that it was given another device tree than the loaded one"
    elif verdict is not None and verdict.state is VerdictState.TRAPPED:
        found = "the purgatory met an exception in its check and reported it"
    elif intact and (verdict is None or verdict.found == facts.image.digest):
        found = "the purgatory refused an intact image: what it compares with is not as loaded"
    elif not facts.damage and any(one.changed and _in_its_map(facts, one) for one in facts.injections):
        found = (
            "the purgatory refused an intact image: the map by which it reads it is not as the load made it"
        )
    if run.end is not PurgatoryEnd.KERNEL:
        return found
    if verdict is not None and VerdictFlags.REPAIRED in verdict.flags:
        where = describe_damage(verdict, facts.image)
        return f"{found}, mended it{f' ({where})' if where else ''}, and booted the capture kernel"
    return f"{found}, and booted the capture kernel all the same"


def _in_its_map(facts: Facts, injection: Injection) -> bool:
    area = PhysRange.of(injection.phys, len(injection.before))
    return any(page.overlaps(area) for page in facts.image.table_pages)


def _trapped(facts: Facts) -> str:
    if facts.capture is not None:
        linux = facts.capture.linux
        if facts.capture.end is CaptureEnd.PANIC:
            return "the capture kernel panicked" + (f": {linux.panic}" if linux and linux.panic else "")
        return "an exception ended the capture kernel"
    verdict = facts.purgatory.verdict if facts.purgatory is not None else None
    if verdict is not None and verdict.state is VerdictState.TRAPPED:
        return "an exception ended the purgatory, which reported it"
    return "an exception ended the purgatory, which left no record of it"


def _astray(outcome: Outcome, facts: Facts) -> str:
    if facts.capture is None:
        if outcome is Outcome.MISBOOT:
            return "the purgatory jumped to something that is not the capture kernel"
        return _nowhere(facts)
    linux = facts.capture.linux
    said = linux.last_word if linux is not None else ""
    last = f"; it said: {said}" if said else " without a word of the dump"
    nowhere = "the capture kernel got nowhere"
    if linux is not None and linux.end is LinuxEnd.BUDGET:
        nowhere = "the capture kernel had not come to an end when its budget of instructions was used up"
    return {
        CaptureEnd.ELSEWHERE: "control left the capture kernel's code",
        CaptureEnd.BAD_ENTRY: "the capture kernel was entered against the boot protocol",
        CaptureEnd.NO_DUMP: "the capture kernel came up and found no dump",
        CaptureEnd.OFF: f"the capture kernel switched off{last}",
    }.get(facts.capture.end, nowhere)


def _nowhere(facts: Facts) -> str:
    run = facts.purgatory
    if run is not None and run.content:
        why = ": its kernel entry is 0" if facts.entry == 0 else ""
        return f"the purgatory found the image as loaded, but started no kernel{why}"
    if run is not None and run.power is not None:
        return f"the purgatory {run.act} and gave no verdict"
    return "the purgatory got nowhere and gave no verdict"


def _silent(facts: Facts) -> str:
    names = dict.fromkeys(one.segment for one in facts.damage)
    harmed = [name for name in names if name not in ONLY_FOR_THE_PURGATORY]
    if not harmed and facts.dump is Dump.WRONG:
        return "the dump is not what memory held at the crash, and nobody noticed"
    if not harmed:
        return "the capture kernel took it that there was a dump, and nobody noticed that there is none"
    text = f"corrupt bytes of {_and(harmed)} reached the capture kernel and nobody noticed"
    end = facts.capture.end if facts.capture is not None else None
    lost = end is CaptureEnd.DONE and facts.dump is Dump.NONE
    if lost or end in (CaptureEnd.NO_DUMP, CaptureEnd.OFF, CaptureEnd.HEADERS):
        text += ", though it took no dump"
    off = _switched_off(facts)
    return f"{text}: {off}" if off else text


def _latent(facts: Facts) -> str:
    off = _switched_off(facts)
    if off:
        return f"{off}; nothing else was harmed"
    changed = [PhysRange.of(one.phys, len(one.before)) for one in facts.injections if one.changed]
    if changed and all(any(area.covers(one) for area in facts.loads) for one in changed):
        return "only the first kernel's own memory changed, before the crash, and a dump shows it so"
    hit = [segment.name for one in changed if (segment := facts.image.segment_at(one.start)) is not None]
    if "purgatory" in hit:
        return f"the purgatory's {_hit_of(facts)} changed, which made no difference to what it did"
    if any(name in ONLY_FOR_THE_PURGATORY for name in hit):
        return f"bytes of {_and(sorted(set(hit)))} changed that nothing had to be mended with"
    return "bytes changed that nobody checks or reads"


def _switched_off(facts: Facts) -> str | None:
    """That a purgatory which had something to hash did not, None for one that did, or is none."""
    run = facts.purgatory
    if run is None or run.end is not PurgatoryEnd.KERNEL:
        return None
    if not facts.checks:
        return "the purgatory was loaded to check nothing"
    if run.verdict is not None:
        off = run.verdict.state in (VerdictState.NOT_RUN, VerdictState.CHECKING)
    else:
        off = run.instructions < hashing_takes(sum(area.size for area in facts.image.sha_regions))
    return f"the purgatory's check was switched off ({_hit_of(facts)} changed)" if off else None


def _hit_of(facts: Facts) -> str:
    """Which variable or function of the purgatory a write changed."""
    symbols = facts.checker.symbol_table() if facts.checker is not None else {}
    hits = [PhysRange.of(one.phys, len(one.before)) for one in facts.injections if one.changed]
    places = [(name, PhysRange.of(phys, size)) for name, (phys, size) in symbols.items() if size]
    names = [name for hit in hits for name, place in places if place.overlaps(hit)]
    return _and(list(dict.fromkeys(names))) if names else "own bytes"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
