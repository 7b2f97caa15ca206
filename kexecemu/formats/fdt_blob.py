"""The bytes of a flattened device tree: header, blocks and tags, and whether they are sound."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kexecemu.arguments import contents
from kexecemu.errors import FormatError
from kexecemu.shown import shown

__all__ = ["FdtBlob", "MemReserve", "Property"]

FDT_MAGIC = 0xD00DFEED
FDT_BEGIN_NODE, FDT_END_NODE, FDT_PROP, FDT_NOP, FDT_END = 1, 2, 3, 4, 9
TAG_SIZE = 4
PROP_SIZE = 12  # tag, length, name offset
RESERVE_SIZE = 16
HEADER_SIZE = 40
_HEADER_SIZE_V16 = 36
_OFF_DT_STRUCT = 8
_FIRST_VERSION = 16
_LAST_VERSION = 17
_INT_MAX = (1 << 31) - 1

_U32 = struct.Struct(">I")
_RESERVE = struct.Struct(">QQ")


@shown()
class Property(NamedTuple):
    """A property: its offset in the structure block, its name, its value."""

    offset: int
    name: str
    value: bytes


@shown()
class MemReserve(NamedTuple):
    """An entry of the memory reservation block: physical address and size in bytes."""

    phys: int
    size: int


@dataclass
class _Sound:
    """What is known of a blob that has been checked: a boot reads the same one a dozen times."""

    size_dt_struct: int
    last_string_end: int
    nodes: list[Any] | None = None
    """Each as Fdt.nodes() gives it from the root on, once somebody has walked them all."""
    properties: dict[int, list[int]] = field(default_factory=dict)
    """By node, where its properties' tags are, once somebody has read one of them."""


_SOUND: dict[bytes, _Sound] = {}
_SOUND_MAX = 8


class _HeaderField:
    """A big endian 32-bit word of the header; writable where the blob is (in an FdtEditor)."""

    def __init__(self, position: int) -> None:
        self._position = position

    def __get__(self, blob: FdtBlob, owner: type | None = None) -> int:
        return blob.u32(self._position)

    def __set__(self, blob: FdtBlob, value: int) -> None:
        assert isinstance(blob.data, bytearray)
        _U32.pack_into(blob.data, self._position, value)


def tag_align(size: int) -> int:
    """`size` rounded up to whole tags (FDT_TAGALIGN)."""
    return (size + TAG_SIZE - 1) & -TAG_SIZE


