"""PE headers and the Authenticode digest, against other people's tools and a digest that is put together by hand."""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import signing
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.errors import FormatError
from kexecemu.formats import pe
from kexecemu.formats.image import has_magic


def test_the_headers_of_an_efi_image_are_read() -> None:
    file = pe.parse(signing.good().data)
    assert file.machine == 0xAA64
    assert file.header_size == 0x180
    # Where 6.1.192 found it in a real arm64 Image ("PEFILE: checksum @ 98"): the layout is the same.
    assert file.checksum_offset == 0x98
    assert [section.name.rstrip(b"\0") for section in file.sections] == [b".text", b".data"]
    table = file.certificate_table()
    assert table is not None
    assert table.offset == signing.good().unsigned_size
    assert table.offset + table.size == len(signing.good().data)


def test_an_unsigned_file_has_no_certificate_table() -> None:
    assert pe.parse(signing.pe_image()).certificate_table() is None


def test_the_image_of_the_tests_is_an_arm64_image() -> None:
    assert has_magic(signing.pe_image())


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
def test_the_digest_leaves_out_the_checksum_and_the_certificates(algorithm: str) -> None:
    image = signing.pe_image()
    wanted = signing.authenticode_digest(image, algorithm)
    assert pe.digest(pe.parse(image), algorithm) == wanted
    signed = signing.attach(image, b"0\x82anything")
    assert pe.digest(pe.parse(signed), algorithm) == wanted
    patched = signing.patch(signed, signing.CHECKSUM_OFFSET, b"\xde\xad\xbe\xef")
    assert pe.digest(pe.parse(patched), algorithm) == wanted


