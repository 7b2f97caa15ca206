"""One stray write: who writes, where, what and when; and what came of it at the moment of the write."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from kexecemu.arguments import buffer, instance, integer, member, text
from kexecemu.errors import InputError
from kexecemu.kernel.model import Kernel
from kexecemu.machine.exceptions import GuestFault
from kexecemu.shown import shown
from kexecemu.stray.target import resolve

__all__ = ["By", "Fault", "Injection", "When", "account", "inject", "parse_hex"]


class By(enum.StrEnum):
    """Who writes."""

    CPU = "cpu"  # stores executed at EL1 through the linear map, so that page tables have their say
    DMA = "dma"  # a bus master, behind the MMU


class When(enum.StrEnum):
    """The moment of the write."""

    AFTER_LOAD = "after-load"
    BEFORE_PANIC = "before-panic"
    AFTER_CHECK = "after-check"  # the purgatory has jumped, the capture kernel has not begun


@shown()
@dataclass(frozen=True)
class Fault:
    """A stray write.

    at      a target (see kexecemu.stray.target), or a physical address
    write   the bytes that are written, or None
    flip    the bits to invert in the byte at the target, as a mask (0x01 to 0xff), or None
    width   bytes per store of a CPU: 1, 2, 4 or 8
    """

    at: str
    write: bytes | None = None
    flip: int | None = None
    by: By = By.CPU
    when: When = When.AFTER_LOAD
    width: int = 1

    def __post_init__(self) -> None:
        # An address may be a number, a moment and a writer their words.
        given: Any = self.at
        at = f"{given:#x}" if isinstance(given, int) and not isinstance(given, bool) else given
        object.__setattr__(self, "at", text(at, "fault: at"))
        object.__setattr__(self, "by", member(self.by, By, f"fault at {at}: by"))
        object.__setattr__(self, "when", member(self.when, When, f"fault at {at}: when"))
        if self.write is not None:
            object.__setattr__(self, "write", buffer(self.write, f"fault at {at}: write"))
        if self.flip is not None:
            integer(self.flip, f"fault at {at}: flip")
        if (self.write is None) == (self.flip is None):
            raise InputError(f"fault at {self.at}: give either the bytes to write or the bits to flip")
        if self.write is not None and not self.write:
            raise InputError(f"fault at {self.at}: nothing to write")
        if self.flip is not None and not 0 < self.flip <= 0xFF:
            raise InputError(f"fault at {self.at}: flip is a mask of bits in one byte, 0x01 to 0xff")
        if self.width not in (1, 2, 4, 8):
            raise InputError(f"fault at {self.at}: a store is 1, 2, 4 or 8 bytes wide, not {self.width}")
        if self.when is When.AFTER_CHECK and self.by is not By.DMA:
            raise InputError(
                f"fault at {self.at}: after the check every CPU is stopped, only DMA still writes"
            )

    @property
    def length(self) -> int:
        """How many bytes are written."""
        return len(self.write) if self.write is not None else 1


@shown()
@dataclass(frozen=True)
class Injection:
    """What a fault did: the bytes at phys before and right after, and the exception if the store met one."""

    fault: Fault
    phys: int
    before: bytes
    after: bytes
    exception: GuestFault | None = None

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


def inject(kernel: Kernel, fault: Fault) -> Injection:
    """Make the write happen now; the timeline says what it did. Raises InputError for a target that is not there."""
    instance(fault, Fault, "fault")
    phys = resolve(kernel, fault.at, fault.length)
    before = kernel.ram.read(phys, fault.length)
    data = fault.write if fault.write is not None else bytes([before[0] ^ (fault.flip or 0)])
    exception = None
    happens = fault.by is By.DMA or not kernel.dying
    if fault.by is By.DMA:
        kernel.board.dma.write(phys, data)
    elif happens:
        seen = len(kernel.board.boot_cpu.exceptions)
        kernel.stray_write_virt(kernel.space.linear_virt(phys), data, fault.width)
        exception = next(iter(kernel.board.boot_cpu.exceptions[seen:]), None)
    injection = Injection(fault, phys, before, kernel.ram.read(phys, fault.length), exception)
    kernel.say(
        "fault",
        account(injection, data) if happens else f"{fault.at}: no CPU stores any more, the kernel is dying",
        by=fault.by.value,
        at=fault.at,
        phys=phys,
        length=fault.length,
        changed=injection.changed,
        trapped=exception is not None,
    )
    return injection


def _shown(data: bytes) -> str:
    return data.hex() if len(data) <= 8 else f"{data[:8].hex()}... ({len(data)} bytes)"


def account(injection: Injection, data: bytes, cpu: int = 0) -> str:
    """In words what came of a write of `data`, by that CPU unless it was DMA."""
    fault = injection.fault
    who = f"cpu{cpu} stores" if fault.by is By.CPU else "DMA writes"
    text = f"{who} {_shown(data)} at {fault.at} ({injection.phys:#x}, was {_shown(injection.before)})"
    if injection.exception is not None:
        intact = "memory is intact" if not injection.changed else "part of it was written"
        return f"{text}: {injection.exception.description}; {intact}"
    return text if injection.changed else f"{text}: the same value"
