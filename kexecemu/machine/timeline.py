"""What happened on a board, in order: the one record that reports, tests and people read.

Time is the number of instructions that all CPUs have retired; nothing else exists, so that the same scenario gives
the same timeline, byte for byte.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from kexecemu.shown import shown
from kexecemu.visible import json_text, visible_line

__all__ = ["Event", "Timeline"]

Fact = int | str | bool | None

_SHOWN = 10  # events, and the characters of each
_WIDE = 120


@shown()
@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: `when` in instructions, `kind` a short fixed name, `text` a sentence for people.

    facts are values for programs: addresses as integers (a name that ends in _phys or _virt says which), sizes in
    bytes, names as strings.
    """

    when: int
    kind: str
    text: str
    facts: dict[str, Fact] = field(default_factory=dict)

    def as_object(self) -> dict[str, Fact]:
        """For JSON, with the keys in this order: when, kind, text, then the facts in the order given."""
        return {"when": self.when, "kind": self.kind, "text": self.text, **self.facts}


class Timeline:
    """The events of one board. clock() must return the instructions retired so far."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._events: list[Event] = []

    def record(self, kind: str, text: str, **facts: Fact) -> Event:
        """Append an event that happens now."""
        event = Event(self._clock(), kind, text, facts)
        self._events.append(event)
        return event

    def put_back(self, events: Sequence[Event]) -> None:
        """Nothing but these has happened: the machine has gone back to when they were all."""
        self._events[:] = events

    def __repr__(self) -> str:
        """The last events as a table."""
        last = self._events[-_SHOWN:]
        title = f"Timeline of {len(self._events)} events" + (
            f", the last {_SHOWN}" if last != self._events else ""
        )
        rows = (
            visible_line(
                f"{one.when:>14,}  {one.kind:<14} {one.text[:_WIDE]}{'...' * (len(one.text) > _WIDE)}"
            )
            for one in last
        )
        return "\n".join([title + ("; when is in instructions:" if last else ""), *rows])

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def of(self, kind: str) -> list[Event]:
        """All events of one kind, in order."""
        return [event for event in self._events if event.kind == kind]

    def as_jsonl(self) -> str:
        """The whole timeline, one JSON object a line."""
        return "".join(json_text(event.as_object()) + "\n" for event in self._events)
