"""One CPU's generic timer: the virtual and the physical EL1 timer, both against the board's count (Arm ARM, D11).

Time is the board's count of instructions, turned into ticks; there is no offset between CNTVCT and CNTPCT.
"""

from collections.abc import Callable
from typing import Final

from kexecemu.shown import shown

__all__ = ["PHYSICAL", "VIRTUAL", "GenericTimer"]

PHYSICAL: Final = 2
"""CRm of CNTP_TVAL_EL0, CNTP_CTL_EL0 and CNTP_CVAL_EL0."""
VIRTUAL: Final = 3
"""CRm of CNTV_TVAL_EL0, CNTV_CTL_EL0 and CNTV_CVAL_EL0."""

_TVAL, _CTL, _CVAL = 0, 1, 2  # op2
_ENABLE, _IMASK, _ISTATUS = 1, 2, 4

_MASK64 = (1 << 64) - 1


class _Timer:
    def __init__(self, line: Callable[[bool], object]) -> None:
        self.line = line
        self.ctl = 0
        self.cval = 0


@shown()
class GenericTimer:
    """Both timers of a CPU. ticks() is the count now; each line is told the level of its interrupt.

    update() must be called once the count has reached expiry(), and is called by every write.
    """

    def __init__(
        self, ticks: Callable[[], int], physical: Callable[[bool], object], virtual: Callable[[bool], object]
    ) -> None:
        self._ticks = ticks
        self._timers = {PHYSICAL: _Timer(physical), VIRTUAL: _Timer(virtual)}

    def reset(self) -> None:
        """Both timers off, as they are when a CPU has been switched on."""
        for timer in self._timers.values():
            timer.ctl = timer.cval = 0
            timer.line(False)

    def read(self, crm: int, op2: int) -> int:
        """What an MRS of a timer's register gives; crm is PHYSICAL or VIRTUAL."""
        timer = self._timers[crm]
        if op2 == _CVAL:
            return timer.cval
        if op2 == _TVAL:
            return timer.cval - self._ticks() & 0xFFFFFFFF
        met = timer.ctl & _ENABLE and self._ticks() >= timer.cval
        return timer.ctl | (_ISTATUS if met else 0)

    def write(self, crm: int, op2: int, value: int) -> None:
        """An MSR to a timer's register; the interrupt's line follows at once."""
        timer = self._timers[crm]
        if op2 == _CVAL:
            timer.cval = value
        elif op2 == _TVAL:
            signed = (value & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)
            timer.cval = self._ticks() + signed & _MASK64
        else:
            timer.ctl = value & (_ENABLE | _IMASK)
        self.update()

    def update(self) -> None:
        """Give both lines the level that they have now."""
        now = self._ticks()
        for timer in self._timers.values():
            timer.line(timer.ctl & (_ENABLE | _IMASK) == _ENABLE and now >= timer.cval)

    def expiry(self) -> int | None:
        """The count in ticks at which a line will next go up, None if none will."""
        now = self._ticks()
        coming = [
            timer.cval
            for timer in self._timers.values()
            if timer.ctl & (_ENABLE | _IMASK) == _ENABLE and timer.cval > now
        ]
        return min(coming, default=None)
