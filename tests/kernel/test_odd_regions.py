"""no-map regions that are not whole pages: what is mapped, shown and dumped, against a reckoning byte by byte."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_bench import GIB, IMAGE, INITRD, MIB, boot
from tree_bench import NOMAP, Node, loads_of, ram, tree

from kexecemu.crash.kernel import Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.formats.fdt import cells
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.load import environment
from kexecemu.kernel.memory.memblock import across_pages, within_pages
from kexecemu.kernel.procfs import proc_iomem
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

PAGE = 4096
BANK = PhysRange.of(GIB, 96 * MIB)


def node(area: PhysRange) -> Node:
    return f"fw@{area.start:x}", {"reg": cells(0, area.start, 0, area.size), **NOMAP}


ERAS = pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])


@ERAS
def test_a_region_within_a_page_is_kept_as_real_kernels_kept_it(era: str) -> None:
    """Debian's 6.1, 6.12 and 7.3 with a region of 0x1234 bytes at 0x7a100100."""
    odd = PhysRange.of(0x7A100100, 0x1234)
    kernel = boot(era, "crashkernel=192M", dtb=tree(node(odd)), options={"CMA_SIZE_MBYTES": "64"})
    assert ram(kernel) == ["40000000-7a0fffff", "7a100000-7a101fff", "7a102000-7fffffff"]
    nodes = re.findall(r"  node   0: \[mem 0x0{8}(\w+)-0x0{8}(\w+)\]", kernel.board.uart.text)
    assert nodes == [("40000000", "7a0fffff"), ("7a102000", "7fffffff")]
    mapped = [
        kernel.tables.walk(kernel.space.linear_virt(at)).phys is not None for at in (0x7A100000, 0x7A101000)
    ]
    assert mapped == [era == "6.1"] * 2, "read from the page tables of a real 6.12.118 and 7.3.4"
    loads = loads_of(environment.elf_headers(kernel))
    assert (0x7A101334, 0x80000000 - 0x7A101334) in loads, "kexec_file_load() takes memblock's bytes"
    image = kernel.kexec_tools_load(IMAGE, INITRD, "quiet")
    core = image.segment("elfcorehdr")
    assert core is not None
    assert (0x7A102000, 0x80000000 - 0x7A102000) in loads_of(bytes(core.buf)), "kexec-tools takes iomem's"


@ERAS
@pytest.mark.parametrize("options", [{}, {"ARM64_64K_PAGES": "y"}])
def test_a_machine_with_odd_regions_boots_loads_crashes_and_reboots(
    era: str, options: dict[str, str]
) -> None:
    odd = [PhysRange(0x44000123, 0x44000124), PhysRange(0x44FFFFFF, 0x45200001), PhysRange.of(0x45800100, 64)]
    config = KernelConfig(era, options=options)
    dtb = tree(*map(node, odd), bank=PhysRange.of(GIB, 512 * MIB))
    with Kernel.boot(Board("512M"), config, cmdline="crashkernel=64M rodata=off", dtb=dtb) as kernel:
        kernel.kexec_file_load(IMAGE, INITRD, "panic=5")
        kernel.kexec_file_load(IMAGE, INITRD, "quiet", 0)
        assert kernel.panic().outcome is Outcome.CAPTURED
    with Kernel.boot(Board("512M"), config, cmdline="", dtb=dtb) as kernel:
        kernel.kexec_file_load(IMAGE, INITRD, "quiet", 0)
        assert kernel.reboot().pc


@st.composite
def odd_regions(draw: st.DrawFn) -> list[PhysRange]:
    """Up to four, apart from one another, behind what the boot loader has put into RAM."""
    at, found = BANK.start + 52 * MIB, []
    for _ in range(draw(st.integers(1, 4))):
        start = (
            at + draw(st.sampled_from([0, 1, 0x100, 0xFFF, 0x1000, 0x1FFFFF])) + draw(st.integers(0, 9000))
        )
        end = (
            start
            + draw(st.sampled_from([1, 0x100, 0xFFF, 0x1000, 0x1001, 2 * MIB]))
            + draw(st.integers(0, 9000))
        )
        found.append(PhysRange(start, end))
        at = end + 1
    return found


@settings(max_examples=12, deadline=None)
@given(odd=odd_regions(), era=st.sampled_from(["6.1", "6.12", "7.3"]), blocks=st.booleans())
def test_any_odd_region_is_left_out_of_the_dump_and_the_map_is_the_era_s(
    odd: list[PhysRange], era: str, blocks: bool
) -> None:
    word = "rodata=off" if blocks else ""
    kernel = boot(era, f"crashkernel=8M {word}", ram=[BANK], dtb=tree(*map(node, odd), bank=BANK))
    with kernel:
        hidden = [(area.start, area.end) for area in odd]
        for start, size in loads_of(environment.elf_headers(kernel)):
            assert not any(start < end and at < start + size for at, end in hidden)
        for depth in ("", "  "):
            lines = re.findall(rf"^{depth}(\w+)-(\w+) : ", proc_iomem(kernel), re.M)
            for (_, last), (first, _) in pairwise(lines):
                assert int(last, 16) < int(first, 16), "no resource overlaps the next"
        for area in odd:
            for page in range(area.start // PAGE - 1, area.end // PAGE + 2):
                where = PhysRange.of(page * PAGE, PAGE)
                # A byte that is nobody's: of the page, or of all of it, the era decides.
                free = where.size - hidden_bytes(where, hidden)
                mapped = free == PAGE if era != "6.1" else free > 0
                assert (kernel.tables.walk(kernel.space.linear_virt(where.start)).phys is not None) == mapped


def hidden_bytes(where: PhysRange, hidden: list[tuple[int, int]]) -> int:
    return sum(max(0, min(end, where.end) - max(start, where.start)) for start, end in hidden)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=6),
    st.sampled_from([1, 4, 16]),
)
def test_whole_pages_inside_and_pages_touched_are_those_that_a_set_would_say(
    pairs: list[tuple[int, int]], page: int
) -> None:
    ranges, at = [], 0
    for gap, size in pairs:
        ranges.append(PhysRange.of(at + gap, size))
        at += gap + size
    inside = {one for area in within_pages(ranges, page) for one in range(area.start, area.end)}
    touched = [one for area in across_pages(ranges, page) for one in range(area.start, area.end)]
    assert inside == {
        byte
        for area in ranges
        for first in range(-(-area.start // page), area.end // page)
        for byte in range(first * page, first * page + page)
    }
    assert len(touched) == len(set(touched))
    numbers = {byte // page for area in ranges for byte in range(area.start, area.end)}
    assert set(touched) == {byte for number in numbers for byte in range(number * page, number * page + page)}
