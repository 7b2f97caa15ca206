"""One stray write: who writes, where, what and when; and what came of it at the moment of the write.

A scenario's [[fault]], a campaign's fault and a test's all are one of these.
"""

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kexecemu.arguments import buffer, integer, member, number, text
from kexecemu.errors import InputError
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.shown import brief, shown
from kexecemu.stray.models import find_model
from kexecemu.suggest import did_you_mean

__all__ = ["NUMBERED", "WHEN_WORD", "By", "Fault", "Injection", "When", "account", "can_write"]
__all__ += ["parse_hex", "parse_when", "when_word"]


class By(enum.StrEnum):
    """Who writes. All but DMA are stores that a CPU executes at EL1, so that page tables have their say."""

    CPU = "cpu"  # through the linear map
    # Through another mapping of the page (vmap), which no protection of the linear map reaches.
    ALIAS = "alias"
    DMA = "dma"  # a bus master, behind the MMU
    LATE_CPU = "late-cpu"  # a CPU that did not stop at the crash, through the linear map


class When(enum.StrEnum):
    """The moments of a crash, in order. Those with a number have it in the fault's step."""

    DURING_LOAD = "during-load"  # right before the segments are copied to where they belong
    AFTER_LOAD = "after-load"
    BEFORE_PANIC = "before-panic"
    DURING_PANIC = "during-panic"  # between panic() and the jump, the MMU still on
    AT_JUMP = "at-jump"  # the first kernel has been left, nothing has run behind it
    WHILE_HASHING = "hashing"  # the purgatory has done this many 256ths of its undisturbed run
    AFTER_CHECK = "after-check"  # the purgatory has jumped, the capture kernel has not begun
    IN_CAPTURE = "capture"  # so many instructions into the capture kernel


NUMBERED = {When.WHILE_HASHING: 256, When.IN_CAPTURE: 10**9}
"""The moments with a number, and how far it goes."""

_ALIVE = (When.DURING_LOAD, When.AFTER_LOAD, When.BEFORE_PANIC)
WHEN_WORD = r"(?P<moment>[a-z-]+?)(?:-(?P<step>[0-9]+))?\Z"
"""A moment as it is written: its word, and its number where it has one."""


def can_write(by: By, when: When) -> bool:
    """Whether there is such a writer at that moment.

    The CPUs of the first kernel write until the jump, the one that did not stop from the crash on, DMA always.
    """
    if by is By.DMA:
        return True
    if by is By.LATE_CPU:
        return when not in _ALIVE
    return when in (*_ALIVE, When.DURING_PANIC)


def when_word(when: When, step: int) -> str:
    """A moment as one word, with its number where it has one."""
    return f"{when.value}-{step}" if when in NUMBERED else when.value


def parse_when(
    word: str, what: str, among: Collection[When] = tuple(When), more: str = ""
) -> tuple[When, int]:
    """A moment and its number from a word, as hashing-128; InputError naming `what` for any other.

    among are those that there can be, more what else there is, in words.
    """
    match = re.match(WHEN_WORD, word, re.ASCII)
    if match is None or match["moment"] not in among:
        known = ", ".join(f"{one}-N" if one in NUMBERED else one for one in among)
        raise InputError(f"{what}: no moment {word!r}{did_you_mean(word, among)}; there are {known}{more}")
    when = When(match["moment"])
    if when not in NUMBERED:
        if match["step"] is not None:
            raise InputError(f"{what}: {when.value} goes without a number, not {word!r}")
        return when, 0
    if match["step"] is None:
        hashing = when is When.WHILE_HASHING
        counted = "256ths, as in hashing-128" if hashing else f"instructions, as in {word}-1000"
        raise InputError(f"{what}: {word!r} needs its number of {counted}")
    step = number(match["step"], f"{what}: {brief(word, room=60)}")
    if step > NUMBERED[when]:
        raise InputError(f"{what}: {word!r} is too far: {when.value} goes to {NUMBERED[when]}")
    return when, step


