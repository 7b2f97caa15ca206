"""What is taken of memory last of all at boot: the bounce buffer, half as large until there is room for it."""

from __future__ import annotations

import pytest

from kexecemu.kernel.boot.late_memblock import allocate_late
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange, subtract

MIB, GIB = 1 << 20, 1 << 30


def test_what_a_kernel_takes_last_has_the_sizes_of_a_real_one_s() -> None:
    """A 6.12.118 with memblock=debug: per-CPU areas and what goes with them, hash tables, bounce buffer."""
    memblock, ram = Memblock(), PhysRange.of(GIB, GIB)
    memblock.add(ram)
    allocate_late(memblock, page=4096, cpus=2, dma_phys_limit=2 * GIB, pages=GIB // 4096)
    taken = ram.size - sum(area.size for area in memblock.free_ranges())
    small = 2764  # struct pcpu_chunk, its maps and slots
    dentries, inodes = 1 << 20, 512 << 10
    slabs, slots, areas = MIB, 12288, 32
    assert taken == 2 * (64 << 10) + small + dentries + inodes + slabs + slots + areas


@pytest.mark.parametrize(
    ("room", "taken"),
    [
        (64 * MIB, 64 * MIB),
        (64 * MIB - 4096, 32 * MIB),
        (9 * MIB, 8 * MIB),
        (2 * MIB - 4096, MIB),
        (MIB, MIB),
        (MIB - 4096, 0),  # less than IO_TLB_MIN_SLABS is no buffer
    ],
)
def test_the_bounce_buffer_is_the_largest_half_of_a_half_that_low_memory_has_room_for(
    room: int, taken: int
) -> None:
    """swiotlb_init_remap(): from 64 MiB, which devices need where RAM goes beyond their reach, down to 1 MiB."""
    memblock, low = Memblock(), PhysRange.of(GIB, room)
    memblock.add(low)
    memblock.add(PhysRange.of(8 * GIB, GIB))
    allocate_late(memblock, page=4096, cpus=2, dma_phys_limit=4 * GIB, pages=GIB // 4096)
    (buffer,) = subtract([low], memblock.free_ranges()) or [PhysRange(low.end, low.end)]
    # memblock_phys_alloc_range() has a limit that is inclusive: the buffer ends where its last page may.
    assert buffer == PhysRange.of(low.end - taken, taken)
