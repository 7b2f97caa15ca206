"""What nothing may be concluded of, by accesses that no machine here has made: each by itself is enough."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.campaign.accesses import Accesses
from kexecemu.campaign.engine import FaultDecider
from kexecemu.campaign.fault import How
from kexecemu.crash.outcome import Outcome
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.machine.ranges import PhysRange

REGION = PhysRange.of(0x40000000, 0x10000)
SEGMENT, CONTROL, TABLES = (PhysRange.of(REGION.start + at, 0x2000) for at in (0x1000, 0x4000, 0x8000))


class Engine:
    """As far as a conclusion asks it: what was touched is written down."""

    def __init__(self, changed: list[PhysRange]) -> None:
        self.golden = SimpleNamespace(
            **{name: Accesses(REGION) for name in ("in_panic", "in_check", "in_capture")}
        )
        segments = [Segment("kernel", b"", SEGMENT.start, SEGMENT.size)]
        self.image = Kimage(0, segments, control_pages=[CONTROL])
        self.victim = SimpleNamespace(page_tables=TABLES)
        self._hits = SimpleNamespace(changed=lambda hit: changed)

    def touch(self, when: str, at: int) -> None:
        getattr(self.golden, when).note_read(at, 1, 5)

    def _as_undisturbed(self, outcome: Outcome) -> Any:
        return outcome

    def _conclude_in_capture(self, changed: list[PhysRange]) -> Any:
        return "as the capture kernel has it"

    def _unnoticed(self, changed: list[PhysRange], how: How) -> Any:
        return how


in_purgatory: Any = FaultDecider._conclude_in_purgatory


def during_load(area: PhysRange, touched: tuple[str, int] | None = None, *changed: PhysRange) -> Any:
    engine: Any = Engine(list(changed))
    if touched is not None:
        engine.touch(*touched)
    return FaultDecider._conclude_during_load(engine, SimpleNamespace(area=area))  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["in_panic", "in_check", "in_capture"])
@pytest.mark.parametrize("byte", range(2))
def test_a_write_before_the_load_into_what_is_touched_once_is_run(when: str, byte: int) -> None:
    area = PhysRange.of(REGION.start + 0xC000, 0x100)
    changed = PhysRange.of(area.start, 8), PhysRange.of(area.start + 0x40, 8)
    assert during_load(area, None, *changed) == (Outcome.LATENT, How.UNREAD)
    assert during_load(area, (when, changed[byte].start + 7), *changed) is None
    assert during_load(area, (when, area.start + 0x20), *changed) == (Outcome.LATENT, How.UNREAD)


@pytest.mark.parametrize(
    ("start", "size", "found"),
    [
        (SEGMENT.start, 0x2000, (Outcome.MASKED, How.OVERWRITTEN)),
        (SEGMENT.start - 1, 2, None),
        (SEGMENT.end - 1, 2, None),
        (SEGMENT.end, 8, (Outcome.LATENT, How.UNREAD)),
        (CONTROL.start + 8, 8, None),
        (CONTROL.end - 1, 1, None),
        (CONTROL.end, 1, (Outcome.LATENT, How.UNREAD)),
        (CONTROL.start - 8, 8, (Outcome.LATENT, How.UNREAD)),
    ],
)
def test_what_the_load_writes_over_whole_is_gone_and_over_a_part_is_run(
    start: int, size: int, found: Any
) -> None:
    area = PhysRange.of(start, size)
    assert during_load(area, None, area) == found
    assert during_load(area) == (Outcome.MASKED, How.SAME_VALUE)


@pytest.mark.parametrize("page", [TABLES.start, TABLES.start + 0x1000])
@pytest.mark.parametrize(
    ("touched", "untouched"),
    [(0, False), (0xFF8, False), (0x7F8, False), (-1, True), (0x1000, True)],
)
def test_of_a_table_s_page_nothing_may_have_been_touched(page: int, touched: int, untouched: bool) -> None:
    for at in (0x10, 0xFF0):
        engine: Any = Engine([])
        engine.touch("in_check", page + touched)
        changed = [PhysRange.of(page + at, 8)]
        if engine.golden.in_check.untouched(changed[0]):
            found = in_purgatory(engine, changed)
            assert found == ("as the capture kernel has it" if untouched else None)


def test_what_is_written_whole_before_it_is_read_is_overwritten_if_all_of_it_is() -> None:
    engine: Any = Engine([])
    first, second = PhysRange.of(TABLES.start, 8), PhysRange.of(TABLES.start + 0x20, 8)
    engine.golden.in_check.note_write(first.start, 8)
    assert in_purgatory(engine, [first]) is How.OVERWRITTEN
    assert in_purgatory(engine, [first, second]) is None
    engine.golden.in_check.note_write(second.start, 8)
    assert in_purgatory(engine, [first, second]) is How.OVERWRITTEN
    outside = PhysRange.of(TABLES.start - 8, 8)
    assert in_purgatory(engine, [first, outside]) is None
    engine.victim.page_tables = None
    assert in_purgatory(engine, [first]) is None