@shown()
@dataclass(frozen=True)
class Fault:
    """A stray write.

    at      a target (see kexecemu.stray.target), or a physical address
    write   the bytes that are written, or None
    flip    the bits to invert in the byte at the target, as a mask (0x01 to 0xff), or None
    by      who writes
    when    the moment; a word may have its number, as "hashing-128"
    width   bytes per store of a CPU: 1, 2, 4 or 8
    step    the number of a moment that has one
    model   the name of a fault model (kexecemu.stray.models) that says what is written, with its variant
    """

    at: str
    write: bytes | None = None
    flip: int | None = None
    by: By = By.CPU
    when: When = When.AFTER_LOAD
    width: int = 1
    step: int = 0
    model: str | None = None
    variant: int = 0

    def __post_init__(self) -> None:
        # An address may be a number, a moment and a writer their words.
        given: Any = self.at
        at = f"{given:#x}" if isinstance(given, int) and not isinstance(given, bool) else given
        object.__setattr__(self, "at", text(at, "fault: at"))
        object.__setattr__(self, "by", member(self.by, By, f"fault at {at}: by"))
        self._check_when()
        if self.write is not None:
            object.__setattr__(self, "write", buffer(self.write, f"fault at {at}: write"))
        if self.flip is not None:
            integer(self.flip, f"fault at {at}: flip")
        if (self.write is not None) + (self.flip is not None) + (self.model is not None) != 1:
            raise InputError(
                f"fault at {self.at}: give one of the bytes to write, the bits to flip, and a model"
            )
        if self.variant and self.model is None:
            raise InputError(f"fault at {self.at}: a variant is one of a model's, and none is named")
        if self.model is not None:
            find_model(self.model).length(self.variant)
        if self.write is not None and not self.write:
            raise InputError(f"fault at {self.at}: nothing to write")
        if self.flip is not None and not 0 < self.flip <= 0xFF:
            raise InputError(f"fault at {self.at}: flip is a mask of bits in one byte, 0x01 to 0xff")
        if self.width not in (1, 2, 4, 8):
            raise InputError(f"fault at {self.at}: a store is 1, 2, 4 or 8 bytes wide, not {self.width}")

    def _check_when(self) -> None:
        what = f"fault at {self.at}"
        when: Any = self.when
        step = self.step
        if isinstance(when, str) and re.search(r"-[0-9]+\Z", when):
            when, step = parse_when(when, f"{what}: when")
        object.__setattr__(self, "when", member(when, When, f"{what}: when"))
        object.__setattr__(self, "step", integer(step, f"{what}: step"))
        if not 0 <= step <= NUMBERED.get(self.when, 0):
            raise InputError(f"{what}: {self.when.value} goes to {NUMBERED.get(self.when, 0)}, not {step}")
        if can_write(self.by, self.when):
            return
        if self.by is By.LATE_CPU:
            raise InputError(
                f"{what}: a late-cpu is one that does not stop at the crash: before that none is late"
            )
        raise InputError(
            f"{what}: CPUs have stopped by the moment {self.when.value}; DMA and a late-cpu still write"
        )

    @property
    def moment(self) -> tuple[When, int]:
        """When, with the number."""
        return self.when, self.step

    @property
    def when_word(self) -> str:
        """The moment as one word, as it is written in a file."""
        return when_word(self.when, self.step)

    @property
    def length(self) -> int:
        """How many bytes are written, unless RAM ends before that."""
        if self.model is not None:
            return find_model(self.model).length(self.variant)
        return len(self.write) if self.write is not None else 1

    def data(self, before: bytes) -> bytes:
        """What is written over `before`: as many bytes, which are fewer than length at the end of RAM."""
        if self.model is not None:
            model = find_model(self.model)
            return model.data(self.variant, before.ljust(model.length(self.variant), b"\0"))[: len(before)]
        if self.write is not None:
            return self.write[: len(before)]
        assert self.flip is not None  # one of the three is given
        return bytes([before[0] ^ self.flip])


@shown()
@dataclass(frozen=True)
class Injection:
    """What a fault did: the bytes at phys before and right after, and the exception if the store met one.

    cpu is the number of the CPU that stored, None where none did.
    One from before the load counts by what the load has left of it; loaded_over says that this is nothing.
    """

    fault: Fault
    phys: int
    before: bytes
    after: bytes
    exception: GuestException | None = None
    cpu: int | None = None
    loaded_over: bool = False

    @property
    def changed(self) -> bool:
        """The write changed memory."""
        return self.before != self.after


def parse_hex(text: str, what: str) -> bytes:
    """Bytes from hex digits (an optional 0x in front, underscores allowed); InputError naming `what` otherwise."""
    digits = text.strip().removeprefix("0x").removeprefix("0X").replace("_", "")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise InputError(f"{what}: {text!r} is not an even number of hex digits") from None


def _shown(data: bytes) -> str:
    return data.hex() if len(data) <= 8 else f"{data[:8].hex()}... ({len(data)} bytes)"


def account(injection: Injection, data: bytes) -> str:
    """In words what came of a write of `data`."""
    fault, cpu = injection.fault, injection.cpu
    who = {
        By.CPU: f"cpu{cpu} stores",
        By.ALIAS: f"cpu{cpu} stores through another mapping",
        By.DMA: "DMA writes",
        By.LATE_CPU: f"cpu{cpu}, which did not stop, stores",
    }[fault.by]
    text = f"{who} {_shown(data)} at {fault.at} ({injection.phys:#x}, was {_shown(injection.before)})"
    if injection.exception is not None:
        intact = "memory is intact" if not injection.changed else "part of it was written"
        return f"{text}: {injection.exception.description}; {intact}"
    return text if injection.changed else f"{text}: the same value"
