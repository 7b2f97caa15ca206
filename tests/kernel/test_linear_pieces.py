"""What map_mem() maps, piece by piece: what is apart, in which order, with which attributes and sizes of mappings."""

from __future__ import annotations

import pytest

from kexecemu.kernel.base.config import KernelConfig, Protection
from kexecemu.kernel.memory.linear_map import (
    PAGE_KERNEL,
    PAGE_KERNEL_RO,
    PAGE_KERNEL_TAGGED,
    LinearMapPlan,
    plan_linear_map,
)
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange

MIB, GIB = 1 << 20, 1 << 30
RAM = PhysRange.of(GIB, 256 * MIB)
TEXT = PhysRange.of(GIB + 2 * MIB, 2 * MIB)
DATA = PhysRange.of(GIB + 6 * MIB, 2 * MIB)
CRASH = PhysRange.of(GIB + 64 * MIB, 64 * MIB)
NOMAP = PhysRange.of(GIB + 32 * MIB, MIB)
BLOCKS, PAGES, NO_CONT = (True, True), (False, False), (True, False)
NO_ZONES = {"ZONE_DMA": "n", "ZONE_DMA32": "n"}
POOL = {"KFENCE": "y", "KFENCE_NUM_OBJECTS": "511"}  # 4 MiB, the highest
NAMES = {PAGE_KERNEL: "plain", PAGE_KERNEL_RO: "read-only", PAGE_KERNEL_TAGGED: "tagged"}

Piece = tuple[int, int, str, tuple[bool, bool]]


def planned(
    era: str,
    cmdline: str,
    options: dict[str, str],
    *,
    way: Protection | None = None,
    crash: PhysRange | None = CRASH,
    data: PhysRange | None = DATA,
    bbm: int = 0,
) -> LinearMapPlan:
    memory = Memblock()
    memory.add(RAM)
    memory.mark_nomap(NOMAP)
    config = KernelConfig(era, protection=way, options={"KFENCE": "n", **options})
    return plan_linear_map(config, cmdline, memory, TEXT, crash, bbm, data)


def pieces(plan: LinearMapPlan) -> list[Piece]:
    """(first MiB, MiBs, attributes, (blocks, runs)), counted from the start of RAM."""
    return [
        (
            (one.area.start - GIB) // MIB,
            one.area.size // MIB,
            NAMES[one.attributes],
            (one.blocks, one.contiguous),
        )
        for one in plan.pieces
    ]


def banks(*holes: int, how: tuple[bool, bool]) -> list[Piece]:
    """All RAM but these pieces, each given by first MiB and MiBs one after the other, and no-map memory."""
    taken = sorted([*zip(holes[::2], holes[1::2], strict=True), (32, 1), (256, 0)])
    found, at = list[Piece](), 0
    for start, size in taken:
        found += [(at, start - at, "tagged", how)] if start > at else []
        at = start + size
    return found


