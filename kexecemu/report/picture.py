"""Where everything lies, as the geometry of a drawing: RAM, the crash region in it, and the segments in that.

Three bars stand side by side, lowest address on top as in /proc/iomem. The first two are to scale. In the third the
segments are to scale among themselves on top of a height in which a name can be read, and what is unused is folded
away; thin lines join each segment with its true place. This module only computes; templates/picture.svg draws.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kexecemu.crash.damage import Damage
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.memory.memblock import merge
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown
from kexecemu.stray.fault import Injection

__all__ = ["Bar", "Box", "Marker", "Picture", "Piece", "draw", "effect_of", "size_text"]

WIDTH = 392
TOP = 52  # below the headings
_FOOT = 20

_NAME_ROW, _ADDRESS_ROW, _FAULT_ROW, _PADDING = 16, 14, 14, 9
_SHARE = 130  # height that the segments divide by size, beyond what each needs for its label
_ROWS_SHOWN = 6  # a segment that is hit more often says how many more there are
_BANK_GAP = 14  # height of the hole between two banks of RAM, whatever its size
_LEAST = 2.5  # a mark is never thinner than this
_ABREAST = 4  # markers at one place stand side by side, up to so many
_MARKER = 15


@dataclass(frozen=True)
class Stretch:
    """A stretch of a bar: from y on, height down."""

    y: float
    height: float

    @property
    def bottom(self) -> float:
        """The y of its lower edge."""
        return round(self.y + self.height, 2)


@dataclass(frozen=True)
class Box(Stretch):
    """A stretch that is one rectangle; kind says how it looks, title what it is."""

    kind: str
    title: str


@shown()
@dataclass(frozen=True)
class Marker:
    """A stray write: number as in the list of writes, y on its bar, column counted away from the bar."""

    number: int
    by: str
    effect: str
    y: float
    column: int
    title: str


@shown()
@dataclass(frozen=True)
class Bar:
    """One of the two bars that are to scale, with the addresses at its ends (first and last, inclusive)."""

    first: str
    last: str
    boxes: list[Box]
    markers: list[Marker] = field(default_factory=list)


@shown()
@dataclass(frozen=True)
class Piece(Stretch):
    """A piece of the third bar: a segment, the control pages, or a part that nothing uses.

    y and height place it; true_y and true_height are its place on the bar that is to scale. stored is the height of
    what came from the file, the rest of a segment is zeros. protected, hashed and damage are parts of it.
    """

    area: PhysRange
    kind: str
    name: str
    size: str
    true_y: float
    true_height: float
    stored: float
    protected: list[Box]
    hashed: list[Box]
    damage: list[Box]
    markers: list[Marker]

    @property
    def rows(self) -> list[Marker]:
        """The writes that are named beside the piece, the rest is counted in `more`."""
        return self.markers[:_ROWS_SHOWN]

    @property
    def more(self) -> int:
        """How many writes are not named beside the piece."""
        return max(0, len(self.markers) - _ROWS_SHOWN)


@shown()
@dataclass(frozen=True)
class Picture:
    """Everything that is drawn. zoom is the crash region's place on the bar of RAM."""

    width: int
    height: float
    top: float
    bottom: float
    ram: Bar
    region: Bar
    zoom: Box
    pieces: list[Piece]


