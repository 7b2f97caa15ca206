"""An arm64 Image's header, written as Documentation/arch/arm64/booting.rst lays it out."""

from __future__ import annotations

import struct

__all__ = ["build"]


def build(
    *,
    image_size: int,
    text_offset: int = 0,
    code0: int = 0,
    code1: int = 0,
    big_endian: bool = False,
    page_size: int = 4096,
    pe_offset: int = 0,
) -> bytes:
    """The 64 bytes of a header, for a kernel that may be anywhere; page_size is 0, 4096, 16384 or 65536."""
    flags = big_endian | (0, 4096, 16384, 65536).index(page_size) << 1 | 1 << 3
    return struct.pack(
        "<IIQQQQQQ4sI", code0, code1, text_offset, image_size, flags, 0, 0, 0, b"ARM\x64", pe_offset
    )
