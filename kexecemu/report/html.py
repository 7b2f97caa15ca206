"""One run as one self-contained HTML file, for people who learn what kexec does.

The template asks for nothing from outside and needs no script. Everything here is read from the Result; the words that
explain stand in the template, the words that depend on the run are chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from jinja2 import Environment, PackageLoader, StrictUndefined

from kexecemu.capture.second_stage import CaptureEnd, PurgatoryEnd
from kexecemu.capture.verdict import VerdictState
from kexecemu.faults.fault import By, Injection, When
from kexecemu.faults.outcome import Outcome
from kexecemu.kernel.config import Protection
from kexecemu.machine.ranges import PhysRange
from kexecemu.report.picture import Picture, draw, effect_of, size_text
from kexecemu.scenario.runner import Result

__all__ = ["render"]

_TONES = {
    Outcome.CAPTURED: "good",
    Outcome.PREVENTED: "good",
    Outcome.DETECTED: "caught",
    Outcome.MASKED: "quiet",
    Outcome.LATENT: "quiet",
}

# A guest's console may hold anything; HTML may not. Control characters are shown by their pictures.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}

_PROTECTIONS = {
    Protection.NONE: "The page tables do not protect it.",
    Protection.PTE: "The pages of the segments were then made invalid in the linear map (PTE_VALID cleared).",
    Protection.READONLY: "The crash region was then made read-only in the linear map.",
    Protection.BBML2: "The blocks around the segments were then split and their pages made invalid.",
}
_CAPTURES = {
    CaptureEnd.DONE: ("good", "It finds the old kernel's memory"),
    CaptureEnd.ENTERED: ("good", "A real kernel stands at its first instruction, entered as the boot protocol wants."),
    CaptureEnd.NO_DUMP: ("bad", "It starts, but device tree or core header lead it to no dump."),
    CaptureEnd.BAD_ENTRY: ("bad", "It is entered against the boot protocol."),
    CaptureEnd.TRAPPED: ("bad", "An exception ends it."),
    CaptureEnd.ELSEWHERE: ("bad", "Control leaves its code."),
    CaptureEnd.HUNG: ("bad", "It gets nowhere within its budget of instructions."),
}


@dataclass(frozen=True)
class Step:
    """One step on the way of a crash: tone is good, caught, quiet, bad or none (not reached)."""

    title: str
    tone: str
    text: str


@dataclass(frozen=True)
class Write:
    """A stray write as the list shows it; effect as effect_of() says, where in words."""

    number: int
    injection: Injection
    effect: str
    where: str


@dataclass(frozen=True)
class Digest:
    """One of the digests: its hex digits in pairs, each with whether the pair differs from the loader's."""

    label: str
    pairs: list[tuple[str, bool]]


@dataclass(frozen=True)
class Phase:
    """A stretch of the run: instructions that it took and its share of all, in percent."""

    name: str
    instructions: int
    percent: float


def render(result: Result) -> str:
    """The report of a run as one HTML document. The same run gives the same text."""
    kernel, end = result.kernel, result.end
    booted = end.timeline.of("booted")
    page = _environment().get_template("run.html")
    document = page.render(
        result=result,
        end=end,
        tone=_TONES.get(end.outcome, "bad"),
        setting=_setting(result),
        steps=_steps(result),
        picture=_picture(result),
        writes=_writes(result),
        digests=_digests(result),
        verdict_text=_verdict_text(result),
        phases=_phases(result),
        booted=booted[0] if booted else None,
        map_reason=kernel.arch.plan.reason,
        granule=kernel.config.page_size,
        ram_size=kernel.ram.size,
        protected=kernel.protected,
        console=_console(end.console),
        damaged=_damaged(result),
    )
    return document.translate(_VISIBLE)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kexecemu.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = size_text
    return environment


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def _program_version() -> str:
    try:
        return version("kexecemu")
    except PackageNotFoundError:
        return "from a checkout"


