"""Memory nodes as Linux reads them: real kernels' answers, a board of them, and any nodes against a reckoning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_bench import GIB, IMAGE, INITRD, MIB, boot
from tree_bench import BANK, loads_of, memory_tree, ram

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt, FdtEditor, cells
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.fdt_memory import early_init_dt_scan, memory_ranges
from kexecemu.kernel.load import environment
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.ranges import PhysRange

Properties = dict[str, bytes]
DEBIAN = {"CMA_SIZE_MBYTES": "64"}
DISABLED = {"status": b"disabled\0"}
ALL = {"reg": cells(0, GIB, 0, GIB)}


def reg(*numbers: int) -> Properties:
    return {"reg": cells(*(one for number in numbers for one in (0, number)))}


@dataclass(frozen=True)
class Row:
    """A tree, and what a real kernel made of it: crash region, RAM, and the last line of zone DMA."""

    nodes: tuple[Properties, ...]
    crash: tuple[str, str, str]  # by 6.1.192, 6.12.118 and 7.3.4; "" where it was not asked
    ram: tuple[str, ...]
    cmdline: str = "crashkernel=192M"
    chosen: Properties | None = None


ROWS = {
    "banks": Row(
        (
            reg(0x40000000, 0x20000000, 0x60000000, 0x0FF01000),
            reg(0x71000800, 0x7000000),
            {**reg(0x79000000, 0x4000000), **DISABLED},
            {**reg(0x7E000000, 0x2000000), "linux,usable-memory": cells(0, 0x7E000000, 0, 0x1000000)},
        ),
        ("", "", ""),
        ("40000000-6ff00fff", "71001000-77ffffff", "7e000000-7effffff"),
        "crashkernel=160M",
    ),
    "a kdump kernel's": Row(
        (ALL,),
        ("61200000-6b1fffff", "", "61e00000-6bdfffff"),
        ("40000000-6fffffff",),
        "crashkernel=160M",
        {"linux,usable-memory-range": cells(0, GIB, 0, 0x30000000)},
    ),
    "usable": Row(
        ({**ALL, "linux,usable-memory": cells(0, GIB, 0, 0x38000000)},),
        ("", "67000000-72ffffff", ""),
        ("40000000-77ffffff",),
    ),
    "disabled": Row(
        (reg(0x40000000, 0x3E000000), {**reg(0x7E000000, 0x2000000), **DISABLED}),
        ("", "", ""),
        ("40000000-7dffffff",),
    ),
    "hotpluggable": Row(
        (reg(0x40000000, 0x30000000), {**reg(0x70000000, 0x10000000), "hotpluggable": b""}),
        ("64000000-6fffffff", "", "6fc00000-7bbfffff"),
        ("40000000-6fffffff", "70000000-7fffffff"),
    ),
    "movable": Row(
        (reg(0x40000000, 0x30000000), {**reg(0x70000000, 0x10000000), "hotpluggable": b""}),
        ("5ec00000-6abfffff", "", ""),
        ("40000000-6fffffff", "70000000-7fffffff"),
        "crashkernel=192M movable_node",
    ),
}
ERAS = ("6.1", "6.12", "7.3")


def crash_region(kernel: KernelModel) -> str:
    area = kernel.crashk_res
    return "" if area is None else f"{area.start:x}-{area.last:x}"


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("name", ROWS)
def test_real_kernels_had_this_ram_and_this_crash_region(name: str, era: str) -> None:
    row = ROWS[name]
    found = row.crash[ERAS.index(era)]
    dtb = memory_tree(*((f"memory@{i}", one) for i, one in enumerate(row.nodes)), chosen=row.chosen)
    kernel = boot(era, row.cmdline, ram=[BANK], dtb=dtb, options=DEBIAN)
    with kernel:
        if found:
            assert crash_region(kernel) == found
        # From 6.12 on numa_init() forgets what is hotpluggable, and neighbours are one region again.
        forgets = "hotpluggable" in row.nodes[-1] and era != "6.1"
        ram_there = (f"{GIB:08x}-7fffffff",) if forgets else row.ram
        assert tuple(re.findall(r"^(\S+) : System RAM$", "".join(_iomem(kernel)), re.M)) == ram_there
        core = kernel.kexec_tools_load(IMAGE, INITRD, "quiet").segment("elfcorehdr")
        assert core is not None and kernel.crashk_res is not None
        total = sum(size for _, size in loads_of(bytes(core.buf)))
        spans = [one.split("-") for one in ram_there]
        assert (
            total == sum(int(last, 16) + 1 - int(first, 16) for first, last in spans) - kernel.crashk_res.size
        )


def _iomem(kernel: KernelModel) -> list[str]:
    from kexecemu.kernel.procfs import proc_iomem

    return proc_iomem(kernel).splitlines(keepends=True)


def test_kexec_tools_leave_a_property_of_chosen_where_it_is() -> None:
    """Seen in 6.1 and 7.3 with kexec-tools 2.0.25: of a kdump kernel the new elfcorehdr alone comes first."""
    row = ROWS["a kdump kernel's"]
    kernel = boot("6.1", row.cmdline, ram=[BANK], dtb=memory_tree(("memory@0", ALL), chosen=row.chosen))
    segment = kernel.kexec_tools_load(IMAGE, INITRD, "quiet").segment("dtb")
    assert segment is not None and kernel.crashk_res is not None
    tree = Fdt(bytes(segment.buf))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    names = [one.name for one in tree.properties(chosen)]
    assert names.index("linux,elfcorehdr") < names.index("linux,usable-memory-range")
    area = kernel.crashk_res
    assert tree.get_cells(chosen, "linux,usable-memory-range") == [0, area.start, 0, area.size]


def test_memory_that_may_go_is_in_one_header_once_the_boot_is_over() -> None:
    """6.1 shows two regions for ever in /proc/iomem; memblock_free_all() makes one of them for kexec_file_load()."""
    row = ROWS["movable"]
    dtb = memory_tree(*((f"memory@{i}", one) for i, one in enumerate(row.nodes)))
    kernel = boot("6.1", row.cmdline, ram=[BANK], dtb=dtb)
    assert ram(kernel) == list(row.ram)
    assert kernel.crashk_res is not None
    ends = [start + size for start, size in loads_of(environment.elf_headers(kernel))]
    assert ends == [kernel.crashk_res.start, BANK.end]
    assert "  Node 0: 0x0000000070000000" in kernel.board.uart.text


def test_a_memory_block_of_less_than_a_page_is_ignored_and_said() -> None:
    """The words of Debian's 6.1 and 7.3."""
    dtb = memory_tree(
        ("memory@0", reg(0x60000000, 0x10000000, 0x76000400, 0x9F0)), ("memory@1", reg(GIB, 0x20000000))
    )
    kernel = boot(ram=[BANK], dtb=dtb)
    assert "OF: fdt: Ignoring memory block 0x76000400 - 0x76000df0\n" in kernel.board.uart.text
    log = kernel.board.uart.text
    assert log.index("Ignoring memory") < log.index("Machine model"), "setup_machine_fdt() comes first"


