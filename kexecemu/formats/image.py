"""The 64-byte header of an arm64 Image, as Documentation/arch/arm64/booting.rst lays it out.

Only the bytes are read here. Which of a header's values a kernel refuses, and with what errno, is a matter
of the loader (image_probe() and image_load() of the kernel), not of the format.
"""

import struct
from dataclasses import dataclass

from kexecemu.errors import FormatError
from kexecemu.shown import shown

__all__ = ["ImageHeader", "has_magic", "missing_bytes", "parse"]

HEADER_SIZE = 64
IMAGE_MAGIC = b"ARM\x64"
MAGIC_OFFSET = 56

_HEADER = struct.Struct("<IIQQQQQQ4sI")

_OPCODE_B = 0b000101
_COFF_SIZE = 20
_SECTION_SIZE = 40

# Bits 2:1 of the flags: unspecified, 4 KiB, 16 KiB, 64 KiB.
_PAGE_SIZES = (0, 4096, 16384, 65536)


@shown()
@dataclass(frozen=True, slots=True)
class ImageHeader:
    """struct arm64_image_header: text_offset, image_size in bytes; pe_offset (res5) is a file offset."""

    code0: int
    code1: int
    text_offset: int
    image_size: int
    flags: int
    pe_offset: int

    @property
    def big_endian(self) -> bool:
        """True if the kernel runs big endian. The header itself is little endian always."""
        return bool(self.flags & 1)

    @property
    def page_size(self) -> int:
        """The page size in bytes that the kernel was built for; 0 where the header does not say."""
        return _PAGE_SIZES[self.flags >> 1 & 3]


def has_magic(data: bytes | bytearray | memoryview) -> bool:
    """True if `data` is long enough for a header and has the magic in it: what image_probe() looks at."""
    return len(data) >= HEADER_SIZE and bytes(data[MAGIC_OFFSET : MAGIC_OFFSET + 4]) == IMAGE_MAGIC


def parse(data: bytes | bytearray | memoryview) -> ImageHeader:
    """Read the header at the start of an Image.

    Raises FormatError if `data` is shorter than a header or has another magic.
    """
    if len(data) < HEADER_SIZE:
        raise FormatError(f"arm64 Image: {len(data)} bytes are too short for the {HEADER_SIZE}-byte header")
    code0, code1, text_offset, image_size, flags, _, _, _, magic, pe_offset = _HEADER.unpack_from(data)
    if magic != IMAGE_MAGIC:
        raise FormatError(
            f"arm64 Image: magic at offset {MAGIC_OFFSET:#x} is {magic.hex()}, not {IMAGE_MAGIC.hex()}"
        )
    return ImageHeader(code0, code1, text_offset, image_size, flags, pe_offset)


def missing_bytes(data: bytes | bytearray | memoryview) -> int:
    """How many bytes at least an Image lacks at its end, 0 where nothing tells.

    The header has no file size (image_size counts the bss too). But the branch in code0 or code1 leads to the entry,
    and the PE header of an EFI kernel says where its sections end; both must be inside the file. Anything that is no
    Image gives 0: that is for parse() to say.
    """
    if not has_magic(data):
        return 0
    header = parse(data)
    branches = (_branch_target(header.code0, 0), _branch_target(header.code1, 4))
    return max(*branches, _pe_end(data, header.pe_offset), len(data)) - len(data)


def _branch_target(word: int, at: int) -> int:
    """One past the instruction that an unconditional branch forward at offset `at` leads to; 0 for anything else."""
    if word >> 26 != _OPCODE_B or word & 1 << 25:
        return 0
    return at + (word & (1 << 25) - 1) * 4 + 4


def _pe_end(data: bytes | bytearray | memoryview, pe_offset: int) -> int:
    """One past the last byte of a section's raw data; 0 without a PE header that can be read."""
    if bytes(data[:2]) != b"MZ" or pe_offset < HEADER_SIZE:
        return 0
    coff = pe_offset + 4
    if coff + _COFF_SIZE > len(data):
        return coff + _COFF_SIZE
    if bytes(data[pe_offset:coff]) != b"PE\0\0":
        return 0
    sections, optional_size = struct.unpack_from("<2xH12xH", data, coff)
    table = coff + _COFF_SIZE + int(optional_size)
    end = table + int(sections) * _SECTION_SIZE
    if end > len(data):
        return end
    places = range(table, end, _SECTION_SIZE)
    return max((sum(struct.unpack_from("<16xII", data, at)) for at in places), default=0)
