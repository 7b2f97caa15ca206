"""Finding holes for segments and control pages, and the sanity check over the result."""

from __future__ import annotations

from errno import EADDRNOTAVAIL, EINVAL, ENOMEM

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import MIB

from kexecemu.errors import KexecError
from kexecemu.kernel.base.config import Era
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.load.kexec_core import (
    add_buffer,
    alloc_crash_control_pages,
    find_hole,
    sanity_check_segment_list,
)
from kexecemu.machine.ranges import PhysRange

REGION = PhysRange(0x6A000000, 0x70000000)
PAGE = 4096
ULONG_MAX = (1 << 64) - 1


def segment(start: int, end: int, name: str = "x") -> Segment:
    return Segment(name, b"", start, end - start)


# -- the real kernel's addresses -------------------------------------------------------------------------------


def test_every_segment_lands_where_linux_6_1_put_it() -> None:
    """768 MiB, crashkernel=96M, Linux 6.1.192 with a purgatory added; in kimage order."""
    taken: list[Segment] = []
    for size, align, top_down, expected in (
        (0x550000, 2 * MIB, False, 0x6A000000),  # kernel
        (0x1000, 0x10000, True, 0x6FFF0000),  # elfcorehdr
        (0x27E000, PAGE, False, 0x6A550000),  # initrd
        (0x2000, 2 * MIB, True, 0x6FE00000),  # dtb
        (0x3000, PAGE, True, 0x6FFFC000),  # purgatory: ends a page short of the region's end
    ):
        floor = 0x6A550000 if taken else 0
        got = find_hole(REGION, taken, size, align, top_down=top_down, era=Era.V6_1, buf_min=floor)
        assert got == expected
        taken.append(segment(got, got + size))


@pytest.mark.parametrize(
    ("era", "start"), [(Era.V6_1, 0x6FFFE000), (Era.V6_4, 0x6FFFE000), (Era.V6_12, 0x6FFFF000)]
)
def test_only_later_kernels_use_the_last_page_of_a_region(era: Era, start: int) -> None:
    assert find_hole(REGION, [], PAGE, PAGE, top_down=True, era=era) == start


@pytest.mark.parametrize(("era", "fits"), [(Era.V6_1, False), (Era.V6_12, True)])
def test_a_segment_as_large_as_the_region_fits_top_down_only_in_later_kernels(era: Era, fits: bool) -> None:
    assert find_hole(REGION, [], REGION.size, PAGE, top_down=True, era=era) == (
        REGION.start if fits else None
    )
    assert find_hole(REGION, [], REGION.size, PAGE, top_down=False, era=era) == REGION.start


def test_a_floor_or_a_ceiling_outside_the_region_leaves_nothing() -> None:
    for limits in ({"buf_min": REGION.end}, {"buf_max": REGION.start - 1}):
        for top_down in (True, False):
            assert find_hole(REGION, [], PAGE, PAGE, top_down=top_down, era=Era.V6_1, **limits) is None


# -- the search against one that does what the kernel's loops do -----------------------------------------------


def kernel_search(
    region: PhysRange,
    taken: list[Segment],
    size: int,
    align: int,
    top_down: bool,
    era: Era,
    floor: int,
    ceiling: int,
    random: int | None = None,
) -> int | None:
    """locate_mem_hole_top_down() and _bottom_up(), page by page, with resources' inclusive ends."""
    start, end = region.start, region.end - 1
    if end - start + 1 < size or end < floor or start > ceiling:
        return None

    def is_destination_range(first: int, last: int) -> bool:
        return any(last > one.mem and first < one.mem + one.memsz for one in taken)

    if top_down:
        place = min(end, ceiling) - size + (0 if era is Era.V6_1 else 1)
        if random is not None:
            place += (min(end, ceiling) - place) // 65535 * random
        while True:
            place -= place % align
            if place < start or place < floor:
                return None
            if not is_destination_range(place, place + size - 1):
                return place
            place -= PAGE
    place = max(start, floor)
    if random is not None:
        place += (end - place) // 65535 * random
    while True:
        place += -place % align
        last = place + size - 1
        if last > end or last > ceiling:
            return None
        if not is_destination_range(place, last):
            return place
        place += PAGE


pages = st.integers(0, 48)


@given(
    region=st.tuples(st.integers(64, 80), st.integers(1, 48)),
    taken=st.lists(st.tuples(st.integers(60, 130), st.integers(1, 12)), max_size=5),
    size=st.integers(1, 24),
    align=st.sampled_from([1, 2, 4, 16]),
    top_down=st.booleans(),
    era=st.sampled_from([Era.V6_1, Era.V6_12, Era.V6_16]),
    floor=st.integers(0, 130),
    ceiling=st.one_of(st.just(ULONG_MAX), st.integers(60 * PAGE, 130 * PAGE)),
    random=st.one_of(st.none(), st.integers(0, 65535)),
)
def test_the_search_finds_what_a_search_page_by_page_finds(
    region: tuple[int, int],
    taken: list[tuple[int, int]],
    size: int,
    align: int,
    top_down: bool,
    era: Era,
    floor: int,
    ceiling: int,
    random: int | None,
) -> None:
    area = PhysRange.of(region[0] * PAGE, region[1] * PAGE)
    segments = [segment(start * PAGE, (start + count) * PAGE) for start, count in taken]
    got = find_hole(
        area,
        segments,
        size * PAGE,
        align * PAGE,
        top_down=top_down,
        era=era,
        buf_min=floor * PAGE,
        buf_max=ceiling,
        random=None if random is None else lambda: random,
    )
    assert got == kernel_search(
        area, segments, size * PAGE, align * PAGE, top_down, era, floor * PAGE, ceiling, random
    )
    if got is not None and random is None:
        place = PhysRange.of(got, size * PAGE)
        assert area.covers(place) and got % (align * PAGE) == 0
        assert got >= floor * PAGE and place.last <= ceiling
        assert not any(place.overlaps(one.area) for one in segments)