def _setting(result: Result) -> list[tuple[str, str]]:
    kernel = result.kernel
    config = kernel.config
    purgatory = "default" if config.purgatory is True else str(config.purgatory or "none")
    said = [line for line in result.end.console.splitlines() if "Kernel command line: " in line]
    setting = [
        ("RAM", size_text(kernel.ram.size)),
        ("CPUs", str(len(kernel.board.cpus))),
        ("kernel era", config.release.value),
        ("page protection", config.way.value),
        ("purgatory", purgatory),
        ("pages", size_text(config.page_size)),
        ("seed", str(result.seed)),
        ("kexecemu", _program_version()),
    ]
    if said:
        setting.append(("first kernel's command line", said[0].split("Kernel command line: ", 1)[1]))
    return setting


# -- the way of the crash --------------------------------------------------------------------------------------------


def _steps(result: Result) -> list[Step]:
    early = [one for one in result.end.injections if one.fault.when is not When.AFTER_CHECK]
    late = [one for one in result.end.injections if one.fault.when is When.AFTER_CHECK]
    steps = [_load_step(result), _write_step("Stray writes", early), _panic_step(result), _purgatory_step(result)]
    if late:
        steps.append(_write_step("Writes after the check", late))
    return [*steps, _capture_step(result)]


def _load_step(result: Result) -> Step:
    image, config = result.image, result.kernel.config
    hashed = sum(area.size for area in image.sha_regions)
    digest = f", a digest over {size_text(hashed)} is stored with them" if image.digest else ", no digest is stored"
    protection = _PROTECTIONS[config.way]
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
    who = _count(sum(one.fault.by is By.CPU for one in injections), "CPU store")
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


def _purgatory_step(result: Result) -> Step:
    run, verdict = result.end.purgatory, result.end.verdict
    title = "Purgatory"
    if result.image.segment("purgatory") is None:
        return Step(title, "quiet", "There is none: nothing is checked.")
    if run is None:
        return Step(title, "none", "Not reached.")
    if run.end is PurgatoryEnd.KERNEL:
        if verdict is None or verdict.state is VerdictState.MATCH:
            return Step(title, "good", "It hashes the segments, finds the digest it expects, and jumps on.")
        if verdict.state is VerdictState.MISMATCH:
            return Step(title, "caught", "It finds that the digests differ, and jumps on all the same.")
        return Step(title, "bad", "It jumps to the kernel without having finished its check.")
    if run.end is PurgatoryEnd.MISMATCH:
        return Step(title, "caught", "It hashes the segments, finds another digest than it expects, and stops.")
    ends = {
        PurgatoryEnd.ELSEWHERE: f"It jumps to {run.pc:#x}, which is not the kernel.",
        PurgatoryEnd.TRAPPED: f"An exception ends it at {run.pc:#x}: {run.fault.description if run.fault else ''}.",
    }
    return Step(title, "bad", ends.get(run.end, "It gives no verdict within its budget of instructions."))


def _capture_step(result: Result) -> Step:
    run = result.end.capture
    title = "Capture kernel"
    if run is None:
        return Step(title, "none", "Not reached: there is no dump.")
    tone, text = _CAPTURES[run.end]
    if run.end is CaptureEnd.DONE and run.record is not None:
        text += f" and goes through a dump of {size_text(run.record.vmcore_bytes)}."
    if result.end.outcome is Outcome.SILENT:
        tone, text = "bad", f"{text} Yet it runs on corrupt bytes, and does not know."
    return Step(title, tone, text)


# -- the pieces ------------------------------------------------------------------------------------------------------


def _picture(result: Result) -> Picture:
    kernel, end = result.kernel, result.end
    region = kernel.crashk_res
    assert region is not None  # nothing can be loaded without one
    others = [(kernel.guest.area, "first", "first kernel's image")]
    if kernel.crashk_low_res is not None:
        others.append((kernel.crashk_low_res, "low", "low crash memory"))
    return draw(
        result.image, region, kernel.ram.banks, others, kernel.protected, end.injections, end.damage
    )


def _writes(result: Result) -> list[Write]:
    return [
        Write(number, one, effect_of(one), _where(result, one))
        for number, one in enumerate(result.end.injections, 1)
    ]


