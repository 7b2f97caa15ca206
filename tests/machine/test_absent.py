"""A device that is not there."""

from __future__ import annotations

import pytest

from kexecemu.machine.memory.mmio import AbsentDevice
from kexecemu.machine.ranges import PhysRange

PHYS = PhysRange.of(0x0A000000, 0x4000)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_byte_reads_as_the_constant(size):
    assert AbsentDevice(PHYS).read(0x3FF8, size) == 0
    assert AbsentDevice(PHYS, 0xFF).read(0, size) == (1 << 8 * size) - 1
    assert AbsentDevice(PHYS, 0x5A).read(4, size) == int("5a" * size, 16)


def test_stores_are_lost():
    device = AbsentDevice(PHYS, 0x11)
    device.write(0, 4, 0xFFFFFFFF)
    assert device.read(0, 4) == 0x11111111


@pytest.mark.parametrize("value", [-1, 0x100])
def test_a_constant_that_is_no_byte_is_refused(value):
    with pytest.raises(ValueError, match="not a byte"):
        AbsentDevice(PHYS, value)


def test_a_register_may_have_a_value_of_its_own():
    device = AbsentDevice(PHYS, words={PHYS.start + 0x40: 0x12345678})
    assert [device.read(0x40, size) for size in (1, 2, 4)] == [0x78, 0x5678, 0x12345678]
    assert (device.read(0x3C, 4), device.read(0x44, 4)) == (0, 0)


def test_what_is_left_between_other_devices_keeps_its_registers_where_they_are():
    device = AbsentDevice(PHYS, 0x22, {PHYS.start + 0x2010: 7})
    taken = [PhysRange.of(PHYS.start + 0x1000, 0x1000), PhysRange.of(0x40000000, 0x1000)]
    first, second = device.outside_of(taken)
    assert (first.phys, second.phys) == (
        PhysRange.of(PHYS.start, 0x1000),
        PhysRange(PHYS.start + 0x2000, PHYS.end),
    )
    assert (first.read(0x10, 4), second.read(0x10, 4), second.read(0, 4)) == (0x22222222, 7, 0x22222222)
    assert device.outside_of([PHYS]) == []