TEXT_LAST: Piece = (2, 2, "read-only", NO_CONT)
ROWS: dict[str, tuple[LinearMapPlan, list[Piece]]] = {
    "blocks": (
        planned("6.4", "rodata=on crashkernel=64M", {}),
        [*banks(2, 2, how=BLOCKS), TEXT_LAST],
    ),
    "base pages, but for the text's alias": (
        planned("6.4", "rodata=full", {}),
        [*banks(2, 2, how=PAGES), TEXT_LAST],
    ),
    "an early crash region by base pages": (
        planned("6.1", "rodata=on crashkernel=64M", NO_ZONES),
        [*banks(2, 2, 64, 64, how=BLOCKS), TEXT_LAST, (64, 64, "plain", PAGES)],
    ),
    "none that was reserved": (
        planned("6.1", "rodata=on crashkernel=64M", NO_ZONES, crash=None),
        [*banks(2, 2, how=BLOCKS), TEXT_LAST],
    ),
    "none that was asked for": (
        planned("6.1", "rodata=on", NO_ZONES),
        [*banks(2, 2, how=BLOCKS), TEXT_LAST],
    ),
    "a late one makes all of it base pages": (
        planned("6.1", "rodata=on crashkernel=64M", {}),
        [*banks(2, 2, how=PAGES), TEXT_LAST],
    ),
    "KFENCE's pool last": (
        planned("6.4", "rodata=on", POOL),
        [*banks(2, 2, 252, 4, how=BLOCKS), TEXT_LAST, (252, 4, "tagged", PAGES)],
    ),
    "crash region before the pool": (
        planned("6.4", "rodata=on crashkernel=64M", {**NO_ZONES, **POOL}, way=Protection.PTE),
        [*banks(2, 2, 252, 4, how=PAGES), TEXT_LAST, (252, 4, "tagged", PAGES)],
    ),
    "6.1's crash region before the pool": (
        planned("6.1", "rodata=on crashkernel=64M", {**NO_ZONES, **POOL}),
        [
            *banks(2, 2, 64, 64, 252, 4, how=BLOCKS),
            TEXT_LAST,
            (64, 64, "plain", PAGES),
            (252, 4, "tagged", PAGES),
        ],
    ),
    "data apart, and all of it first": (
        planned("7.3", "rodata=noalias", POOL),
        [
            (252, 4, "tagged", PAGES),
            (2, 2, "read-only", BLOCKS),
            (6, 2, "tagged", BLOCKS),
            *banks(2, 2, 6, 2, 252, 4, how=BLOCKS),
        ],
    ),
    "data apart by base pages": (
        planned("7.3", "", {}),
        [(2, 2, "read-only", PAGES), (6, 2, "tagged", PAGES), *banks(2, 2, 6, 2, how=PAGES)],
    ),
    "data that nobody knows": (
        planned("7.3", "rodata=noalias", {}, data=None),
        [(2, 2, "read-only", BLOCKS), *banks(2, 2, how=BLOCKS)],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_piece_has_its_place_attributes_and_sizes(name: str) -> None:
    plan, expected = ROWS[name]
    assert pieces(plan) == expected


def test_data_is_apart_from_the_release_on_that_takes_its_alias_away() -> None:
    assert {era: planned(era, "", {}).data for era in ("6.1", "7.1", "7.2", "7.3")} == {
        "6.1": None,
        "7.1": None,
        "7.2": DATA,
        "7.3": DATA,
    }


FULL, LATE = "rodata=full", {"KFENCE": "y", "KFENCE_SAMPLE_INTERVAL": "0"}
DEFAULT = "rodata=full by default needs base pages, rodata=on would not"
DEFERRED = "crashkernel= is reserved too late to be mapped apart, so all RAM is mapped by base pages"


@pytest.mark.parametrize(
    ("plan", "reason", "splits"),
    [
        (planned("6.4", "rodata=on", {}), "blocks", False),
        (planned("6.4", "rodata=off crashkernel=64M", {}), "blocks", False),
        (planned("6.4", "", {}), DEFAULT, False),
        (planned("6.4", FULL, {}), "rodata=full needs base pages, rodata=on would not", False),
        (planned("6.4", "rodata=on debug_pagealloc=on", {}), "debug_pagealloc needs base pages", False),
        (planned("6.4", "rodata=on", LATE), "a late KFENCE needs base pages", False),
        (
            planned("6.4", "debug_pagealloc=1", LATE),
            "debug_pagealloc and a late KFENCE and rodata=full by default need base pages",
            False,
        ),
        (
            planned("6.18", "", {}),
            "rodata=on by default needs base pages, rodata=noalias would not",
            False,
        ),
        (
            planned("6.1", "rodata=on crashkernel=64M", NO_ZONES),
            "blocks, and base pages for the crash region alone",
            False,
        ),
        (planned("6.1", "crashkernel=64M", {}), DEFERRED, False),
        (planned("6.1", "rodata=on", {}), "blocks", False),
        (planned("6.4", "rodata=on crashkernel=64M", {}, way=Protection.READONLY), DEFERRED, False),
        (
            planned("6.4", "rodata=on", {}, way=Protection.BBML2),
            "blocks that can be split live (FEAT_BBM level 2)",
            True,
        ),
        (
            planned("7.3", "", {}, bbm=3),
            "blocks that can be split live (FEAT_BBM level 3)",
            True,
        ),
        (planned("7.3", "rodata=noalias", {}, bbm=3), "blocks", True),
        (
            planned("7.3", "", {}, bbm=1),
            "rodata=on by default needs base pages, rodata=noalias would not",
            False,
        ),
        (planned("7.3", "debug_pagealloc=on", {}, bbm=3), "debug_pagealloc needs base pages", True),
    ],
)
def test_the_reason_is_said_in_a_clause(plan: LinearMapPlan, reason: str, splits: bool) -> None:
    assert (plan.reason, plan.splits) == (reason, splits)


def test_a_pool_that_finds_no_room_is_told_of_and_late_from_then_on() -> None:
    memory, said = Memblock(), list[str]()
    memory.add(PhysRange.of(GIB, 4 * MIB - 4096))
    plan = plan_linear_map(
        KernelConfig("6.4", options=POOL), "rodata=on", memory, TEXT, None, log=said.append
    )
    assert said == ["failed to allocate kfence pool"]
    assert plan.reason == "a late KFENCE needs base pages"
    assert not memory.reserved