def size_text(size: int) -> str:
    """A size in bytes for people: "172 KiB", "125.8 MiB", "4 bytes"."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} byte{'s' if size != 1 else ''}"


def effect_of(injection: Injection) -> str:
    """What came of a write at its moment: stopped, partly, changed or same."""
    if injection.exception is not None:
        return "partly" if injection.changed else "stopped"
    return "changed" if injection.changed else "same"


@dataclass(frozen=True)
class _Part:
    """A piece before it has a place."""

    area: PhysRange
    kind: str
    name: str
    stored: int


def _parts(image: Kimage, region: PhysRange) -> list[_Part]:
    parts = [_Part(one.area, one.name, one.name, one.bufsz) for one in image.segments]
    control = merge(list(image.control_pages))
    for area in control:
        parts.append(_Part(area, "control", f"control page{'s' if area.size > 4096 else ''}", area.size))
    used = [part.area for part in parts]
    parts += [_Part(area, "unused", "unused", area.size) for area in subtract([region], used)]
    return sorted((part for part in parts if part.area.size), key=lambda part: part.area)


def _scale(area: PhysRange, y: float, height: float) -> Callable[[PhysRange], tuple[float, float]]:
    """A function from a range to (y, height) on a bar that shows `area`; marks are clipped to it."""

    def place(part: PhysRange) -> tuple[float, float]:
        first = y + height * (max(part.start, area.start) - area.start) / area.size
        last = y + height * (min(part.end, area.end) - area.start) / area.size
        tall = min(max(last - first, _LEAST), height)
        return round(min(first, y + height - tall), 2), round(tall, 2)

    return place


def _boxes(parts: Iterable[PhysRange], piece: PhysRange, y: float, height: float, kind: str) -> list[Box]:
    """The parts that lie in a piece, as boxes on it."""
    place = _scale(piece, y, height)
    return [Box(*place(part), kind, f"{kind}: {part}") for part in parts if part.overlaps(piece)]


def _markers(hits: Iterable[tuple[int, Injection, float]]) -> list[Marker]:
    """Markers of writes on one bar, from (number, write, y); where they would cover each other they go abreast."""
    placed: list[Marker] = []
    for number, injection, y in hits:
        fault = injection.fault
        taken = {other.column for other in placed if abs(other.y - y) < _MARKER}
        column = min(set(range(_ABREAST)) - taken, default=_ABREAST - 1)
        effect = effect_of(injection)
        title = f"write {number}: {fault.by.value} at {fault.at} ({injection.phys:#x}): {effect}"
        placed.append(Marker(number, fault.by.value, effect, y, column, title))
    return placed


def _hit_y(injection: Injection, area: PhysRange, y: float, height: float) -> float:
    """Where on a bar that shows `area` a write lies: the middle of its bytes."""
    top, tall = _scale(area, y, height)(PhysRange.of(injection.phys, injection.fault.length))
    return round(top + tall / 2, 2)


def _ram_bar(
    banks: Sequence[PhysRange],
    marks: Sequence[tuple[PhysRange, str, str]],
    hits: Sequence[tuple[int, Injection]],
    height: float,
) -> tuple[Bar, list[Box]]:
    """The bar of RAM, and the boxes of `marks` in their order (a mark lies in one bank)."""
    total = sum(bank.size for bank in banks)
    room = height - _BANK_GAP * (len(banks) - 1)
    y = float(TOP)
    boxes: list[Box] = []
    places: list[Box] = [Box(TOP, height, kind, title) for _, kind, title in marks]
    marked: list[tuple[int, Injection, float]] = []
    for bank in banks:
        tall = round(room * bank.size / total, 2)
        boxes.append(Box(round(y, 2), tall, "bank", f"RAM {bank}"))
        place = _scale(bank, y, tall)
        for index, (area, kind, title) in enumerate(marks):
            if area.overlaps(bank):
                places[index] = Box(*place(area), kind, f"{title} {area}")
        marked += [(number, hit, _hit_y(hit, bank, y, tall)) for number, hit in hits if hit.phys in bank]
        y += tall + _BANK_GAP
    return Bar(f"{banks[0].start:#x}", f"{banks[-1].last:#x}", boxes + places, _markers(marked)), places


def _heights(parts: Sequence[_Part], hits: Sequence[int]) -> list[float]:
    """The height of each piece, in which its label can be read; `hits` counts the writes that it names."""
    loaded = sum(part.area.size for part in parts if part.kind not in ("control", "unused"))
    heights = []
    for part, count in zip(parts, hits, strict=True):
        rows = min(count, _ROWS_SHOWN) + (count > _ROWS_SHOWN)
        height = _PADDING + _NAME_ROW + (_ADDRESS_ROW if part.kind != "unused" else 0) + _FAULT_ROW * rows
        share = _SHARE * part.area.size / loaded if part.kind not in ("control", "unused") else 0
        heights.append(round(height + share, 2))
    return heights


def _piece(
    part: _Part,
    stretch: tuple[float, float],
    true_place: tuple[float, float],
    inside: Mapping[str, Sequence[PhysRange]],
    markers: list[Marker],
) -> Piece:
    """A part where it stands, with the ranges inside of it by their kind."""
    area = part.area
    protected, hashed, damage = (_boxes(each, area, *stretch, kind) for kind, each in inside.items())
    size, stored = size_text(area.size), round(stretch[1] * part.stored / area.size, 2)
    named = (part.kind, part.name, size)
    return Piece(*stretch, area, *named, *true_place, stored, protected, hashed, damage, markers)


def draw(
    image: Kimage,
    region: PhysRange,
    banks: Sequence[PhysRange],
    others: Sequence[tuple[PhysRange, str, str]],
    protected: Sequence[PhysRange],
    injections: Sequence[Injection],
    damage: Sequence[Damage],
) -> Picture:
    """Place everything. region is crashk_res; others are further areas to show in RAM, as (area, kind, title).

    All ranges are physical. Writes into the region are marked on the third bar, all others on the bar of RAM.
    """
    numbered = list(enumerate(injections, 1))
    parts = _parts(image, region)
    inside = [[hit for hit in numbered if hit[1].phys in part.area] for part in parts]
    heights = _heights(parts, [len(hits) for hits in inside])
    height = round(sum(heights), 2)
    tops = [round(TOP + sum(heights[:index]), 2) for index in range(len(parts))]
    placed = list(zip(parts, zip(tops, heights, strict=True), inside, strict=True))
    markers = _markers(
        (number, hit, _hit_y(hit, part.area, *stretch))
        for part, stretch, hits in placed
        for number, hit in hits
    )
    segments = ((image.segment(one.segment), one) for one in damage)
    harmed = [PhysRange.of(segment.mem + one.offset, one.length) for segment, one in segments if segment]
    ranges = {"protected": merge(list(protected)), "hashed": image.sha_regions, "damage": harmed}
    true_place = _scale(region, TOP, height)
    pieces = []
    for part, stretch, hits in placed:
        own = [one for one in markers if any(one.number == number for number, _ in hits)]
        pieces.append(_piece(part, stretch, true_place(part.area), ranges, own))
    outside = [hit for hit in numbered if hit[1].phys not in region]
    ram, places = _ram_bar(banks, [*others, (region, "region", "crash region")], outside, height)
    to_scale = [Box(one.true_y, one.true_height, one.kind, f"{one.name} {one.area}") for one in pieces]
    used = Bar(f"{region.start:#x}", f"{region.last:#x}", [box for box in to_scale if box.kind != "unused"])
    bottom = round(TOP + height, 2)
    return Picture(WIDTH, round(TOP + height + _FOOT, 2), TOP, bottom, ram, used, places[-1], pieces)
