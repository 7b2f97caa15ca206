"""The linear map's price: reckoned against built, both against real kernels' dumps and against a booted kernel."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_bench import boot

from kexecemu.errors import InputError, MachineError
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import KernelConfig, Protection
from kexecemu.kernel.image.kimage import Segment
from kexecemu.kernel.linear_survey import BUILT_UP_TO, LinearMapSurvey, survey_linear_map
from kexecemu.kernel.memory.linear_map import PAGE_KERNEL, LinearMapPlan, MapPiece, build_linear_map
from kexecemu.kernel.memory.linear_price import CountedTables, LinearMapPrice, measure_linear_map
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.memory.descriptors import Granule, TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange, subtract

RECORDED = Path(__file__).parents[1] / "data" / "kernel" / "linear-map"
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
BASE = 0x40000000
SPACE = AddressSpace(0, 0xFFFF800008000000, 0, 0x100000)
PAGE_OPTION = {Granule.K4: "ARM64_4K_PAGES", Granule.K16: "ARM64_16K_PAGES", Granule.K64: "ARM64_64K_PAGES"}

each_granule = pytest.mark.parametrize("granule", list(Granule), ids=lambda one: one.name)


class Both:
    """The same plan built in guest RAM and reckoned, and the tables that each of them asked for."""

    def __init__(self, granule: Granule, plan: LinearMapPlan, space: AddressSpace = SPACE) -> None:
        fmt = TableFormat(granule)
        # The tables lie apart from the RAM that they map, which need not exist.
        ram = Ram([PhysRange(0, 256 * MIB)])
        fresh = count(granule.size, granule.size)
        tables = PageTables(ram, fmt, 0, lambda: next(fresh))
        self.asked = 0
        counted = CountedTables(fmt, self._alloc)
        build_linear_map(tables, space, plan)
        build_linear_map(counted, space, plan)
        self.built, self.reckoned = measure_linear_map(tables, space), counted.price
        self.tables, self.entries_written = len(tables.tables), tables.entries_written
        ram.close()

    def _alloc(self, number: int) -> None:
        self.asked += number

    def check(self) -> None:
        assert self.reckoned == self.built
        assert self.reckoned.table_pages == self.tables == self.asked
        assert self.reckoned.entries == self.entries_written


def plan(*pieces: tuple[int, int, bool, bool]) -> LinearMapPlan:
    """A plan of (start, end, blocks, contiguous)."""
    return LinearMapPlan(tuple(MapPiece(PhysRange(a, b), PAGE_KERNEL, *how) for a, b, *how in pieces), "")


# -- reckoned against built ------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn, granule: Granule, most_pages: int) -> LinearMapPlan:
    """Up to four pieces in any order, near the borders of blocks and runs, touching or with holes between them.

    A piece that may have blocks has up to most_pages pages, another up to 20000.
    """
    fmt = TableFormat(granule)
    grains = [fmt.contiguous_size(3), fmt.entry_size(2), fmt.contiguous_size(2), fmt.entry_size(1)]
    pages = st.integers(0, 40)
    position, pieces = 0, []
    for _ in range(draw(st.integers(1, 4))):
        start = -(-position // granule.size) * granule.size + draw(pages) * granule.size
        if draw(st.booleans()):
            grain = draw(st.sampled_from(grains))
            start = -(-start // grain) * grain + draw(st.sampled_from((0, granule.size)))
        blocks = draw(st.booleans())
        size = draw(st.integers(0, 20)) * draw(st.sampled_from(grains)) + draw(pages) * granule.size
        most = most_pages if blocks else 20000
        end = start + max(granule.size, min(size, most * granule.size))
        pieces.append((start, end, blocks, draw(st.booleans())))
        position = end
    return plan(*draw(st.permutations(pieces)))


@each_granule
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_reckoning_equals_building_for_any_pieces(granule: Granule, data: st.DataObject) -> None:
    most = 16 * TIB // granule.size // 4
    Both(granule, data.draw(plans(granule, most))).check()


@each_granule
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_it_does_so_for_addresses_that_are_not_aligned_alike(granule: Granule, data: st.DataObject) -> None:
    """A linear map whose virtual and physical addresses differ in low bits has fewer blocks, or none."""
    shift = data.draw(
        st.sampled_from((granule.size, TableFormat(granule).contiguous_size(3), 32 * MIB, 512 * MIB))
    )
    space = AddressSpace(SPACE.memstart - shift, SPACE.kimage_vaddr, SPACE.kimage_phys, SPACE.kimage_size)
    Both(granule, data.draw(plans(granule, 20000)), space).check()


@each_granule
@pytest.mark.parametrize("size", [16 * TIB, 16 * TIB - 64 * KIB, 3 * TIB + 5 * MIB + 192 * KIB])
def test_reckoning_equals_building_up_to_16_tib_of_blocks(granule: Granule, size: int) -> None:
    end = BASE + size
    text, crash = PhysRange.of(BASE + 0x210000, 0x3A0000), PhysRange(end - 130 * MIB, end - 2 * MIB)
    pieces = [(a.start, a.end, True, True) for a in subtract([PhysRange(BASE, end)], [text, crash])]
    both = Both(
        granule, plan(*pieces, (text.start, text.end, True, False), (crash.start, crash.end, False, False))
    )
    both.check()
    assert sum(size * number for size, number in both.reckoned.leaves.items()) == size


def test_pages_for_16_tib_are_what_arithmetic_says() -> None:
    """One entry a page, a table for 512 entries, and so on up: too much to build, but not to think."""
    counted = CountedTables(TableFormat(Granule.K4), lambda number: None)
    build_linear_map(counted, SPACE, plan((0, 16 * TIB, False, False)))
    leaves, level3, level2, level1 = 1 << 32, 1 << 23, 1 << 14, 1 << 5
    tables = level3 + level2 + level1
    assert counted.price == LinearMapPrice(tables, tables * 4096, leaves + tables, {4096: leaves}, {})


def test_a_table_that_two_pieces_share_is_counted_once() -> None:
    counted = CountedTables(TableFormat(Granule.K4), lambda number: None)
    build_linear_map(counted, SPACE, plan((0, 4 * KIB, True, True), (8 * KIB, 12 * KIB, True, True)))
    assert (counted.price.table_pages, counted.price.entries) == (3, 5)


@pytest.mark.parametrize(("virt", "phys", "size"), [(1, 0, 4096), (0, 1, 4096), (0, 0, 0), (0, 0, 1 << 49)])
def test_what_cannot_be_mapped_cannot_be_reckoned(virt: int, phys: int, size: int) -> None:
    fmt = TableFormat(Granule.K4)
    for tables in (
        CountedTables(fmt, lambda number: None),
        PageTables(Ram([PhysRange(0, MIB)]), fmt, 0, lambda: 0),
    ):
        with pytest.raises(MachineError, match="cannot map"):
            tables.map(virt, phys, size, 0, blocks=True, contiguous=True)


# -- whole machines --------------------------------------------------------------------------------------------


def same(one: LinearMapSurvey, other: LinearMapSurvey) -> None:
    """Equal in everything but how it was found."""
    assert (one.method, other.method) == ("built", "formula")
    assert one.price == other.price
    assert (one.reservation, one.messages) == (other.reservation, other.messages)
    assert (one.reason, one.text) == (other.reason, other.text)


def both_ways(
    banks: list[PhysRange], config: KernelConfig, cmdline: str, text: PhysRange | None = None
) -> None:
    ways = (
        partial(survey_linear_map, banks, config, cmdline, text=text, build=build) for build in (True, False)
    )
    try:
        first = next(ways)()
    except InputError as error:  # what its kernel does not come out of
        with pytest.raises(InputError, match=re.escape(str(error))):
            next(ways)()
        return
    same(first, next(ways)())


@each_granule
@pytest.mark.parametrize("era", ["6.1", "6.4", "6.12"])
@pytest.mark.parametrize("zones", ["y", "n"])
@pytest.mark.parametrize("rodata", ["on", "full"])
def test_every_era_and_configuration_costs_the_same_both_ways(
    era: str, zones: str, rodata: str, granule: Granule
) -> None:
    config = KernelConfig(era, options={"ZONE_DMA": zones, PAGE_OPTION[granule]: "y"})
    both_ways([PhysRange.of(BASE, 640 * MIB + 192 * KIB)], config, f"crashkernel=128M rodata={rodata}")


@settings(max_examples=25, deadline=None)
@given(
    era=st.sampled_from(("6.1", "6.4", "6.12")),
    protection=st.sampled_from((None, *Protection)),
    zones=st.sampled_from("yn"),
    granule=st.sampled_from(list(Granule)),
    rodata=st.sampled_from(("on", "full")),
    crashkernel=st.sampled_from(
        ("", "crashkernel=64M", "crashkernel=96M,high", "crashkernel=0x3210000", "crashkernel=x")
    ),
    cma=st.sampled_from(("0", "64")),
    first=st.integers(5000, 20000),
    holes=st.lists(st.tuples(st.integers(1, 20000), st.integers(1, 20000)), max_size=3),
    text=st.none() | st.tuples(st.integers(0, 100), st.integers(1, 200)),
)
def test_any_machine_costs_the_same_both_ways(
    era: str,
    protection: Protection | None,
    zones: str,
    granule: Granule,
    rodata: str,
    crashkernel: str,
    cma: str,
    first: int,
    holes: list[tuple[int, int]],
    text: tuple[int, int] | None,
) -> None:
    """Banks of odd sizes with holes between them; all in units of 16 KiB."""
    unit = 16 * KIB
    banks = [PhysRange.of(BASE, first * unit)]
    for hole, size in holes:
        banks.append(PhysRange.of(banks[-1].end + hole * unit, size * unit))
    options = {"ZONE_DMA": zones, PAGE_OPTION[granule]: "y", "CMA_SIZE_MBYTES": cma}
    config = KernelConfig(era, protection=protection, options=options)
    area = None if text is None else PhysRange.of(BASE + text[0] * 64 * KIB, text[1] * 64 * KIB)
    both_ways(banks, config, f"{crashkernel} rodata={rodata}", area)


@pytest.mark.parametrize("rodata", ["on", "full"])
def test_both_ways_agree_where_the_one_gives_way_to_the_other(rodata: str) -> None:
    cmdline, config = f"crashkernel=256M rodata={rodata}", KernelConfig("6.1")
    for size, method in ((BUILT_UP_TO, "built"), (BUILT_UP_TO + 64 * KIB, "formula")):
        banks = [PhysRange.of(BASE, size)]
        by_default = survey_linear_map(banks, config, cmdline)
        other = survey_linear_map(banks, config, cmdline, build=method != "built")
        assert by_default.method == method
        same(*((by_default, other) if method == "built" else (other, by_default)))


def test_a_booted_kernel_s_linear_map_costs_what_the_survey_says() -> None:
    for era, cmdline in (("6.1", "crashkernel=128M"), ("6.4", "crashkernel=128M rodata=on")):
        kernel = boot(era, cmdline)
        survey = survey_linear_map([PhysRange.of(BASE, GIB)], KernelConfig(era), cmdline)
        assert measure_linear_map(kernel.tables, kernel.space) == survey.price
        assert kernel.arch.reservation == survey.reservation
        assert kernel.arch.plan.reason == survey.reason


def recorded_leaves(name: str) -> tuple[dict[int, int], dict[int, int]]:
    """Leaves and contiguous leaves by size, reckoned from the lines of a real kernel's dump before the load."""
    text = (RECORDED / f"{name}.txt").read_text()
    before = text[text.index("@@ before") : text.index("Linear Mapping end")]
    leaves: Counter[int] = Counter()
    contiguous: Counter[int] = Counter()
    for start, end, level, rest in re.findall(r"0x(\w+)-0x(\w+) +\w+ (PTE|PMD) +(\S.*)$", before, re.M):
        size = {"PTE": 4 * KIB, "PMD": 2 * MIB}[level]
        leaves[size] += (int(end, 16) - int(start, 16)) // size
        contiguous[size] += (int(end, 16) - int(start, 16)) // size if " CON " in rest else 0
    return dict(+leaves), dict(+contiguous)


