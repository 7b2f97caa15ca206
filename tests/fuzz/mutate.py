# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs made out of good ones: the same for the same seed, format and number, on any machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

__all__ = ["Mutator", "bytes_once", "der_once", "text_once", "words_once"]

_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    63,
    64,
    127,
    128,
    129,
    255,
    256,
    511,
    512,
    4095,
    4096,
    4097,
    32767,
    32768,
)
INTERESTING = sorted(
    {
        *_NUMBERS,
        *(1 << bits for bits in range(16, 65, 4)),
        *((1 << bits) - 1 for bits in (16, 24, 31, 32, 48, 63, 64)),
    }
)
_ODD = (
    "", " ", "\t", "\n", "\0", "\x1b[2J", "\x7f", "\x85", "\u202e", "\ufeff", "\ud800", "é", "٣", "१", "²", "½",
    "9" * 20, "9" * 400, "9" * 4301, "0" * 4301, "f" * 400, "0x" + "f" * 5000, "[" * 3000, "{a=" * 300, "A" * 300,
)  # fmt: skip
_WORDS = (
    "0 -0 -1 + 0x 0X 0b1 0o7 1_0 1e999 nan inf 18446744073709551615 18446744073709551616 K M G T P E @ : , - = . .. "
    '/ // %s %n {} { " \' """ \\ # [[ ]] crashkernel= hashing- hashing-999999 after-load initrd+ kernel purgatory:'
)
_TEXTS = (*_ODD, *_WORDS.split(" "))

Once = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


class Mutator:
    """Makes one input after the other of a format's seeds, by some changes each."""

    def __init__(self, name: str, seed: int, seeds: Sequence[bytes], ways: Sequence[Once], most: int) -> None:
        self._name, self._seed, self._seeds, self._ways, self._most = name, seed, seeds, ways, most

    def make(self, number: int) -> bytes:
        """The input of that number."""
        draw = random.Random(f"{self._name} {self._seed} {number}")
        data = draw.choice(self._seeds)
        for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 5, 12))):
            data = draw.choice(self._ways)(draw, data, self._seeds)
        return data[: self._most]


def _spot(draw: random.Random, data: bytes) -> tuple[int, int]:
    """A stretch of the data, mostly a short one, and more often near its beginning, where headers are."""
    if not data:
        return 0, 0
    limit = len(data) if draw.random() < 0.6 else min(len(data), 512)
    start = draw.randrange(limit)
    return start, min(len(data), start + draw.choice((1, 2, 4, 8, 16, 64, 1 + draw.randrange(1 + len(data)))))


def bytes_once(draw: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """Flip, set, cut off, cut out, double, swap, splice, insert."""
    start, end = _spot(draw, data)
    way = draw.randrange(9)
    if way == 0 and data:
        return data[:start] + bytes((data[start] ^ 1 << draw.randrange(8),)) + data[start + 1 :]
    if way == 1 and data:
        return (
            data[:start]
            + bytes((draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, draw.randrange(256))),))
            + data[start + 1 :]
        )
    if way == 2:
        return data[:start]
    if way == 3:
        return data[:start] + data[end:]
    if way == 4:
        return data[:end] + data[start:end] * draw.choice((1, 1, 2, 16)) + data[end:]
    if way == 5:
        other, until = sorted((start, draw.randrange(len(data) + 1)))
        return data[:other] + data[until:end] + data[other:until] + data[max(end, until) :]
    if way == 6:
        donor = draw.choice(seeds)
        first, last = _spot(draw, donor)
        return data[:start] + donor[first:last] + data[draw.choice((start, end, len(data))) :]
    if way == 7:
        return data[:start] + draw.randbytes(end - start if end - start < 65 else 8) + data[end:]
    return (
        data[:start]
        + bytes((draw.choice((0, 0xFF, 0x30, 0x41)),)) * draw.choice((1, 4, 64, 4096))
        + data[start:]
    )