@shown("version", "totalsize")
class FdtBlob:
    """A device tree blob, checked as a whole when it is made, as fdt_check_full() does.

    Versions 16 and 17 are read. Raises FormatError for anything but a sound tree.
    """

    totalsize = _HeaderField(4)
    off_dt_struct = _HeaderField(_OFF_DT_STRUCT)
    off_dt_strings = _HeaderField(12)
    off_mem_rsvmap = _HeaderField(16)
    version = _HeaderField(20)
    last_comp_version = _HeaderField(24)
    boot_cpuid_phys = _HeaderField(28)
    size_dt_strings = _HeaderField(32)

    def __init__(self, data: bytes | bytearray | memoryview | str | os.PathLike[str]) -> None:
        """data is the blob, or the path of a file that holds one."""
        self.data: bytes | bytearray = contents(data, "device tree")
        self.size_dt_struct = 0
        """The size of the structure block in bytes, which a version 16 header does not have."""
        self._last_string_end = -1
        self._check_header()
        self.data = self.data[: self.totalsize]
        sound = _SOUND.get(self.data) if isinstance(self.data, bytes) else None
        if sound is None:
            self.mem_reservations()
            self._check_structure()
            sound = _Sound(self.size_dt_struct, self._last_string_end)
            if isinstance(self.data, bytes):
                while len(_SOUND) >= _SOUND_MAX:
                    del _SOUND[next(iter(_SOUND))]
                _SOUND[self.data] = sound
        self.size_dt_struct, self._last_string_end = sound.size_dt_struct, sound.last_string_end
        self._sound = sound

    # Checks, on which every reader below relies.

    def _check_header(self) -> None:
        size = len(self.data)
        if size < _HEADER_SIZE_V16:
            raise FormatError(f"device tree: {size} bytes are too short for a header")
        if self.u32(0) != FDT_MAGIC:
            raise FormatError(f"device tree: magic at offset 0 is {self.u32(0):#x}, not {FDT_MAGIC:#x}")
        version, compatible = self.version, self.last_comp_version
        if version < _FIRST_VERSION or compatible > _LAST_VERSION or version < compatible:
            raise FormatError(f"device tree: version {version}, compatible with {compatible}, at offset 0x14")
        header = HEADER_SIZE if version >= _LAST_VERSION else _HEADER_SIZE_V16
        total = self.totalsize
        if not header <= total <= min(size, _INT_MAX):
            raise FormatError(f"device tree: total size {total:#x} at offset 4, {size:#x} bytes given")
        # Version 16 does not say how long its structure block is.
        struct_size = self.u32(36) if version >= _LAST_VERSION else max(total - self.off_dt_struct, 0)
        blocks = (
            ("memory reservation", self.off_mem_rsvmap, 0),
            ("structure", self.off_dt_struct, struct_size),
            ("strings", self.off_dt_strings, self.size_dt_strings),
        )
        for name, offset, length in blocks:
            if offset < header or offset + length > total:
                raise FormatError(
                    f"device tree: {name} block at {offset:#x}, size {length:#x}, is outside {total:#x}"
                )
        self.size_dt_struct = struct_size

    def _check_structure(self) -> None:
        strings = self.off_dt_strings
        self._last_string_end = self.data.rfind(b"\0", strings, strings + self.size_dt_strings)
        depth = 0
        offset = 0
        while True:
            tag, following = self.next_tag(offset)
            if offset == 0 and (tag != FDT_BEGIN_NODE or self.name_at(0)):
                raise FormatError("device tree: no root node with an empty name at structure offset 0")
            if tag == FDT_BEGIN_NODE:
                if depth == 0 and offset:
                    raise FormatError(f"device tree: second root at structure offset {offset:#x}")
                depth += 1
            elif tag == FDT_END_NODE:
                depth -= 1
                if depth < 0:
                    raise FormatError(f"device tree: end of no node at structure offset {offset:#x}")
            elif tag == FDT_PROP:
                if depth == 0:
                    raise FormatError(f"device tree: property outside a node at structure offset {offset:#x}")
                self._check_property_name(offset)
            elif tag == FDT_END:
                if depth:
                    raise FormatError(
                        f"device tree: {depth} nodes still open at structure offset {offset:#x}"
                    )
                if self.version < _LAST_VERSION:
                    self.size_dt_struct = following
                return
            offset = following

    def _check_property_name(self, offset: int) -> None:
        name = self.u32(self.off_dt_struct + offset + 8)
        # Any string is ended by the last NUL at the latest; looking for each one's own end would be
        # quadratic.
        if self.off_dt_strings + name > self._last_string_end:
            raise FormatError(f"device tree: bad string offset {name:#x} of the property at {offset:#x}")

    # The three blocks.

    def u32(self, position: int) -> int:
        """The big endian word at a byte position of the blob."""
        value: int = _U32.unpack_from(self.data, position)[0]
        return value

    def mem_reservations(self) -> list[MemReserve]:
        """The memory reservation block's entries, without the zero one that ends it."""
        entries: list[MemReserve] = []
        position = self.off_mem_rsvmap
        while position + RESERVE_SIZE <= self.totalsize:
            entry = MemReserve(*_RESERVE.unpack_from(self.data, position))
            # libfdt ends at size 0 whatever the address.
            if entry.size == 0:
                return entries
            entries.append(entry)
            position += RESERVE_SIZE
        raise FormatError(f"device tree: memory reservations at {self.off_mem_rsvmap:#x} have no end")

    def string_at(self, offset: int) -> str:
        """The string at an offset of the strings block."""
        start = self.off_dt_strings
        limit = start + self.size_dt_strings
        end = self.data.find(b"\0", start + offset, limit) if offset < self.size_dt_strings else -1
        if end < 0:
            raise FormatError(
                f"device tree: bad string offset {offset:#x}, strings are {limit - start:#x} bytes"
            )
        return self.data[start + offset : end].decode("latin-1")

    def next_tag(self, offset: int) -> tuple[int, int]:
        """The tag at a structure offset and the offset of the next one (fdt_next_tag())."""
        # Plain on purpose: a boot comes here 40,000 times.
        data, size = self.data, self.size_dt_struct
        if offset < 0 or offset % TAG_SIZE or offset + TAG_SIZE > size:
            raise FormatError(f"device tree: no tag at structure offset {offset:#x}")
        start: int = _U32.unpack_from(data, _OFF_DT_STRUCT)[0]
        tag: int = _U32.unpack_from(data, start + offset)[0]
        end = offset + TAG_SIZE
        if tag == FDT_PROP:
            if offset + PROP_SIZE > size:
                raise FormatError(f"device tree: property at structure offset {offset:#x} is truncated")
            end = offset + PROP_SIZE + _U32.unpack_from(data, start + end)[0]
        elif tag == FDT_BEGIN_NODE:
            nul = data.find(b"\0", start + end, start + size)
            if nul < 0:
                raise FormatError(f"device tree: node name at structure offset {end:#x} has no end")
            end = nul + 1 - start
        elif tag not in (FDT_END_NODE, FDT_NOP, FDT_END):
            raise FormatError(f"device tree: unknown tag {tag:#x} at structure offset {offset:#x}")
        if end > size:
            raise FormatError(
                f"device tree: tag at structure offset {offset:#x} ends at {end:#x}, outside its block"
            )
        return tag, (end + TAG_SIZE - 1) & -TAG_SIZE

    def name_at(self, offset: int) -> str:
        """The name behind the FDT_BEGIN_NODE tag at a structure offset that next_tag() accepted."""
        start = self.off_dt_struct + offset + TAG_SIZE
        return self.data[start : self.data.index(b"\0", start)].decode("latin-1")

    def property_at(self, offset: int) -> Property:
        """The property whose FDT_PROP tag is at a structure offset that next_tag() accepted."""
        position = self.off_dt_struct + offset
        length, name = self.u32(position + 4), self.u32(position + 8)
        value = bytes(self.data[position + PROP_SIZE : position + PROP_SIZE + length])
        return Property(offset, self.string_at(name), value)
