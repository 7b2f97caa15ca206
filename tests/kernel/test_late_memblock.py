"""What is taken of memory last of all at boot: the bounce buffer, half as large until there is room for it."""

from __future__ import annotations

import pytest
from memblock_bench import Asked, Recorder

from kexecemu.kernel.boot.late_memblock import allocate_late, nr_kernel_pages
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange, subtract

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


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


def asked_late(ram: int, page: int, *, cpus: int = 2, limit: int = 4 * GIB, start: int = GIB) -> list[Asked]:
    memory = Recorder()
    memory.add(PhysRange.of(start, ram))
    # A tenth is taken by then.
    allocate_late(memory, page=page, cpus=cpus, dma_phys_limit=limit, pages=ram * 9 // 10 // page)
    return memory.asked


# What real kernels said of their hash tables and of their bounce buffer, in MiB, on boards in QEMU of two CPUs.
REAL = [
    (GIB, 4 * KIB, 1.0, 0.5, 1),  # 6.12.117
    (2 * GIB, 4 * KIB, 2.0, 1.0, 2),  # 6.12.117
    (2112 * MIB, 4 * KIB, 2.0, 1.0, 4),  # 6.12.117, by UEFI
    (4 * GIB, 4 * KIB, 4.0, 2.0, 64),  # 6.1.0
    (6 * GIB, 4 * KIB, 8.0, 4.0, 64),  # 7.3.4
    (4 * GIB, 16 * KIB, 4.0, 2.0, 64),  # 6.12.117
    (4 * GIB, 64 * KIB, 4.0, 2.0, 64),  # 6.12.117
]


@pytest.mark.parametrize(("ram", "page", "dentries", "inodes", "buffer"), REAL)
def test_tables_and_buffer_have_the_sizes_that_real_kernels_tell(
    ram: int, page: int, dentries: float, inodes: float, buffer: int
) -> None:
    asked = asked_late(ram, page)
    *_, first, second, slabs, slots, areas = asked
    assert first == (int(dentries * MIB), 64, None) and second == (int(inodes * MIB), 64, None)
    assert slabs == (buffer * MIB, page, None)
    assert slots == (-(-buffer * MIB // 2048 * 24 // page) * page, page, None)
    assert areas == (2 * 16, 64, None)


@pytest.mark.parametrize(("page", "cpus"), [(4 * KIB, 1), (16 * KIB, 3), (64 * KIB, 8)])
def test_the_areas_of_the_cpus_come_first_with_what_describes_them(page: int, cpus: int) -> None:
    asked = asked_late(2 * GIB, page, cpus=cpus)
    small = [(size, 64, None) for size in (8, 8, 4, 8, 288, 136, 1024, 1032, 256)]
    assert asked[:3] == [(4096, page, None), (4096, 64, None), (cpus * 64 * KIB, page, None)]
    assert asked[3:12] == small and len(asked) == 17
    # One area of the buffer for each CPU, in powers of two; and it has 128 slabs at least for each.
    assert asked[-1] == ({1: 1, 3: 4, 8: 8}[cpus] * 16, 64, None)


def test_hash_tables_grow_by_half_as_much_beyond_64_gib_and_by_a_quarter_beyond_256() -> None:
    """alloc_large_system_hash(): ADAPT_SCALE_BASE is 64 GiB; an entry for 8 KiB of memory, then for 16 and 32."""
    sizes = {
        gib: asked_late(gib * GIB * 10 // 9, 4096, limit=1 << 48)[12][0]
        for gib in (32, 64, 65, 128, 256, 257, 512)
    }
    each = {32: 8, 64: 8, 65: 16, 128: 16, 256: 16, 257: 32, 512: 32}
    for gib, size in sizes.items():
        entries = gib * GIB // (each[gib] * KIB)
        assert size == 8 * (1 << (entries - 1).bit_length()), gib


@pytest.mark.parametrize(
    ("cpus", "buffer"), [(1, 512), (2, 512), (3, 1024), (4, 1024), (5, 2048), (64, 16384)]
)
def test_the_buffer_has_a_segment_for_each_cpu_at_least(cpus: int, buffer: int) -> None:
    """A segment is 128 slabs of 2 KiB."""
    assert asked_late(512 * MIB, 4096, cpus=cpus)[-3] == (buffer * KIB, 4096, None)


@pytest.mark.parametrize(
    ("end", "limit", "buffer"),
    [(4 * GIB, 4 * GIB, 4), (4 * GIB + 4096, 4 * GIB, 64), (4 * GIB, 2 * GIB, 64), (128 * GIB, 1 << 48, 64)],
)
def test_devices_that_do_not_reach_all_of_ram_need_64_mib_and_nobody_more(
    end: int, limit: int, buffer: int
) -> None:
    assert asked_late(end - GIB, 4096, limit=limit)[-3] == (buffer * MIB, 4096, None)


def test_pages_count_where_they_are_free_as_a_whole() -> None:
    memory = Memblock()
    memory.add(PhysRange(GIB + 1, GIB + 5 * 4096))
    memory.add(PhysRange(2 * GIB, 2 * GIB + 4095))
    assert nr_kernel_pages(memory, 4096) == 4
    memory.reserve(PhysRange.of(GIB + 2 * 4096, 1))
    assert nr_kernel_pages(memory, 4096) == 3