@pytest.mark.parametrize("build", [True, False], ids=["built", "reckoned"])
@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDED.glob("*.txt")))
def test_there_are_as_many_leaves_of_each_size_as_in_a_real_kernel(name: str, build: bool) -> None:
    late = name.startswith("6.12")
    config = KernelConfig(
        "6.12" if late else "6.1", options={"ZONE_DMA": "n" if name.startswith("nozones") else "y"}
    )
    cmdline = (
        "crashkernel=128M " if "-crash128M" in name else ""
    ) + f"rodata={'full' if 'full' in name else 'on'}"
    text = PhysRange(0x40200000, 0x405D0000) if late else PhysRange(0x40210000, 0x405B0000)
    found = survey_linear_map([PhysRange.of(BASE, GIB)], config, cmdline, text=text, build=build)
    leaves, contiguous = recorded_leaves(name)
    assert sum(size * number for size, number in leaves.items()) == GIB
    assert (found.price.leaves, found.price.contiguous) == (leaves, contiguous)


def test_a_load_costs_entries_and_with_live_splitting_tables() -> None:
    banks, cmdline = [PhysRange.of(BASE, GIB)], "crashkernel=128M rodata=on"

    def load(config: KernelConfig) -> tuple[int, int]:
        region = survey_linear_map(banks, config, cmdline).reservation.crashk_res
        assert region is not None
        segments = [
            Segment("kernel", b"", region.start, 2 * MIB),
            Segment("dtb", b"", region.end - 8 * KIB, 8 * KIB),
        ]
        found = survey_linear_map(banks, config, cmdline, loaded=segments)
        assert found.load is not None
        assert (
            found.price == survey_linear_map(banks, config, cmdline).price
        )  # what was built at boot stays the price
        return found.load.table_pages, found.load.entries

    assert load(KernelConfig("6.4")) == (0, 0)
    assert load(KernelConfig("6.1")) == (0, 512 + 2)
    assert load(KernelConfig("6.1", protection="readonly")) == (
        0,
        128 * 256 - 2,
    )  # all but the two control pages
    # A block is one as a whole. Of the other's, in a run of 16 as well, a table is filled and linked, and of that a run
    # dissolved; then the block and the pages themselves.
    assert load(KernelConfig("6.12", protection="bbml2")) == (1, 2 * 16 + 513 + 16 + 1 + 2)


