"""Memory as it was at a moment: what has changed since is found, and nothing else, however the RAM is mapped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.snapshot import MemoryDigest, Snapshots

BASE = 0x40000000
AREA = PhysRange.of(BASE, 0x400000)


@pytest.fixture(params=["shared", "with snapshots"])
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    board = Board("16M")
    board.ram.write(BASE + 0x5000, b"before any base")
    snapshots = Snapshots(board) if request.param == "with snapshots" else None
    yield board
    if snapshots is not None:
        snapshots.close()
    board.close()


def hit(mark: MemoryDigest, phys: int) -> bool:
    """Exactly one piece differs, and it holds that byte."""
    changed = mark.changed()
    return len(changed) == 1 and phys in changed[0]


def test_nothing_changed_is_nothing(board: Board) -> None:
    board.ram.write(BASE, b"there")
    mark = MemoryDigest(board.ram, [AREA])
    assert mark.changed() == []
    board.ram.write(BASE, b"there")
    assert mark.changed() == []


@pytest.mark.parametrize("phys", [BASE, BASE + 0x5003, BASE + 0x3FFFFF, BASE + 0x200000])
def test_a_byte_is_found_whether_its_page_was_ever_touched_or_not(board: Board, phys: int) -> None:
    mark = MemoryDigest(board.ram, [AREA])
    before = board.ram.read(phys, 1)
    board.ram.write(phys, b"\xee")
    assert hit(mark, phys)
    board.ram.write(phys, before)
    assert mark.changed() == []


def test_what_lies_outside_is_not_looked_at(board: Board) -> None:
    mark = MemoryDigest(board.ram, [PhysRange.of(BASE + 0x1800, 0x800), PhysRange.of(BASE + 0x4000, 0x1000)])
    for phys in (BASE + 0x17FF, BASE + 0x2000, BASE + 0x3FFF, BASE + 0x5000):
        board.ram.write(phys, b"\xee")
    assert mark.changed() == []
    board.ram.write(BASE + 0x1800, b"\xee")
    assert hit(mark, BASE + 0x1800)


def test_areas_may_overlap_as_those_of_a_core_do(board: Board) -> None:
    mark = MemoryDigest(board.ram, [AREA, PhysRange.of(BASE + 0x100000, 0x100000)])
    board.ram.write(BASE + 0x180000, b"\xee")
    assert hit(mark, BASE + 0x180000)


def test_going_back_to_a_snapshot_is_going_back_to_the_mark() -> None:
    board = Board("16M")
    snapshots = Snapshots(board)
    board.ram.write(BASE + 0x1000, b"first")
    then = snapshots.take()
    mark = MemoryDigest(board.ram, [AREA])
    board.ram.write(BASE + 0x1000, b"other")
    board.ram.write(BASE + 0x9000, b"more")
    assert [part.start for part in mark.changed()] == [BASE + 0x1000, BASE + 0x9000]
    snapshots.restore(then)
    assert mark.changed() == []
    snapshots.close()
    board.close()
