"""The fault space: every fault has one number and every number one fault, and sizes are what can be counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.campaign.areas import EDGE, Area, Kind, Places
from kexecemu.campaign.fault import CampaignFault
from kexecemu.campaign.plan import HASHING_STEPS, can_write
from kexecemu.campaign.space import Space, space_of
from kexecemu.errors import InputError
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.read import find_scenario
from kexecemu.scenario.read import read_scenario as read
from kexecemu.scenario.runner import scenario_setup
from kexecemu.scenario.schema import CampaignTable, KernelTable, Load, Machine, Scenario
from kexecemu.scenario.setup import prepare
from kexecemu.stray.fault import By, When
from kexecemu.stray.models import MODELS

REGION = PhysRange(0x4_0000, 0x8_0000)
BANK = PhysRange(0, 0x10_0000)


def image(*segments: tuple[str, int, int], hashed: list[PhysRange] | None = None) -> Kimage:
    """An image of (name, phys, size); every segment but the purgatory is hashed, unless told otherwise."""
    made = Kimage(REGION.start, [Segment(name, b"", phys, size) for name, phys, size in segments])
    made.sha_regions = (
        [one.area for one in made.segments if one.name != "purgatory"] if hashed is None else hashed
    )
    made.control_pages = [PhysRange.of(0x7_F000, 0x1000)]
    return made


def usual() -> Kimage:
    return image(("kernel", 0x4_0000, 0x3000), ("initrd", 0x4_3000, 0x5000), ("purgatory", 0x6_0000, 0x2000))


def covered(areas: list[Area]) -> set[int]:
    """Every address of the areas; fails when one is in two."""
    addresses = [phys for area in areas for phys in range(area.phys.start, area.phys.end)]
    assert len(set(addresses)) == len(addresses)
    return set(addresses)


# -- areas ---------------------------------------------------------------------------------------------------------


def test_the_segments_are_all_of_them_and_nothing_else() -> None:
    places = Places(REGION, usual(), [BANK])
    areas = places.areas(["segments"])
    assert places.region == REGION
    assert [(one.name, one.kind) for one in areas] == [
        ("kernel", Kind.HASHED),
        ("initrd", Kind.HASHED),
        ("purgatory", Kind.PURGATORY),
    ]
    assert [one.phys for one in areas] == [one.area for one in usual().segments]


def test_without_a_purgatory_nothing_is_hashed() -> None:
    areas = Places(REGION, usual(), [BANK], checked=False).areas(["kernel", "initrd"])
    assert {one.kind for one in areas} == {Kind.UNHASHED}


def test_a_segment_is_cut_where_hashing_ends() -> None:
    part = image(("initrd", 0x4_3000, 0x5000), hashed=[PhysRange(0x4_4000, 0x4_5000)])
    areas = Places(REGION, part, [BANK]).areas(["initrd"])
    assert [(one.phys, one.kind) for one in areas] == [
        (PhysRange(0x4_3000, 0x4_4000), Kind.UNHASHED),
        (PhysRange(0x4_4000, 0x4_5000), Kind.HASHED),
        (PhysRange(0x4_5000, 0x4_8000), Kind.UNHASHED),
    ]
    assert {one.base_phys for one in areas} == {0x4_3000}


def test_the_whole_region_is_every_byte_of_it_once() -> None:
    areas = Places(REGION, usual(), [BANK]).areas(["crashkernel"])
    assert covered(areas) == set(range(REGION.start, REGION.end))
    assert [(one.name, one.phys, one.base_phys) for one in areas][2:] == [
        ("purgatory", PhysRange(0x6_0000, 0x6_2000), 0x6_0000),
        ("crashkernel-free", PhysRange(0x6_2000, 0x7_F000), 0x6_2000),
        ("crashkernel", PhysRange(0x7_F000, 0x8_0000), REGION.start),
        ("crashkernel", PhysRange(0x4_8000, 0x6_0000), REGION.start),
    ]
    sizes = {kind: sum(one.phys.size for one in areas if one.kind is kind) for kind in Kind}
    assert sizes == {
        Kind.HASHED: 0x8000,
        Kind.UNHASHED: 0,
        Kind.PURGATORY: 0x2000,
        Kind.CONTROL: 0x1000,
        Kind.FREE: 0x4_0000 - 0xB000,
        Kind.EDGE: 0,
    }


def test_the_free_part_is_the_largest_that_nothing_uses() -> None:
    areas = Places(REGION, usual(), [BANK]).areas(["crashkernel-free"])
    assert [(one.name, one.phys, one.kind) for one in areas] == [
        ("crashkernel-free", PhysRange(0x6_2000, 0x7_F000), Kind.FREE)
    ]


def test_edges_are_a_word_on_either_side_of_each_segment_and_of_the_region() -> None:
    areas = Places(REGION, usual(), [BANK]).areas(["edges"])
    assert {one.kind for one in areas} == {Kind.EDGE}
    assert EDGE == 8  # bytes of a word
    wanted: set[int] = set()
    for area in [REGION, *(one.area for one in usual().segments)]:
        wanted |= set(range(area.start - EDGE, area.start)) | set(range(area.end, area.end + EDGE))
    assert covered(areas) == wanted


def test_an_edge_in_another_chosen_area_counts_there() -> None:
    places = Places(REGION, usual(), [BANK])
    segments, both = places.areas(["segments"]), places.areas(["edges", "segments"])
    assert both[: len(segments)] == segments
    # kernel and initrd touch: of the edges between them nothing is left.
    assert {one.name for one in both if one.kind is Kind.EDGE} == {
        "below-crashkernel",
        "above-crashkernel",
        "above-initrd",
        "below-purgatory",
        "above-purgatory",
    }
    outside = places.areas(["crashkernel", "edges"])
    assert covered(outside) == set(range(REGION.start - EDGE, REGION.end + EDGE))


def test_there_is_no_edge_where_there_is_no_ram() -> None:
    places = Places(REGION, usual(), [PhysRange(REGION.start - 3, REGION.end)])
    edges = [one for one in places.areas(["crashkernel", "edges"]) if one.kind is Kind.EDGE]
    assert [one.phys for one in edges] == [PhysRange(REGION.start - 3, REGION.start)]


@given(st.permutations(["segments", "initrd", "edges", "crashkernel-free", "crashkernel"]), st.integers(1, 5))
def test_the_order_of_the_words_does_not_matter(where: list[str], n: int) -> None:
    places = Places(REGION, usual(), [BANK])
    assert places.areas(where[:n]) == places.areas(sorted(where[:n]))


def test_a_segment_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        InputError, match=r"campaign\.where: no segment 'dtb'; there are kernel, initrd, purgatory"
    ):
        Places(REGION, usual(), [BANK]).areas(["segments", "dtb"])


# -- where a fault reaches -----------------------------------------------------------------------------------------


def fault(base: str, offset: int, model: str = "memset", variant: int = 9) -> CampaignFault:
    return CampaignFault(By.CPU, model, variant, base, offset, When.AFTER_LOAD)


def test_a_fault_runs_over_the_end_of_its_area_into_the_next() -> None:
    places = Places(REGION, usual(), [BANK])
    assert places.reach(fault("kernel", 0x2FFF)) == PhysRange.of(0x4_2FFF, 4096)
    assert places.reach(fault("below-crashkernel", 7)) == PhysRange.of(0x3_FFFF, 4096)
    assert places.reach(fault("crashkernel", 0, "byte", 1)) == PhysRange.of(REGION.start, 1)


def test_a_fault_ends_where_ram_does() -> None:
    places = Places(REGION, usual(), [PhysRange(0, REGION.end)])
    assert places.reach(fault("crashkernel", REGION.size - 5)) == PhysRange(REGION.end - 5, REGION.end)


def test_a_fault_ends_with_its_own_bank_whichever_comes_first() -> None:
    banks = [PhysRange(0, 0x4_2000), PhysRange(0x4_2000, 0x4_2010), PhysRange(0x10_0000, 0x20_0000)]
    for some in (banks, banks[::-1]):
        places = Places(REGION, usual(), some)
        assert places.reach(fault("kernel", 0x1FF8)) == PhysRange.of(0x4_1FF8, 8)
        assert places.reach(fault("kernel", 0x2000)) == PhysRange.of(0x4_2000, 16)


def test_where_everything_is_in_use_there_is_no_free_part() -> None:
    full = image(("kernel", REGION.start, REGION.size))
    places = Places(REGION, full, [BANK])
    assert "crashkernel-free" not in places.names
    assert [one.phys for one in places.areas(["crashkernel", "crashkernel-free"])] == [REGION]
    with pytest.raises(InputError, match="no place 'crashkernel-free'"):
        places.area("crashkernel-free")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (fault("kernel", 0x3000), "kernel has only 0x3000 bytes"),
        (fault("dtb", 0), "no place 'dtb' in this image; there are kernel, initrd"),
        (fault("kernel", 0, "memset", 70), "fault model memset has no variant 0x46"),
        (fault("kernel", 0, "none"), "no fault model 'none'"),
    ],
)
def test_a_fault_that_is_nowhere_is_refused(wrong: CampaignFault, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Places(REGION, usual(), [BANK]).reach(wrong)


# -- numbers ---------------------------------------------------------------------------------------------------------

MOMENTS = [
    (When.AFTER_LOAD, 0),
    (When.WHILE_HASHING, 8),
    (When.DURING_PANIC, 0),
    (When.WHILE_HASHING, 200),
    (When.IN_CAPTURE, 1000),
]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    places = Places(REGION, usual(), [BANK])
    words = ["segments", "kernel", "initrd", "purgatory", "crashkernel-free", "crashkernel", "edges"]
    return Space(
        places.areas(draw(st.lists(st.sampled_from(words), min_size=1, unique=True))),
        [MODELS[name] for name in draw(st.lists(st.sampled_from(list(MODELS)), min_size=1, unique=True))],
        [
            *draw(st.lists(st.sampled_from([By.CPU, By.ALIAS, By.LATE_CPU]), unique=True)),
            By.DMA,
        ],
        draw(st.lists(st.sampled_from(MOMENTS), min_size=1, unique=True)),
    )


@settings(deadline=None)
@given(spaces(), st.data())
def test_number_and_fault_undo_each_other(space: Space, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, space.size - 1))
    for one in {index, 0, space.size - 1, *(stratum.first for stratum in space.strata)}:
        made = space.fault(one)
        assert space.index(made) == one
        assert CampaignFault.parse(made.id) == made
        assert can_write(made.by, made.moment)


def kinds(space: Space) -> dict[str, tuple[int, int]]:
    """Of each kind of area: how many bytes, and how many faults."""
    found: dict[str, tuple[int, int]] = {}
    for area in {one.area: None for one in space.strata}:
        size, faults = found.get(area.kind, (0, 0))
        mine = sum(one.size for one in space.strata if one.area == area)
        found[area.kind.value] = size + area.phys.size, faults + mine
    return found


def small() -> Space:
    """Small enough to be listed in full, with a base that has two parts."""
    areas = [
        Area("a", PhysRange(100, 103), Kind.HASHED, 98),
        Area("b", PhysRange(200, 202), Kind.FREE, 200),
        Area("a", PhysRange(105, 107), Kind.UNHASHED, 98),
    ]
    return Space(areas, [MODELS["bit-flip"], MODELS["stuck-at-1"]], [By.CPU, By.DMA], MOMENTS)


def listed() -> Iterator[CampaignFault]:
    for base, start, end in (("a", 2, 5), ("b", 0, 2), ("a", 7, 9)):
        for model, variants in (("bit-flip", 8), ("stuck-at-1", 3)):
            for variant in range(variants):
                for offset in range(start, end):
                    for moment, at in MOMENTS:
                        yield CampaignFault(By.DMA, model, variant, base, offset, moment, at)
                        if moment in (When.AFTER_LOAD, When.DURING_PANIC):
                            yield CampaignFault(By.CPU, model, variant, base, offset, moment, at)


def test_the_size_is_the_number_of_faults_that_there_are() -> None:
    space, faults = small(), set(listed())
    assert space.size == len(faults) == 7 * 11 * (5 + 2)
    assert {space.fault(index) for index in range(space.size)} == faults
    assert {space.index(one) for one in faults} == set(range(space.size))


def test_the_table_adds_up_to_the_population() -> None:
    space = small()
    rows = space.describe()
    assert sum(row.size for row in rows) == space.size
    assert all(row.size == row.bytes * row.variants * row.steps for row in rows)
    hashing = [row for row in rows if row.moment == "hashing"]
    assert {(row.by, row.steps) for row in hashing} == {("dma", 2)}
    assert kinds(space) == {"hashed": (3, 231), "unhashed": (2, 154), "free": (2, 154)}


def test_a_number_that_no_fault_has_is_an_index_error() -> None:
    space = small()
    for index in (-1, space.size):
        with pytest.raises(IndexError, match=f"no fault {index}: there are {space.size}"):
            space.fault(index)


@pytest.mark.parametrize(
    "token",
    [
        "dma.bit-flip.0.a+1.after-load",  # before the first part
        "dma.bit-flip.0.a+5.after-load",  # between the parts
        "dma.bit-flip.0.a+9.after-load",  # behind the last
        "dma.bit-flip.8.a+2.after-load",  # no such variant
        "dma.byte.0.a+2.after-load",  # not this model
        "dma.bit-flip.0.c+2.after-load",  # nor place
        "late-cpu.bit-flip.0.a+2.hashing-8",  # nor writer
        "cpu.bit-flip.0.a+2.hashing-8",  # who cannot be there
        "dma.bit-flip.0.a+2.hashing-9",  # nor moment
        "dma.bit-flip.0.a+2.after-check",
    ],
)
def test_a_fault_of_another_space_has_no_number(token: str) -> None:
    with pytest.raises(InputError, match="is not in the campaign's space"):
        small().index(CampaignFault.parse(token))


def test_a_space_without_a_fault_is_refused() -> None:
    area = Area("a", PhysRange(0, 8), Kind.FREE, 0)
    for areas, writers in (([], [By.DMA]), ([area], [By.CPU])):
        with pytest.raises(InputError, match="there is no fault in such a space"):
            Space(areas, [MODELS["byte"]], writers, [(When.AFTER_CHECK, 0)])


# -- of a scenario -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[KernelModel, Kimage]]:
    scenario = Scenario(
        schema=1, name="x", machine=Machine(ram="128M", cpus=2), kernel=KernelTable(cmdline="crashkernel=32M")
    )
    kernel, made = prepare(scenario_setup(scenario, find_scenario("golden").parent))
    yield kernel, made
    kernel.board.close()


def campaign(**keys: tuple[str, ...]) -> Scenario:
    return Scenario(schema=1, name="x", machine=Machine(cpus=2), campaign=CampaignTable(**keys))


def test_without_a_table_it_is_every_bit_of_every_segment(loaded: tuple[KernelModel, Kimage]) -> None:
    space = space_of(campaign(), *loaded)
    assert space.size == 8 * sum(one.memsz for one in loaded[1].segments)
    assert kinds(space)["purgatory"][0] == next(
        one.memsz for one in loaded[1].segments if one.name == "purgatory"
    )


def test_faults_of_a_loaded_image_are_where_their_names_say(loaded: tuple[KernelModel, Kimage]) -> None:
    kernel, made = loaded
    space = space_of(campaign(where=("crashkernel", "edges"), models=("byte",)), kernel, made)
    assert kernel.crashk_res is not None
    assert space.places is not None
    assert kinds(space)["hashed"][0] == sum(area.size for area in made.sha_regions)
    size = sum(row.bytes for row in space.describe())
    assert size == kernel.crashk_res.size + 2 * EDGE
    for stratum in space.strata:
        for index in (stratum.first, stratum.first + stratum.size - 1):
            at = space.places.reach(space.fault(index)).start
            segment = made.segment_at(at)
            if stratum.area.kind in (Kind.HASHED, Kind.PURGATORY):
                assert segment is not None
                assert segment.name == space.fault(index).base
            else:
                assert segment is None
            hashed = any(at in area for area in made.sha_regions)
            assert hashed == (stratum.area.kind is Kind.HASHED)
            assert (at in kernel.crashk_res) == (stratum.area.kind is not Kind.EDGE)


def test_hashing_is_sixteen_steps_of_it(loaded: tuple[KernelModel, Kimage]) -> None:
    space = space_of(campaign(by=("dma", "late-cpu"), moments=("hashing",)), *loaded)
    assert {row.steps for row in space.describe()} == {16}
    assert space.size == 2 * 16 * 8 * sum(one.memsz for one in loaded[1].segments)
    assert sum(HASHING_STEPS) / 16 == 128


def test_what_the_loaded_image_or_the_machine_lacks_is_refused() -> None:
    scenario = Scenario(
        schema=1,
        name="x",
        machine=Machine(ram="128M"),
        kernel=KernelTable(cmdline="crashkernel=32M", purgatory="none"),
        load=Load(initrd="none"),
    )
    kernel, made = prepare(scenario_setup(scenario, find_scenario("golden").parent))
    for table, words in (
        (campaign(where=("initrd",)), r"campaign\.where: no segment 'initrd'"),
        (campaign(by=("late-cpu",), moments=("during-panic",)), r"campaign\.by: .* this machine has one CPU"),
    ):
        with pytest.raises(InputError, match=words):
            space_of(table, kernel, made)
    assert set(kinds(space_of(campaign(), kernel, made))) == {"unhashed"}
    kernel.board.close()


def test_campaign_16m_is_every_bit_of_16_mib() -> None:
    path = find_scenario("campaign-16m")
    scenario = read(path)
    space = space_of(scenario, *prepare(scenario_setup(scenario, path.parent)))
    assert space.size == 8 * (16 << 20)
    assert {(row.model, row.by, row.moment) for row in space.describe()} == {
        ("bit-flip", "cpu", "after-load")
    }