def words_once(draw: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """A number where one may stand: two, four or eight bytes, little or big end first, interesting or near what is."""
    size = draw.choice((2, 4, 4, 8))
    if len(data) < size:
        return bytes_once(draw, data, seeds)
    start, _ = _spot(draw, data)
    start = min(start, len(data) - size)
    if draw.random() < 0.8:
        start -= start % size
    order = draw.choice(("little", "big"))
    now = int.from_bytes(data[start : start + size], order)
    near = now + draw.choice((-16, -8, -4, -2, -1, 1, 2, 4, 8, 16))
    number = draw.choice(
        (draw.choice(INTERESTING), near, len(data) + draw.randrange(-8, 9), draw.randrange(1 << 8 * size))
    )
    return data[:start] + (number % (1 << 8 * size)).to_bytes(size, order) + data[start + size :]


def text_once(draw: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """Words and numbers in place of others, in text."""
    text = data.decode(errors="surrogateescape")
    start, end = _spot(draw, text.encode(errors="surrogateescape"))
    start, end = min(start, len(text)), min(end, len(text))
    digits = [at for at, char in enumerate(text) if char.isdecimal()]
    piece = draw.choice(_TEXTS)
    if digits and draw.random() < 0.4:
        start = draw.choice(digits)
        end = start + 1
        if draw.random() < 0.5:
            piece = str(draw.choice(INTERESTING))
    elif draw.random() < 0.5:
        end = start
    return (text[:start] + piece + text[end:]).encode(
        errors="surrogatepass" if "\ud800" in piece else "surrogateescape"
    )


def der_once(draw: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """Another tag, length or content of one element of DER, the lengths around it put right as often as not."""
    elements = list(_elements(data))
    if not elements:
        return bytes_once(draw, data, seeds)
    start, body, end = draw.choice(elements)
    content = data[body:end]
    tag = data[start : start + 1]
    way = draw.randrange(6)
    if way == 0:
        return data[:start] + bytes((tag[0] ^ draw.choice((0x20, 0x80, 0xA0, 1, 0x10)),)) + data[start + 1 :]
    if way == 1:
        new = b""
    elif way == 2:
        new = data[start:end] * 2
    elif way == 3:
        first, _, last = draw.choice(elements)
        new = data[first:last]
    elif way == 4:
        new = tag + b"\x80" + content + b"\0\0"
    else:
        new = (
            tag
            + _length(len(content) + draw.choice((-1, 0, 1, 127, 1 << 31)))
            + bytes_once(draw, content, seeds)
        )
    if draw.random() < 0.5:
        return data[:start] + new + data[end:]
    # Around it every element that contains it gets the length that it has now.
    for outer, inner, last in sorted(
        (one for one in elements if one[0] < start and one[2] >= end), reverse=True
    ):
        new = (
            data[outer : outer + 1]
            + _length(start - inner + len(new) + last - end)
            + data[inner:start]
            + new
            + data[end:last]
        )
        start, end = outer, last
    return data[:start] + new + data[end:]


def _length(size: int) -> bytes:
    if 0 <= size < 0x80:
        return bytes((size,))
    octets = (size % (1 << 32)).to_bytes(4, "big").lstrip(b"\0") or b"\0"
    return bytes((0x80 | len(octets),)) + octets


def _elements(
    data: bytes, start: int = 0, end: int | None = None, depth: int = 0
) -> list[tuple[int, int, int]]:
    """(start, start of the content, end) of every element, those in others too; for what is not DER what there is."""
    found: list[tuple[int, int, int]] = []
    end = len(data) if end is None else end
    while start + 2 <= end and depth < 20 and len(found) < 500:
        size, body = data[start + 1], start + 2
        if size & 0x80:
            count = size & 0x7F
            size, body = int.from_bytes(data[body : body + count], "big"), body + count
        if body + size > end:
            break
        found.append((start, body, body + size))
        if data[start] & 0x20:
            found += _elements(data, body, body + size, depth + 1)
        start = body + size
    return found