def test_osslsigncode_makes_the_same_digest(tmp_path: Path) -> None:
    tool = shutil.which("osslsigncode")
    if tool is None:
        pytest.skip("osslsigncode is not installed")
    path = tmp_path / "Image"
    path.write_bytes(signing.good().data)
    said = subprocess.run([tool, "verify", "-in", path], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Calculated message digest *: *([0-9A-F]+)", said)
    assert found is not None, said
    assert pe.digest(pe.parse(signing.good().data), "sha256").hex().upper() == found[1]


def test_sections_are_digested_in_the_order_of_their_bytes() -> None:
    forward = signing.pe_image()
    backward = signing.pe_image(reverse_headers=True)
    ranges = pe.digest_ranges(pe.parse(backward))
    assert ranges == pe.digest_ranges(pe.parse(forward))
    assert ranges[3:] == [(0x180, 0x180 + 64), (0x180 + 64, 0x180 + 96)]


def test_the_order_is_that_of_the_file_and_not_of_the_memory() -> None:
    image = bytearray(signing.pe_image())
    first = signing.OPTIONAL_OFFSET + 112 + 6 * 8
    struct.pack_into("<I", image, first + 12, 0x2000)
    struct.pack_into("<I", image, first + 40 + 12, 0x1000)
    file = pe.parse(bytes(image))
    assert pe.digest_ranges(file) == pe.digest_ranges(pe.parse(signing.pe_image()))
    assert pe.digest(file, "sha256") == signing.authenticode_digest(bytes(image))


def test_bytes_between_the_sections_and_the_certificates_are_digested() -> None:
    image = signing.pe_image() + b"left over"
    signed = signing.attach(image, b"message!")
    assert pe.digest(pe.parse(signed), "sha256") == signing.authenticode_digest(image)
    assert pe.digest_ranges(pe.parse(signed))[-1] == (len(image) - 9, len(image))


def test_bytes_behind_the_certificates_change_the_digest_as_in_linux() -> None:
    # As many bytes as were appended are digested, but those that follow the sections: the table's first.
    image = signing.pe_image()
    signed = signing.attach(image, b"message!")
    longer = signed + b"zzzz"
    wanted = hashlib.sha256()
    for piece in (
        image[: signing.CHECKSUM_OFFSET],
        image[signing.CHECKSUM_OFFSET + 4 : signing.CERTIFICATE_ENTRY],
        image[signing.CERTIFICATE_ENTRY + 8 :],
        signed[len(image) : len(image) + 4],
    ):
        wanted.update(piece)
    assert pe.digest(pe.parse(longer), "sha256") == wanted.digest()


def test_pe32_is_read_too() -> None:
    # The same headers with the smaller optional header: 16 bytes fewer in front of the directories.
    image = bytearray(signing.pe_image())
    at = signing.OPTIONAL_OFFSET
    struct.pack_into("<H", image, at, 0x10B)
    struct.pack_into("<I", image, at + 92, 6)
    file = pe.parse(bytes(image))
    assert file.directories_offset == at + 96
    assert file.directories == 6


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0, b"ZM", "does not begin with MZ"),
        (60, struct.pack("<I", 0x3F), "PE header"),
        (60, struct.pack("<I", 0xFFFFFFF0), "PE header"),
        (signing.PE_OFFSET, b"NE", "no PE signature"),
        (signing.OPTIONAL_OFFSET, b"\x07\x01", "unknown kind 0x107"),
        (signing.OPTIONAL_OFFSET + 60, struct.pack("<I", 0x10), "headers of 0x10 bytes"),
        (signing.OPTIONAL_OFFSET + 60, struct.pack("<I", 0x100000), "headers of 0x100000 bytes"),
        (signing.OPTIONAL_OFFSET + 108, struct.pack("<I", 0x10000000), "data directories"),
    ],
)
def test_headers_that_do_not_hold_together_are_refused(offset: int, value: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        pe.parse(signing.patch(signing.good().data, offset, value))


@pytest.mark.parametrize(
    ("offset", "size"), [(0x100, 8), (0xFFFFFFF8, 8), (0x1E0, 0xFFFFFFFF), (0x1E0, 0x1000), (0x1E0, 0x10000)]
)
def test_a_certificate_table_outside_of_the_file_is_refused(offset: int, size: int) -> None:
    file = pe.parse(
        signing.patch(signing.good().data, signing.CERTIFICATE_ENTRY, struct.pack("<II", offset, size))
    )
    with pytest.raises(FormatError, match="certificate table"):
        file.certificate_table()


def test_more_sections_than_have_room_are_refused() -> None:
    file = pe.parse(signing.patch(signing.good().data, signing.PE_OFFSET + 6, b"\xff\xff"))
    with pytest.raises(FormatError, match="65535 section headers"):
        _ = file.sections


def test_a_section_behind_the_end_of_the_file_is_refused() -> None:
    first = signing.OPTIONAL_OFFSET + 112 + 6 * 8
    file = pe.parse(signing.patch(signing.good().data, first + 20, struct.pack("<I", 0xFFFFFF00)))
    with pytest.raises(FormatError, match="behind the file"):
        pe.digest(file, "sha256")


def test_sections_that_lie_over_each_other_cannot_make_the_digest_long() -> None:
    parts = [signing.Part(b".x", b"y" * 16)] * 40
    image = bytearray(signing.pe_image(parts, headers=0x1000))
    for number in range(40):
        header = signing.OPTIONAL_OFFSET + 112 + 6 * 8 + 40 * number
        struct.pack_into("<II", image, header + 16, len(image), 0)
    with pytest.raises(FormatError, match="more than the file has"):
        pe.digest(pe.parse(bytes(image)), "sha256")


@given(st.binary(max_size=400))
def test_any_bytes_are_a_file_or_a_format_error(data: bytes) -> None:
    _read_all(data)


@given(st.lists(st.tuples(st.integers(0, 0x1A0), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6))
def test_any_damage_to_the_headers_is_a_file_or_a_format_error(damage: list[tuple[int, bytes]]) -> None:
    data = signing.good().data
    for offset, value in damage:
        data = signing.patch(data, offset, value)
    _read_all(data)


def _read_all(data: bytes) -> None:
    """What is read is in the file; what is digested too, and no more than all of it."""
    try:
        file = pe.parse(data)
        table = file.certificate_table()
        if table is not None:
            assert table.offset + table.size <= len(data)
            file.win_certificate(table)
        ranges = pe.digest_ranges(file)
    except FormatError:
        return
    assert all(0 <= start < end <= len(data) for start, end in ranges)
    assert sum(end - start for start, end in ranges) <= len(data)
