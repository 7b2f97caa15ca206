"""One fault of a campaign, and its name in one token, which is also how it is run again."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from kexecemu.arguments import number
from kexecemu.crash.dump import Dump
from kexecemu.errors import InputError
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import brief, shown
from kexecemu.stray.fault import NUMBERED, WHEN_WORD, By, Fault, When, when_word
from kexecemu.suggest import did_you_mean

__all__ = ["MOMENTS", "CampaignFault", "Decided", "Ended", "How"]


MOMENTS = tuple(when for when in When if when not in (When.BEFORE_PANIC, When.AT_JUMP))
"""Those that a campaign tells apart: before-panic is after-load to it, and at-jump hashing-0."""

_ID = re.compile(
    rf"(?P<by>{'|'.join(By)})\.(?P<model>[a-z0-9-]+)\.(?P<variant>[0-9a-f]+)"
    rf"\.(?P<base>[A-Za-z_-]+)\+(?P<offset>[0-9a-f]+)\.{WHEN_WORD}"
)


@shown()
@dataclass(frozen=True, slots=True, order=True)
class CampaignFault:
    """A fault: who writes what (a model and its variant) where (bytes from the start of base) and when.

    base is a segment's name, "crashkernel" or "crashkernel-free". `at` belongs to the moment.
    """

    by: By
    model: str
    variant: int
    base: str
    offset: int
    moment: When
    at: int = 0

    @property
    def id(self) -> str:
        """The token: dma.bit-flip.3.initrd+1a2b.hashing-128."""
        moment = when_word(self.moment, self.at)
        return f"{self.by.value}.{self.model}.{self.variant:x}.{self.base}+{self.offset:x}.{moment}"

    @classmethod
    def parse(cls, token: str) -> CampaignFault:
        """The fault that a token names; InputError for anything else."""
        match = _ID.match(token)
        if match is not None and match["moment"] not in MOMENTS:
            like = did_you_mean(match["moment"], MOMENTS)
            raise InputError(
                f"{token!r} is no fault: no moment {match['moment']!r}{like}; there are {', '.join(MOMENTS)}"
            )
        if match is None:
            raise InputError(f"{token!r} is no fault: they look like dma.bit-flip.3.initrd+1a2b.after-load")
        moment = When(match["moment"])
        if (match["step"] is not None) != (moment in NUMBERED):
            how = "with" if match["step"] is None else "without"
            raise InputError(f"{token!r} is no fault: {moment.value} goes {how} a number")
        what = f"{brief(token, room=100)} is no fault"
        by, variant, offset = (
            By(match["by"]),
            number(match["variant"], what, 16),
            number(match["offset"], what, 16),
        )
        at = number(match["step"] or "0", what)
        if at > NUMBERED.get(moment, 0):
            raise InputError(f"{token!r} is no fault: {moment.value} goes to {NUMBERED[moment]}")
        fault = cls(by, match["model"], variant, match["base"], offset, moment, at)
        if fault.id != token:
            raise InputError(f"{token!r} is no fault: it is written {fault.id}")
        return fault

    def fault(self, area: PhysRange) -> Fault:
        """The same as a scenario has it; a CPU's stores into its physical bytes `area` are as wide as they can be."""
        width = next(width for width in (8, 4, 2, 1) if not area.start % width and not area.size % width)
        at, step, model, variant = f"{self.base}+{self.offset:#x}", self.at, self.model, self.variant
        return Fault(at, None, None, self.by, self.moment, width, step, model, variant)


class How(enum.StrEnum):
    """How an outcome was found. All but RUN are conclusions, of which a sample is run all the same."""

    RUN = "run"  # emulated to its end, from the last point at which it could not have mattered yet
    SAME_VALUE = "same-value"  # the bytes were there already
    REFUSED = "refused"  # the page tables do not let the store through
    HASH = "hash"  # it changes what is hashed, and the state of SHA-256 behind it
    UNREAD = "unread"  # nothing reads the bytes from then on
    OVERWRITTEN = "overwritten"  # they are written before anything reads them


@shown()
@dataclass(frozen=True, slots=True)
class Ended:
    """What a machine came to: outcome and dump are strings of kexecemu.crash.outcome.Outcome and of dump.Dump.

    dump_reason says why in words that hold for every fault of a kind, so that it is the same whichever of them was run.
    reported: the purgatory's own record says that something was wrong. mended: a capture kernel was started, after the
    purgatory had put memory right (True) or not (False); None where none was started.
    """

    outcome: str
    dump: str = Dump.NONE.value
    dump_reason: str = ""
    reported: bool = False
    mended: bool | None = None


@shown()
@dataclass(frozen=True, slots=True)
class Decided:
    """What came of one fault: outcome and dump are strings of kexecemu.crash.outcome.Outcome and of dump.Dump.

    segment is where it hit, "" for none; phys the address of the first byte; detail a sentence where there is more to
    say (why it is an error, where control went). dump_reason and reported are as Ended has them.
    """

    fault: CampaignFault
    outcome: str
    how: How
    segment: str
    phys: int
    detail: str = ""
    dump: str = Dump.NONE.value
    dump_reason: str = ""
    reported: bool = False
