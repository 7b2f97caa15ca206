"""The size of a first kernel's pages, without a word of it."""

import struct

import pytest

from kexecemu.linux.first_boot import first_page_size


def _image(flags: int) -> bytes:
    return struct.pack("<2I6QII", 0, 0, 0, 0x10000, flags, 0, 0, 0, 0x644D5241, 0) + bytes(64)


@pytest.mark.parametrize(("field", "size"), [(0, 4096), (1, 4096), (2, 16384), (3, 65536)])
def test_it_is_what_the_image_s_header_says(field: int, size: int) -> None:
    """The kernel's own word for it is in /proc/kcore, which a small one has not."""
    assert first_page_size(_image(field << 1 | 8)) == size
