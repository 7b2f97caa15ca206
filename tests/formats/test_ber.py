"""The BER reader: lengths, tags and nesting as lib/asn1_decoder.c has them; hostile bytes end in an error."""

from __future__ import annotations

import pytest
import signing
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.errors import FormatError
from kexecemu.formats import ber
from kexecemu.formats.ber import Asn1Error, Reader


@given(st.binary(max_size=70_000 // 8), st.sampled_from([0, 1, 126, 127, 128, 255, 256, 65535]))
def test_what_was_written_is_read(content: bytes, size: int) -> None:
    content = (content or b"x") * (size // max(1, len(content)) + 1)
    content = content[:size]
    encoded = signing.der(0x04, content)
    reader = Reader(encoded + b"\x02\x01\x05", "test")
    element = reader.take(ber.OCTET_STRING)
    assert element.content == content
    assert element.encoded == encoded
    assert element.header + element.content == encoded
    assert reader.take(ber.INTEGER).content == b"\x05"
    assert reader.at_end


def test_an_indefinite_length_ends_at_its_own_end_of_contents() -> None:
    inner = signing.indefinite(0x30, signing.der(0x04, b"\0\0\0\0"))
    encoded = signing.indefinite(0x30, inner, signing.der(0x02, b"\x07"))
    reader = Reader(encoded + b"\x05\x00", "test")
    outer = reader.take(ber.SEQUENCE)
    assert outer.encoded == encoded
    assert outer.content == encoded[2:-2]
    inside = Reader(outer.content, "inside")
    assert inside.take(ber.SEQUENCE).encoded == inner
    assert inside.take(ber.INTEGER).content == b"\x07"
    assert inside.at_end


def test_any_value_of_indefinite_length_keeps_its_end_of_contents() -> None:
    # asn1_find_indefinite_length() counts the two octets, and the actions of an ANY get its count.
    encoded = signing.indefinite(0x30, signing.der(0x02, b"\x07"))
    assert Reader(encoded, "test").any().content == encoded[2:]
    assert Reader(encoded, "test").take(ber.SEQUENCE).content == encoded[2:-2]


def test_a_primitive_tag_takes_its_constructed_form_and_not_the_other_way_round() -> None:
    assert Reader(b"\x24\x02\x04\x00", "test").take(ber.OCTET_STRING).content == b"\x04\x00"
    with pytest.raises(Asn1Error, match="tag 0x30 expected, 0x10 found"):
        Reader(b"\x10\x00", "test").take(ber.SEQUENCE)


def test_an_optional_value_that_is_not_there_consumes_nothing() -> None:
    reader = Reader(b"\x02\x01\x09", "test")
    assert reader.optional(ber.SEQUENCE, ber.SET) is None
    assert reader.take(ber.INTEGER).content == b"\x09"
    assert reader.optional(ber.INTEGER) is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x30", "cut off inside a header"),
        (b"\x30\x82\x01", "cut off inside a length"),
        (b"\x30\x83\x00\x00\x01\x00", "more than two octets"),
        (b"\x30\x05\x00", "5 bytes where 1 are left"),
        (b"\x04\x80\x00\x00", "primitive value of indefinite length"),
        (b"\x30\x80\x04\x01", "1 bytes where 0 are left"),
        (b"\x30\x80\x04\x00", "cut off inside a header"),
        (b"\x3f\x00", "tags of more than one octet"),
    ],
)
def test_malformed_values_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(Asn1Error, match=why):
        Reader(data, "test").any()


def test_values_left_over_are_refused() -> None:
    reader = Reader(b"\x05\x00\x05\x00", "test")
    reader.any()
    with pytest.raises(Asn1Error, match="2 bytes too many"):
        reader.finish()


def test_deep_nesting_costs_no_stack() -> None:
    deep = b"\x30\x80" * 30_000 + b"\0\0" * 30_000
    assert Reader(deep, "test").any().encoded == deep
    with pytest.raises(Asn1Error):
        Reader(deep[:-2], "test").any()


@given(st.binary(max_size=120))
def test_any_bytes_are_values_or_a_format_error(data: bytes) -> None:
    reader = Reader(data, "test")
    total = b""
    try:
        while not reader.at_end:
            total += reader.any().encoded
    except FormatError:
        return
    assert total == data
