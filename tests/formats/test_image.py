"""The arm64 Image header, against values from booting.rst and Images that were built by a linker."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_header import build

from kexecemu.errors import FormatError
from kexecemu.formats import image

ROOT = Path(__file__).parents[2]


def test_every_field_is_where_booting_rst_puts_it() -> None:
    data = bytearray(64)
    struct.pack_into("<II", data, 0, 0x11111111, 0x22222222)
    struct.pack_into("<QQQ", data, 8, 0x80000, 0x550000, 0b1101)
    data[56:60] = b"ARM\x64"
    struct.pack_into("<I", data, 60, 0x40)
    header = image.parse(bytes(data) + b"kernel")
    assert (header.code0, header.code1) == (0x11111111, 0x22222222)
    assert (header.text_offset, header.image_size, header.pe_offset) == (0x80000, 0x550000, 0x40)
    assert (header.big_endian, header.page_size) == (True, 16384)


@pytest.mark.parametrize(("field", "page_size"), [(0, 0), (1, 4096), (2, 16384), (3, 65536)])
def test_the_page_size_field_names_all_arm64_granules(field: int, page_size: int) -> None:
    data = bytearray(build(image_size=1))
    data[24] = field << 1
    header = image.parse(data)
    assert header.page_size == page_size
    assert not header.big_endian


@given(
    st.fixed_dictionaries(
        {
            "image_size": st.integers(0, (1 << 64) - 1),
            "text_offset": st.integers(0, (1 << 64) - 1),
            "code0": st.integers(0, (1 << 32) - 1),
            "code1": st.integers(0, (1 << 32) - 1),
            "big_endian": st.booleans(),
            "page_size": st.sampled_from([0, 4096, 16384, 65536]),
            "pe_offset": st.integers(0, (1 << 32) - 1),
        }
    )
)
def test_what_is_built_is_read_back(fields: dict[str, int]) -> None:
    data = build(**fields)  # type: ignore[arg-type]
    header = image.parse(data)
    assert len(data) == 64
    assert {name: getattr(header, name) for name in fields} == fields


def test_the_capture_stub_that_a_linker_made_has_a_sound_header() -> None:
    data = (ROOT / "fixtures/guests/capture-Image").read_bytes()
    header = image.parse(data)
    assert image.has_magic(data)
    assert header.image_size >= len(data)
    # code0 must be an instruction, an unconditional branch over the header.
    assert header.code0 >> 26 == 0b000101


def test_a_truncated_header_is_refused() -> None:
    data = build(image_size=4096)
    assert not image.has_magic(data[:63])
    with pytest.raises(FormatError, match="63 bytes are too short"):
        image.parse(data[:63])


def test_a_wrong_magic_is_refused_with_its_offset() -> None:
    data = bytearray(build(image_size=4096))
    data[59] ^= 1
    assert not image.has_magic(data)
    with pytest.raises(FormatError, match="offset 0x38 is 41524d65"):
        image.parse(data)


@given(st.binary(max_size=80))
def test_any_bytes_give_a_header_or_a_format_error(data: bytes) -> None:
    try:
        image.parse(data)
    except FormatError:
        assert not image.has_magic(data)
    else:
        assert image.has_magic(data)
