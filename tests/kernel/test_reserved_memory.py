"""/reserved-memory as real kernels answered it: Debian's 6.1.192 and 6.12.117 on boards of 1 GiB."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import IMAGE, INITRD, MIB
from tree_bench import BANK, NOMAP, Node, loads_of, ram, said, tree

from kexecemu.crash.kernel import Kernel
from kexecemu.formats.fdt import cells
from kexecemu.formats.fdt_read import Node as FdtNode
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.reserved_memory import heapsort
from kexecemu.kernel.boot.reserved_pools import Region
from kexecemu.kernel.procfs import proc_iomem
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

SECMON: Node = ("secmon@50000000", {"reg": cells(0, 0x50000000, 0, 0x1000000), **NOMAP})
POOL = {"compatible": b"shared-dma-pool\0", "reusable": b"", "size": cells(0, 0x8000000)}
ERAS = pytest.mark.parametrize("era", ["6.1", "6.12"])


@pytest.fixture
def boot() -> object:
    boards: list[Board] = []

    def start(era: str, dtb: bytes, cmdline: str = "crashkernel=128M") -> Kernel:
        boards.append(Board([BANK]))
        config = KernelConfig(era, options={"CMA_SIZE_MBYTES": "64"}, purgatory=False)
        return Kernel.boot(boards[-1], config, cmdline=cmdline, dtb=dtb)

    yield start
    for board in boards:
        board.close()


Boot = Callable[..., Kernel]


def cma(era: str) -> str:
    return f"cma: Reserved 64 MiB at 0x000000007ac00000{' on node -1' if era == '6.12' else ''}"


CRASH = "crashkernel reserved: 0x0000000072c00000 - 0x000000007ac00000 (128 MB)"


@ERAS
def test_a_no_map_region_is_told_and_is_not_in_the_map_nor_in_the_dump(era: str, boot: Boot) -> None:
    kernel = boot(era, tree(SECMON))
    line = "OF: reserved mem: 0x0000000050000000..0x0000000050ffffff (16384 KiB) nomap non-reusable secmon@50000000"
    assert said(kernel) == [*([line] if era == "6.12" else []), cma(era), CRASH]
    assert ram(kernel) == ["40000000-4fffffff", "50000000-50ffffff", "51000000-7fffffff"]
    assert kernel.tables.walk(kernel.space.linear_virt(0x50001000)).phys is None
    assert kernel.tables.walk(kernel.space.linear_virt(0x4FFFF000)).phys == 0x4FFFF000
    for load in (kernel.kexec_file_load, kernel.kexec_tools_load):
        image = load(IMAGE, INITRD, "quiet")
        assert image is not None
        segment = image.segment("elfcorehdr")
        assert segment is not None
        assert loads_of(bytes(segment.buf)) == [
            (0x40000000, 0x10000000), (0x51000000, 0x21C00000), (0x7AC00000, 0x5400000)
        ]  # fmt: skip


@ERAS
def test_a_no_map_region_that_is_in_memreserve_as_well_is_refused_by_6_1(era: str, boot: Boot) -> None:
    kernel = boot(era, tree(SECMON, memreserve=(0x50000000, 0x1000000)))
    if era == "6.1":
        assert said(kernel)[0] == (
            "OF: fdt: Reserved memory: failed to reserve memory for node 'secmon@50000000': "
            "base 0x0000000050000000, size 16 MiB"
        )
        assert ram(kernel) == ["40000000-7fffffff"]
    else:
        assert ram(kernel) == ["40000000-4fffffff", "50000000-50ffffff", "51000000-7fffffff"]
        assert "50000000-50ffffff : reserved\n  50000000-50ffffff : reserved\n" in proc_iomem(kernel)
    assert said(kernel)[-1] == CRASH


def test_such_a_region_is_refused_in_whichever_part_of_memory_it_lies(boot: Boot) -> None:
    """A no-map region before it cuts memory in pieces, of which it is in one."""
    first: Node = ("first@60000000", {"reg": cells(0, 0x60000000, 0, 0x1000000), **NOMAP})
    kernel = boot("6.1", tree(first, SECMON, memreserve=(0x50000000, 0x1000000)))
    assert "failed to reserve memory for node 'secmon@50000000'" in said(kernel)[0]
    assert ram(kernel) == ["40000000-5fffffff", "60000000-60ffffff", "61000000-7fffffff"]


@ERAS
@pytest.mark.parametrize("status", ["disabled", "fail", "reserved", ""])
def test_a_region_that_is_not_available_is_ignored(era: str, status: str, boot: Boot) -> None:
    name, properties = SECMON
    kernel = boot(era, tree((name, {**properties, "status": status.encode() + b"\0"})))
    assert ram(kernel) == ["40000000-7fffffff"]
    assert said(kernel) == [cma(era), CRASH]


@ERAS
@pytest.mark.parametrize("status", ["ok", "okay"])
def test_a_region_that_is_okay_is_not(era: str, status: str, boot: Boot) -> None:
    name, properties = SECMON
    kernel = boot(era, tree((name, {**properties, "status": status.encode() + b"\0"})))
    assert len(ram(kernel)) == 3


@ERAS
def test_a_bad_reg_costs_its_own_node_only(era: str, boot: Boot) -> None:
    bad: Node = ("x@50000000", {"reg": cells(0, 0x50000000, 0), **NOMAP})
    good: Node = ("y@58000000", {"reg": cells(0, 0x58000000, 0, 0x100000), **NOMAP})
    kernel = boot(era, tree(bad, good))
    words = "Reserved memory: invalid reg property in 'x@50000000', skipping node."
    if era == "6.1":
        assert said(kernel) == [f"OF: fdt: {words}", cma(era), CRASH]
    else:
        line = "OF: reserved mem: 0x0000000058000000..0x00000000580fffff (1024 KiB) nomap non-reusable y@58000000"
        assert said(kernel) == [*[f"OF: reserved mem: {words}"] * 2, line, cma(era), CRASH]
    assert ram(kernel) == ["40000000-57ffffff", "58000000-580fffff", "58100000-7fffffff"]


@ERAS
def test_what_has_only_a_size_gets_a_place_and_may_be_the_default_cma_area(era: str, boot: Boot) -> None:
    low = {"alloc-ranges": cells(0, 0x40000000, 0, 0x40000000), "alignment": cells(0, 0x400000)}
    one: Node = ("b", {"size": cells(0, 0x10000000), **low, **NOMAP})
    kernel = boot(era, tree(one, ("linux,cma", {**POOL, "linux,cma-default": b""})))
    pool = "OF: reserved mem: initialized node linux,cma, compatible id shared-dma-pool"
    crash = "crashkernel reserved: 0x000000005ee00000 - 0x0000000066e00000 (128 MB)"
    if era == "6.1":  # two that are equal change places
        where = "Reserved memory: created CMA memory pool at 0x0000000078000000, size 128 MiB"
        assert said(kernel) == [where, pool, crash]
        assert ram(kernel) == ["40000000-67ffffff", "68000000-77ffffff", "78000000-7fffffff"]
    else:
        assert said(kernel) == [
            "OF: reserved mem: 0x0000000070000000..0x000000007fffffff (262144 KiB) nomap non-reusable b",
            "Reserved memory: created CMA memory pool at 0x0000000068000000, size 128 MiB",
            pool,
            "OF: reserved mem: 0x0000000068000000..0x000000006fffffff (131072 KiB) map reusable linux,cma",
            crash,
        ]
        assert ram(kernel) == ["40000000-6fffffff", "70000000-7fffffff"]


@ERAS
def test_cma_on_the_command_line_wins_over_the_tree_s_default(era: str, boot: Boot) -> None:
    kernel = boot(era, tree(("linux,cma", {**POOL, "linux,cma-default": b""})), "crashkernel=128M cma=32M")
    assert any(line.startswith("cma: Reserved 32 MiB") for line in said(kernel))


@ERAS
@pytest.mark.parametrize(
    "parent",
    [
        {"#size-cells": cells(2), "#address-cells": cells(2)},
        {"ranges": b"", "#size-cells": cells(1), "#address-cells": cells(2)},
        {"ranges": b"", "#address-cells": cells(2)},
    ],
    ids=["no ranges", "other cells", "no cells"],
)
def test_a_parent_in_another_format_is_ignored_as_a_whole(
    era: str, parent: dict[str, bytes], boot: Boot
) -> None:
    kernel = boot(era, tree(SECMON, parent=parent))
    where = "OF: fdt" if era == "6.1" else "OF: reserved mem"  # 6.1.192, 6.12.118
    words = f"{where}: Reserved memory: unsupported node format, ignoring"
    assert said(kernel) == [*[words] * (1 if era == "6.1" else 2), cma(era), CRASH]
    assert ram(kernel) == ["40000000-7fffffff"]


@ERAS
@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"size": cells(1)}, "OF: reserved mem: invalid size property in 'dyn' node."),
        (
            {"size": cells(0, MIB), "alignment": cells(4096)},
            "OF: reserved mem: invalid alignment property in 'dyn' node.",
        ),
        (
            {"size": cells(0, MIB), "alloc-ranges": cells(1, 2, 3)},
            "OF: reserved mem: invalid alloc-ranges property in 'dyn', skipping node.",
        ),
        (
            {"size": cells(16, 0)},
            "OF: reserved mem: failed to allocate memory for node 'dyn': size 65536 MiB",
        ),
    ],
)
def test_what_cannot_be_placed_is_said_and_left_out(
    era: str, properties: dict[str, bytes], words: str, boot: Boot
) -> None:
    kernel = boot(era, tree(("dyn", properties)))
    assert said(kernel)[0] == words and said(kernel)[-1] == CRASH
    assert ram(kernel) == ["40000000-7fffffff"]


def lib_sort(found: list[Region]) -> None:
    """lib/sort.c as it is written, with __rmem_cmp()."""

    def cmp(one: int, other: int) -> int:
        left, right = found[one].key, found[other].key
        return (left > right) - (left < right)

    n = len(found)
    a, end = n // 2, n
    if not a:
        return
    while True:
        if a:
            a -= 1
        elif end > 1:
            end -= 1
            found[0], found[end] = found[end], found[0]
        else:
            return
        b = a
        while True:
            c = 2 * b + 1
            d = c + 1
            if d >= end:
                break
            b = c if cmp(c, d) >= 0 else d
        if d == end:
            b = c
        while b != a and cmp(a, b) >= 0:
            b = (b - 1) // 2
        c = b
        while b != a:
            b = (b - 1) // 2
            found[b], found[c] = found[c], found[b]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_regions_come_in_the_order_that_heapsort_leaves(keys: list[tuple[int, int]]) -> None:
    ours, theirs = (
        [Region(FdtNode(number, 1, "x"), *key) for number, key in enumerate(keys)] for _ in range(2)
    )
    heapsort(ours, lambda one: one.key)
    lib_sort(theirs)
    assert [one.node.offset for one in ours] == [one.node.offset for one in theirs]
    assert [one.key for one in ours] == sorted(keys)
    heapsort(ours, lambda one: one.key, double_pop=True)
    assert [one.key for one in ours] == sorted(keys)
    assert sorted(one.node.offset for one in ours) == list(range(len(keys)))


# -- pools that no driver takes: by the sources of 6.1.176, 6.12.117 and 7.3.4 ----------------------------------------


def pool_of(era: str, cma: str, *nodes: Node) -> tuple[list[str], list[PhysRange]]:
    """What is said of pools, and what is reserved."""
    config = KernelConfig(era, options={"CMA": cma}, purgatory=False)
    with Kernel.boot(Board([BANK]), config, cmdline="crashkernel=128M", dtb=tree(*nodes)) as kernel:
        words = [line for line in said(kernel) if "pool" in line or "matching" in line or "reusable" in line]
        return words, [*kernel.arch.memblock.reserved, *kernel.arch.memblock.nomap]


@pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])
def test_without_cma_a_reusable_pool_is_given_back_until_7_3_keeps_it(era: str) -> None:
    place = PhysRange.of(0x50000000, 16 * MIB)
    node = ("linux,cma", {**POOL, "reg": cells(0, place.start, 0, place.size)})
    del node[1]["size"]
    words, reserved = pool_of(era, "n", node)
    if era == "7.3":
        line = "OF: reserved mem: 0x0000000050000000..0x0000000050ffffff (16384 KiB) map reusable linux,cma"
        assert words == [line] and place in reserved
        return
    assert words == ["OF: reserved mem: node linux,cma compatible matching fail"]
    assert not any(place.overlaps(one) for one in reserved)
    assert any("created CMA memory pool" in line for line in pool_of(era, "y", node)[0])


@pytest.mark.parametrize(("era", "size"), [("6.1", "1 MiB"), ("6.12", "1 MiB"), ("7.3", "1536 KiB")])
def test_a_pool_for_dma_is_there_with_or_without_cma_and_told_in_kib_since_7_3(era: str, size: str) -> None:
    node = (
        "dma@50000000",
        {"compatible": b"shared-dma-pool\0", "reg": cells(0, 0x50000000, 0, 0x180000), **NOMAP},
    )
    for cma in "yn":
        words, _ = pool_of(era, cma, node)
        assert words[0] == f"Reserved memory: created DMA memory pool at 0x0000000050000000, size {size}"


@pytest.mark.parametrize("era", ["6.1", "6.12"])
def test_one_without_a_place_of_its_own_is_given_back_before_the_next_has_one(era: str) -> None:
    start = 0x78000000
    nodes: list[Node] = [
        ("linux,cma", dict(POOL)),
        ("other", {"size": cells(0, 0x8000000), "alloc-ranges": cells(0, 0x70000000, 0, 0x10000000)}),
    ]
    # In 6.1 the sorting of what is equal turns two of them round.
    words, reserved = pool_of(era, "n", *(nodes if era == "6.12" else reversed(nodes)))
    assert len(words) == 1 + (era == "6.12")
    assert any(one.covers(PhysRange.of(start, 128 * MIB)) for one in reserved)
    assert not any(one.covers(PhysRange.of(start ^ 0x8000000, 128 * MIB)) for one in reserved)
