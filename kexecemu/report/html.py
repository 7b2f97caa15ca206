"""One run as one self-contained HTML file, for people who learn what kexec does.

The template asks for nothing from outside and needs no script. Everything here is read from the Result; the words that
explain stand in the template, the words that depend on the run are chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

from jinja2 import Environment, PackageLoader, StrictUndefined

import kexecemu
from kexecemu.crash.dump import Dump
from kexecemu.crash.end import End
from kexecemu.crash.outcome import Outcome
from kexecemu.kernel.image.kimage import Segment
from kexecemu.linux.first import FirstLinux
from kexecemu.machine.timeline import Event
from kexecemu.report.picture import Picture, draw, effect_of, size_text
from kexecemu.report.steps import steps_of
from kexecemu.report.verdict import verdict_text
from kexecemu.scenario.runner import Result
from kexecemu.stray.fault import Injection

__all__ = ["render"]

_TONES = {
    Outcome.CAPTURED: "good",
    Outcome.PREVENTED: "good",
    Outcome.DETECTED: "caught",
    Outcome.MASKED: "quiet",
    Outcome.LATENT: "quiet",
}

_DUMP_TONES = {Dump.TRUE: "good", Dump.WRONG: "bad", Dump.NONE: "caught"}

# A guest's console may hold anything; HTML may not. Control characters are shown by their pictures.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


@dataclass(frozen=True)
class Write:
    """A stray write as the list shows it; effect as effect_of() says, where in words."""

    number: int
    injection: Injection
    effect: str
    where: str


@dataclass(frozen=True)
class SegmentRow:
    """A segment as the table shows it; damage as offset and length in words."""

    segment: Segment
    protected: bool
    hashed: bool
    damage: list[str]


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
    kernel, model, end = result.kernel, result.model, result.end
    booted = end.timeline.of("booted")
    tone = _TONES.get(end.outcome, "bad")
    page = _environment().get_template("run.html")
    document = page.render(
        result=result,
        end=end,
        tone=tone,
        dump_tone=_DUMP_TONES[end.dump],
        setting=_setting(result),
        steps=steps_of(result),
        picture=_picture(result),
        writes=_writes(result),
        digests=_digests(result),
        verdict_text=verdict_text(result),
        phases=_phases(result),
        booted=booted[0] if booted else None,
        map_reason=model.arch.plan.reason if model is not None else "",
        granule=kernel.page_size,
        ram_size=kernel.ram.size,
        idle=kernel.board.idle,
        console=_console(end),
        rows=_rows(result),
        event_tone=partial(_event_tone, tone),
    )
    return document.translate(_VISIBLE)


def _purgatory_tone(end: str, *, noticed: bool) -> str:
    if end == "kernel":
        return "caught" if noticed else "good"
    return "caught" if end in ("mismatch", "returned") else "bad"


def _event_tone(outcome_tone: str, event: Event) -> str:
    """How a line of the timeline is marked: as good, caught, quiet or bad, or "" for not at all."""
    facts = event.facts
    if event.kind == "outcome":
        return outcome_tone
    if event.kind == "fault":
        return "bad" if facts["changed"] else "good" if facts["trapped"] else "quiet"
    if event.kind == "purgatory":
        return _purgatory_tone(str(facts["end"]), noticed=bool(facts["damaged"]))
    if event.kind == "captured":
        return "good" if facts["end"] in ("done", "entered") else "bad"
    return {"oops": "caught", "protect": "good", "lost": "bad", "misboot": "bad"}.get(event.kind, "")


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


def _setting(result: Result) -> list[tuple[str, str]]:
    kernel = result.kernel
    said = [line for line in result.end.console.splitlines() if "Kernel command line: " in line]
    setting = [
        ("RAM", size_text(kernel.ram.size)),
        ("CPUs", str(len(kernel.board.cpus))),
        *_first_kernel(result),
        ("pages", size_text(kernel.page_size)),
        ("seed", str(result.seed)),
        ("kexecemu", kexecemu.__version__),
    ]
    if said:
        setting.append(("first kernel's command line", said[0].split("Kernel command line: ", 1)[1]))
    return setting


def _first_kernel(result: Result) -> list[tuple[str, str]]:
    kernel = result.kernel
    if isinstance(kernel, FirstLinux):
        checks = "" if kernel.setup.checks else ", --no-checks"
        return [
            ("first kernel", f"Linux {kernel.release}"),
            ("loaded by", f"kexec_load, kexec-tools{checks}"),
        ]
    config = kernel.config
    purgatory = "default" if config.purgatory is True else str(config.purgatory or "none")
    if result.syscall == "kexec_load" and purgatory in ("default", "none"):
        purgatory = "kexec-tools'"  # user space brings its own, whatever the kernel has
    return [
        ("kernel era", config.release.value),
        ("page protection", config.way.value),
        ("loaded by", result.syscall),
        ("purgatory", purgatory),
    ]


# -- the pieces ------------------------------------------------------------------------------------------------------


def _picture(result: Result) -> Picture:
    kernel, end = result.kernel, result.end
    region = kernel.crashk_res
    assert region is not None  # nothing can be loaded without one
    others = [(kernel.kernel_area, "first", "first kernel's image")]
    if kernel.crashk_low_res is not None:
        others.append((kernel.crashk_low_res, "low", "low crash memory"))
    return draw(result.image, region, kernel.ram.banks, others, kernel.protected, end.injections, end.damage)


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
    elif phys in result.kernel.kernel_area:
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


def _rows(result: Result) -> list[SegmentRow]:
    """The segments in kimage order."""
    protected, hashed = result.kernel.protected, result.image.sha_regions
    return [
        SegmentRow(
            segment,
            any(area.covers(segment.area) for area in protected),
            any(area.covers(segment.area) for area in hashed),
            [
                f"{one.offset:#x}, {size_text(one.length)}"
                for one in result.end.damage
                if one.segment == segment.name
            ],
        )
        for segment in result.image.segments
    ]


def _digests(result: Result) -> list[Digest]:
    """The digest as the loader stored it, and the two that the purgatory compared, where there are any."""
    stored, verdict = result.image.digest, result.end.verdict
    if stored is None:
        return []
    told = [("stored by the load", stored)]
    if verdict is not None and verdict.compared:
        told += [("expected by the purgatory", verdict.expected), ("found by the purgatory", verdict.found)]
    return [
        Digest(label, [(f"{now:02x}", now != then) for now, then in zip(digest, stored, strict=True)])
        for label, digest in told
    ]


def _phases(result: Result) -> list[Phase]:
    """How many instructions each part of the run took."""
    end = result.end
    marks = {
        kind: events[0].when for kind in ("booted", "panic", "jump") if (events := end.timeline.of(kind))
    }
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


def _console(end: End) -> list[tuple[str, str]]:
    """Console lines with who says them: the first kernel, the purgatory or the capture kernel.

    A real capture kernel's lines are known by where they begin. Of the others the first kernel's have a time in front,
    the capture stub's its name; what is left is a purgatory's.
    """
    lines = end.console.splitlines()
    linux = end.capture.linux if end.capture is not None else None
    own = len(linux.console.splitlines()) if linux is not None else 0
    before = len(lines) - own
    return [
        (
            "capture"
            if number >= before or line.startswith("capture:")
            else "first"
            if line.startswith("[")
            else "purgatory",
            line,
        )
        for number, line in enumerate(lines)
    ]
