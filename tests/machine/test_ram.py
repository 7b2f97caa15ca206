"""RAM: bounds, sparseness, sharing."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.errors import BusError, MachineError
from kexecemu.machine.memory.ram import HOST_PAGE, DmaMaster, Ram
from kexecemu.machine.ranges import PhysRange

LOW = PhysRange.of(0x40000000, 1 << 20)
HIGH = PhysRange.of(0x80000000, 1 << 20)


@pytest.fixture
def ram():
    ram = Ram([HIGH, LOW])
    yield ram
    ram.close()


def test_banks_are_sorted_and_sized(ram):
    assert ram.banks == (LOW, HIGH)
    assert ram.size == 2 << 20


def test_new_ram_is_zero_and_untouched(ram):
    assert ram.read(LOW.start, LOW.size) == bytes(LOW.size)
    assert list(ram.data_ranges(PhysRange(0, HIGH.end))) == []


def test_what_is_written_is_read_back_whatever_the_way(ram):
    phys = LOW.start + 0x123
    ram.write(phys, b"kdump\0tail")
    assert ram.read(phys, 10) == bytes(ram.view(phys, 10)) == b"kdump\0tail"
    assert ram.read_cstring(phys, 100) == b"kdump"
    assert ram.read_cstring(phys, 3) == b"kdu"
    assert ram.read_u32(phys) == int.from_bytes(b"kdum", "little")
    ram.write_u64(phys, 0x1_0123456789ABCDEF)
    assert ram.read_u64(phys) == 0x0123456789ABCDEF
    assert ram.read(phys, 9) == bytes.fromhex("efcdab8967452301") + b"i"
    ram.write_u32(phys + 4, 7)
    assert ram.read_u64(phys) == 7 << 32 | 0x89ABCDEF


def test_a_view_shows_later_writes_and_cannot_be_written(ram):
    view = ram.view(LOW.start, 4)
    ram.write(LOW.start, b"abcd")
    assert bytes(view) == b"abcd"
    with pytest.raises(TypeError):
        view[0] = 0


@pytest.mark.parametrize(
    ("phys", "length"),
    [
        (LOW.start - 1, 1),
        (LOW.start - 1, 2),
        (LOW.end - 1, 2),
        (LOW.end, 1),
        (0, 1),
        (LOW.start, HIGH.end - LOW.start),
        (LOW.start, -1),
    ],
)
def test_access_that_is_not_wholly_in_one_bank_is_a_bus_error(ram, phys, length):
    for access in (ram.read, ram.view, ram.fill):
        with pytest.raises(BusError):
            access(phys, length)
    if length > 0:
        with pytest.raises(BusError):
            ram.write(phys, bytes(length))


def test_a_refused_write_changes_nothing(ram):
    before = ram.generation
    with pytest.raises(BusError):
        ram.write(LOW.end - 2, b"\xff\xff\xff")
    assert ram.read(LOW.end - 2, 2) == b"\0\0"
    assert ram.generation == before


def test_every_host_write_moves_the_generation(ram):
    seen = {ram.generation}
    for write in (
        lambda: ram.write(LOW.start, b"x"),
        lambda: ram.fill(LOW.start, 4, 1),
        lambda: ram.write_u32(LOW.start, 1),
        lambda: ram.write_u64(LOW.start, 1),
        lambda: DmaMaster(ram).write(LOW.start, b"x"),
    ):
        write()
        assert ram.generation not in seen
        seen.add(ram.generation)
    ram.read(LOW.start, 100)
    assert ram.generation in seen


def test_only_touched_pages_are_data(ram):
    ram.write(LOW.start + 5 * HOST_PAGE + 7, b"x")
    ram.write(HIGH.start + 2 * HOST_PAGE - 1, b"ab")
    everything = PhysRange(LOW.start, HIGH.end)
    touched = [
        PhysRange.of(LOW.start + 5 * HOST_PAGE, HOST_PAGE),
        PhysRange.of(HIGH.start + HOST_PAGE, 2 * HOST_PAGE),
    ]
    assert list(ram.data_ranges(everything)) == touched
    cut = PhysRange(LOW.start + 5 * HOST_PAGE + 1, LOW.end)
    assert list(ram.data_ranges(cut)) == [PhysRange(cut.start, LOW.start + 6 * HOST_PAGE)]


def test_filling_whole_pages_with_zeros_gives_them_back(ram):
    ram.fill(LOW.start, 4 * HOST_PAGE, 0xA5)
    assert ram.read(LOW.start, 4 * HOST_PAGE) == b"\xa5" * 4 * HOST_PAGE
    ram.fill(LOW.start + 100, 2 * HOST_PAGE)
    expected = bytearray(b"\xa5" * 4 * HOST_PAGE)
    expected[100 : 100 + 2 * HOST_PAGE] = bytes(2 * HOST_PAGE)
    assert list(ram.data_ranges(LOW)) == [
        PhysRange.of(LOW.start, HOST_PAGE),
        PhysRange.of(LOW.start + 2 * HOST_PAGE, 2 * HOST_PAGE),
    ]
    assert ram.read(LOW.start, 4 * HOST_PAGE) == expected


@given(
    st.lists(
        st.tuples(st.integers(0, (1 << 16) - 1), st.integers(0, 1 << 14), st.integers(0, 255)), max_size=20
    )
)
def test_fills_and_writes_equal_the_same_on_a_bytearray(steps):
    ram = Ram([PhysRange.of(0, 1 << 16)])
    model = bytearray(1 << 16)
    for start, length, byte in steps:
        length = min(length, len(model) - start)
        model[start : start + length] = bytes([byte]) * length
        if byte % 2:
            ram.write(start, bytes([byte]) * length)
        else:
            ram.fill(start, length, byte)
    assert ram.read(0, len(model)) == model
    sparse = bytearray(len(model))
    for area in ram.data_ranges(PhysRange(0, len(model))):
        sparse[area.start : area.end] = ram.read(area.start, area.size)
    assert sparse == model
    ram.close()


def test_a_terabyte_costs_nothing_until_it_is_touched():
    ram = Ram([PhysRange.of(0, 1 << 40)])
    ram.write((1 << 40) - 4, b"last")
    assert ram.read((1 << 40) - 8, 8) == b"\0\0\0\0last"
    assert os.fstat(ram.mapped[0].fd).st_blocks * 512 <= 64 << 10
    ram.close()


def test_hashing_a_view_needs_no_copy_and_gives_the_same(ram):
    ram.write(LOW.start, bytes(range(256)) * 16)
    assert (
        hashlib.sha256(ram.view(LOW.start, 4096)).digest() == hashlib.sha256(bytes(range(256)) * 16).digest()
    )


def test_closing_with_a_view_alive_is_harmless(ram):
    view = ram.view(LOW.start, 4)
    ram.close()
    assert bytes(view) == b"\0\0\0\0"


@pytest.mark.parametrize(
    "banks",
    [
        [],
        [PhysRange(0, 0)],
        [PhysRange(1, HOST_PAGE + 1)],
        [LOW, PhysRange.of(LOW.last // HOST_PAGE * HOST_PAGE, HOST_PAGE)],
    ],
)
def test_banks_that_make_no_sense_are_refused(banks):
    with pytest.raises(MachineError):
        Ram(banks)
