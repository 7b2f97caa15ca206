"""Parts of a snapshot by themselves: accounts, the order and grain of what has changed, and a host that refuses."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.errors import MachineError
from kexecemu.machine import snapshot
from kexecemu.machine.board import Board
from kexecemu.machine.memory.ram import HOST_PAGE
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.snapshot import MemoryDigest, Snapshots

BASE, M = 0x40000000, 1 << 20
AREA = PhysRange.of(BASE, 8 * M)


@pytest.fixture
def board() -> Iterator[Board]:
    with Board("16M") as board:
        yield board


def test_accounts_are_put_back_in_place_and_one_that_was_not_there_is_emptied(board: Board) -> None:
    snapshots = Snapshots(board)
    first: list[Any] = ["one"]
    board.accounts.append(first)
    empty, taken = snapshots.take(), None
    first.append("two")
    board.accounts.append(["three"])
    taken = snapshots.take()
    first[:] = ["other"]
    later: list[Any] = ["later"]
    board.accounts.append(later)
    snapshots.restore(taken)
    assert board.accounts == [["one", "two"], ["three"], []] and board.accounts[0] is first
    assert board.accounts[2] is later
    snapshots.restore(empty)
    assert board.accounts == [["one"], [], []]
    snapshots.close()


@pytest.mark.parametrize("private", [False, True])
def test_what_has_changed_is_told_in_order_of_address_in_its_grain(board: Board, private: bool) -> None:
    random, ram = Random(3), board.ram
    for at in range(0, 8 * M, HOST_PAGE):  # every page was touched
        ram.write(BASE + at, b"\1")
    snapshots = Snapshots(board) if private else None
    mark = MemoryDigest(ram, [AREA])
    grain = HOST_PAGE if private else M
    offsets = random.sample(range(8 * M), 200 if private else 5)
    for at in offsets:
        ram.write(BASE + at, bytes([ram.read(BASE + at, 1)[0] ^ 0xFF]))
    starts = sorted({BASE + at // grain * grain for at in offsets})
    assert mark.changed() == [PhysRange.of(start, grain) for start in starts]
    if snapshots is not None:
        snapshots.close()


def test_what_nobody_had_touched_is_told_with_what_was_in_order(board: Board) -> None:
    ram = board.ram
    ram.write(BASE + 4 * M, b"\1" * HOST_PAGE)
    mark = MemoryDigest(ram, [AREA])
    for at in (6 * M, 4 * M, 2 * M):
        ram.write(BASE + at, b"\2")
    assert [one.start for one in mark.changed()] == [BASE + 2 * M, BASE + 4 * M, BASE + 6 * M]
    ram.write(BASE + 6 * M, b"\0")  # touched, and zeros again
    assert [one.start for one in mark.changed()] == [BASE + 2 * M, BASE + 4 * M]


def test_areas_are_kept_once_each_byte_and_no_byte_beyond(board: Board) -> None:
    areas = [PhysRange.of(BASE + 100, 50), PhysRange.of(BASE + 120, 100), PhysRange.of(BASE + 110, 20)]
    for private in (False, True):
        snapshots = Snapshots(board) if private else None
        board.ram.write(BASE + 90, b"\1" * 200)
        mark = MemoryDigest(board.ram, areas)
        board.ram.write(BASE + 90, b"\2" * 10)
        board.ram.write(BASE + 220, b"\2" * 10)
        assert mark.changed() == []
        for at in (100, 149, 150, 219):
            board.ram.write(BASE + at, b"\2")
            (one,) = mark.changed()
            assert BASE + at in one and BASE + 99 not in one and BASE + 220 not in one
            board.ram.write(BASE + at, b"\1")
        if snapshots is not None:
            snapshots.close()


def test_time_that_all_cpus_were_idle_is_put_back(board: Board) -> None:
    snapshots, board.idle = Snapshots(board), 5
    taken = snapshots.take()
    board.idle = 77
    snapshots.restore(taken)
    assert board.idle == 5
    snapshots.close()


def test_of_several_banks_each_has_its_own_base() -> None:
    low, high = PhysRange.of(BASE, M), PhysRange.of(2 * BASE, M)
    with Board([low, high]) as two:
        for area in (low, high):
            two.ram.write(area.start + 0x5000, b"base")
        snapshots = Snapshots(two)
        mark = MemoryDigest(two.ram, [low, high])
        for area in (high, low):
            two.ram.write(area.start + 0x5000, b"else")
            assert mark.changed() == [PhysRange.of(area.start + 0x5000, HOST_PAGE)]
            two.ram.write(area.start + 0x5000, b"base")
        assert mark.changed() == []
        snapshots.close()


def test_why_the_host_maps_nothing_is_what_it_says(board: Board) -> None:
    (bank,) = board.ram.mapped
    other: Any = SimpleNamespace(host_address=bank.host_address, phys=bank.phys, fd=-1)
    with pytest.raises(MachineError, match=f"the host cannot map RAM anew: {os.strerror(errno.EBADF)}"):
        Snapshots._map(other, mmap.MAP_PRIVATE)


@pytest.mark.parametrize("what", ["mmap", "madvise"])
def test_a_host_that_maps_nothing_or_drops_nothing_is_named_with_its_reason(
    board: Board, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = Snapshots(board)
    taken = snapshots.take()
    libc: Any = SimpleNamespace(mmap=lambda *_: -1, madvise=lambda *_: -1)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "_LIBC", libc)
        patch.setattr("ctypes.get_errno", lambda: errno.ENOMEM)
        why = os.strerror(errno.ENOMEM)
        words = (
            f"the host cannot map RAM anew: {why}"
            if what == "mmap"
            else f"the host keeps written pages: {why}"
        )
        with pytest.raises(MachineError) as refusal:
            snapshots.close() if what == "mmap" else snapshots.restore(taken)
        assert str(refusal.value) == words
    snapshots.close()
