"""Two campaigns side by side as geometry: from what each fault came to in the first, to what it came to in the second.

Every pair of outcomes is a ribbon whose breadth grows with the root of its count, so that the rare ones, which are the
ones that matter, can be seen beside the common ones. This module only computes; templates/comparison.svg draws.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kexecemu.campaign.compare import class_of
from kexecemu.crash.outcome import Outcome
from kexecemu.report.campaign_words import plural
from kexecemu.shown import shown

__all__ = ["Flow", "Node", "Ribbon", "Turn", "dump_turn_of", "flow_of", "turn_of"]

WIDTH = 720.0
_LEFT, _RIGHT = 150.0, 570.0  # where the columns stand
_NODE = 12.0  # breadth of a column
_TOP, _GAP = 30.0, 7.0
_HEIGHT = 300.0  # for all ribbons together
_THINNEST = 1.5
_SMALLEST = 15.0  # a node is as high as its name


@shown()
@dataclass(frozen=True)
class Node:
    """An outcome in one of the two columns."""

    outcome: str
    count: int
    y: float
    height: float


@shown()
@dataclass(frozen=True)
class Ribbon:
    """The faults with one outcome in the first campaign and another in the second; path is an SVG path.

    turn is as turn_of() says.
    """

    first: str
    second: str
    count: int
    path: str
    turn: str
    title: str


@shown()
@dataclass(frozen=True)
class Flow:
    """The whole drawing."""

    height: float
    left: list[Node]
    right: list[Node]
    ribbons: list[Ribbon]
    width: float = WIDTH
    left_x: float = _LEFT
    right_x: float = _RIGHT
    node_width: float = _NODE


Turn = Callable[[str, str], str]
"""On which side alone a pair does harm; as turn_of()."""


def flow_of(
    outcomes: Mapping[str, Mapping[str, int]], turn: Turn | None = None, words: Iterable[str] = Outcome
) -> Flow:
    """The drawing of outcomes[first][second] -> count, each column in the order of Outcome, or of other words."""
    order = [str(one) for one in words]
    turn = turn or turn_of
    counted = {(here, there): outcomes.get(here, {}).get(there, 0) for here in order for there in order}
    pairs = {pair: count for pair, count in counted.items() if count}
    total = sum(math.sqrt(count) for count in pairs.values()) or 1.0
    breadth = {pair: max(_THINNEST, _HEIGHT * math.sqrt(count) / total) for pair, count in pairs.items()}
    left, right = (_column(order, side, pairs, breadth) for side in (0, 1))
    here_y, there_y = ({node.outcome: node.y for node in side} for side in (left, right))
    ribbons = []
    for (here, there), count in pairs.items():
        high = breadth[here, there]
        path = _path(here_y[here], there_y[there], high)
        here_y[here] += high
        there_y[there] += high
        title = f"{plural(count, 'fault')}: {here} in the first, {there} in the second"
        ribbons.append(Ribbon(here, there, count, path, turn(here, there), title))
    bottom = max((node.y + node.height for node in (*left, *right)), default=_TOP)
    return Flow(round(bottom + 6.0, 2), left, right, ribbons)


_Pair = tuple[str, str]


def _column(
    order: list[str], side: int, pairs: Mapping[_Pair, int], breadth: Mapping[_Pair, float]
) -> list[Node]:
    nodes, y = [], _TOP
    for name in order:
        own = [pair for pair in pairs if pair[side] == name]
        if own:
            height = max(_SMALLEST, sum(breadth[pair] for pair in own))
            nodes.append(Node(name, sum(pairs[pair] for pair in own), round(y, 2), round(height, 2)))
            y += height + _GAP
    return nodes


def _path(here: float, there: float, high: float) -> str:
    """A ribbon from (left, here) to (right, there)."""
    start, end = _LEFT + _NODE, _RIGHT
    middle = (start + end) / 2
    return (
        f"M{start:g},{here:.2f} C{middle:g},{here:.2f} {middle:g},{there:.2f} {end:g},{there:.2f} "
        f"V{there + high:.2f} C{middle:g},{there + high:.2f} {middle:g},{here + high:.2f} {start:g},{here + high:.2f} Z"
    )


def dump_turn_of(here: str, there: str) -> str:
    """On which side alone there is no true dump, of two of kexecemu.report.campaign_words.DUMPS."""
    if (here == "dump true") == (there == "dump true"):
        return ""
    return "second" if here == "dump true" else "first"


def turn_of(here: str, there: str) -> str:
    """On which side alone a fault with these two outcomes does harm: "first", "second", or "" for both or neither."""
    classes = class_of(here), class_of(there)
    if "error" in classes or (classes[0] == "harm") == (classes[1] == "harm"):
        return ""
    return "first" if classes[0] == "harm" else "second"
