"""One run as one self-contained HTML file, for people who learn what kexec does.

The template asks for nothing from outside and needs no script. Everything here is read from the Result; the words that
explain stand in the template, the words that depend on the run are chosen here.
"""

from collections import defaultdict
from functools import partial
from typing import Any

import kexecemu
from kexecemu.crash.outcome import Outcome
from kexecemu.linux.first import FirstLinux
from kexecemu.machine.timeline import Event
from kexecemu.report.campaign_words import tone_of
from kexecemu.report.page import render_page
from kexecemu.report.picture import Picture, draw, effect_of, size_text
from kexecemu.report.steps import steps_of, verdict_text
from kexecemu.report.text import console_parts, purgatory_word, unshown_log
from kexecemu.scenario.runner import Result
from kexecemu.stray.fault import Injection

__all__ = ["render"]


def render(result: Result) -> str:
    """The report of a run as one HTML document. The same run gives the same text."""
    kernel, model, end = result.kernel, result.model, result.end
    booted = end.timeline.of("booted")
    tone = "bad" if end.outcome is Outcome.ERROR else tone_of(end.outcome)
    return render_page(
        "run.html",
        result=result,
        end=end,
        tone=tone,
        dump_tone=tone_of(f"dump {end.dump}"),
        setting=_setting(result),
        steps=steps_of(result),
        picture=_picture(result),
        writes=[
            {"number": number, "injection": one, "effect": effect_of(one), "where": _where(result, one)}
            for number, one in enumerate(end.injections, 1)
        ],
        digests=_digests(result),
        verdict_text=verdict_text(result),
        phases=_phases(result),
        booted=booted[0] if booted else None,
        map_reason=model.arch.plan.reason if model is not None else "",
        granule=kernel.page_size,
        ram_size=kernel.ram.size,
        idle=kernel.board.idle,
        console=_console(result),
        rows=_rows(result),
        event_tone=partial(_event_tone, tone),
    )


def _event_tone(outcome_tone: str, event: Event) -> str:
    """How a line of the timeline is marked: as good, caught, quiet or bad, or "" for not at all."""
    facts = event.facts
    if event.kind == "outcome":
        return outcome_tone
    if event.kind == "fault":
        return "bad" if facts["changed"] else "good" if facts["trapped"] else "quiet"
    if event.kind == "purgatory":
        if facts["end"] == "kernel":
            return "caught" if facts["damaged"] else "good"
        return "caught" if facts["end"] in ("mismatch", "returned") else "bad"
    if event.kind == "captured":
        return "good" if facts["end"] in ("done", "entered") else "bad"
    return {"oops": "caught", "protect": "good", "lost": "bad", "misboot": "bad"}.get(event.kind, "")


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
        loaded_by = f"kexec_load, kexec-tools{checks}"
        return [("first kernel", f"Linux {kernel.release}"), ("loaded by", loaded_by)]
    return [
        ("kernel era", kernel.config.release.value),
        ("page protection", kernel.config.way.value),
        ("loaded by", result.syscall),
        ("purgatory", purgatory_word(kernel.config, result.syscall)),
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
    hashed = any(phys in area for area in image.sha_regions)
    if any(phys in area for area in result.kernel.protected):
        return f"{place}; protected{' and' if hashed else ', not'} hashed"
    return f"{place}; {'not protected, but' if hashed else 'neither protected nor'} hashed"


def _rows(result: Result) -> list[dict[str, Any]]:
    """The segments in kimage order; damage as offset and length in words."""
    damaged = defaultdict(list)
    for one in result.end.damage:
        damaged[one.segment].append(f"{one.offset:#x}, {size_text(one.length)}")
    return [
        {
            "segment": segment,
            "protected": any(area.covers(segment.area) for area in result.kernel.protected),
            "hashed": any(area.covers(segment.area) for area in result.image.sha_regions),
            "damage": damaged[segment.name],
        }
        for segment in result.image.segments
    ]


def _digests(result: Result) -> dict[str, list[tuple[str, bool]]]:
    """The digest as the loader stored it, and the two that the purgatory compared, where there are any.

    Each as its hex digits in pairs, with whether the pair differs from the loader's.
    """
    stored, verdict = result.image.digest, result.end.verdict
    if stored is None:
        return {}
    told = {"stored by the load": stored}
    if verdict is not None and verdict.compared:
        told |= {"expected by the purgatory": verdict.expected, "found by the purgatory": verdict.found}
    pairs = {label: zip(digest, stored, strict=True) for label, digest in told.items()}
    return {label: [(f"{now:02x}", now != then) for now, then in each] for label, each in pairs.items()}


def _phases(result: Result) -> list[tuple[str, int, float]]:
    """How many instructions each part of the run took, and its share of all in percent."""
    end = result.end
    first = {kind: end.timeline.of(kind)[:1] for kind in ("booted", "panic", "jump")}
    marks = {kind: event.when for kind, events in first.items() for event in events}
    parts: dict[str, int] = {}
    if "booted" in marks:
        parts["first kernel boots"] = marks["booted"]
    if "booted" in marks and "panic" in marks:
        parts["load and stray writes"] = marks["panic"] - marks["booted"]
    if "panic" in marks:
        parts["panic"] = marks.get("jump", end.instructions) - marks["panic"]
    if end.purgatory is not None:
        parts["purgatory"] = end.purgatory.instructions
    if end.capture is not None:
        parts["capture kernel"] = end.capture.instructions
    return [(name, count, round(100 * count / max(end.instructions, 1), 1)) for name, count in parts.items()]


def _console(result: Result) -> list[tuple[str, str]]:
    """Console lines with who says them: the first kernel, the purgatory or the capture kernel.

    A real capture kernel's lines are known by where they begin. Of the others the first kernel's have a time in front,
    the capture stub's its name; what is left is a purgatory's.
    """
    before, own = console_parts(result.end)
    told = []
    for line in before:
        who = "capture" if line.startswith("capture:") else "first" if line.startswith("[") else "purgatory"
        told.append((who, line))
    told += [("capture", line) for line in own]
    if unshown := unshown_log(result.end):
        told.append(("", "-- what its log in memory has besides, which the console has not shown:"))
    return told + [("capture", line) for line in unshown]
