"""Reading ASN.1 the way that lib/asn1_decoder.c does: BER, from front to back, in one pass.

A DER library will not do, cryptography's asn1 module included: signatures may use indefinite lengths and
sets in any order, which Linux takes and DER forbids; the signed attributes are digested as they lie in the file;
and Linux acts while it decodes, so the first thing wrong in the file decides which error a system call returns.

Tags are identifier octets. Only tags and lengths of one identifier octet and of at most two length octets exist
here, as in the kernel; nothing nests deeper than the grammars do, so that hostile input costs no stack.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from kexecemu.errors import FormatError
from kexecemu.shown import shown

__all__ = ["Asn1Error", "BerFault", "Element", "Reader", "context"]

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30
SET = 0x31

_CONSTRUCTED = 0x20
_LONG_TAG = 0x1F
_INDEFINITE = 0x80


def context(number: int, *, constructed: bool = True) -> int:
    """The tag [number] of a grammar; constructed unless it stands in for a primitive type."""
    return 0x80 | (_CONSTRUCTED if constructed else 0) | number


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
    """One value: its tag, its identifier and length octets, what they enclose, and all of it as in the file."""

    tag: int
    header: bytes
    content: bytes
    encoded: bytes


class Reader:
    """The values inside one constructed value, or in a whole message, one after the other.

    what names it in errors.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._at = 0

    @property
    def at_end(self) -> bool:
        """Nothing is left."""
        return self._at >= len(self._data)

    def fail(self, text: str, fault: BerFault = BerFault.MALFORMED) -> Asn1Error:
        """An error about this value, to be raised."""
        return Asn1Error(f"{self._what}: {text}", fault)

    def any(self) -> Element:
        """The next value, whatever it is.

        The content of one of indefinite length keeps the end-of-contents octets: the decoder's ANY does.
        """
        element = self._next()
        if element.header[1] == _INDEFINITE:
            return element._replace(content=element.encoded[len(element.header) :])
        return element

    def take(self, tag: int) -> Element:
        """The next value, which must have this tag. A primitive tag also takes its constructed form."""
        element = self.optional(tag)
        if element is None:
            found = "the end" if self.at_end else f"{self._data[self._at]:#04x}"
            raise self.fail(f"tag {tag:#04x} expected, {found} found")
        return element

    def optional(self, *tags: int) -> Element | None:
        """The next value if it has one of these tags, else None and nothing is consumed."""
        if self.at_end:
            return None
        found = self._data[self._at]
        for tag in tags:
            if found == tag or (not tag & _CONSTRUCTED and found == tag | _CONSTRUCTED):
                return self._next()
        return None

    def enter(self, tag: int, what: str) -> Reader:
        """Like take(), but for what is inside."""
        return Reader(self.take(tag).content, what)

    def algorithm(self, what: str) -> tuple[bytes, Element | None]:
        """An AlgorithmIdentifier: the algorithm and its parameters."""
        algorithm = self.enter(SEQUENCE, what)
        identifier = algorithm.take(OBJECT_IDENTIFIER).content
        parameters = None if algorithm.at_end else algorithm.any()
        algorithm.finish()
        return identifier, parameters

    def finish(self) -> None:
        """Nothing may be left."""
        if not self.at_end:
            raise self.fail(f"{len(self._data) - self._at} bytes too many")

    def _next(self) -> Element:
        start = self._at
        tag, length, body = self._header(start)
        if tag & _LONG_TAG == _LONG_TAG:
            raise self.fail("tags of more than one octet are not supported")
        if length is None:
            end = self._end_of_contents(body)
            content_end = end - 2
        else:
            end = content_end = body + length
        self._at = end
        data = self._data
        return Element(tag, data[start:body], data[body:content_end], data[start:end])

    def _header(self, at: int) -> tuple[int, int | None, int]:
        """Tag, length (None: indefinite) and where the content starts."""
        data = self._data
        if at + 2 > len(data):
            raise self.fail("cut off inside a header")
        tag, length = data[at], data[at + 1]
        at += 2
        if length == _INDEFINITE:
            if not tag & _CONSTRUCTED:
                raise self.fail("a primitive value of indefinite length")
            return tag, None, at
        if length > _INDEFINITE:
            octets = length - _INDEFINITE
            if octets > 2:
                raise self.fail("a length of more than two octets")
            if at + octets > len(data):
                raise self.fail("cut off inside a length")
            length = int.from_bytes(data[at : at + octets], "big")
            at += octets
        if at + length > len(data):
            raise self.fail(f"a value of {length} bytes where {len(data) - at} are left")
        return tag, length, at

    def _end_of_contents(self, at: int) -> int:
        """asn1_find_indefinite_length(): where the value ends whose content starts here; without recursion."""
        level = 1
        while level:
            if self._data[at : at + 2] == b"\0\0":
                at += 2
                level -= 1
                continue
            _, length, at = self._header(at)
            if length is None:
                level += 1
            else:
                at += length
        return at
