"""Regions of /reserved-memory and their drivers, era by era: what is kept, given back and said."""

from __future__ import annotations

import pytest
from kernel_bench import MIB, boot
from tree_bench import BANK, NOMAP, Node, ram, said, tree

from kexecemu.formats.fdt import Fdt, cells
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.fdt_memory import early_init_dt_scan
from kexecemu.kernel.boot.reserved_memory import ReservedMemory
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange, subtract

POOL = {"compatible": b"shared-dma-pool\0"}
CMA = {**POOL, "reusable": b""}
DEFAULT = {"linux,cma-default": b""}
FAIL = "OF: reserved mem: node {} compatible matching fail"
EVERY = ("6.1", "6.4", "6.12", "7.3")


def reg(*numbers: int) -> dict[str, bytes]:
    return {"reg": cells(*(one for number in numbers for one in (0, number)))}


def size(number: int) -> dict[str, bytes]:
    return {"size": cells(0, number)}


def scan(
    era: str, *nodes: Node, cma_asked: bool = False, options: dict[str, str] | None = None
) -> tuple[Memblock, list[str]]:
    """Both passes over these nodes, on a board of 1 GiB where nothing else is taken."""
    lines: list[str] = []
    dtb, config = Fdt(tree(*nodes)), KernelConfig(era, options=options or {})
    memblock = early_init_dt_scan(dtb, config, lines.append)
    reserved = ReservedMemory(config, dtb, memblock, cma_asked=cma_asked, log=lines.append)
    reserved.scan(lambda: None)
    reserved.scan_late()
    return memblock, [line for one in lines for line in one.split("\n")]


def taken(memblock: Memblock, area: PhysRange) -> bool:
    return memblock.is_region_reserved(area)


def told(area: PhysRange, how: str, name: str) -> str:
    return f"OF: reserved mem: {area.start:#018x}..{area.last:#018x} ({area.size >> 10} KiB) {how} {name}"


ODD = PhysRange.of(0x7C010000, 0x110000)
EVEN = PhysRange.of(0x7C000000, 0x200000)


@pytest.mark.parametrize("era", EVERY)
def test_a_cma_region_that_is_not_aligned_is_given_back(era: str) -> None:
    """As Debian's 6.1, 6.12 and 7.3 said it."""
    memblock, lines = scan(era, ("cmaodd", {**CMA, **reg(ODD.start, ODD.size)}))
    assert lines == ["Reserved memory: incorrect alignment of CMA region", FAIL.format("cmaodd")]
    assert not taken(memblock, ODD)


@pytest.mark.parametrize("era", EVERY)
@pytest.mark.parametrize(("asked", "huge"), [(0x1000, "y"), (0x1000000, "y"), (0x1000, "n")])
def test_a_cma_region_without_a_place_is_aligned_as_it_asks_and_to_a_pageblock_at_least(
    era: str, asked: int, huge: str
) -> None:
    window = {"alloc-ranges": cells(0, 0x70000000, 0, 0x3FFF000), "alignment": cells(0, asked)}
    _, lines = scan(era, ("c", {**CMA, **size(0x800000), **window}), options={"HUGETLB_PAGE": huge})
    align = max(asked, 2 * MIB if huge == "y" else 4 * MIB)
    start = (0x73FFF000 - 0x800000) // align * align
    assert f"Reserved memory: created CMA memory pool at {start:#018x}, size 8 MiB" in lines


@pytest.mark.parametrize("era", EVERY)
@pytest.mark.parametrize("place", [reg(EVEN.start, EVEN.size), size(EVEN.size)])
def test_no_driver_wants_what_is_no_map_and_reusable_and_from_7_3_on_that_is_no_fault(
    era: str, place: dict[str, bytes]
) -> None:
    memblock, lines = scan(era, ("both", {**CMA, **NOMAP, **place}))
    area = EVEN if "reg" in place else PhysRange.of(BANK.end - EVEN.size, EVEN.size)
    if era == "7.3":
        assert lines == [told(area, "nomap reusable", "both")]
        assert memblock.nomap == [area]
    else:
        assert lines == [FAIL.format("both")]
        assert memblock.nomap == [], "it is in the map again"


