"""What `purgatory check --require` asks of a purgatory, and which rows of the table do not give it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kexecemu.crash.purgatory_check import CODE, UNTOUCHED, Reply
from kexecemu.errors import InputError

__all__ = ["REQUIREMENTS", "parse_requirements", "unmet"]

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