@pytest.mark.parametrize("era", ["6.12", "7.3"])
def test_a_ragged_reg_is_cut_or_none_at_all(era: str) -> None:
    ragged = {"reg": cells(0, GIB, 0, 0x20000000, 0, 0x60000000, 0)}
    good = reg(0x70000000, 0x4000000)
    config = KernelConfig(era)
    memblock = early_init_dt_scan(Fdt(memory_tree(("memory@0", ragged), ("memory@1", good))), config, print)
    first = [] if era == "7.3" else [PhysRange.of(GIB, 0x20000000)]
    assert memblock.memory == [*first, PhysRange.of(0x70000000, 0x4000000)]


@pytest.mark.parametrize(
    ("ranges", "kept"),
    [
        ((0x50000000, 0), [BANK]),
        ((0x50000000, 0x1000000), [PhysRange.of(0x50000000, 0x1000000)]),
        (
            (0x50000000, 0x1000000, 0x44000000, 0x2000000),
            [PhysRange.of(0x44000000, 0x2000000), PhysRange.of(0x50000000, 0x1000000)],
        ),
        ((0x50000000, 0x1000000, 0, 0, 0x44000000, 0x2000000), [PhysRange.of(0x50000000, 0x1000000)]),
    ],
)
def test_the_first_usable_range_is_kept_and_more_are_added_up_to_an_empty_one(
    ranges: tuple[int, ...], kept: list[PhysRange]
) -> None:
    chosen = {"linux,usable-memory-range": cells(*(one for number in ranges for one in (0, number)))}
    dtb = Fdt(memory_tree(("memory@0", ALL), chosen=chosen))
    assert early_init_dt_scan(dtb, KernelConfig("6.12"), print).memory == kept


@pytest.mark.parametrize(
    ("length", "old", "new"),
    [
        (20, None, [BANK]),  # a range and a cell: a real 6.1 and 6.12 never print a line
        (17, [BANK], [BANK]),
        (36, [PhysRange.of(GIB, 0x2000000)], [BANK]),  # two ranges and a cell, which is not come to
        (32, [PhysRange.of(GIB, 0x2000000)], [PhysRange.of(GIB, 0x2000000)]),
    ],
)
def test_a_ragged_usable_range_is_read_past_its_end_until_7_3_takes_it_for_none(
    length: int, old: list[PhysRange] | None, new: list[PhysRange]
) -> None:
    value = cells(0, GIB, 0, 0x1000000, 0, GIB + 0x1000000, 0, 0x1000000, 0)[:length]
    dtb = Fdt(memory_tree(("memory@0", ALL), chosen={"linux,usable-memory-range": value}))
    for era in ("6.1", "6.12"):
        if old is None:
            with pytest.raises(InputError, match="ends in the middle of a range"):
                early_init_dt_scan(dtb, KernelConfig(era), print)
        else:
            assert early_init_dt_scan(dtb, KernelConfig(era), print).memory == old
    assert early_init_dt_scan(dtb, KernelConfig("7.3"), print).memory == new