def _where(result: Result, injection: Injection) -> str:
    """What lies where a write hit, and who watches over it."""
    phys, image, region = injection.phys, result.image, result.kernel.crashk_res
    segment = image.segment_at(phys)
    if segment is not None:
        place = f"{segment.name}, {phys - segment.mem:#x} bytes in"
    elif any(phys in area for area in image.control_pages):
        place = "a control page of the crash image"
    elif region is not None and phys in region:
        place = "the unused part of the crash region"
    elif phys in result.kernel.guest.area:
        place = "the first kernel's image"
    else:
        place = "the first kernel's memory"
    protected = any(phys in area for area in result.kernel.protected)
    hashed = any(phys in area for area in image.sha_regions)
    watched = {
        (True, True): "protected and hashed",
        (True, False): "protected, not hashed",
        (False, True): "not protected, but hashed",
        (False, False): "neither protected nor hashed",
    }
    return f"{place}; {watched[protected, hashed]}"


def _damaged(result: Result) -> dict[str, list[str]]:
    """Damage by segment, as "0x1000, 4 bytes"."""
    damaged: dict[str, list[str]] = {}
    for one in result.end.damage:
        damaged.setdefault(one.segment, []).append(f"{one.offset:#x}, {size_text(one.length)}")
    return damaged


def _digests(result: Result) -> list[Digest]:
    """The digest as the loader stored it, and the two that the purgatory compared, where there are any."""
    stored, verdict = result.image.digest, result.end.verdict
    if stored is None:
        return []
    told = [("stored by the load", stored)]
    if verdict is not None and verdict.state in (VerdictState.MATCH, VerdictState.MISMATCH):
        told += [("expected by the purgatory", verdict.expected), ("found by the purgatory", verdict.found)]
    return [
        Digest(label, [(f"{now:02x}", now != then) for now, then in zip(digest, stored, strict=True)])
        for label, digest in told
    ]


def _verdict_text(result: Result) -> str:
    stored, verdict, run = result.image.digest, result.end.verdict, result.end.purgatory
    if stored is None:
        return "There is no purgatory, so nothing was hashed at the load and nothing is compared at the crash."
    if run is None:
        return "The purgatory was not reached: nothing was compared."
    if verdict is None:
        return "The purgatory left no record of what it compared: it keeps none, or the record was overwritten."
    if verdict.state is VerdictState.MATCH:
        return f"The digests match: {size_text(verdict.bytes_hashed)} in memory are as they were loaded."
    if verdict.state is VerdictState.MISMATCH:
        if verdict.found == stored:
            return (
                "A false alarm: what was found is what the load stored, so the image is intact. "
                "The purgatory's own copy of the digest is not."
            )
        if verdict.expected == stored:
            return "The digests differ: memory is not as it was loaded."
        return "The digests differ, and the purgatory's copy of the stored digest was changed too."
    return "The purgatory did not finish its comparison."


def _phases(result: Result) -> list[Phase]:
    """How many instructions each part of the run took."""
    end = result.end
    marks = {kind: events[0].when for kind in ("booted", "panic", "jump") if (events := end.timeline.of(kind))}
    parts: list[tuple[str, int]] = []
    if "booted" in marks:
        parts.append(("first kernel boots", marks["booted"]))
    if "booted" in marks and "panic" in marks:
        parts.append(("load and stray writes", marks["panic"] - marks["booted"]))
    if "panic" in marks:
        parts.append(("panic", marks.get("jump", end.instructions) - marks["panic"]))
    if end.purgatory is not None:
        parts.append(("purgatory", end.purgatory.instructions))
    if end.capture is not None:
        parts.append(("capture kernel", end.capture.instructions))
    return [Phase(name, count, round(100 * count / max(end.instructions, 1), 1)) for name, count in parts]


def _console(text: str) -> list[tuple[str, str]]:
    """Console lines with who says them: the first kernel, the purgatory or the capture kernel."""
    lines = []
    for line in text.splitlines():
        who = line.split(":", 1)[0]
        lines.append((who if who in ("purgatory", "capture") else "first", line))
    return lines


def overlapping(areas: list[PhysRange], area: PhysRange) -> bool:
    """True if any of `areas` shares a byte with `area`."""
    return any(one.overlaps(area) for one in areas)
