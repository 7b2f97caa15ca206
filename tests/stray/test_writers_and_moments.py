"""Who can write when, and how moments and bytes are written: every pair, numbers at their limits and one beyond."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu import Board, By, InputError, When
from kexecemu.errors import MachineError
from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import (
    NUMBERED,
    Fault,
    Injection,
    account,
    can_write,
    parse_hex,
    parse_when,
    when_word,
)
from kexecemu.stray.inject import inject

# The moments of each, in the order of the crash.
WRITERS = {
    By.CPU: "during-load after-load before-panic during-panic",
    By.ALIAS: "during-load after-load before-panic during-panic",
    By.DMA: "during-load after-load before-panic during-panic at-jump hashing after-check capture",
    By.LATE_CPU: "during-panic at-jump hashing after-check capture",
}


@pytest.mark.parametrize("by", By)
@pytest.mark.parametrize("when", When)
def test_each_writer_writes_at_the_moments_at_which_there_is_one(by: By, when: When) -> None:
    assert can_write(by, when) is (when.value in WRITERS[by].split())


@pytest.mark.parametrize("when", When)
def test_a_moment_is_read_as_it_is_written_with_its_number_up_to_the_limit(when: When) -> None:
    most = NUMBERED.get(when)
    for step in (0,) if most is None else (0, 1, most - 1, most):
        assert parse_when(when_word(when, step), "here") == (when, step)
    wrong = (
        [f"{when.value}-0", f"{when.value}-1"] if most is None else [when.value, f"{when.value}-{most + 1}"]
    )
    for word in [*wrong, f"{when.value}-", f"{when.value}--1", f"x{when.value}", f"{when.value}\n", ""]:
        with pytest.raises(InputError, match=r"^here: "):
            parse_when(word, "here")


@pytest.mark.parametrize("when", When)
def test_a_fault_takes_a_number_where_its_moment_has_one_up_to_the_limit(when: When) -> None:
    most = NUMBERED.get(when, 0)
    for step in {0, most}:
        assert Fault("initrd", b"\1", by=By.DMA, when=when, step=step).step == step
    for step in (-1, most + 1):
        with pytest.raises(InputError):
            Fault("initrd", b"\1", by=By.DMA, when=when, step=step)


@pytest.mark.parametrize("width", range(-1, 18))
def test_a_store_is_as_wide_as_one_of_the_cpus(width: int) -> None:
    if width in (1, 2, 4, 8):
        assert Fault("initrd", bytes(16), width=width).width == width
    else:
        with pytest.raises(InputError):
            Fault("initrd", bytes(16), width=width)


def test_a_moment_that_is_not_among_those_that_can_be_is_refused_with_these() -> None:
    assert parse_when("after-load", "here", [When.AFTER_LOAD]) == (When.AFTER_LOAD, 0)
    with pytest.raises(InputError, match="there are after-load, hashing-N, and more"):
        parse_when("at-jump", "here", [When.AFTER_LOAD, When.WHILE_HASHING], ", and more")


@pytest.mark.parametrize("text", ["a", "abc", "0x", "0xa", "a_b_c", "xy", "0x0x12", "١٢"])
def test_what_is_no_even_number_of_hex_digits_is_refused_or_is_no_byte(text: str) -> None:
    if text == "0x":
        assert parse_hex(text, "here") == b""
        return
    with pytest.raises(InputError, match=r"^here: .* is not an even number of hex digits"):
        parse_hex(text, "here")


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (By.CPU, "cpu1 stores 01 at"),
        (By.ALIAS, "cpu1 stores through another mapping 01 at"),
        (By.DMA, "DMA writes 01 at"),
        (By.LATE_CPU, "cpu1, which did not stop, stores 01 at"),
    ],
)
def test_who_wrote_is_told_and_whether_it_changed_anything(by: By, words: str) -> None:
    fault = Fault("initrd", b"\1", by=by, when=When.DURING_PANIC)
    cpu = None if by is By.DMA else 1
    told = account(Injection(fault, 0x4000, b"\0", b"\1", cpu=cpu), b"\1")
    assert told == f"{words} initrd (0x4000, was 00)"
    same = account(Injection(fault, 0x4000, b"\1", b"\1", cpu=cpu), b"\1")
    assert same == f"{words} initrd (0x4000, was 01): the same value"


@pytest.mark.parametrize(("length", "end"), [(8, "00" * 8), (9, "00" * 8 + "... (9 bytes)")])
def test_eight_bytes_are_shown_in_full_and_the_first_eight_of_more(length: int, end: str) -> None:
    data = bytes(length)
    assert f"DMA writes {end} at initrd" in account(
        Injection(Fault("initrd", data, by=By.DMA), 0, data, data), data
    )


@pytest.mark.parametrize("dying", [False, True])
@pytest.mark.parametrize("by", By)
def test_a_dying_kernel_s_own_cpus_store_nothing_and_others_do(by: By, dying: bool) -> None:
    board = Board("16M")
    injections: list[Injection] = []
    stored: list[int] = []

    def store(phys: int, data: bytes, width: int, *, by: By) -> None:
        stored.append(phys)
        board.ram.write(phys, data)

    first: Any = SimpleNamespace(
        board=board, dying=dying, injections=injections, storing=lambda _: 0, store=store
    )
    area = PhysRange.of(0x40001000, 1)
    fault = Fault("0x40001000", b"\1", by=by, when=When.DURING_PANIC)
    found = inject(first, fault, area)
    happens = not dying or by in (By.DMA, By.LATE_CPU)
    assert found.changed is happens and board.ram.read(area.start, 1) == bytes([happens])
    assert injections == [found] and bool(stored) is (happens and by is not By.DMA)
    (event,) = board.timeline.of("fault")
    assert event.text == (
        account(found, b"\1") if happens else "0x40001000: no CPU stores any more, the kernel is dying"
    )
    assert event.facts == {
        "by": by.value, "cpu": 0 if stored else None, "at": "0x40001000", "phys": 0x40001000, "length": 1,
        "changed": happens, "trapped": False,
    }  # fmt: skip
    board.close()


def test_a_store_that_is_refused_is_told_as_trapped_and_a_place_without_ram_is_none() -> None:
    board = Board("16M")
    abort = GuestException(0, 5, "sync", 0x96000047, 0xFFFF000000000000, 0xFFFF800008000000, 1, 0x3C5)
    places: list[Fault] = []

    def place(fault: Fault) -> PhysRange:
        places.append(fault)
        return PhysRange.of(0x40001000, 1)

    first: Any = SimpleNamespace(
        board=board,
        dying=False,
        injections=[],
        storing=lambda by: 3,
        store=lambda *_, **__: abort,
        place=place,
    )
    fault = Fault("initrd", b"\1")
    found = inject(first, fault)
    assert (found.exception, found.cpu, found.changed, places) == (abort, 3, False, [fault])
    (event,) = board.timeline.of("fault")
    assert (event.facts["trapped"], event.facts["changed"], event.facts["cpu"]) == (True, False, 3)
    with pytest.raises(MachineError, match="no RAM at 0x0-0x7"):
        inject(first, fault, PhysRange.of(0, 8))
    with pytest.raises(InputError, match="fault"):
        inject(first, "a fault")  # type: ignore[arg-type]
    assert len(first.injections) == 1
    board.close()
