"""A sweep over sizes of crash memory: as one JSON object, as text with a bar for each, as a page."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from kexecemu.report.page import render_page
from kexecemu.report.terminal import Cell, print_table, say
from kexecemu.sizing.advice import Advice, end_word, size_word
from kexecemu.sizing.run import Row

__all__ = ["print_sizes", "row_words", "sizes_object", "sizes_page"]

_BAR = 32
_UNTOLD = "-"


def sizes_object(rows: Sequence[Row], advice: Advice, setting: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The --json object: sizes are bytes, addresses physical with inclusive ends."""
    return {
        "sizes": [_object(row) for row in rows],
        "smallest": advice.smallest,
        "all_from": advice.all_from,
        "take": advice.take,
        "advice": list(advice.words),
        "setting": dict(setting),
    }


def _object(row: Row) -> dict[str, Any]:
    region = row.region
    return {
        "size": row.asked.size,
        "append": row.asked.more,
        "works": row.works,
        "outcome": row.outcome,
        "dump": row.dump,
        "reason": row.reason,
        "crashkernel": {"start": region.start, "end": region.last} if region is not None else None,
        "end": row.end,
        "panic": row.panic,
        "release": row.release,
        "instructions": row.instructions,
        "memory": asdict(row.memory) if row.memory is not None else None,
        "last": list(row.last),
    }


def row_words(row: Row) -> str:
    """What came of a size, in a line."""
    return row.panic or ("the dump is as memory was" if row.works else row.reason)


def _mib(size: int | None) -> str:
    return _UNTOLD if size is None else f"{size / (1 << 20):.1f}M"


def _bar(row: Row, largest: int) -> str:
    """The region, as long as it is large: # was touched, c lies in CMA and was not, . was never touched."""
    memory, size = row.memory, row.asked.size
    if memory is None:
        return ""
    length = max(round(_BAR * size / largest), 1)
    unused, cma = (round(length * part / size) for part in (memory.unused, memory.cma_unused))
    return "#" * (length - unused - cma) + "c" * cma + "." * unused


def _largest(rows: Sequence[Row]) -> int:
    return max((row.asked.size for row in rows if row.memory is not None), default=1)


def print_sizes(
    console: Console, rows: Sequence[Row], advice: Advice, setting: Sequence[tuple[str, str]]
) -> None:
    """The account for people."""
    for name, value in setting:
        say(console, f"[bold]{name:<13}[/]", escape(value))
    say(console)
    table: list[list[Cell]] = []
    largest = _largest(rows)
    for row in rows:
        memory = row.memory
        name = size_word(row.asked.size) + (f" {row.asked.more}" if row.asked.more else "")
        numbers = (
            (memory.available, memory.cma or None, memory.unused)
            if memory is not None
            else (None, None, None)
        )
        style = "green" if row.works else "red"
        cells = [(name, ""), (end_word(row), style)]
        cells += [(_mib(number), "") for number in numbers]
        table.append(
            [
                *cells,
                (_bar(row, largest).ljust(_BAR if largest > 1 else 0), "dim"),
                ("" if row.works else row_words(row), ""),
            ]
        )
    print_table(console, ("crashkernel", "", "free at boot", "CMA", "never used", "memory", ""), table)
    say(
        console,
        "[dim]# touched, c in CMA and not, . never touched; free at boot and CMA as the kernel says it[/]",
    )
    say(console)
    for words in advice.words:
        say(console, "- ", escape(words))


def sizes_page(rows: Sequence[Row], advice: Advice, setting: Sequence[tuple[str, str]]) -> str:
    """The account as one HTML file."""
    drawn, largest = [], _largest(rows)
    for row in rows:
        memory, size = row.memory, row.asked.size
        parts = []
        if memory is not None:
            used = size - memory.unused - memory.cma_unused
            named = (("used", used), ("cma", memory.cma_unused), ("unused", memory.unused))
            parts = [(name, round(100 * part / size, 2), _mib(part)) for name, part in named if part > 0]
        drawn.append(
            {
                "name": size_word(size),
                "more": row.asked.more,
                "works": row.works,
                "end": end_word(row),
                "words": "" if row.works else row_words(row),
                "width": round(100 * size / largest, 2),
                "parts": parts,
                "available": _mib(memory.available if memory else None),
                "cma": _mib(memory.cma or None if memory else None),
                "unused": _mib(memory.unused if memory else None),
                "kernel": _mib(memory.kernel if memory else None),
                "rest": _mib(memory.rest if memory else None),
                "last": row.last if not row.works else (),
            }
        )
    return render_page("sizes.html", rows=drawn, advice=advice.words, setting=setting)
