"""The drawing: that it shows addresses where they are, and that what is drawn is what is computed."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.crash.damage import Damage
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.memory.memblock import merge
from kexecemu.machine.ranges import PhysRange
from kexecemu.report.html import render
from kexecemu.report.picture import TOP, Picture, draw, size_text
from kexecemu.stray.fault import By, Fault, Injection

_MIB = 1 << 20
_REGION = PhysRange.of(0x7000_0000, 128 * _MIB)
_BANK = PhysRange.of(0x4000_0000, 1 << 30)


def _write(phys: int, *, by: By = By.DMA) -> Injection:
    return Injection(Fault(f"{phys:#x}", write=b"\x01", by=by), phys, b"\0", b"\x01")


def _picture(segments: list[Segment], *writes: int, damage: tuple[Damage, ...] = ()) -> Picture:
    image = Kimage(control_page=0, segments=segments)
    return draw(image, _REGION, [_BANK], [], [], [_write(phys) for phys in writes], damage)


def _svg(document: str) -> ElementTree.Element:
    """The drawing parsed as XML: stricter than any browser."""
    match = re.search(r'<svg class="picture".*?</svg>', document, re.DOTALL)
    assert match is not None
    return ElementTree.fromstring(match[0])


def _number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


@pytest.mark.parametrize("name", ["golden", "stamped-under-pte", "dma-under-pte", "purgatory-check-skipped"])
def test_the_drawing_has_all_pieces_in_the_order_of_their_addresses(run, name):
    result = run(name)
    drawn = [
        group.get("data-name") for group in _svg(render(result)).iter("g") if group.get("class") == "piece"
    ]
    segments = sorted(result.image.segments, key=lambda segment: segment.mem)
    assert [one for one in drawn if one not in ("unused", "control pages")] == [one.name for one in segments]
    assert drawn.count("control pages") == 1


@pytest.mark.parametrize("name", ["golden", "dma-under-pte"])
def test_the_drawing_stays_inside_its_own_frame(run, name):
    svg = _svg(render(run(name)))
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    rects = [one for one in svg.iter("rect") if one.get("class") != "hatch"]
    assert len(rects) > 20
    for rect in rects:
        assert _number(rect, "x") >= 0
        assert _number(rect, "x") + _number(rect, "width") <= width
        assert _number(rect, "y") >= TOP - 0.01
        assert _number(rect, "y") + _number(rect, "height") <= height
        assert _number(rect, "height") > 0


def test_every_address_in_the_drawing_is_a_real_one(run):
    result = run("golden")
    said = {text.text for text in _svg(render(result)).iter("text") if text.get("class") == "address"}
    for segment in result.image.segments:
        assert f"{segment.area.start:#x}–{segment.area.last:#x}" in said


def _drawn(svg: ElementTree.Element, kind: str) -> dict[str, int]:
    """How many boxes of a kind each piece has."""
    pieces = [group for group in svg.iter("g") if group.get("class") == "piece"]
    counts = {
        str(piece.get("data-name")): sum(rect.get("class") == kind for rect in piece.iter("rect"))
        for piece in pieces
        if piece.get("data-name") != "unused"
    }
    return {name: count for name, count in counts.items() if count}


def test_protected_hashed_and_harmed_parts_are_drawn_where_they_are(run):
    svg = _svg(render(run("dma-under-pte")))
    all_four = {"kernel": 1, "initrd": 1, "dtb": 1, "elfcorehdr": 1}
    assert _drawn(svg, "protected") == {**all_four, "purgatory": 1}
    assert _drawn(svg, "hashed") == all_four
    assert _drawn(svg, "damage") == {"initrd": 1}
    plain = _svg(render(run("golden")))
    assert _drawn(plain, "protected") == _drawn(plain, "damage") == {}


def test_a_read_only_region_is_protected_but_for_its_control_pages(crashed):
    svg = _svg(render(crashed(protection="readonly")))
    pieces = [group for group in svg.iter("g") if group.get("class") == "piece"]
    bare = [
        piece.get("data-name")
        for piece in pieces
        if not any(rect.get("class") == "protected" for rect in piece.iter("rect"))
    ]
    assert bare == ["control pages"]


@pytest.mark.parametrize(
    ("name", "shape", "effect"),
    [
        ("stamped-under-pte", "circle", "stopped"),
        ("initrd-stamped", "circle", "changed"),
        ("dma-under-pte", "path", "changed"),
        ("same-value-write", "circle", "same"),
    ],
)
def test_a_marker_shows_who_wrote_and_what_came_of_it(run, name, shape, effect):
    svg = _svg(render(run(name)))
    (marker,) = [group for group in svg.iter("g") if "marker" in str(group.get("class"))]
    assert marker.get("class") == f"marker {effect}"
    assert marker.find(shape) is not None
    # Its height lies in the initrd's piece: that is where all four write.
    (piece,) = [group for group in svg.iter("g") if group.get("data-name") == "initrd"]
    frame = next(rect for rect in piece.iter("rect") if rect.get("class") == "frame")
    (needle,) = [path for path in svg.iter("path") if "needle" in str(path.get("class"))]
    y = float(needle.get("d", "").split(",")[1].split()[0])
    assert _number(frame, "y") <= y <= _number(frame, "y") + _number(frame, "height")


def test_a_write_outside_the_region_is_marked_on_the_bar_of_ram(crashed):
    svg = _svg(render(crashed(Fault("vmlinux:crash_notes", write=b"\x01", by=By.DMA))))
    (ram,) = [group for group in svg.iter("g") if group.get("id") == "ram"]
    assert [group.get("data-number") for group in ram.iter("g") if group.get("data-number")] == ["1"]
    assert not [path for path in svg.iter("path") if "needle" in str(path.get("class"))]


def test_the_low_part_of_a_high_reservation_is_drawn_below_it(crashed):
    svg = _svg(render(crashed(ram="6G", era="6.12", cmdline="crashkernel=512M,high")))
    (ram,) = [group for group in svg.iter("g") if group.get("id") == "ram"]
    kinds = {str(rect.get("class")): _number(rect, "y") for rect in ram.iter("rect")}
    assert kinds["bank"] <= kinds["first"] < kinds["low"] < kinds["region"]


def test_the_bars_of_ram_and_region_are_to_scale():
    quarter = PhysRange.of(_REGION.start + 32 * _MIB, 32 * _MIB)
    picture = _picture([Segment("initrd", b"", quarter.start, quarter.size)])
    height = picture.bottom - picture.top
    (box,) = picture.region.boxes
    assert box.y == pytest.approx(picture.top + height / 4, abs=0.02)
    assert box.height == pytest.approx(height / 4, abs=0.02)
    assert picture.zoom.y == pytest.approx(picture.top + height * 0.75, abs=0.02)
    assert picture.zoom.height == pytest.approx(height / 8, abs=0.02)


def test_the_larger_segment_is_drawn_larger_and_the_smallest_can_still_be_read():
    segments = [
        Segment("kernel", b"", _REGION.start, 32 * _MIB),
        Segment("initrd", b"", _REGION.start + 32 * _MIB, 64 * _MIB),
        Segment("dtb", b"", _REGION.start + 100 * _MIB, 4096),
    ]
    height = {piece.name: piece.height for piece in _picture(segments).pieces}
    assert height["initrd"] > height["kernel"] > height["dtb"]
    assert height["dtb"] >= 30  # two lines of text
    assert height["initrd"] - height["dtb"] == pytest.approx(2 * (height["kernel"] - height["dtb"]), abs=0.1)


def test_damage_lies_at_its_offset_and_is_never_too_thin_to_see():
    segment = Segment("initrd", b"", _REGION.start, 64 * _MIB)
    picture = _picture([segment], damage=(Damage("initrd", 32 * _MIB, 1),))
    piece = picture.pieces[0]
    (box,) = piece.damage
    assert box.y == pytest.approx(piece.y + piece.height / 2, abs=0.02)
    assert box.height >= 2


def test_what_came_from_the_file_is_told_from_the_zeros_behind_it():
    picture = _picture([Segment("dtb", b"x" * 1024, _REGION.start, 4096)])
    assert picture.pieces[0].stored == pytest.approx(picture.pieces[0].height / 4, abs=0.01)


def test_writes_at_one_place_stand_side_by_side():
    segments = [Segment("initrd", b"", _REGION.start, 4096), Segment("dtb", b"", _REGION.start + 4096, 4096)]
    # The last byte of one piece and the first of the next, twice each.
    at = [_REGION.start + 4095, _REGION.start + 4095, _REGION.start + 4096, _REGION.start + 4096]
    markers = [marker for piece in _picture(segments, *at).pieces for marker in piece.markers]
    assert sorted(marker.column for marker in markers) == [0, 1, 2, 3]
    assert [marker.number for marker in markers] == [1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 127), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(0, 128 * _MIB - 1), max_size=12),
)
def test_any_layout_is_drawn_without_gap_or_overlap_and_each_write_in_its_piece(places, writes):
    names = ["kernel", "elfcorehdr", "initrd", "dtb", "purgatory"]
    segments = [
        Segment(name, b"", _REGION.start + place * _MIB, 4096 * (place + 1))
        for name, place in zip(names, places, strict=False)
    ]
    picture = _picture(segments, *(_REGION.start + offset for offset in writes))
    assert picture.pieces[0].y == picture.top
    assert picture.pieces[-1].bottom == pytest.approx(picture.bottom, abs=0.1)
    assert picture.pieces[0].area.start == _REGION.start
    assert picture.pieces[-1].area.end == _REGION.end
    for piece, following in pairwise(picture.pieces):
        assert piece.area.end == following.area.start
        assert piece.bottom == pytest.approx(following.y, abs=0.05)
    numbers = []
    for piece in picture.pieces:
        for marker in piece.markers:
            numbers.append(marker.number)
            assert _REGION.start + writes[marker.number - 1] in piece.area
            assert piece.y <= marker.y <= piece.bottom
    assert sorted(numbers) == list(range(1, len(writes) + 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))))
def test_merged_ranges_hold_the_same_bytes_and_never_touch(spans):
    areas = [PhysRange.of(start, size) for start, size in spans]
    merged = merge(areas)
    assert {byte for area in areas for byte in range(area.start, area.end)} == {
        byte for area in merged for byte in range(area.start, area.end)
    }
    assert all(one.end < other.start for one, other in pairwise(merged))


@pytest.mark.parametrize(
    ("size", "text"),
    [(1, "1 byte"), (4, "4 bytes"), (4096, "4 KiB"), (131907584, "125.8 MiB"), (6 << 30, "6 GiB")],
)
def test_sizes_read_like_sizes(size, text):
    assert size_text(size) == text


def test_two_banks_of_ram_are_drawn_with_a_hole_between_them():
    banks = [PhysRange.of(0x4000_0000, 1 << 30), PhysRange.of(0x8_0000_0000, 1 << 30)]
    image = Kimage(control_page=0, segments=[Segment("dtb", b"", _REGION.start, 4096)])
    picture = draw(image, _REGION, banks, [], [], [_write(0x8_2000_0000)], [])
    low, high = [box for box in picture.ram.boxes if box.kind == "bank"]
    assert low.bottom < high.y
    assert low.height == high.height
    assert high.bottom == pytest.approx(picture.bottom, abs=0.05)
    assert (picture.ram.first, picture.ram.last) == ("0x40000000", "0x83fffffff")
    (marker,) = picture.ram.markers
    assert marker.y == pytest.approx(high.y + high.height / 2, abs=1.5)
    assert low.y < picture.zoom.y < picture.zoom.bottom <= low.bottom + 0.01
