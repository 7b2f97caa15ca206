"""The table of kexecemu kernel judge: each fault beside what model, board and QEMU made of it."""

from collections import Counter
from collections.abc import Sequence

from kexecemu.crash.purgatory_check import Reply
from kexecemu.kbuild.judge import PLACES, Judged
from kexecemu.visible import lines_text

__all__ = ["judge_text"]

_HEADS = {"model": "model", "board": "board", "qemu": "QEMU"}


def judge_text(judged: Sequence[Judged]) -> str:
    """A row for each fault, one more for each reply of a row with many runs, and a last line on what differs."""
    places = [name for name in PLACES if any(name in one.replies for one in judged)]
    rows = [["fault", *(_HEADS[name] for name in places), ""]]
    for one in judged:
        mark = "differs" if one.differs else ""
        mark = "WRONG" if one.wrong else mark
        counts = [Counter(one.replies.get(name, ())) for name in places]
        if max(sum(count.values()) for count in counts) <= 1:
            rows.append([one.case, *(next(iter(count), "-") for count in counts), mark])
            continue
        rows.append([one.case, *("" for _ in places), mark])
        for reply in Reply:
            if any(count[reply] for count in counts):
                rows.append([f"  {reply.value}", *(str(count[reply]) for count in counts), ""])
    widths = [max(len(row[at]) for row in rows) for at in range(len(places) + 2)]
    rows.insert(1, ["-" * width for width in widths[:-1]] + [""])
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    absent = [f"  {one.case}: {one.absent}" for one in judged if one.absent]
    if absent:
        lines += ["", "- says that a row does not apply:", *absent]
    apart = [f"  {one.case}: {_many(len(one.in_flash), 'run')}" for one in judged if one.in_flash]
    if apart and "qemu" in places:
        lines += [
            "",
            "Not compared with QEMU, whose virt has flash or devices where they abort in the model:",
            *apart,
        ]
    apart = [f"  {_run_text(one, at, places)}" for one in judged for at in one.rewritten]
    if apart:
        lines += [
            "",
            "Not compared, since the purgatory stores to its own code, and runs what no two boots have alike:",
            *apart,
        ]
    odd = [
        f"  {_run_text(one, at, places)}" for one in judged for at in one.differing_runs if len(one.hit) > 1
    ]
    if odd:
        lines += ["", "Of rows with many runs those that are not as the model says, counted from 0:", *odd]
    differ = [one.case for one in judged if one.differs]
    wrong = [one.case for one in judged if one.wrong]
    runs = sum(len(found) for one in judged for name, found in one.replies.items() if name != "model")
    verb = "is" if len(differ) == 1 else "are"
    said = (
        f"{_many(len(differ), 'row')} {verb} not as the model says" if differ else "all are as the model says"
    )
    lines += [
        "",
        f"{_many(len(judged), 'row')}, {_many(runs, 'run')}: {said}"
        + (", an intact image does not capture" if wrong else ""),
    ]
    return lines_text(lines)


def _run_text(one: Judged, at: int, places: Sequence[str]) -> str:
    said = ", ".join(
        f"{_HEADS[name]} {one.replies[name][at].value}" for name in places if name in one.replies
    )
    return f"{one.case}: run {at}, {one.hit[at] or 'elsewhere'}: {said}"


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 else ''}"
