"""How a test says that a crash did not end as expected: what differs, what happened, and how to have it again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kexecemu.arguments import instance
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.linux.first import FirstLinux
from kexecemu.machine.timeline import Event
from kexecemu.report.again import Again
from kexecemu.scenario.schema import Expect
from kexecemu.visible import visible, visible_line

__all__ = ["KexecemuFailure", "KnownEnd", "again_line", "events_text", "failure_text"]

_EVENTS = 15  # of the timeline's end: from the load on in most runs


class KexecemuFailure(AssertionError):
    """A crash did not end as expected; the message is all there is to say, a traceback adds nothing.

    wrong says what differs. end and expect are there where one crash was looked at; again is then the line that does
    the same again, which the pytest plugin replaces by one that fits the test.
    """

    def __init__(
        self,
        wrong: Sequence[str],
        end: End | None = None,
        expect: Expect | None = None,
        *,
        again: str | None = None,
        more: Sequence[str] = (),
    ) -> None:
        super().__init__(*wrong)
        self.wrong = list(wrong)
        self.end = end
        self.expect = expect
        self.again = again if again is not None else again_line(end, expect) if end is not None else ""
        self.more = list(more)

    def __str__(self) -> str:
        if self.end is None:
            return visible("\n".join([*self.wrong, *self.more]))
        return failure_text(self.end, self.wrong, self.again)


@dataclass(frozen=True, repr=False)
class KnownEnd(End):
    """An End of run(), which knows how it came about."""

    again: Again | None = field(default=None, repr=False)
    kernel: Kernel | FirstLinux | None = field(default=None, repr=False)


def again_line(end: End, expect: Expect | None = None) -> str:
    """The line for a shell that has the crash again and fails where it is not as expected; "" where there is none."""
    return end.again.line(expect) if isinstance(end, KnownEnd) and end.again is not None else ""


def failure_text(end: End, wrong: Sequence[str], again: str | None = None) -> str:
    """Why a test failed, for people: what is wrong, the end of the timeline, and the line that does it again."""
    instance(end, End, "end")
    again = again_line(end) if again is None else again
    lines = [*wrong, ""] if wrong else []
    lines.append(events_text(list(end.timeline)))
    lines += [f"damage: {damage}" for damage in end.damage[:8]]
    if len(end.damage) > 8:
        lines.append(f"damage: and {len(end.damage) - 8} more")
    if again:
        lines += ["", f"again: {again}"]
    return visible("\n".join(lines))


def events_text(events: Sequence[Event]) -> str:
    """The end of a timeline, one event a line."""
    instance(events, Sequence, "events")
    shown = events[-_EVENTS:]
    title = "timeline" if len(shown) == len(events) else f"the last {len(shown)} of {len(events)} events"
    lines = [visible_line(f"{event.when:>14,}  {event.kind:<14} {event.text}") for event in shown]
    return "\n".join([f"{title}, time in instructions:", *lines])
