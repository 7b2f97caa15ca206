"""The PE side of an arm64 EFI Image: headers, sections, certificate table, and what Authenticode digests of it.

Offsets are bytes from the start of the file. Only the bytes are read here, with the bounds that Linux checks; which
error a system call returns for what is missing is the concern of kexecemu.kernel.signature.signature. Linux does not
look whether the file is for its own machine, and takes PE32 as well as PE32+.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from kexecemu.errors import FormatError
from kexecemu.shown import shown

__all__ = [
    "CertificateTable",
    "PeFile",
    "Section",
    "WinCertificate",
    "digest",
    "digest_ranges",
    "is_pe",
    "parse",
]

WIN_CERT_REVISION_2_0 = 0x0200
WIN_CERT_TYPE_PKCS_SIGNED_DATA = 0x0002

_DOS_SIZE = 64
_DOS_PE_OFFSET = 60
_COFF = struct.Struct("<4sHHIIIHH")
# Optional header magic to the header's size: everything in front of the data directories.
_OPTIONAL_SIZES = {0x10B: 96, 0x20B: 112}
_HEADER_SIZE_OFFSET = 60
_CHECKSUM_OFFSET = 64
_CHECKSUM_SIZE = 4
_DIRECTORY = struct.Struct("<II")
_CERTIFICATE_DIRECTORY = 4
_SECTION = struct.Struct("<8sIIIIIIHHI")
_WIN_CERTIFICATE = struct.Struct("<IHH")


@shown()
class Section(NamedTuple):
    """One section header, as far as a digest needs it."""

    name: bytes
    virtual_size: int
    virtual_address: int
    raw_data_size: int
    data_offset: int


@shown()
class CertificateTable(NamedTuple):
    """Where the certificate table lies. Its "virtual address" is, alone of all directories, a file offset."""

    offset: int
    size: int


@shown()
class WinCertificate(NamedTuple):
    """The wrapper around a signature; length counts the wrapper's own SIZE bytes too."""

    length: int
    revision: int
    type: int


WIN_CERTIFICATE_SIZE = _WIN_CERTIFICATE.size


@shown()
@dataclass(frozen=True)
class PeFile:
    """The headers of a PE file."""

    data: bytes
    machine: int
    header_size: int
    checksum_offset: int
    directories_offset: int
    directories: int
    section_count: int

    @property
    def certificate_entry_offset(self) -> int:
        """Where the certificate directory's entry is; Linux reads it however few directories there are."""
        return self.directories_offset + _CERTIFICATE_DIRECTORY * _DIRECTORY.size

    @property
    def _sections_offset(self) -> int:
        return self.directories_offset + self.directories * _DIRECTORY.size

    def certificate_table(self) -> CertificateTable | None:
        """The certificate table, None if the file is unsigned. FormatError where it does not lie behind the headers."""
        if self.certificate_entry_offset + _DIRECTORY.size > len(self.data):
            raise FormatError("PE file: cut off inside the data directories")
        table = CertificateTable(*_DIRECTORY.unpack_from(self.data, self.certificate_entry_offset))
        if not table.offset or not table.size:
            return None
        _check_range(self.data, "certificate table", table.offset, table.size, self.header_size)
        return table

    def win_certificate(self, table: CertificateTable) -> WinCertificate:
        """The first wrapper in the table. FormatError if the table is too small for one."""
        if table.size < _WIN_CERTIFICATE.size:
            raise FormatError(f"PE file: a certificate table of {table.size} bytes holds no certificate")
        return WinCertificate(*_WIN_CERTIFICATE.unpack_from(self.data, table.offset))

    @cached_property
    def sections(self) -> Sequence[Section]:
        """The section headers in file order. FormatError where they do not fit into the headers."""
        room = (self.header_size - self._sections_offset) // _SECTION.size
        if self.section_count > room:
            raise FormatError(f"PE file: {self.section_count} section headers where {room} have room")
        return [
            Section(*_SECTION.unpack_from(self.data, self._sections_offset + number * _SECTION.size)[:5])
            for number in range(self.section_count)
        ]


def is_pe(data: bytes) -> bool:
    """The file begins as a PE file does; an arm64 Image with an EFI stub does too."""
    return data[:2] == b"MZ"


