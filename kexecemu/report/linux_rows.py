"""What differs between a real kernel and the model of it, told to people and to programs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kexecemu.linux.rows import FactRow, Same
from kexecemu.visible import lines_text

__all__ = ["print_rows", "rows_object"]

_WIDEST = 60


def rows_object(release: str, rows: list[FactRow], warnings: Sequence[str]) -> dict[str, Any]:
    """What --json prints."""
    counts = Counter(row.same for row in rows)
    told = []
    for row in rows:
        values = {key: getattr(row, key) for key in ("group", "name", "real", "model")}
        told.append({**values, "result": row.same.value, "why": row.why if row.same is Same.SHOWN else None})
    numbers = {same.value: counts[same] for same in Same}
    return {"release": release, "counts": numbers, "warnings": list(warnings), "rows": told}


def print_rows(rows: list[FactRow], every: bool) -> str:
    """A table by groups: what differs with both values, all else by its number alone unless every is set."""
    lines = []
    shown = [row for row in rows if every or row.same is Same.DIFFERENT]
    wide = max((len(row.name) for row in shown), default=0)
    for group in dict.fromkeys(row.group for row in rows):
        counts = Counter(row.same for row in rows if row.group == group)
        words = ", ".join(f"{counts[same]} {same.value}" for same in Same if counts[same])
        lines += ["", f"{group}: {words}"]
        for row in shown:
            if row.group != group:
                continue
            mark = {Same.EQUAL: "=", Same.DIFFERENT: "!", Same.SHOWN: " "}[row.same]
            name = row.name.ljust(wide)
            if row.same is Same.EQUAL:
                lines.append(f"  {mark} {name}  {_cut(row.real)}")
                continue
            lines.append(f"  {mark} {name}  real  {_cut(row.real)}")
            lines.append(f"    {'':{wide}}  model {_cut(row.model)}{f'  ({row.why})' if row.why else ''}")
    total = Counter(row.same for row in rows)
    lines += ["", ", ".join(f"{total[same]} {same.value}" for same in Same)]
    return lines_text(lines)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