@pytest.mark.parametrize("era", EVERY)
def test_without_cma_nobody_wants_what_is_reusable(era: str) -> None:
    memblock, lines = scan(era, ("r", {**CMA, **reg(ODD.start, ODD.size)}), options={"CMA": "n"})
    if era == "7.3":
        assert lines == [told(ODD, "map reusable", "r")]
    else:
        assert lines == [FAIL.format("r")]
    assert taken(memblock, ODD) == (era == "7.3")


@pytest.mark.parametrize(
    ("era", "words"), [("6.1", "0 MiB"), ("6.4", "0 MiB"), ("6.12", "0 MiB"), ("7.3", "32 KiB")]
)
def test_a_dma_pool_tells_its_size_in_the_era_s_unit(era: str, words: str) -> None:
    _, lines = scan(era, ("ring", {**POOL, **NOMAP, **reg(0x7A000000, 0x8000)}))
    assert lines[0] == f"Reserved memory: created DMA memory pool at 0x000000007a000000, size {words}"
    assert lines[1] == "OF: reserved mem: initialized node ring, compatible id shared-dma-pool"


@pytest.mark.parametrize("era", EVERY)
def test_cma_on_the_command_line_takes_the_default_region_s_place(era: str) -> None:
    for place in (reg(EVEN.start, EVEN.size), size(EVEN.size)):
        memblock, lines = scan(era, ("c", {**CMA, **DEFAULT, **place}), cma_asked=True)
        if era == "7.3":
            skipped = 'Skipping dt linux,cma-default node in favor for "cma=" kernel param.'
            assert lines == [skipped] * (2 if "reg" in place else 1)
        else:
            bypass = "Reserved memory: bypass c node, using cmdline CMA params instead"
            assert lines == [bypass, FAIL.format("c")]
        assert not memblock.reserved or not taken(memblock, EVEN)


@pytest.mark.parametrize("era", EVERY)
def test_a_region_of_no_size_is_one_at_the_top_of_memory(era: str) -> None:
    memblock, lines = scan(era, ("sz0", size(0)))
    line = "OF: reserved mem: 0x0000000080000000..0x000000007fffffff (0 KiB) map non-reusable sz0"
    assert lines == ([] if era == "6.1" else [line])
    assert sum(one.size for one in memblock.reserved) < 64, "the array has an element for it"


@pytest.mark.parametrize("era", EVERY)
def test_neighbours_that_overlap_are_said(era: str) -> None:
    two = reg(0x7B000000, 0x10000, 0x7B100000, 0x10000)
    memblock, lines = scan(era, ("over@7b008000", reg(0x7B008000, 0x10000)), ("two@7b000000", two))
    found = [
        "OF: reserved mem: OVERLAP DETECTED!",
        "two@7b000000 (0x000000007b000000--0x000000007b010000) overlaps with "
        "over@7b008000 (0x000000007b008000--0x000000007b018000)",
    ]
    lines = [line for line in lines if "KiB" not in line]
    if era == "6.12":
        name = "fdt_scan_reserved_mem_reg_nodes() ignores 1 regions in node 'two@7b000000'"
        assert lines == [f"OF: reserved mem: {name}", *found]
    elif era == "7.3":
        words = "has 2 <base size> entries, only the first is used"
        assert lines == [f"OF: reserved mem: Reserved memory: node 'two@7b000000' {words}", *found]
    else:
        assert lines == found
    assert taken(memblock, PhysRange.of(0x7B100000, 0x10000)) == (era != "7.3")