def parse(data: bytes) -> PeFile:
    """Read the headers up to the data directories, as pefile_parse_binary() does. FormatError if they are none."""
    _check_range(data, "DOS header", 0, _DOS_SIZE)
    if not is_pe(data):
        raise FormatError("PE file: does not begin with MZ")
    (pe_offset,) = struct.unpack_from("<I", data, _DOS_PE_OFFSET)
    _check_range(data, "PE header", pe_offset, _COFF.size, _DOS_SIZE)
    signature, machine, section_count, *_ = _COFF.unpack_from(data, pe_offset)
    if signature != b"PE\0\0":
        raise FormatError("PE file: no PE signature where the DOS header points")
    optional = pe_offset + _COFF.size
    _check_range(data, "optional header", optional, 2)
    (magic,) = struct.unpack_from("<H", data, optional)
    if magic not in _OPTIONAL_SIZES:
        raise FormatError(f"PE file: optional header of unknown kind {magic:#x}")
    size = _OPTIONAL_SIZES[magic]
    _check_range(data, "optional header", optional, size)
    (header_size,) = struct.unpack_from("<I", data, optional + _HEADER_SIZE_OFFSET)
    (directories,) = struct.unpack_from("<I", data, optional + size - 4)
    directories_offset = optional + size
    if not directories_offset < header_size < len(data):
        raise FormatError(f"PE file: headers of {header_size:#x} bytes in a file of {len(data):#x}")
    if directories > (header_size - directories_offset) // _DIRECTORY.size:
        raise FormatError(f"PE file: {directories} data directories do not fit into the headers")
    places = (optional + _CHECKSUM_OFFSET, directories_offset)
    return PeFile(data, machine, header_size, *places, directories, section_count)


def _check_range(data: bytes, what: str, offset: int, size: int, lowest: int = 0) -> None:
    # A file that is all header is refused too: the kernel wants more than size bytes.
    if offset < lowest or size >= len(data) or offset > len(data) - size:
        raise FormatError(f"PE file: {what} of {size:#x} bytes at {offset:#x} does not lie in the file")


def digest_ranges(pe: PeFile) -> list[tuple[int, int]]:
    """What Authenticode digests, as (start, end) in the order in which it does: pefile_digest_pe_contents().

    All of the headers but the checksum and the certificate directory's entry, the sections' bytes in the order of
    their place in the file, and what follows them except for as many bytes as the certificate table has. Bytes
    behind that table therefore count, although its first bytes are digested in their place.

    FormatError for files that a real kernel would read outside of: it checks none of these sizes.
    """
    data_size = len(pe.data)
    entry_end = pe.certificate_entry_offset + _DIRECTORY.size
    if entry_end > pe.header_size:
        raise FormatError("PE file: the headers end inside the data directories")
    ranges = [
        (0, pe.checksum_offset),
        (pe.checksum_offset + _CHECKSUM_SIZE, pe.certificate_entry_offset),
        (entry_end, pe.header_size),
    ]
    table = pe.certificate_table()
    certificates = table.size if table else 0
    digested = pe.header_size
    for section in sorted(pe.sections, key=_canonical):
        end = section.data_offset + section.raw_data_size
        if section.raw_data_size and end > data_size:
            raise FormatError(f"PE file: section {section.name!r} ends at {end:#x}, behind the file")
        ranges.append((section.data_offset, end))
        digested += section.raw_data_size
    # Sections that overlap could make a small file take hours, in a real kernel too.
    if digested + certificates > data_size:
        raise FormatError("PE file: headers, sections and certificates are more than the file has")
    ranges.append((digested, data_size - certificates))
    return [(start, end) for start, end in ranges if end > start]


def _canonical(section: Section) -> tuple[int, int, bytes, int, int]:
    """The order of pefile_compare_shdrs()."""
    name = section.name.split(b"\0", 1)[0]
    return section.data_offset, section.virtual_address, name, section.virtual_size, section.raw_data_size


def digest(pe: PeFile, algorithm: str) -> bytes:
    """The Authenticode digest, with an algorithm that hashlib has, by the kernel's name. Raises as digest_ranges()."""
    sum_ = hashlib.new(algorithm.replace("-", "_"))
    view = memoryview(pe.data)
    for start, end in digest_ranges(pe):
        sum_.update(view[start:end])
    return sum_.digest()