def test_two_usable_ranges_count_and_from_7_3_on_six() -> None:
    starts = range(0x50000000, 0x70000000, 0x4000000)
    numbers = [one for start in starts for one in (0, start, 0, MIB)]
    dtb = Fdt(memory_tree(("memory@0", ALL), chosen={"linux,usable-memory-range": cells(*numbers)}))
    for era, count in (("6.1", 2), ("7.0", 2), ("7.3", 6)):
        memory = early_init_dt_scan(dtb, KernelConfig(era), print).memory
        assert [area.start for area in memory] == list(starts)[:count]


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({**ALL, **DISABLED}, "no memory"),
        ({**ALL, "linux,usable-memory": b""}, "no memory"),
        (reg(GIB, 0x100), "no memory"),
        ({"reg": cells(0xFFFFFFFF, 0xFFFF0000, 0, 0x20000)}, "wraps around"),
    ],
)
def test_a_tree_that_leaves_no_memory_is_refused_in_one_line(properties: Properties, words: str) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        boot(ram=[BANK], dtb=memory_tree(("memory@0", properties)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("start", [0x80000000, 0x60000000, 0x40300000])
def test_a_kernel_outside_of_its_memory_is_refused(start: int) -> None:
    """Debian's 7.3 came to no console when its own memory node was ragged, and so none."""
    chosen = {"linux,usable-memory-range": cells(0, start, 0, 0x1000000)}
    bank = PhysRange.of(GIB, 2 * GIB)
    tree = memory_tree(("memory@0", {"reg": cells(0, GIB, 0, 2 * GIB)}), chosen=chosen)
    with pytest.raises(InputError, match="lies outside of the memory"):
        boot(ram=[bank], dtb=tree)


def test_cells_are_the_root_s_and_one_where_it_says_nothing() -> None:
    editor = FdtEditor(memory_tree(("memory@0", {"reg": cells(GIB, 0x1000000, 0x50000000, 0x1000)})))
    for name in ("#address-cells", "#size-cells"):
        editor.delprop(0, name)
    found = [PhysRange.of(GIB, 0x1000000), PhysRange.of(0x50000000, 0x1000)]
    assert memory_ranges(Fdt(editor.to_bytes())) == found


@st.composite
def nodes(draw: st.DrawFn) -> list[tuple[int, int, str, bool]]:
    """(start, size, status, hotpluggable) in a few MiB, overlapping, touching, odd or not."""
    number = st.one_of(st.integers(0, 0x9000), st.integers(0, 16).map(lambda one: one * 4096))
    status = st.sampled_from(["", "okay", "ok", "disabled", "fail"])
    return draw(st.lists(st.tuples(number, number, status, st.booleans()), min_size=1, max_size=5))


@settings(deadline=None)
@given(nodes())
def test_memory_is_the_whole_pages_of_what_is_available(found: list[tuple[int, int, str, bool]]) -> None:
    trees, pages, hot, said = [], set[int](), set[int](), 0
    for number, (start, size, status, hotplug) in enumerate(found):
        more = {"status": status.encode() + b"\0"} if status else {}
        more |= {"hotpluggable": b""} if hotplug else {}
        trees.append((f"memory@{number}", {**reg(GIB + start, size), **more}))
        if status not in ("disabled", "fail") and size:
            said += size < 4096 - start % 4096
            inside = {
                page for page in range(40) if start <= page * 4096 and page * 4096 + 4096 <= start + size
            }
            pages |= inside
            hot |= inside if hotplug else set()
    lines: list[str] = []
    dtb = Fdt(memory_tree(*trees))
    if not pages:
        with pytest.raises(InputError):
            early_init_dt_scan(dtb, KernelConfig("6.12"), lines.append)
        return
    memblock = early_init_dt_scan(dtb, KernelConfig("6.12"), lines.append)
    assert {(at - GIB) // 4096 for one in memblock.memory for at in range(one.start, one.end, 4096)} == pages
    assert len(lines) == said and all("Ignoring memory block" in line for line in lines)
    regions = memblock.regions()
    assert sum(one.size for one in regions) == len(pages) * 4096
    for left, right in pairwise(regions):
        assert left.end <= right.start
    assert not any(
        area.start < edge < area.end
        for area in regions
        for one in memblock.hotplug
        for edge in (one.start, one.end)
    ), "no region goes over a border"
    # A page that is whole in a node may go, whatever other nodes say of it.
    may_go = {(at - GIB) // 4096 for one in memblock.hotplug for at in range(one.start, one.end, 4096)}
    assert hot <= may_go
