"""The drawings of a campaign's report as geometry: shares with their intervals, and the crash region as a heat strip.

This module only computes; the templates draw. Lengths are in the units of the drawings' view boxes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from kexecemu.campaign.stats import Figure
from kexecemu.campaign.summary import AreaHits
from kexecemu.report.campaign_words import DUMPS, occurring, plural
from kexecemu.shown import shown

__all__ = ["Axis", "Bin", "Lane", "Mark", "Place", "Strip", "axis_of", "named_dumps", "strip_of"]

AXIS_WIDTH = 300.0
_FURTHEST = -9  # decades: no sample tells smaller shares apart

STRIP_WIDTH = 960.0
_LEFT, _RIGHT = 86.0, 58.0  # for the lanes' names and their counts
_BAND_TOP, _BAND = 20.0, 16.0
_LANES_TOP, _LANE, _LANE_GAP = 46.0, 18.0, 4.0
_GAP = 4.0  # between areas
_LETTER = 6.4  # of the names above the band
_NARROW = 12.0  # an area that is too small for its name
_NAMED_FROM = 4096  # bytes: what is smaller is an edge, and its name is in the list alone
_BIN = 5.0
_PALEST = 0.45


# -- shares -----------------------------------------------------------------------------------------------------------


@shown()
@dataclass(frozen=True)
class Mark:
    """One row's drawing: x of the likeliest share and of both ends of its interval; middle None where none was seen."""

    low: float
    middle: float | None
    high: float


@shown()
@dataclass(frozen=True)
class Axis:
    """Shares from 10**first to 1, a decade always as wide as the next. ticks are (x, percentage), the largest first."""

    first: int
    ticks: list[tuple[float, str]]

    def x(self, share: float) -> float:
        """Where a share stands; what is too small for the axis stands at its beginning."""
        if share <= 0.0:
            return 0.0
        return round(max(0.0, AXIS_WIDTH * (1.0 - math.log10(share) / self.first)), 2)

    def mark(self, figure: Figure) -> Mark:
        """The drawing of one figure."""
        if figure.at_most is not None:
            return Mark(0.0, None, self.x(figure.at_most))
        interval = figure.interval
        return Mark(self.x(interval.low), self.x(interval.estimate), self.x(interval.high))


