"""What kexecemu purgatory check prints, the replies of purgatories side by side, and what --require asks of them."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kexecemu.commands.outputs import print_json
from kexecemu.commands.streams import say_line
from kexecemu.crash.purgatory_check import CODE, RUNS, UNTOUCHED, Reply
from kexecemu.errors import InputError
from kexecemu.scenario.purgatory_bench import Check, OnCase
from kexecemu.visible import lines_text

__all__ = ["REQUIREMENTS", "parse_requirements", "print_checks", "progress_of", "unmet"]

_ABSENT = "-"


# Corruption that went on, or ended with nobody having said so.
_UNCAUGHT = (Reply.MISSED, Reply.HUNG, Reply.TRAPPED, Reply.MISBOOT)
_REFUSABLE = (*_UNCAUGHT, Reply.FALSE_ALARM, Reply.TRAP_REPORTED)
_NONE = {f"no-{one.value.replace(' ', '-')}": one for one in _REFUSABLE}

REQUIREMENTS = ("caught", "boots", *_NONE)
"""caught: in no row but that of code is one missed, hung, trapped or misboot. boots: the untouched image does.
no-REPLY: that reply is in no row, the purgatory's own code included."""


def parse_requirements(given: Iterable[str]) -> list[str]:
    """The words of --require, which commas may part; InputError that lists them all for one that is none."""
    words = [word.strip() for text in given for word in text.split(",")]
    for word in words:
        if word not in REQUIREMENTS:
            raise InputError(f"--require {word!r} is not one of {', '.join(REQUIREMENTS)}")
    return list(dict.fromkeys(words))


def _bad(requirement: str, row: str, replies: Sequence[Reply]) -> list[Reply]:
    """The replies of a row that a requirement does not allow, each once."""
    if requirement == "boots":
        return [one for one in replies if one is not Reply.BOOTS] if row == UNTOUCHED else []
    if requirement == "caught":
        return [one for one in Reply if one in replies and one in _UNCAUGHT and row != CODE]
    return [_NONE[requirement]] if _NONE[requirement] in replies else []


def unmet(requirement: str, replies: Mapping[str, Sequence[Reply]]) -> list[str]:
    """The rows that do not meet a requirement, each with what is there instead; [] when it is met.

    A row that does not apply to a purgatory asks nothing of it.
    """
    found = {row: _bad(requirement, row, each) for row, each in replies.items()}
    return [f"{row} ({', '.join(bad)})" for row, bad in found.items() if bad]


def print_checks(checks: Sequence[Check], json: bool, required: Sequence[str] = ()) -> bool:
    """One table, a column for each purgatory; or one JSON object. True if all that is required is there.

    What is not is one line on stderr.
    """
    rows = [{word: unmet(word, one.replies) for word in required} for one in checks]
    if json:
        told = [
            {**one.as_object(), **({"unmet": found} if required else {})}
            for one, found in zip(checks, rows, strict=True)
        ]
        print_json({"purgatories": told})
    else:
        sys.stdout.write(lines_text(_table(checks)))
    wrong = []
    for one, found in zip(checks, rows, strict=True):
        wrong += [f"{word}: {one.name}: {', '.join(where)}" for word, where in found.items() if where]
    if wrong:
        say_line(f"not as required: {'; '.join(wrong)}")
    return not wrong


def _table(checks: Sequence[Check]) -> list[str]:
    rows: list[list[str]] = [["fault", *(one.name for one in checks)], []]
    for case in checks[0].replies:
        found = [one.replies[case] for one in checks]
        if max(map(len, found)) <= 1:
            rows.append([case, *(one[0].value if one else _ABSENT for one in found)])
            continue
        rows.append([case, *("" for _ in checks)])
        for reply in Reply:
            counts = [Counter(one)[reply] for one in found]
            if any(counts):
                cells = (str(count) if one else _ABSENT for count, one in zip(counts, found, strict=True))
                rows.append([f"  {reply.value}", *cells])
    rows += [
        [],
        ["loaded by", *("kexec_file_load" if c.interface == "kernel" else "kexec_load" for c in checks)],
        ["instructions per byte", *(_number(one.instructions_per_byte) for one in checks)],
        ["  without SHA-2 instructions", *(_number(one.scalar_per_byte) for one in checks)],
        ["alignment faults on silicon", *(_kinds(one, False) for one in checks)],
        ["trapped FP instructions", *(_kinds(one, True) for one in checks)],
        ["loaded bytes", *(f"{one.bufsz:,}" for one in checks)],
        ["  in memory", *(f"{one.memsz:,}" for one in checks)],
    ]
    widths = [max(len(row[at]) for row in rows if row) for at in range(len(checks) + 1)]
    rows[1] = ["-" * width for width in widths]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in rows)
    lines = ["  ".join(cells).rstrip() for cells in padded]
    blanks = [f"  {row}: {why}" for row, why in _blanks(checks)]
    if blanks:
        lines += ["", f"{_ABSENT} says that there is nothing to tell:", *blanks]
    for one in checks:
        if one.violations:
            lines += ["", f"{one.name}: what silicon refuses in it, and this machine does not"]
            lines += [f"  {place:<24}{violation}" for place, violation in one.violations]
    return lines


def _blanks(checks: Sequence[Check]) -> Iterator[tuple[str, str]]:
    """The rows with blanks in them, and why those are there."""
    for one in checks:
        yield from ((row, f"{one.name}: {why}") for row, why in one.absent.items())
    for one in checks:
        if one.instructions_per_byte is None:
            yield "instructions per byte", f"{one.name}: {_why_none(one)}"
    for one in checks:
        if one.scalar_per_byte is None:
            boots = one.instructions_per_byte is not None
            why = "it cannot be told to do without them" if boots else _why_none(one)
            yield "without SHA-2 instructions", f"{one.name}: {why}"


def _why_none(check: Check) -> str:
    """What the untouched image came to, by the row that says so."""
    if Reply.BOOTS in check.replies.get(UNTOUCHED, []):
        return "it boots an untouched image, but does not come to an end with a larger initrd"
    return "it does not boot an untouched image"


def _number(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.2f}"


def _kinds(check: Check, trapped: bool) -> str:
    return str(sum((one.kind == "fp trap") == trapped for _, one in check.violations))


@contextmanager
def progress_of(purgatories: int) -> Iterator[OnCase]:
    """A bar of runs on stderr where that is a terminal, for so many purgatories."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import Progress as Bar

    from kexecemu.report.terminal import console_on

    with Bar(console=console_on(sys.stderr), transient=True) as bar:
        task = bar.add_task("faults", total=RUNS * purgatories)
        yield lambda: bar.advance(task)
