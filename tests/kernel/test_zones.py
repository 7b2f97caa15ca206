"""The limit of DMA-able memory, which decides what low crash memory is."""

from __future__ import annotations

import pytest

from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.zones import arm64_dma_phys_limit, zone_messages, zone_movable_start
from kexecemu.machine.ranges import PhysRange

GIB = 1 << 30
ALL = (1 << 64) - 1
PHYS_MASK_END = 1 << 48


def limit(
    start: int,
    end: int,
    options: dict[str, str] | None = None,
    max_cpu_address: int = ALL,
    era: str = "6.1",
) -> int:
    memblock = Memblock()
    memblock.add(PhysRange(start, end))
    return arm64_dma_phys_limit(KernelConfig(era, options=options or {}), memblock, max_cpu_address)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (GIB, 2 * GIB, 2 * GIB),  # all RAM below 4 GiB: the end of DRAM
        (GIB, 4 * GIB, 4 * GIB),
        (GIB, 16 * GIB, 4 * GIB),
        (0, 3 * GIB, 3 * GIB),
        (8 * GIB, 24 * GIB, 24 * GIB),  # no RAM below 4 GiB at all: no limit but the end of DRAM
    ],
)
def test_with_zones_the_limit_is_4_gib_or_the_end_of_ram(start: int, end: int, expected: int) -> None:
    assert limit(start, end) == expected
    assert limit(start, end, {"ZONE_DMA": "n", "ZONE_DMA32": "y"}) == expected
    assert limit(start, end, era="6.12") == expected


def test_a_raspberry_pi_4_s_devices_reach_30_bits_only() -> None:
    assert limit(0, 8 * GIB, max_cpu_address=0x3FFFFFFF) == GIB


@pytest.mark.parametrize(
    ("start", "end", "reach", "by_bits", "by_address"),
    [
        (0, 8 * GIB, 0x5FFFFFFF, 2 * GIB, 0x60000000),  # no power of two
        (0, 8 * GIB, 1 << 40, 4 * GIB, 4 * GIB),
        ((1 << 32) - 2, 8 * GIB, ALL, 4 * GIB, 4 * GIB),
        ((1 << 32) - 1, 8 * GIB, ALL, 4 * GIB, 8 * GIB),  # the last byte below 4 GiB counts as above
        (1 << 32, 8 * GIB, ALL, 8 * GIB, 8 * GIB),
        (1 << 32, 64 * GIB, (1 << 35) - 1, 64 * GIB, 32 * GIB),
    ],
)
def test_a_zone_s_end_was_so_many_bits_and_is_an_address_from_6_12_on(
    start: int, end: int, reach: int, by_bits: int, by_address: int
) -> None:
    """zone_sizes_init() and max_zone_phys(), before ba0fb44aed47 and since."""
    assert limit(start, end, max_cpu_address=reach) == by_bits
    assert limit(start, end, max_cpu_address=reach, era="6.12") == by_address


def test_dma32_alone_does_not_care_what_the_devices_reach() -> None:
    options = {"ZONE_DMA": "n", "ZONE_DMA32": "y"}
    assert limit(0, 8 * GIB, options, max_cpu_address=0x3FFFFFFF) == 4 * GIB


def test_ram_that_starts_beyond_the_devices_reach_falls_back_to_32_bits() -> None:
    assert limit(2 * GIB, 8 * GIB, max_cpu_address=0x3FFFFFFF) == 4 * GIB


def test_without_zones_every_physical_address_is_low() -> None:
    assert limit(GIB, 16 * GIB, {"ZONE_DMA": "n"}) == PHYS_MASK_END


def test_a_zone_of_device_memory_is_told_as_real_kernels_have_it() -> None:
    memory = Memblock()
    memory.add(PhysRange(0x40000000, 0xC0000000))
    for value in ("y", "n"):
        config = KernelConfig("6.12", options={"ZONE_DEVICE": value})
        told = list(zone_messages(config, memory, 0xC0000000))
        assert told[:4] == [
            "Zone ranges:",
            "  DMA      [mem 0x0000000040000000-0x00000000bfffffff]",
            "  DMA32    empty",
            "  Normal   empty",
        ]
        assert told[4].strip() == ("Device   empty" if value == "y" else "Movable zone start for each node")


@pytest.mark.parametrize("hotplug", [[(4, 6)], [(3, 4), (5, 6)], [(5, 6), (3, 4)]])
def test_zone_movable_begins_at_the_lowest_memory_that_can_be_taken_out(
    hotplug: list[tuple[int, int]],
) -> None:
    memory = Memblock()
    memory.add(PhysRange(GIB, 6 * GIB))
    memory.hotplug = [PhysRange(start * GIB, end * GIB) for start, end in hotplug]
    config = KernelConfig("6.12")
    assert zone_movable_start(config, memory) == 0
    memory.movable_node = True
    assert zone_movable_start(config, memory) == min(start for start, _ in hotplug) * GIB