def axis_of(figures: Mapping[str, Figure]) -> Axis:
    """An axis on which every figure's interval, or bound, can be seen."""
    smallest = [figure.at_most or figure.interval.low for figure in figures.values()]
    least = min((share for share in smallest if share > 0.0), default=0.1)
    first = min(-1, max(_FURTHEST, math.floor(math.log10(least))))
    step = max(1, -first // 4)
    axis = Axis(first, [])
    for decade in range(0, first - 1, -step):
        axis.ticks.append((axis.x(10.0**decade), f"{10.0 ** (decade + 2):.10f}".rstrip("0").rstrip(".")))
    return axis


# -- the heat strip ---------------------------------------------------------------------------------------------------


@shown()
@dataclass(frozen=True)
class Place:
    """An area on the strip: x and width, and whether there is room for its name and its first address."""

    area: AreaHits
    x: float
    width: float
    named: bool
    addressed: bool


@dataclass(frozen=True)
class Bin:
    """A stretch of one lane: how strongly it is coloured (0 to 1), and what it says when pointed at."""

    x: float
    width: float
    opacity: float
    title: str


@shown()
@dataclass(frozen=True)
class Lane:
    """One outcome, or one of DUMPS, along the whole region: y of its top, its count, and the bins where it came out."""

    outcome: str
    y: float
    count: int
    bins: list[Bin]


@shown()
@dataclass(frozen=True)
class Strip:
    """Everything that is drawn. sampled are (x, width) of the stretches that any fault hit."""

    height: float
    places: list[Place]
    lanes: list[Lane]
    sampled: list[tuple[float, float]]
    lane_height: float = _LANE
    band_top: float = _BAND_TOP
    band_height: float = _BAND
    left: float = _LEFT
    right: float = STRIP_WIDTH - _RIGHT
    width: float = STRIP_WIDTH


def strip_of(areas: Sequence[AreaHits]) -> Strip:
    """The strip of the areas in order of address.

    An area gets the width of its name, and of the rest a share that grows with the logarithm of its size: the small
    ones are where the interesting faults are.
    """
    places = _places(areas)
    bins = [_bins(place, place.area.cells) for place in places]
    lanes = list(_lanes(places, bins, occurring(cell for area in areas for cell in area.cells), _LANES_TOP))
    bottom = _LANES_TOP + len(lanes) * (_LANE + _LANE_GAP)
    dumps = [_bins(place, tuple(map(named_dumps, place.area.dumps))) for place in places if place.area.dumps]
    if dumps:
        words = occurring((named_dumps(cell) for area in areas for cell in area.dumps), DUMPS)
        lanes += _lanes([place for place in places if place.area.dumps], dumps, words, bottom + 2 * _LANE_GAP)
        bottom += 2 * _LANE_GAP + len(words) * (_LANE + _LANE_GAP)
    return Strip(bottom + 16.0, places, lanes, _sampled(bins))


def named_dumps(cell: Mapping[str, int]) -> dict[str, int]:
    """Counts of what became of the dump, by the names of DUMPS."""
    return {f"dump {dump}": count for dump, count in cell.items()}


def _lanes(
    places: Sequence[Place], bins: Sequence[Sequence[_Stretch]], words: Sequence[str], top: float
) -> Iterator[Lane]:
    """A lane for each word."""
    for number, word in enumerate(words):
        coloured = [
            _bin(place, word, *stretch)
            for place, stretches in zip(places, bins, strict=True)
            for stretch in stretches
            if stretch[-1][word]
        ]
        count = sum(counts[word] for stretches in bins for *_, counts in stretches)
        yield Lane(word, top + number * (_LANE + _LANE_GAP), count, coloured)


def _places(areas: Sequence[AreaHits]) -> list[Place]:
    sizes = [area.end - area.start for area in areas]
    large = [size >= _NAMED_FROM for size in sizes]
    names = [len(area.name) * _LETTER for area in areas]
    least = [name + 8.0 if named else _NARROW for name, named in zip(names, large, strict=True)]
    weights = [math.log2(size) if named else 0.0 for size, named in zip(sizes, large, strict=True)]
    room = STRIP_WIDTH - _LEFT - _RIGHT - _GAP * max(0, len(areas) - 1)
    if sum(least) > room:
        # Too many areas for their names: those that have none left are in the list below the strip.
        least = [one * room / sum(least) for one in least]
    spare, total = max(0.0, room - sum(least)), sum(weights) or 1.0
    places, x = [], _LEFT
    for number, area in enumerate(areas):
        width = least[number] + spare * weights[number] / total
        named = large[number] and width >= names[number]
        places.append(Place(area, round(x, 2), round(width, 2), named, named and width >= 70.0))
        x += width + _GAP
    return places


_Stretch = tuple[float, float, int, int, "Counter[str]"]  # x, width, first and end address, counts


def _bins(place: Place, counted: Sequence[Mapping[str, int]]) -> list[_Stretch]:
    """The area's cells in groups that are wide enough to be seen."""
    area = place.area
    cells, size = len(counted), area.end - area.start
    count = max(1, min(cells, int(place.width / _BIN)))
    bins = []
    for number in range(count):
        first, end = number * cells // count, (number + 1) * cells // count
        counts = sum(map(Counter, counted[first:end]), Counter[str]())
        x, width = place.x + place.width * number / count, place.width / count
        bounds = (area.start - (-first * size // cells), area.start - (-end * size // cells))
        bins.append((round(x, 2), round(width, 2), *bounds, counts))
    return bins


def _bin(place: Place, word: str, x: float, width: float, first: int, end: int, counts: Counter[str]) -> Bin:
    where = f"{place.area.name} {first:#x} to {max(first, end - 1):#x}"
    title = f"{where}: {counts[word]:,} of {plural(counts.total(), 'fault')} {word}"
    # By the root of the share, so that one in a hundred is still seen.
    opacity = _PALEST + (1.0 - _PALEST) * math.sqrt(counts[word] / counts.total())
    return Bin(x, width, round(opacity, 2), title)


def _sampled(bins: Sequence[Sequence[_Stretch]]) -> list[tuple[float, float]]:
    """Stretches that some fault hit; neighbours in one area are one."""
    found: list[tuple[float, float]] = []
    for stretches in bins:
        for hit, run in groupby(stretches, lambda stretch: stretch[-1].total() > 0):
            first, *rest = run
            if hit:
                end = rest[-1][0] + rest[-1][1] if rest else None
                found.append((first[0], first[1] if end is None else round(end - first[0], 2)))
    return found
