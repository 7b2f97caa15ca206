"""Damaged and odd messages, the same for the same seed: of bytes, of tags and lengths, and of whole elements."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from signing import oid

from kexecemu.formats.algorithms import LINUX_6_1, LINUX_7_3


@dataclass
class Node:
    """One value: its tag, what it encloses (values, or bytes), and how its length is written."""

    tag: int
    inside: list[Node] = field(default_factory=list)
    data: bytes = b""
    form: str = "short"

    def encoded(self) -> bytes:
        """The bytes of it."""
        content = b"".join(one.encoded() for one in self.inside) if self.inside else self.data
        if self.form == "indefinite":
            return bytes([self.tag, 0x80]) + content + b"\0\0"
        octets = {"short": len(content) > 0x7F, "81": 1, "82": 2, "83": 3}[self.form]
        octets = max(octets, (len(content).bit_length() + 7) // 8 if len(content) > 0x7F else 0)
        if not octets:
            return bytes([self.tag, len(content)]) + content
        return bytes([self.tag, 0x80 | octets]) + len(content).to_bytes(octets, "big") + content

    def walk(self) -> list[Node]:
        """It and all that is in it."""
        return [self, *(deeper for one in self.inside for deeper in one.walk())]


def tree(data: bytes) -> list[Node]:
    """DER as values; octet strings that hold values are opened too. ValueError for what is none."""
    found, at = [], 0
    while at < len(data):
        if len(data) - at < 2 or data[at] & 0x1F == 0x1F:
            raise ValueError("no DER")
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            octets = length & 0x7F
            length, at = int.from_bytes(data[at : at + octets], "big"), at + octets
        if not tag or at + length > len(data):
            raise ValueError("no DER")
        content = data[at : at + length]
        node = Node(tag, data=content)
        if tag & 0x20 or (tag == 0x04 and len(content) > 2):
            try:
                node.inside = tree(content)
            except ValueError:
                if tag & 0x20:
                    raise
        found.append(node)
        at += length
    return found


# ---- of bytes


def _flip(chosen: random.Random, data: bytearray) -> None:
    data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)


def _set(chosen: random.Random, data: bytearray) -> None:
    at = chosen.randrange(len(data))
    data[at] = chosen.choice((0, 1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x30, 0x31, 0x80, 0x81, 0x82, 0x83, 0xA0, 0xFF,
                              chosen.randrange(256)))  # fmt: skip


def _insert(chosen: random.Random, data: bytearray) -> None:
    at = chosen.randrange(len(data) + 1)
    data[at:at] = chosen.choice(
        (b"\0\0", b"\0", b"\x30\x80", b"\x05\x00", chosen.randbytes(chosen.randint(1, 4)))
    )


def _delete(chosen: random.Random, data: bytearray) -> None:
    at = chosen.randrange(len(data))
    del data[at : at + chosen.randint(1, 4)]


def _truncate(chosen: random.Random, data: bytearray) -> None:
    del data[chosen.randrange(len(data)) :]


_BYTES: Sequence[Callable[[random.Random, bytearray], None]] = (
    _flip,
    _flip,
    _flip,
    _set,
    _insert,
    _delete,
    _truncate,
)


# ---- of tags, lengths and elements

_OIDS = sorted(LINUX_6_1.registered | LINUX_7_3.registered)
_TAGS = (0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x16, 0x17, 0x18, 0x30, 0x31, 0x10, 0x11, 0x24, 0x26, 0x80, 0x81, 0x82,
         0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0x00, 0x1F, 0x3F)  # fmt: skip


def _tag(chosen: random.Random, node: Node, others: list[Node]) -> None:
    node.tag = chosen.choice(
        (node.tag ^ 0x20, node.tag ^ 0x20, chosen.choice(_TAGS), node.tag ^ 1 << chosen.randrange(8))
    )


def _form(chosen: random.Random, node: Node, others: list[Node]) -> None:
    node.form = chosen.choice(("indefinite", "indefinite", "81", "82", "83"))


def _all_indefinite(chosen: random.Random, node: Node, others: list[Node]) -> None:
    for one in node.walk():
        if one.inside and one.tag & 0x20:
            one.form = "indefinite"


def _swap(chosen: random.Random, node: Node, others: list[Node]) -> None:
    if len(node.inside) > 1:
        first, second = chosen.sample(range(len(node.inside)), 2)
        node.inside[first], node.inside[second] = node.inside[second], node.inside[first]


def _drop(chosen: random.Random, node: Node, others: list[Node]) -> None:
    if node.inside:
        del node.inside[chosen.randrange(len(node.inside))]
        node.data = b""


def _repeat(chosen: random.Random, node: Node, others: list[Node]) -> None:
    if node.inside:
        at = chosen.randrange(len(node.inside))
        node.inside.insert(at, node.inside[at])


def _graft(chosen: random.Random, node: Node, others: list[Node]) -> None:
    other = chosen.choice(others)
    if node.inside and other not in node.walk() and node not in other.walk():
        node.inside.insert(chosen.randrange(len(node.inside) + 1), other)


def _empty(chosen: random.Random, node: Node, others: list[Node]) -> None:
    node.inside, node.data = [], b""


def _wrap(chosen: random.Random, node: Node, others: list[Node]) -> None:
    inner = Node(node.tag, node.inside, node.data, node.form)
    node.tag, node.inside, node.form = (
        chosen.choice((0x30, 0x31, 0xA0, 0xA1, 0xA2, 0xA3, 0xA4)),
        [inner],
        "short",
    )


def _content(chosen: random.Random, node: Node, others: list[Node]) -> None:
    leaves = [one for one in others if not one.inside] or [node]
    node = chosen.choice(leaves)
    if node.tag == 0x06:
        node.data = chosen.choice(_OIDS)
    elif node.tag in (0x17, 0x18):
        year = chosen.choice((b"", b"19", b"20", b"21"))
        digits = [b"%02d" % chosen.choice((0, 1, 2, 12, 13, 23, 24, 28, 29, 30, 31, 32, 49, 50, 59, 60, 61, 69, 70, 99))
                  for _ in range(6)]  # fmt: skip
        node.data, node.tag = (
            year + b"".join(digits) + chosen.choice((b"Z", b"Z", b"z", b"")),
            0x18 if year else 0x17,
        )
    elif node.tag == 0x02 and chosen.random() < 0.5:
        node.data = chosen.choice((b"\x01", b"\x03", b"\x02", b"\x00\x01", b""))
    else:
        node.data = chosen.choice(
            (node.data[1:], node.data[:-1], b"\0" + node.data, chosen.randbytes(3), b"\xff")
        )


_OF_ELEMENTS: Sequence[Callable[[random.Random, Node, list[Node]], None]] = (
    *(_tag, _tag, _form, _form, _all_indefinite, _swap, _drop, _repeat, _graft, _empty, _wrap),
    *(_content, _content, _content),
)


def mutated(chosen: random.Random, data: bytes) -> bytes:
    """One message, changed in one to three places."""
    if chosen.random() < 0.45:
        changed = bytearray(data)
    else:
        roots = tree(data)
        for _ in range(chosen.choice((1, 1, 1, 2, 2, 3))):
            nodes = [one for root in roots for one in root.walk()]
            chosen.choice(_OF_ELEMENTS)(chosen, chosen.choice(nodes), nodes)
        changed = bytearray(b"".join(root.encoded() for root in roots))
        if chosen.random() < 0.8 or not changed:
            return bytes(changed)
    for _ in range(chosen.choice((1, 1, 1, 2, 3))):
        if changed:
            chosen.choice(_BYTES)(chosen, changed)
    return bytes(changed)


def with_other_identifiers(data: bytes) -> Iterator[bytes]:
    """Each identifier in turn as every one that a release knows, and as one that none does."""
    roots = tree(data)
    places = [one for root in roots for one in root.walk() if one.tag == 0x06]
    for place in places:
        was = place.data
        for place.data in (*_OIDS, oid("1.3.6.1.4.1.311.2.1.123")[2:]):
            yield b"".join(root.encoded() for root in roots)
        place.data = was
