"""What a file is that should be a kernel, told by its first bytes: files that other programs have made."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
import zlib

import pytest
import signing
from hypothesis import given
from hypothesis import strategies as st
from image_header import build

from kexecemu.data import fixture_path, purgatory_path
from kexecemu.errors import FormatError
from kexecemu.formats.kernel_file import kernel_file, unpack_gzip, zboot
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.ranges import PhysRange

STUB = fixture_path("guests/capture-Image").read_bytes()


def packed_by(*command: str) -> bytes:
    """What a program makes of the stub; the test is left out where there is none."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}")
    return subprocess.run(command, input=STUB, stdout=subprocess.PIPE, check=True).stdout


def zipped() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("Image", STUB)
    return archive.getvalue()


def tarred() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.addfile(tarfile.TarInfo("Image"))
    return archive.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (gzip.compress(STUB, mtime=0), "compressed with gzip (gunzip unpacks it"),
        (lzma.compress(STUB), "compressed with xz (xz -d"),
        (lzma.compress(STUB, format=lzma.FORMAT_ALONE), "compressed with lzma"),
        (bz2.compress(STUB), "compressed with bzip2"),
        (zipped(), "a zip archive"),
        (tarred(), "a tar archive"),
        (fixture_path("guests/vmlinux").read_bytes(), "an ELF file, as vmlinux is (objcopy -O binary"),
        (purgatory_path().read_bytes(), "an ELF file that is no program"),
        (
            virt_device_tree([PhysRange.of(0x40000000, 1 << 30)], 1, 0x9000000),
            "a device tree or a U-Boot FIT",
        ),
        (b"ANDROID!" + bytes(2000), "an Android boot image"),
        (b"\x27\x05\x19\x56" + bytes(60), "a U-Boot uImage"),
        (b"MZ" + bytes(100), "a damaged EFI program"),
        (b"\x7fELF", "a cut off ELF file"),
    ],
)
def test_a_file_is_named_with_what_unwraps_it(data: bytes, kind: str) -> None:
    assert str(kernel_file(data)).startswith(kind)


@pytest.mark.parametrize(
    ("program", "kind"), [("zstd", "zstd"), ("lz4", "lz4"), ("xz", "xz"), ("bzip2", "bzip2")]
)
def test_what_the_packers_of_this_machine_make_is_known(program: str, kind: str) -> None:
    assert str(kernel_file(packed_by(program, "-c"))).startswith(f"compressed with {kind}")


def test_an_image_is_none_of_them_and_neither_is_text() -> None:
    assert kernel_file(build(image_size=4096) + bytes(4096)) is None
    assert kernel_file(b"#!/bin/sh\n") is None
    assert kernel_file(b"") is None


def test_an_efi_program_of_several_parts_is_a_unified_kernel_image() -> None:
    """A PE file of another tool, with its first section called .linux."""
    stub = bytearray(signing.pe_image())
    stub[56:60] = bytes(4)
    assert str(kernel_file(bytes(stub))) == "an EFI program without an Image's header"
    stub[stub.index(b".text") : stub.index(b".text") + 8] = b".linux\0\0"
    assert str(kernel_file(bytes(stub))).startswith("a unified kernel image (UKI) (objcopy")


def test_the_header_of_a_zboot_kernel_says_what_is_inside_and_where() -> None:
    header = b"MZ\0\0zimg" + (4096).to_bytes(4, "little") + (99).to_bytes(4, "little") + bytes(8)
    found = zboot(header + b"xzkern".ljust(32, b"\0"))
    assert found is not None
    assert (found.compression, found.offset, found.size) == ("xzkern", 4096, 99)
    assert zboot(header) is None
    assert zboot(STUB) is None


@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=20))
def test_gzip_is_unpacked_as_gzip_does_it(first: bytes, second: bytes, rest: bytes) -> None:
    packed = gzip.compress(first, mtime=0) + gzip.compress(second, mtime=0)
    assert unpack_gzip(packed, 1000) == (gzip.decompress(packed), False) == (first + second, False)
    if rest[:2] != b"\x1f\x8b":
        assert unpack_gzip(packed + rest, 1000) == (first + second, False)


@given(st.binary(min_size=1, max_size=5000), st.integers(0, 5000), st.integers(10, 5000))
def test_a_gzip_file_that_is_cut_off_gives_what_is_in_it(first: bytes, last: int, kept: int) -> None:
    """As gzread() does: data that ends early is no error there, in the second member as in the first."""
    whole = first + bytes(last)
    packed = gzip.compress(first, mtime=0) + gzip.compress(bytes(last), mtime=0)
    kept = min(kept, len(packed) - 1)
    expected = zlib.decompressobj(31).decompress(packed[:kept])
    if not expected:
        with pytest.raises(FormatError, match="gzip: the file is cut off"):
            unpack_gzip(packed[:kept], 1 << 20)
        return
    found = unpack_gzip(packed[:kept], 1 << 20)
    assert found.data[: len(expected)] == expected and whole.startswith(found.data)
    first_size = len(gzip.compress(first, mtime=0))
    assert found.cut_off is (kept != first_size and kept != first_size + 1)


@pytest.mark.parametrize("kept", range(2, 11))
def test_a_gzip_file_that_is_cut_off_in_its_header_gives_nothing(kept: int) -> None:
    with pytest.raises(FormatError, match="gzip: the file is cut off"):
        unpack_gzip(gzip.compress(bytes(256), mtime=0)[:kept], 1000)


@pytest.mark.parametrize("at", [-8, -1])
def test_of_a_gzip_file_with_a_wrong_checksum_or_length_nothing_is_had(at: int) -> None:
    packed = bytearray(gzip.compress(bytes(256), mtime=0))
    packed[at] ^= 1
    with pytest.raises(FormatError, match="gzip: incorrect"):
        unpack_gzip(bytes(packed), 1000)


def test_more_than_there_is_room_for_is_an_error() -> None:
    bomb = gzip.compress(bytes(64 << 20), mtime=0)
    with pytest.raises(FormatError, match="more than 0x1000 bytes"):
        unpack_gzip(bomb, 4096)