# -- random places: kexec_random_range_start() -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "top_down", "number", "start"),
    [
        # 0x5ffffff bytes of way are 65535 steps of 0x600.
        (PAGE, False, 0, 0x6A000000),
        (PAGE, False, 1, 0x6A001000),
        (PAGE, False, 0x8000, 0x6A000000 + 0x600 * 0x8000),
        (PAGE, False, 65533, 0x6FFFF000),
        (PAGE, False, 65535, None),  # 0x6ffffa00, which no page begins behind
        (0x100000, False, 60000, 0x6F7E4000),  # 0x600 * 60000 = 0x57e4000
        (0x100000, False, 65000, None),  # the rest of the region is too small, and nothing below is looked at
        # From above the way is the segment's own size: one of less than 64 KiB does not move.
        (0xF000, True, 65535, 0x6FFF1000),
        (0x10000, True, 65535, 0x6FFFF000),
        (0x100000, True, 0, 0x6FF00000),
        (0x100000, True, 65535, 0x6FFFF000),  # and then ends behind the region
    ],
)
def test_a_random_start_is_so_many_65535ths_of_the_way(
    size: int, top_down: bool, number: int, start: int | None
) -> None:
    found = find_hole(REGION, [], size, PAGE, top_down=top_down, era=Era.V6_16, random=lambda: number)
    assert found == start


def test_a_segment_from_above_that_leaves_the_region_by_chance_is_refused_by_the_check_over_all() -> None:
    image = Kimage(control_page=REGION.start)
    add_buffer(image, "dtb", b"", MIB, 0, region=REGION, era=Era.V6_16, page_size=PAGE, random=lambda: 65535)
    with pytest.raises(KexecError, match=r"dtb at .* is not inside crashkernel") as refusal:
        sanity_check_segment_list(image, REGION, 1 << 20, PAGE)
    assert refusal.value.errno == EADDRNOTAVAIL


def test_want_of_room_behind_a_random_place_says_so() -> None:
    image = Kimage(control_page=REGION.start)
    with pytest.raises(KexecError, match=r"\(looked for from a random place on\), largest hole .* 0x6000000"):
        add_buffer(
            image, "initrd", b"", MIB, 0, region=REGION, era=Era.V6_16, page_size=PAGE, top_down=False,
            random=lambda: 65500,
        )  # fmt: skip


# -- kexec_add_buffer() ----------------------------------------------------------------------------------------


def add(image: Kimage, size: int = PAGE, region: PhysRange | None = REGION, align: int = 0) -> Segment:
    return add_buffer(
        image,
        "initrd",
        b"x",
        size,
        align,
        region=region,
        top_down=False,
        era=Era.V6_4,
        page_size=PAGE,
    )


def test_a_segment_takes_whole_pages_and_is_page_aligned() -> None:
    image = Kimage(control_page=REGION.start)
    first, second = add(image, 1), add(image, PAGE + 1)
    assert (first.mem, first.memsz) == (REGION.start, PAGE)
    assert (second.mem, second.memsz) == (REGION.start + PAGE, 2 * PAGE)
    assert image.segments == [first, second]


def test_the_seventeenth_segment_is_refused() -> None:
    image = Kimage(control_page=REGION.start)
    for _ in range(16):
        add(image)
    with pytest.raises(KexecError) as refusal:
        add(image)
    assert (refusal.value.errno, refusal.value.step) == (EINVAL, "kexec_add_buffer")
    assert len(image.segments) == 16


def test_without_a_crash_region_there_is_no_place() -> None:
    with pytest.raises(KexecError, match="no crashkernel memory is reserved") as refusal:
        add(Kimage(control_page=0), region=None)
    assert refusal.value.errno == EADDRNOTAVAIL


def test_a_segment_that_does_not_fit_is_refused_with_what_it_needs_and_what_there_is() -> None:
    image = Kimage(control_page=REGION.start)
    image.segments.append(segment(REGION.start + 16 * MIB, REGION.end - 8 * MIB))
    with pytest.raises(KexecError) as refusal:
        add(image, 16 * MIB + 1)
    assert refusal.value.errno == EADDRNOTAVAIL
    assert str(refusal.value) == (
        "crash image does not fit: initrd needs 0x1001000 bytes aligned to 0x1000, "
        "largest hole in crashkernel 0x6a000000-0x6fffffff is 0x1000000 (EADDRNOTAVAIL from kexec_add_buffer)"
    )
    assert len(image.segments) == 1