@pytest.mark.parametrize(("pages", "taken"), [(GIB // 2 // 4096, True), (GIB // 2 // 4096 + 1, False)])
def test_a_load_of_half_the_ram_is_taken_and_one_of_more_is_none_of_a_kernel(pages: int, taken: bool) -> None:
    banks, config, cmdline = [PhysRange.of(BASE, GIB)], KernelConfig("6.1"), "crashkernel=640M"
    region = survey_linear_map(banks, config, cmdline).reservation.crashk_res
    assert region is not None
    segments = [Segment("kernel", b"", region.start + 2 * MIB, pages * 4096)]
    if taken:
        assert survey_linear_map(banks, config, cmdline, loaded=segments).load is not None
        return
    with pytest.raises(InputError, match="these segments cannot have been loaded"):
        survey_linear_map(banks, config, cmdline, loaded=segments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PhysRange(BASE + 2 * MIB, BASE + 4 * MIB), None),
        (PhysRange(BASE + 2 * MIB - 1, BASE + 4 * MIB), "not made of whole pages"),
        (PhysRange(BASE + 2 * MIB, BASE + 4 * MIB + 1), "not made of whole pages"),
        (PhysRange(BASE + 2 * MIB, BASE + 2 * MIB), "not made of whole pages"),
        (PhysRange(BASE + GIB - 2 * MIB, BASE + GIB), None),
        (PhysRange(BASE + GIB - 2 * MIB, BASE + GIB + 4096), "is outside RAM"),
        (PhysRange(BASE - 4096, BASE + 2 * MIB), "is outside RAM"),
    ],
)
def test_a_kernel_s_text_is_whole_pages_of_ram(text: PhysRange, words: str | None) -> None:
    config, banks = KernelConfig("6.4"), [PhysRange.of(BASE, GIB)]
    if words is None:
        assert survey_linear_map(banks, config, "", text=text, build=False).text == text
        return
    with pytest.raises(InputError, match=words):
        survey_linear_map(banks, config, "", text=text, build=False)


@each_granule
@pytest.mark.parametrize("more", [0, 1])
def test_a_map_by_base_pages_is_built_up_to_512_mib_of_tables_and_not_one_page_more(
    granule: Granule, more: int
) -> None:
    mapped: list[int] = []

    class Tables(PageTables):
        def map(self, virt: int, phys: int, size: int, *_: object, **__: object) -> None:
            mapped.append(size)

    paged = ((512 * MIB) // 8 + more) * granule.size
    pieces = [(PhysRange(0, paged), False), (PhysRange.of(64 * TIB, TIB), True)]  # blocks do not count
    plan = LinearMapPlan(
        tuple(MapPiece(area, PAGE_KERNEL, blocks, False) for area, blocks in pieces), "asked for"
    )
    tables = Tables(Ram([PhysRange(0, MIB)]), TableFormat(granule), 0, lambda: 0)
    if not more:
        build_linear_map(tables, SPACE, plan)
        assert mapped == [paged, TIB]
        return
    with pytest.raises(InputError, match=f"of {paged >> 30} GiB by base pages is more than is built here"):
        build_linear_map(tables, SPACE, plan)
    assert not mapped


@pytest.mark.parametrize("build", [True, False])
def test_ram_that_its_own_tables_fill_is_refused(build: bool) -> None:
    """mem= leaves a machine whose free memory is smaller than the tables of its map."""
    with pytest.raises(InputError, match="too small for the page tables"):
        survey_linear_map(
            [PhysRange.of(BASE, 4 * MIB)],
            KernelConfig("6.4"),
            "",
            text=PhysRange(BASE, BASE + 4 * MIB),
            build=build,
        )


# -- memblock gives many pages at once -------------------------------------------------------------------------


@given(
    banks=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=3),
    taken=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 90)), max_size=6),
    page=st.sampled_from((1, 4, 16)),
    number=st.integers(0, 50),
)
def test_many_pages_at_once_are_the_pages_one_by_one(
    banks: list[tuple[int, int]], taken: list[tuple[int, int]], page: int, number: int
) -> None:
    """Units of 4 KiB for banks, of 1 KiB for what is reserved: a device tree is not made of whole pages."""
    one, many = Memblock(), Memblock()
    for memblock in (one, many):
        for start, size in banks:
            memblock.add(PhysRange.of(start * 4096, size * 4096))
        for start, size in taken:
            memblock.reserve(PhysRange.of(start * KIB, size * KIB))
    page_size = page * 4096
    singly = [one.phys_alloc_range(page_size, page_size) for _ in range(number)]
    assert many.phys_alloc_pages(number, page_size) == sum(bool(phys) for phys in singly)
    assert many.reserved == one.reserved
