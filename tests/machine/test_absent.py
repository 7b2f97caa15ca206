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