# -- sanity_check_segment_list() -------------------------------------------------------------------------------


def check(*segments: Segment, region: PhysRange | None = REGION, ram_pages: int = 1 << 18) -> None:
    sanity_check_segment_list(Kimage(0, list(segments)), region, ram_pages, PAGE)


def refused(*segments: Segment, region: PhysRange | None = REGION, ram_pages: int = 1 << 18) -> int | None:
    with pytest.raises(KexecError) as refusal:
        check(*segments, region=region, ram_pages=ram_pages)
    assert refusal.value.step == "sanity_check_segment_list"
    return refusal.value.errno


def test_segments_that_touch_and_fill_the_region_are_fine() -> None:
    middle = REGION.start + 32 * MIB
    check(segment(REGION.start, middle), segment(middle, REGION.end))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0x6A000800, 0x6A001800),
        (0x6A000000, 0x6A000800),
        (0x6A000001, 0x6A001000),
        (ULONG_MAX - 0xFFF, 1 << 64),
    ],
)
def test_a_segment_off_page_boundaries_or_at_the_end_of_the_world_has_no_address(
    start: int, end: int
) -> None:
    assert refused(segment(start, end)) == EADDRNOTAVAIL


def test_segments_that_overlap_by_one_page_are_refused() -> None:
    assert refused(segment(0x6A000000, 0x6A002000), segment(0x6A001000, 0x6A003000)) == EINVAL


def test_more_bytes_than_memory_for_them_is_refused() -> None:
    check(Segment("kernel", bytes(PAGE), REGION.start, PAGE))
    assert refused(Segment("kernel", bytes(PAGE + 1), REGION.start, PAGE)) == EINVAL


def test_an_image_of_more_than_half_of_ram_is_refused_alone_or_in_sum() -> None:
    one = segment(0x6A000000, 0x6A000000 + 8 * PAGE)
    two = segment(0x6B000000, 0x6B000000 + 8 * PAGE)
    check(one, two, ram_pages=32)
    assert refused(one, ram_pages=15) == EINVAL
    assert refused(one, two, ram_pages=31) == EINVAL


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (REGION.start - PAGE, REGION.start + PAGE),
        (REGION.end - PAGE, REGION.end + PAGE),
        (0x50000000, 0x50001000),
    ],
)
def test_a_segment_outside_the_crash_region_has_no_address(start: int, end: int) -> None:
    assert refused(segment(start, end)) == EADDRNOTAVAIL


def test_of_several_faults_the_kernel_s_first_check_answers() -> None:
    unaligned, outside = segment(0x6A000800, 0x6A001800), segment(0x50000000, 0x50001000)
    too_long = Segment("kernel", bytes(2 * PAGE), 0x50000000, PAGE)
    assert refused(too_long, unaligned) == EADDRNOTAVAIL  # alignment is looked at for all segments first
    assert refused(outside, outside) == EINVAL  # overlap before the region
    assert refused(too_long) == EINVAL  # length before the region


# -- control pages ---------------------------------------------------------------------------------------------


def test_control_pages_are_the_first_holes_from_the_start_of_the_region() -> None:
    image = Kimage(REGION.start, [segment(REGION.start, REGION.start + 3 * PAGE)])
    first = alloc_crash_control_pages(image, REGION, PAGE, "control_code_buffer")
    second = alloc_crash_control_pages(image, REGION, PAGE, "vmcoreinfo copy buffer")
    assert (first.start, second.start) == (REGION.start + 3 * PAGE, REGION.start + 4 * PAGE)
    assert image.control_pages == [first, second]


def test_a_full_region_has_no_control_page() -> None:
    image = Kimage(REGION.start, [segment(REGION.start, REGION.end)])
    with pytest.raises(KexecError, match="Could not allocate control_code_buffer") as refusal:
        alloc_crash_control_pages(image, REGION, PAGE, "control_code_buffer")
    assert refusal.value.errno == ENOMEM


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=6),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 4),
)
def test_control_pages_overlap_nothing_and_none_in_front_was_free(
    taken: list[tuple[int, int]], count: int, wanted: int
) -> None:
    region = PhysRange.of(64 * PAGE, 32 * PAGE)
    image = Kimage(region.start, [segment((60 + at) * PAGE, (60 + at + size) * PAGE) for at, size in taken])
    used = {page for one in image.segments for page in range(one.mem // PAGE, one.area.end // PAGE)}
    expected = []
    for _ in range(wanted):
        place = next(
            (
                at
                for at in range(64, 97 - count)
                if at % count == 0 and used.isdisjoint(range(at, at + count))
            ),
            None,
        )
        if place is None:
            break
        expected.append(place * PAGE)
        used |= set(range(place, place + count))
    got = []
    try:
        for _ in range(wanted):
            got.append(alloc_crash_control_pages(image, region, count * PAGE, "x").start)
    except KexecError as error:
        assert error.errno == ENOMEM
    assert got == expected
