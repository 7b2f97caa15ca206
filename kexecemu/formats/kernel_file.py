"""What a file that should be a kernel is, when it is no arm64 Image: its kind, and who unwraps it.

Kernels are shipped as gzip, as an EFI program that unpacks itself (zboot), as a unified kernel image, as vmlinux. The
kernel's own loader takes none of them; kexec-tools unpacks some in user space first (slurp_decompress_file(),
pez_prepare() and uImage_load() there).
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kexecemu.errors import FormatError
from kexecemu.formats import pe
from kexecemu.formats.elf import EM_AARCH64
from kexecemu.formats.image import missing_bytes
from kexecemu.shown import shown

__all__ = ["NO_MAGIC", "VMLINUX", "KernelFile", "is_gzip", "kernel_file", "no_image"]
__all__ += ["truncated", "unpack_gzip", "unpack_uimage", "zboot"]

NO_MAGIC = 'no "ARM\\x64" at offset 56'
_GZIP = b"\x1f\x8b"
_UIMAGE_MAGIC = b"\x27\x05\x19\x56"

_MAGICS = (
    # (where, magic, what it is, how to get an Image out of it)
    (0, _GZIP, "compressed with gzip", "gunzip unpacks it, kexec-tools does for kexec_load"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "xz -d unpacks it"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstd -d unpacks it"),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4", "lz4 -d unpacks it"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "lz4 -d unpacks it"),
    (0, b"\x89LZO\0", "compressed with lzop", "lzop -d unpacks it"),
    (0, b"BZh", "compressed with bzip2", "bunzip2 unpacks it"),
    (0, b"\x5d\0\0", "compressed with lzma", "xz -d --format=lzma unpacks it"),
    (0, _UIMAGE_MAGIC, "a U-Boot uImage", "dumpimage takes the Image out, kexec-tools does for kexec_load"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or a U-Boot FIT", "dumpimage takes the Image out of a FIT"),
    (0, b"ANDROID!", "an Android boot image", "unpack_bootimg takes the Image out"),
    (0, b"PK\x03\x04", "a zip archive", "unzip unpacks it"),
    (257, b"ustar", "a tar archive", "tar -x unpacks it"),
    (0, b"!<arch>\n", "an archive or a Debian package", "dpkg-deb -x unpacks a package"),
)
_EFI_AARCH64 = 0xAA64
_ZBOOT = struct.Struct("<2s2x4sII8x32s")
_CHUNK = 1 << 20

# struct image_header of U-Boot: magic, hcrc, time, size, load, ep, dcrc; os, arch, type, comp; name.
_UIMAGE = struct.Struct(">4s6I4B32s")
# Linux, arm64; a kernel, or one that may lie anywhere.
_UIMAGE_OS, _UIMAGE_ARCH, _UIMAGE_KERNELS = 5, 22, (2, 14)


@shown()
@dataclass(frozen=True, slots=True)
class KernelFile:
    """kind is what the file is, unwrap who makes an Image of it ("" where nobody does), both in words."""

    kind: str
    unwrap: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.unwrap})" if self.unwrap else self.kind


VMLINUX = KernelFile("an ELF file, as vmlinux is", "objcopy -O binary makes an Image of a vmlinux")


@shown()
@dataclass(frozen=True, slots=True)
class Zboot:
    """struct linux_efi_zboot_header: how the kernel inside is compressed, and where in the file it is (bytes)."""

    compression: str
    offset: int
    size: int


def zboot(data: bytes) -> Zboot | None:
    """The header of an EFI zboot kernel; None for anything else."""
    if len(data) < _ZBOOT.size:
        return None
    mz, kind, offset, size, compression = _ZBOOT.unpack_from(data)
    if mz != b"MZ" or kind != b"zimg":
        return None
    return Zboot(compression.split(b"\0", 1)[0].decode("ascii", "replace"), offset, size)


def kernel_file(data: bytes) -> KernelFile | None:
    """What `data` is, by its first bytes; None for what nothing here knows, an arm64 Image among it."""
    if data[:4] == b"\x7fELF":
        return _elf(data)
    if (packed := zboot(data)) is not None:
        way = "kexec-tools 2.0.27 or later unpacks it for kexec_load"
        if packed.compression == "lzma":
            way += ", if it is built with liblzma, which Debian's is not"
        if packed.compression not in ("gzip", "lzma"):
            way = f"{packed.size} bytes from offset {packed.offset} on are the compressed Image"
        return KernelFile(f"an EFI zboot kernel, {packed.compression} inside", way)
    if data[:2] == b"MZ":
        return _pe(data)
    for at, magic, kind, unwrap in _MAGICS:
        if data[at : at + len(magic)] == magic:
            return KernelFile(kind, unwrap)
    return None


def no_image(data: bytes) -> str:
    """What there is to say of a file that is no arm64 Image: that, and what it is where that is known."""
    found = kernel_file(data)
    return "no arm64 Image" + (f": {found}" if found is not None else "")


def truncated(image: bytes, path: str | Path | None) -> str | None:
    """In words that an Image is cut off, where that is to be seen; None where it is not."""
    missing = missing_bytes(image)
    return (
        f"kernel {path}: truncated: at least {missing:#x} bytes are missing at its end" if missing else None
    )


def is_gzip(data: bytes) -> bool:
    """The file begins as gzip does."""
    return data[:2] == _GZIP


class Unpacked(NamedTuple):
    """What came out of a compressed file, and whether the file ended before its data did."""

    data: bytes
    cut_off: bool


def unpack_gzip(data: bytes, limit: int) -> Unpacked:
    """All members of a gzip file one after another, as gzread() gives them: what follows the last one is left out.

    A file that is cut off gives what is in it, which zlib takes for no error. Raises FormatError for damaged data, of
    which nothing is had, for what is too short to give anything, and where there are more than `limit` bytes.
    """
    found, cut_off = bytearray(), False
    while is_gzip(data) and not cut_off:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        pending = data
        while not member.eof and not cut_off:
            try:
                piece = member.decompress(pending, _CHUNK)
            except zlib.error as error:
                raise FormatError(f"gzip: {str(error).partition(': ')[2] or error}") from error
            found += piece
            pending = member.unconsumed_tail
            if len(found) > limit:
                raise FormatError(f"gzip: more than {limit:#x} bytes come out of it")
            cut_off = not piece and not pending and not member.eof
        data = member.unused_data
    if cut_off and not found:
        raise FormatError("gzip: the file is cut off")
    return Unpacked(bytes(found), cut_off)


def unpack_uimage(data: bytes, limit: int) -> bytes | None:
    """What a U-Boot uImage carries, as uImage_probe() and uImage_load() of kexec-tools take it; None for anything else.

    Raises FormatError where they refuse it, and where more than `limit` bytes come out of its gzip data.
    """
    if len(data) < _UIMAGE.size or not data.startswith(_UIMAGE_MAGIC):
        return None
    _, header_crc, _, size, _, _, data_crc, system, machine, kind, compression, _ = _UIMAGE.unpack_from(data)
    inner = data[_UIMAGE.size :]
    for wrong, why in (
        (
            zlib.crc32(data[:4] + bytes(4) + data[8 : _UIMAGE.size]) != header_crc,
            "the header's checksum is wrong",
        ),
        (kind not in _UIMAGE_KERNELS, f"type {kind} is no kernel"),
        (system != _UIMAGE_OS, f"it is for another system ({system})"),
        (machine != _UIMAGE_ARCH, f"it is for another machine ({machine})"),
        (compression > 1, "it is compressed by other than gzip"),
        (size != len(inner), f"its header says {size:#x} bytes, and there are {len(inner):#x}"),
        (zlib.crc32(inner) != data_crc, "the data's checksum is wrong"),
    ):
        if wrong:
            raise FormatError(f"uImage: {why}")
    if not compression:
        return inner
    try:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        found = member.decompress(inner, limit)
    except zlib.error as error:
        raise FormatError(f"uImage: {str(error).partition(': ')[2] or error}") from error
    if not member.eof:
        raise FormatError("uImage: its gzip data is cut off, or more than there is room for")
    return found


def _elf(data: bytes) -> KernelFile:
    if len(data) < 20:
        return KernelFile("a cut off ELF file")
    order = ">" if data[5] == 2 else "<"
    kind, machine = struct.unpack_from(f"{order}HH", data, 16)
    if machine != EM_AARCH64:
        return KernelFile(f"an ELF file for another machine (e_machine {machine})")
    if kind not in (2, 3):
        return KernelFile("an ELF file that is no program")
    return VMLINUX


def _pe(data: bytes) -> KernelFile:
    try:
        found = pe.parse(data)
        names = [section.name.rstrip(b"\0") for section in found.sections]
    except FormatError:
        return KernelFile("a damaged EFI program")
    if b".linux" in names:
        kind = "a unified kernel image (UKI)"
        return KernelFile(kind, "objcopy -O binary --only-section=.linux takes the kernel out")
    if found.machine != _EFI_AARCH64:
        return KernelFile(f"an EFI program for another machine ({found.machine:#x})")
    return KernelFile("an EFI program without an Image's header")
