"""What sparse_init() asks memblock for, in sizes of real kernels' structures: it moves what is reserved after it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from memblock_bench import Asked, Recorder

from kexecemu.errors import InputError
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.sparsemem import SparseMemory, sparse_init
from kexecemu.machine.ranges import PhysRange

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LARGE = {16: "ARM64_16K_PAGES", 64: "ARM64_64K_PAGES"}


def init(
    era: str, kib: int, *areas: tuple[int, int], nodes: dict[int, tuple[int, int]] | None = None
) -> tuple[SparseMemory, list[Asked], Recorder]:
    """Of areas by start and end; what is asked for node by node."""
    memory = Recorder()
    for start, end in areas:
        memory.add(PhysRange(start, end))
    for node, (start, end) in (nodes or {}).items():
        memory.set_node(PhysRange(start, end), node)
    config = KernelConfig(era, options={LARGE[kib]: "y"} if kib in LARGE else {})
    found = sparse_init(memory, AddressSpace(GIB, 0xFFFF800008000000, GIB, 32 * MIB), config)
    return found, memory.asked, memory


@pytest.mark.parametrize(
    ("era", "kib", "pieces", "root", "usage", "map_size", "tables"),
    [
        # Pointers to pieces of mem_section[]; a piece; a section's usage map: 24 bytes, and so many bits a pageblock.
        ("6.1", 4, 8 << 13, 4 * KIB, 24 + 64 * 4 // 8, 2 * MIB, 2),
        ("6.12", 4, 8 << 13, 4 * KIB, 24 + 64 * 4 // 8, 2 * MIB, 2),
        ("7.3", 4, 8 << 13, 4 * KIB, 24 + 64 * 8 // 8, 2 * MIB, 2),
        ("6.12", 16, 8 << 11, 16 * KIB, 24 + 8, 512 * KIB, 2),
        ("6.12", 64, 8 << 7, 64 * KIB, 24 + 8, 512 * KIB, 2),
    ],
)
def test_the_sizes_are_those_of_the_structures_and_the_map_is_one_piece(
    era: str, kib: int, pieces: int, root: int, usage: int, map_size: int, tables: int
) -> None:
    section = GIB // 2 if kib == 64 else GIB // 8
    count = GIB // section
    found, asked, memory = init(era, kib, (GIB, 2 * GIB))
    huge = {4: 2 * MIB, 16: 32 * MIB, 64: 512 * MIB}[kib]
    first: list[Asked] = [(pieces, 64, None), (root, 64, None), (usage * count, 64, None)]
    assert asked[:3] == first
    page = kib * KIB
    if era == "7.3":
        assert asked[3:] == [(page, page, None)] * tables + [(map_size, map_size, None)] * count
    elif kib == 4:
        assert asked[3:] == [(map_size * count, map_size, None)] + [(page, page, None)] * tables
    else:
        # Aligned to blocks, all of RAM would be taken with pages of 64 KiB: then it is section by section.
        each = [(map_size, page, None)] * count if kib == 64 else []
        assert asked[3:] == [(huge * count, huge, None)] + [(page, page, None)] * tables + each
    assert list(found.memory_map) == list(range(GIB // section, 2 * GIB // section))
    places = list(found.memory_map.values())
    assert all(abs(after - before) == map_size for before, after in pairwise(places))
    assert len(found.table_pages) == tables and list(found.roots) == [GIB // section // (root // 16)]
    taken = pieces + root + usage * count + map_size * count + tables * page
    assert 0 <= sum(one.size for one in memory.reserved) - taken < 64


def test_memory_that_a_section_has_a_byte_of_has_its_map_and_holes_have_none() -> None:
    section = 128 * MIB
    found, _, _ = init(
        "6.12", 4, (GIB - 4096, GIB + 4096), (3 * GIB, 3 * GIB + section), (3 * GIB + section, 4 * GIB)
    )
    assert list(found.memory_map) == [7, 8, *range(24, 32)]
    with pytest.raises(InputError, match=r"^RAM is too small for its own memory map$"):
        init("6.12", 4, (GIB, GIB + 64 * KIB))


def test_what_is_a_node_s_is_asked_for_on_it_and_a_section_is_the_first_one_s() -> None:
    halves = {0: (GIB, GIB + 300 * MIB), 1: (GIB + 300 * MIB, 2 * GIB)}
    found, asked, _ = init("6.12", 4, (GIB, 2 * GIB), nodes=halves)
    usage, part = 24 + 32, 2 * MIB
    assert asked == [
        (8 << 13, 64, None),
        (4096, 64, 0),
        (3 * usage, 64, 0),
        (3 * part, part, 0),
        (4096, 4096, 0),
        (4096, 4096, 0),
        (5 * usage, 64, 1),
        (5 * part, part, 1),
    ]
    assert list(found.memory_map) == list(range(8, 16))


def test_a_piece_of_mem_section_is_on_the_node_of_its_first_section() -> None:
    # 256 sections of 128 MiB have entries in a piece of 4 KiB.
    border = 32 * GIB
    nodes = {0: (border - GIB, border), 1: (border, border + GIB)}
    found, asked, _ = init("6.12", 4, (border - GIB, border + GIB), nodes=nodes)
    assert asked[1:3] == [(4096, 64, 0), (4096, 64, 1)]
    assert list(found.roots) == [0, 1]


@pytest.mark.parametrize("room", [0, 1])
def test_without_room_for_every_piece_of_mem_section_there_is_no_boot(room: int) -> None:
    """Memory on both sides of a piece's last section, and room for as many pieces as are said."""
    memory = Recorder()
    for start in (31 * GIB, 32 * GIB):
        memory.add(PhysRange.of(start, GIB))
    memory.reserve(PhysRange(0, 64 * GIB))
    memory.free(PhysRange.of(31 * GIB, (8 << 13) + room * 4096))
    with pytest.raises(InputError, match=r"^RAM is too small for its own memory map$"):
        sparse_init(memory, AddressSpace(GIB, 0xFFFF800008000000, GIB, 32 * MIB), KernelConfig("6.12"))
    assert memory.asked == [(8 << 13, 64, None), (4096, 64, None), (4096, 64, None)]
