"""One fault of a campaign, and its name in one token, which is also how it is run again."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from kexecemu.crash.dump import Dump
from kexecemu.errors import InputError
from kexecemu.shown import shown
from kexecemu.suggest import did_you_mean

__all__ = ["CampaignFault", "Decided", "Ended", "How", "Moment", "Writer"]


class Writer(enum.StrEnum):
    """Who writes."""

    CPU = "cpu"  # a store through the linear map, so that page tables have their say
    ALIAS = "alias"  # a store through another mapping of the page (vmap), which no protection of the linear map reaches
    DMA = "dma"  # a bus master, behind the MMU
    LATE_CPU = "late-cpu"  # a CPU that did not stop at the crash, through the linear map


class Moment(enum.StrEnum):
    """When. Those with a number have it in the fault: how far hashing is (in 256ths), how many instructions on."""

    DURING_LOAD = "during-load"  # right before the segments are copied to where they belong
    AFTER_LOAD = "after-load"
    DURING_PANIC = "during-panic"  # between panic() and the jump
    WHILE_HASHING = "hashing"  # the purgatory has read this many 256ths of what it hashes
    AFTER_CHECK = "after-check"  # the purgatory has jumped, the capture kernel has not begun
    IN_CAPTURE = "capture"  # so many instructions into the capture kernel


_ID = re.compile(
    r"(?P<by>cpu|alias|dma|late-cpu)\.(?P<model>[a-z0-9-]+)\.(?P<variant>[0-9a-f]+)"
    r"\.(?P<base>[A-Za-z_-]+)\+(?P<offset>[0-9a-f]+)\.(?P<moment>[a-z-]+?)(?:-(?P<at>\d+))?\Z"
)
_WITH_NUMBER = (Moment.WHILE_HASHING, Moment.IN_CAPTURE)


@shown()
@dataclass(frozen=True, slots=True, order=True)
class CampaignFault:
    """A fault: who writes what (a model and its variant) where (bytes from the start of base) and when.

    base is a segment's name, "crashkernel" or "crashkernel-free". `at` belongs to the moment.
    """

    by: Writer
    model: str
    variant: int
    base: str
    offset: int
    moment: Moment
    at: int = 0

    @property
    def id(self) -> str:
        """The token: dma.bit-flip.3.initrd+1a2b.hashing-128."""
        moment = f"{self.moment.value}-{self.at}" if self.moment in _WITH_NUMBER else self.moment.value
        return f"{self.by.value}.{self.model}.{self.variant:x}.{self.base}+{self.offset:x}.{moment}"

    @classmethod
    def parse(cls, token: str) -> CampaignFault:
        """The fault that a token names; InputError for anything else."""
        match = _ID.match(token)
        if match is not None and match["moment"] not in set(Moment):
            like = did_you_mean(match["moment"], Moment)
            raise InputError(
                f"{token!r} is no fault: no moment {match['moment']!r}{like}; there are {', '.join(Moment)}"
            )
        if match is None:
            raise InputError(f"{token!r} is no fault: they look like dma.bit-flip.3.initrd+1a2b.after-load")
        moment = Moment(match["moment"])
        if (match["at"] is not None) != (moment in _WITH_NUMBER):
            how = "with" if match["at"] is None else "without"
            raise InputError(f"{token!r} is no fault: {moment.value} goes {how} a number")
        return cls(
            Writer(match["by"]),
            match["model"],
            int(match["variant"], 16),
            match["base"],
            int(match["offset"], 16),
            moment,
            int(match["at"] or 0),
        )


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