@pytest.mark.parametrize("era", EVERY)
def test_a_ragged_reg_is_a_fault_and_from_7_3_on_none(era: str) -> None:
    ragged = {"reg": cells(0, 0x7A000000, 0), **size(MIB)}
    memblock, lines = scan(era, ("x", ragged))
    words = "Reserved memory: invalid reg property in 'x', skipping node."
    top = PhysRange.of(BANK.end - MIB, MIB)
    expected = {
        "6.12": [f"OF: reserved mem: {words}"] * 2,
        "7.3": [told(top, "map non-reusable", "x")],
    }.get(era, [f"OF: fdt: {words}"])
    assert lines == expected
    assert taken(memblock, top) == (era == "7.3")


@pytest.mark.parametrize("era", EVERY)
def test_there_is_room_for_64_and_from_6_12_on_for_as_many_as_have_a_reg(era: str) -> None:
    many: list[Node] = [(f"m{i}", reg(0x74000000 + i * 0x4000, 0x1000)) for i in range(66)]
    memblock, lines = scan(era, *many)
    full = "OF: reserved mem: not enough space for all defined regions."
    assert lines.count(full) == (2 if era in ("6.1", "6.4") else 0)
    assert sum("KiB" in line for line in lines) == {"6.1": 0, "6.4": 64}.get(era, 66)
    assert taken(memblock, PhysRange.of(0x74000000 + 65 * 0x4000, 1)), "it is reserved all the same"


@pytest.mark.parametrize("era", EVERY)
def test_of_those_that_need_a_place_64_get_one(era: str) -> None:
    memblock, lines = scan(era, *[(f"d{i}", size(0x1000)) for i in range(66)])
    full = [line for line in lines if "not enough" in line or "too many" in line]
    late = [f"OF: reserved mem: too many defined dynamic regions, skip 'd{i}'" for i in (64, 65)]
    early = ["OF: reserved mem: not enough space for all defined regions."] * 2
    assert full == (early if era in ("6.1", "6.4") else late)
    assert sum(one.size for one in memblock.reserved if one.start >= BANK.end - MIB) >= 64 * 0x1000


@pytest.mark.parametrize("era", EVERY)
def test_before_6_12_all_are_served_in_one_order_with_those_that_have_a_reg(era: str) -> None:
    """lib/sort.c puts what has no address first, and mixes what is equal: this is what 6.1 makes of it."""
    nodes: list[Node] = [
        ("s1", {**POOL, **reg(0x7A000000, 0x100000)}),
        ("d1", {**POOL, **size(0x100000)}),
        ("s2", {**POOL, **reg(0x79000000, 0x100000)}),
        ("d2", {**POOL, **size(0x100000)}),
        ("d3", {**POOL, **size(0x100000)}),
    ]
    _, lines = scan(era, *nodes)
    order = [line.split("node ")[1].split(",")[0] for line in lines if "initialized" in line]
    if era in ("6.1", "6.4"):
        assert sorted(order[:3]) == ["d1", "d2", "d3"] and order[3:] == ["s2", "s1"]
    else:
        assert order == ["d1", "d2", "d3", "s1", "s2"]


@pytest.mark.parametrize("era", EVERY)
def test_from_6_5_on_a_range_beside_another_region_is_filled_from_there(era: str) -> None:
    window = {"alloc-ranges": cells(0, 0x60000000, 0, 0x1000000)}
    first: Node = ("a", {**size(0x100000), **window})
    beside: Node = ("b", {**size(0x100000), "alloc-ranges": cells(0, 0x61000000, 0, 0x1000000)})
    memblock, _ = scan(era, first, beside)
    low, high = (PhysRange.of(start, 0x100000) for start in (0x61000000, 0x61F00000))
    near = era in ("6.12", "7.3")
    assert (taken(memblock, low), taken(memblock, high)) == (near, not near)


@pytest.mark.parametrize(("era", "below"), [("6.1", True), ("6.4", True), ("6.12", False), ("7.3", False)])
def test_a_place_is_found_beside_memreserve_before_6_12_and_before_it_is_read_since(
    era: str, below: bool
) -> None:
    top = PhysRange.of(BANK.end - MIB, MIB)
    dtb, config = Fdt(tree(("d", size(MIB)))), KernelConfig(era)
    memblock = early_init_dt_scan(dtb, config, print)
    reserved = ReservedMemory(config, dtb, memblock, cma_asked=False, log=list[str]().append)
    reserved.scan(lambda: memblock.reserve(top))
    assert reserved.regions[0].base == top.start - (MIB if below else 0)


