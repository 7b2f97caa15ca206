"""Reading ASN.1 as lib/asn1_decoder.c does: BER, in one pass, by the program that a grammar was compiled into.

A DER library will not do, cryptography's asn1 module included, and neither will a reader that is written from the
standard: signatures may use indefinite lengths and sets in any order, which Linux takes and DER forbids; Linux acts
while it decodes, so the first thing wrong in the file decides which error a system call returns; and what the decoder
takes follows from its code, not from the comment above it. Some of that: where a constructed value is expected, its
primitive form will do, but not the other way round; a SET OF or SEQUENCE OF has at least one element, unless every one
of its alternatives may be skipped; an optional ANY at the end of a value of indefinite length takes its
end-of-contents octets for itself.

The same source serves 6.1, 6.12 and 7.3. tests/real/test_kernel_parsers.py compares this with it, compiled.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from kexecemu.errors import FormatError
from kexecemu.formats.asn1 import CONSTRUCTED, Grammar, Op
from kexecemu.shown import shown

__all__ = ["Asn1Error", "BerFault", "Element", "decode"]

_LONG_TAG = 0x1F
_INDEFINITE = 0x80
_MOST_OPEN = 10  # NR_CONS_STACK: constructed values inside each other


class BerFault(enum.Enum):
    """What kind of thing is wrong; Linux has an errno for each."""

    MALFORMED = "malformed"  # EBADMSG
    UNSUPPORTED = "unsupported"  # ENOPKG: an algorithm
    UNEXPECTED = "unexpected"  # EINVAL: a content type, a version, or two algorithms that must agree
    FORBIDDEN = "forbidden"  # EKEYREJECTED: well-formed, but no signature may have it


class Asn1Error(FormatError):
    """A message, a certificate or a key cannot be read; fault says of what kind the reason is."""

    def __init__(self, text: str, fault: BerFault = BerFault.MALFORMED) -> None:
        super().__init__(text)
        self.fault = fault


@shown()
class Element(NamedTuple):
    """One value as an action gets it: its tag (0 once it is left), and where it lies in data.

    The header begins at `at`, the content at start, and end is behind the content. The content of an ANY of indefinite
    length includes the end-of-contents octets, that of all others does not: so the decoder counts.
    """

    tag: int
    data: bytes
    at: int
    start: int
    end: int

    @property
    def content(self) -> bytes:
        """What the value encloses."""
        return self.data[self.start : self.end]

    @property
    def header(self) -> bytes:
        """Its identifier and length octets."""
        return self.data[self.at : self.start]

    @property
    def encoded(self) -> bytes:
        """Both."""
        return self.data[self.at : self.end]


def decode(grammar: Grammar, context: Any, data: bytes) -> None:
    """asn1_ber_decoder(): decode data by a grammar, whose actions are methods of context and get an Element each.

    What follows the outermost value is not looked at. Raises Asn1Error where the bytes do not fit the grammar, and
    what an action raises.
    """
    _Decoder(grammar, context, data).run()


class _Decoder:
    """The state of asn1_ber_decoder(), under its own names where they say something."""

    def __init__(self, grammar: Grammar, context: Any, data: bytes) -> None:
        self._grammar = grammar
        self._context = context
        self._data = data
        self._dp = 0
        self._datalen = len(data)  # where the innermost value of definite length ends
        self._matched = self._last_matched = False
        self._open: list[
            tuple[int, int, int | None]
        ] = []  # header, content, datalen outside; None: indefinite
        self._jumps: list[int] = []
        self._last = Element(0, data, 0, 0, 0)

    def run(self) -> None:
        ops = self._grammar.ops
        pc = 0
        while True:
            op = ops[pc]
            kind = op.kind
            if kind == "match":
                pc = self._match(op, pc)
            elif kind == "end":
                pc = op.jump if self._end(op) else pc + 1
            elif kind == "return":
                pc = self._jumps.pop()
                self._matched = self._last_matched = True
            elif kind == "complete":
                return
            else:
                if kind == "cond fail":
                    if not self._matched:
                        raise self._fail(f"{self._found()} where nothing of the kind belongs")
                elif kind == "act" or self._last_matched:
                    getattr(self._context, op.action)(self._last)
                pc += 1

    def _match(self, op: Op, pc: int) -> int:
        """A value that must, or may, come here. Where to go on in the program."""
        at, data = self._dp, self._data
        if (op.cond and self._matched) or (op.skip and at == self._datalen):
            self._last_matched = False
            return pc + 1
        self._matched = self._last_matched = False
        if self._datalen - at < 2:
            raise self._fail("cut off inside a header")
        tag = data[at]
        if tag & _LONG_TAG == _LONG_TAG:
            raise self._fail("tags of more than one octet are not supported")
        # The constructed bit is compared only where the grammar has none.
        if not op.any and (op.tag ^ tag) & ~(op.tag & CONSTRUCTED):
            if op.skip:
                return pc + 1
            raise self._fail(f"tag {op.tag:#04x} expected, {self._found()} found")
        self._matched = True
        start, length = self._header(at, tag)
        if op.tag & CONSTRUCTED and not op.any:
            # An action may get this, where all that could come in here may be missing, and is.
            self._last = Element(tag, data, at, start, start + (length or 0))
            self._enter(at, start, length)
            if op.jump:
                self._jumps.append(pc + 1)
                return op.jump
            return pc + 1
        end = self._end_of_contents(start) if length is None else start + length
        self._last = Element(tag, data, at, start, end)
        self._dp = start
        if op.action:
            getattr(self._context, op.action)(self._last)
        self._dp = end
        return pc + 1

    def _header(self, at: int, tag: int) -> tuple[int, int | None]:
        """Where the content of the value at `at` starts, and its length (None: indefinite)."""
        data, at = self._data, at + 2
        length = data[at - 1]
        left = self._datalen - at
        if length == _INDEFINITE:
            if not tag & CONSTRUCTED:
                raise self._fail("a primitive value of indefinite length")
            if left < 2:
                raise self._fail("cut off inside a value of indefinite length")
            return at, None
        if length > _INDEFINITE:
            octets = length - _INDEFINITE
            if octets > 2:
                raise self._fail("a length of more than two octets")
            if octets > left:
                raise self._fail("cut off inside a length")
            length = int.from_bytes(data[at : at + octets], "big")
            at, left = at + octets, left - octets
        if length > left:
            raise self._fail(f"a value of {length} bytes where {left} are left")
        return at, length

    def _enter(self, at: int, start: int, length: int | None) -> None:
        if len(self._open) >= _MOST_OPEN:
            raise self._fail("values inside each other too deeply")
        self._open.append((at, start, None if length is None else self._datalen))
        if length is not None:
            self._datalen = start + length
        self._dp = start

    def _end(self, op: Op) -> bool:
        """The end of a constructed value; of one that repeats, True if there is more of it."""
        at, start, outside = self._open[-1]
        dp = self._dp
        if outside is None:
            if self._datalen - dp < 2:
                raise self._fail("cut off inside a value of indefinite length")
            if self._data[dp]:
                if op.jump:
                    return True
                raise self._fail(f"end-of-contents expected, {self._found()} found")
            if self._data[dp + 1]:
                raise self._fail("end-of-contents octets with a length")
            self._dp = dp + 2
        else:
            if op.jump and dp < self._datalen:
                return True
            if dp != self._datalen:
                raise self._fail(f"{self._datalen - dp} bytes too many")
            self._datalen = outside
        self._open.pop()
        self._last = Element(0, self._data, at, start, dp)
        if op.action:
            getattr(self._context, op.action)(self._last)
        return False

    def _end_of_contents(self, at: int) -> int:
        """asn1_find_indefinite_length(): behind the value whose content starts here, whatever nests in it."""
        data, datalen = self._data, self._datalen
        level = 1
        while level:
            if datalen - at < 2:
                raise self._fail("an end of contents is missing")
            tag = data[at]
            if tag == 0:
                if data[at + 1]:
                    raise self._fail("end-of-contents octets with a length")
                at, level = at + 2, level - 1
                continue
            at += 1
            if tag & _LONG_TAG == _LONG_TAG:
                at = self._long_tag(at)
            at, length = self._nested_length(at, tag)
            if length is None:
                level += 1
            else:
                at += length
        return at

    def _long_tag(self, at: int) -> int:
        """Behind a tag of several octets, which are taken in here, and only here."""
        while True:
            if self._datalen - at < 2:
                raise self._fail("cut off inside a tag")
            at += 1
            if not self._data[at - 1] & 0x80:
                return at

    def _nested_length(self, at: int, tag: int) -> tuple[int, int | None]:
        """As _header(), but lengths of up to seven octets are taken, and the end of contents need not follow."""
        data, at = self._data, at + 1
        length = data[at - 1]
        if length == _INDEFINITE:
            if not tag & CONSTRUCTED:
                raise self._fail("a primitive value of indefinite length")
            return at, None
        if length > _INDEFINITE:
            octets = length - _INDEFINITE
            if octets > 7:  # sizeof(size_t) - 1
                raise self._fail("a length of more than seven octets")
            if octets > self._datalen - at:
                raise self._fail("cut off inside a length")
            length = int.from_bytes(data[at : at + octets], "big")
            at += octets
        if length > self._datalen - at:
            raise self._fail(f"a value of {length} bytes where {self._datalen - at} are left")
        return at, length

    def _found(self) -> str:
        return "the end" if self._dp >= self._datalen else f"{self._data[self._dp]:#04x}"

    def _fail(self, text: str) -> Asn1Error:
        """An error at the place that decoding has come to, to be raised."""
        return Asn1Error(f"{self._grammar.name}: {text}, at byte {self._dp:#x}")
