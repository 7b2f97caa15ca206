"""A PL031 real time clock (ARM DDI 0224) that runs on the board's own time."""

from collections.abc import Callable

from kexecemu.machine import virt
from kexecemu.shown import shown

__all__ = ["DEFAULT_START", "Pl031"]

DEFAULT_START = 1_672_531_200
"""2023-01-01 00:00:00 UTC, in seconds of the epoch."""

DR, MR, LR, CR, IMSC, RIS, MIS, ICR = range(0x00, 0x20, 4)
ID = 0xFE0

# PeriphID0-3 (part 0x031, designer 0x41, revision 1) and CellID0-3.
IDENTITY = bytes((0x31, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1))

WRAP = 1 << 32


@shown("phys", "alarm_at")
class Pl031:
    """The clock: it counts seconds of the epoch, from `start` on.

    now() says how many seconds have gone by on the board. irq is the alarm's line, called with its level whenever that
    changes, the first time when it rises. The clock has nobody to wake it: whoever keeps the board's time calls poll()
    once now() has reached alarm_at; an access to a register looks, too.
    """

    phys = virt.RTC

    def __init__(
        self, now: Callable[[], int], irq: Callable[[bool], object], *, start: int = DEFAULT_START
    ) -> None:
        self.alarm_at: int | None = None
        """When the counter will be equal to the match register, as now() counts; None when that was never set."""
        self._now = now
        self._offset = start
        self._match = 0
        self._load = 0
        self._mask = 0
        self._raised = 0
        self._irq = irq
        self._level = False

    def poll(self) -> None:
        """Raise the alarm if its time has come."""
        if self.alarm_at is not None and self._now() >= self.alarm_at:
            self._raised = 1
            # The counter will meet the match register again only after it has wrapped around.
            self.alarm_at += WRAP
        level = bool(self._raised & self._mask)
        if level != self._level:
            self._level = level
            self._irq(level)

    def _count(self) -> int:
        return (self._offset + self._now()) % WRAP

    def _arm(self) -> None:
        self.alarm_at = self._now() + (self._match - self._count()) % WRAP

    def read(self, offset: int, size: int) -> int:
        """A load of a register; unknown ones read as zero."""
        self.poll()
        if offset == DR:
            return self._count()
        if offset >= ID and offset % 4 == 0:
            return IDENTITY[(offset - ID) // 4]
        known = {
            MR: self._match,
            LR: self._load,
            CR: 1,  # it always runs
            IMSC: self._mask,
            RIS: self._raised,
            MIS: self._raised & self._mask,
        }
        return known.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to a register; to an unknown or read-only one it does nothing."""
        self.poll()
        if offset == MR:
            self._match = value % WRAP
            self._arm()
        elif offset == LR:
            self._load = value % WRAP
            self._offset += self._load - self._count()
            self._arm()
        elif offset == IMSC:
            self._mask = value & 1
        elif offset == ICR:
            self._raised &= ~value & 1
        self.poll()
