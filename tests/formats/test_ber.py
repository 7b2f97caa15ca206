"""The decoder by grammars of its own: what lib/asn1_decoder.c takes and refuses; hostile bytes end in an error.

That it does so on all messages is shown in tests/real/test_kernel_parsers.py, against that file itself.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signing import der, indefinite

from kexecemu.formats import ber
from kexecemu.formats.asn1 import INTEGER, OCTET_STRING, SET, Grammar, any_, choice, explicit, of, prim, seq
from kexecemu.formats.ber import Asn1Error, Element


class Noted:
    """Any action: the values in their order, by the action's name."""

    def __init__(self) -> None:
        self.values: list[tuple[str, Element]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.values.append((name, value))


def decoded(grammar: Grammar, data: bytes) -> list[tuple[str, bytes]]:
    context = Noted()
    ber.decode(grammar, context, data)
    return [(name, value.content) for name, value in context.values]


def refused(grammar: Grammar, data: bytes, why: str) -> None:
    with pytest.raises(Asn1Error, match=why):
        decoded(grammar, data)


ANY = Grammar("any", any_("got"))
OCTETS = Grammar("octets", prim(OCTET_STRING, "got"))
PAIR = Grammar("pair", seq(prim(INTEGER, "number"), any_("rest").optional(), act="whole"))
LIST = Grammar("list", of(prim(INTEGER, "number"), SET, act="whole"))
ONE_OF = Grammar(
    "one", seq(choice(prim(INTEGER, "number"), prim(OCTET_STRING, "octets")), prim(0x05, "null"))
)
NESTED = Grammar("nested", seq(explicit(0, prim(INTEGER, "inner")).optional(), prim(INTEGER, "number")))


@given(st.binary(max_size=70_000 // 8), st.sampled_from([0, 1, 126, 127, 128, 255, 256, 65535]))
def test_what_was_written_is_read(content: bytes, size: int) -> None:
    content = ((content or b"x") * (size // max(1, len(content)) + 1))[:size]
    encoded = der(0x04, content)
    context = Noted()
    ber.decode(OCTETS, context, encoded + b"\x02\x01\x05")
    ((_, element),) = context.values
    assert (element.content, element.encoded) == (content, encoded)
    assert element.header + element.content == encoded


def test_where_a_constructed_value_is_expected_its_primitive_form_will_do() -> None:
    assert decoded(PAIR, b"\x10\x03\x02\x01\x07") == [("number", b"\x07"), ("whole", b"\x02\x01\x07")]
    assert decoded(LIST, b"\x11\x03\x02\x01\x07") == [("number", b"\x07"), ("whole", b"\x02\x01\x07")]
    assert decoded(NESTED, b"\x30\x08\x80\x03\x02\x01\x05\x02\x01\x07") == [
        ("inner", b"\x05"),
        ("number", b"\x07"),
    ]
    refused(PAIR, b"\x10\x80\x02\x01\x07\0\0", "a primitive value of indefinite length")


@pytest.mark.parametrize("data", [b"\x24\x02\x04\x00", b"\x24\x80\x04\x00\0\0"])
def test_where_a_primitive_value_is_expected_its_constructed_form_will_not_do(data: bytes) -> None:
    refused(OCTETS, data, "tag 0x04 expected, 0x24 found")


def test_an_indefinite_length_ends_at_its_own_end_of_contents() -> None:
    inner = indefinite(0x30, der(0x04, b"\0\0\0\0"))
    assert decoded(PAIR, indefinite(0x30, der(0x02, b"\x07"), inner)) == [
        ("number", b"\x07"),
        ("rest", inner[2:]),
        ("whole", der(0x02, b"\x07") + inner),
    ]
    refused(PAIR, b"\x30\x80\x02\x01\x07\x05\x00\x05\x00", "end-of-contents expected, 0x05 found")
    refused(PAIR, b"\x30\x80\x02\x01\x07\x05\x00\x00\x01", "end-of-contents octets with a length")


def test_any_value_of_indefinite_length_keeps_its_end_of_contents() -> None:
    # asn1_find_indefinite_length() counts the two octets, and the actions of an ANY get its count.
    encoded = indefinite(0x30, der(0x02, b"\x07"))
    assert decoded(ANY, encoded) == [("got", encoded[2:])]


def test_an_optional_any_takes_the_end_of_contents_for_itself() -> None:
    refused(PAIR, indefinite(0x30, der(0x02, b"\x07")), "cut off inside a value of indefinite length")
    assert decoded(PAIR, indefinite(0x30, der(0x02, b"\x07")) + b"\0\0")[1] == ("rest", b"")


def test_a_set_of_has_at_least_one_element() -> None:
    refused(LIST, b"\x31\x00", "cut off inside a header")
    assert [
        value for name, value in decoded(LIST, b"\x31\x06\x02\x01\x07\x02\x01\x08") if name == "number"
    ] == [
        b"\x07",
        b"\x08",
    ]


def test_a_choice_at_the_end_may_be_missing_if_all_before_it_matched() -> None:
    # COND_FAIL asks whether the last value matched that was looked for, and nothing was looked for at the end.
    grammar = Grammar("times", seq(choice(prim(0x17), prim(0x18)).and_("time")))
    assert decoded(grammar, b"\x30\x00") == [("time", b"")]
    refused(grammar, b"\x30\x02\x05\x00", "0x05 where nothing of the kind belongs")
    refused(ONE_OF, b"\x30\x02\x05\x00", "0x05 where nothing of the kind belongs")
    assert decoded(ONE_OF, b"\x30\x04\x04\x00\x05\x00") == [("octets", b""), ("null", b"")]


def test_an_optional_value_that_is_not_there_consumes_nothing() -> None:
    assert decoded(NESTED, b"\x30\x03\x02\x01\x09") == [("number", b"\x09")]


def test_values_left_over_are_refused() -> None:
    refused(PAIR, b"\x30\x07\x02\x01\x07\x05\x00\x05\x00", "2 bytes too many")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x30", "cut off inside a header"),
        (b"\x30\x82\x01", "cut off inside a length"),
        (b"\x30\x83\x00\x00\x01\x00", "more than two octets"),
        (b"\x30\x05\x00", "5 bytes where 1 are left"),
        (b"\x04\x80\x00\x00", "primitive value of indefinite length"),
        (b"\x30\x80\x04\x80\0\0", "primitive value of indefinite length"),
        (b"\x30\x80\x00", "cut off inside a value of indefinite length"),
        (b"\x30\x80\x04\x01", "1 bytes where 0 are left"),
        (b"\x30\x80\x04\x00", "an end of contents is missing"),
        (b"\x30\x80\x04\x00\0\1", "end-of-contents octets with a length"),
        (b"\x30\x80\x04\x88" + bytes(10), "more than seven octets"),
        (b"\x30\x80\x04\x87\0\0", "cut off inside a length"),
        (b"\x30\x80\x1f\x81", "cut off inside a tag"),
        (b"\x3f\x00", "tags of more than one octet"),
    ],
)
def test_malformed_values_are_refused(data: bytes, why: str) -> None:
    refused(ANY, data, why)


@pytest.mark.parametrize("inside", [b"\x1f\x81\x01\x00", b"\x04\x87\0\0\0\0\0\0\1x"])
def test_inside_of_any_long_tags_and_lengths_are_taken(inside: bytes) -> None:
    assert decoded(ANY, indefinite(0x30, inside)) == [("got", inside + b"\0\0")]
    refused(ANY, inside, "tags of more than one octet|a length of more than two octets")


def test_deep_nesting_costs_no_stack_and_ten_values_are_open_at_most() -> None:
    deep = b"\x30\x80" * 30_000 + b"\0\0" * 30_000
    assert decoded(ANY, deep) == [("got", deep[2:])]
    refused(ANY, deep[:-2], "an end of contents is missing")
    part, data = prim(INTEGER), der(0x02, b"\x07")
    for _ in range(10):
        part, data = seq(part), der(0x30, data)
    assert decoded(Grammar("ten", part), data) == []
    refused(Grammar("eleven", seq(part)), der(0x30, data), "too deeply")


@given(st.binary(max_size=120))
def test_any_bytes_are_a_value_or_a_format_error(data: bytes) -> None:
    context = Noted()
    try:
        ber.decode(ANY, context, data)
    except Asn1Error:
        return
    ((_, element),) = context.values
    assert data.startswith(element.encoded)