def test_no_size_no_place_no_alignment_and_a_ragged_range_are_the_node_s_own_fault() -> None:
    nodes: list[Node] = [
        ("nofit", {**size(0x10000000), "alloc-ranges": cells(0, 0x50000000, 0, 0x1000000)}),
        ("bad", {"size": cells(0x2000)}),
        ("unaligned", {**size(0x2000), "alignment": cells(0x1000)}),
        ("ragged", {**size(0x2000), "alloc-ranges": cells(1)}),
        ("small", {**size(0x2000), "alignment": cells(0, 0x10)}),
    ]
    memblock, lines = scan("7.3", *nodes)
    assert lines == [
        "OF: reserved mem: failed to allocate memory for node 'nofit': size 256 MiB",
        "OF: reserved mem: invalid size property in 'bad' node.",
        "OF: reserved mem: invalid alignment property in 'unaligned' node.",
        told(PhysRange.of(BANK.end - 0x2000, 0x2000), "map non-reusable", "ragged"),
        told(PhysRange.of(BANK.end - 0x4000, 0x2000), "map non-reusable", "small"),
    ]
    assert taken(memblock, PhysRange.of(BANK.end - 0x4000, 0x4000))


@pytest.mark.parametrize("era", EVERY)
def test_a_console_has_both_lines_of_an_overlap_with_a_time_each(era: str) -> None:
    kernel = boot(
        era, "crashkernel=64M", dtb=tree(("a", reg(0x7B000000, 0x2000)), ("b", reg(0x7B001000, 0x2000)))
    )
    with kernel:
        lines = said(kernel)
        at = lines.index("OF: reserved mem: OVERLAP DETECTED!")
        assert lines[at + 1].startswith("a (0x000000007b000000--0x000000007b002000) overlaps with b ")
        assert ram(kernel)[0] == "40000000-7fffffff"


@pytest.mark.parametrize(("era", "size"), [("6.11", 0), ("6.12", 48), ("7.2", 48), ("7.3", 40)])
@pytest.mark.parametrize("count", [1, 5])
def test_from_6_12_on_there_is_an_array_with_room_for_every_region(era: str, size: int, count: int) -> None:
    """alloc_reserved_mem_array(), in cache lines; before it was in the image."""
    nodes = [(f"d@{at:x}", reg(at, MIB)) for at in range(0x50000000, 0x50000000 + count * 2 * MIB, 2 * MIB)]
    dtb, config = Fdt(tree(*nodes)), KernelConfig(era)
    memblock = early_init_dt_scan(dtb, config, print)
    reserved = ReservedMemory(config, dtb, memblock, cma_asked=False, log=list[str]().append)
    reserved.scan(lambda: None)
    before = list(memblock.reserved)
    reserved.scan_late()
    array = subtract(memblock.reserved, before)
    assert array == ([PhysRange.of((BANK.end - count * size) & -64, count * size)] if size else [])


@pytest.mark.parametrize(("size", "last"), [(0x1000, 0xFFFF_FFFF_FFFF_FFFF), (0x2000, 0xFFF)])
def test_a_region_to_the_end_of_all_addresses_or_beyond_is_told_as_64_bits_have_it(
    size: int, last: int
) -> None:
    base = (1 << 64) - 0x1000
    memblock, lines = scan("6.12", ("end", {"reg": cells(base >> 32, base & 0xFFFF_FFFF, 0, size)}))
    assert lines == [f"OF: reserved mem: {base:#018x}..{last:#018x} ({size >> 10} KiB) map non-reusable end"]
    assert memblock.reserved[-1] == PhysRange(base, 1 << 64)
