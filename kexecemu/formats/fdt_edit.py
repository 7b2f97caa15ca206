"""Changing a flattened device tree in place, with the splices of libfdt's read-write functions.

The tree is one buffer with free room at its end, and every change moves the bytes behind it. That is kept
here rather than rebuilding a tree from objects, because it decides the bytes: where a property ends up,
which strings stay behind when their last user is deleted, and what is left in the padding of a value that
got shorter.
"""

import struct

from kexecemu.errors import FormatError
from kexecemu.formats.fdt_blob import (
    FDT_BEGIN_NODE,
    FDT_END_NODE,
    FDT_MAGIC,
    FDT_NOP,
    FDT_PROP,
    HEADER_SIZE,
    PROP_SIZE,
    RESERVE_SIZE,
    TAG_SIZE,
    Property,
    tag_align,
)
from kexecemu.formats.fdt_read import Fdt

__all__ = ["FdtEditor"]

_VERSION = 17
_COMPATIBLE = 16
_U32_MAX = (1 << 32) - 1
_U32 = struct.Struct(">I")
_PROP = struct.Struct(">III")
_RESERVE = struct.Struct(">QQ")


def _no_space(needed: int, available: int) -> FormatError:
    return FormatError(f"device tree: no space, {needed:#x} bytes do not fit in {available:#x}")


class FdtEditor(Fdt):
    """A device tree that can be changed: a copy of `blob` in a buffer of bufsize bytes (fdt_open_into()).

    Without bufsize the buffer is as large as the blob says that it is. Blocks in the usual order stay where
    they are, gaps included; others are laid out anew. A change moves what lies behind it: an offset got
    before is good only for nodes in front of the change. Every method that needs room raises FormatError
    where libfdt returns FDT_ERR_NOSPACE, with nothing changed.
    """

    data: bytearray

    def __init__(self, blob: bytes | bytearray | memoryview, bufsize: int | None = None) -> None:
        super().__init__(blob)
        self._open(self.totalsize if bufsize is None else bufsize)

    def _open(self, bufsize: int) -> None:
        source = bytes(self.data)
        reservations = (len(self.mem_reservations()) + 1) * RESERVE_SIZE
        in_order = (
            self.off_mem_rsvmap >= HEADER_SIZE
            and self.off_dt_struct >= self.off_mem_rsvmap + reservations
            and self.off_dt_strings >= self.off_dt_struct + self.size_dt_struct
        )
        blocks = self._blocks()
        needed = len(source) if in_order else HEADER_SIZE + sum(map(len, blocks))
        if bufsize < needed:
            raise _no_space(needed, bufsize)
        boot_cpuid = self.boot_cpuid_phys
        self.data = bytearray(bufsize)
        if in_order:
            self.data[: len(source)] = source
            self._set_struct_size(len(blocks[1]))
        else:
            self._lay_out(blocks)
            _U32.pack_into(self.data, 0, FDT_MAGIC)
            self.last_comp_version = _COMPATIBLE
            self.boot_cpuid_phys = boot_cpuid
        self.version = _VERSION
        self.totalsize = bufsize

    def to_bytes(self) -> bytes:
        """The blob, totalsize bytes long."""
        return bytes(self.data[: self.totalsize])

    def pack(self) -> None:
        """Close all gaps and make totalsize the size of the data (fdt_pack())."""
        self._lay_out(self._blocks())
        self.totalsize = self._data_size()

    # Blocks and splices.

    def _blocks(self) -> tuple[bytes, bytes, bytes]:
        reservations = (len(self.mem_reservations()) + 1) * RESERVE_SIZE
        spans = (
            (self.off_mem_rsvmap, reservations),
            (self.off_dt_struct, self.size_dt_struct),
            (self.off_dt_strings, self.size_dt_strings),
        )
        reserve, structure, strings = (bytes(self.data[start : start + size]) for start, size in spans)
        return reserve, structure, strings

    def _lay_out(self, blocks: tuple[bytes, bytes, bytes]) -> None:
        reserve, structure, strings = blocks
        joined = reserve + structure + strings
        self.data[HEADER_SIZE : HEADER_SIZE + len(joined)] = joined
        self.off_mem_rsvmap = HEADER_SIZE
        self.off_dt_struct = HEADER_SIZE + len(reserve)
        self.off_dt_strings = self.off_dt_struct + len(structure)
        self.size_dt_strings = len(strings)
        self._set_struct_size(len(structure))

    def _set_struct_size(self, size: int) -> None:
        self.size_dt_struct = size
        _U32.pack_into(self.data, 36, size)

    def _data_size(self) -> int:
        return self.off_dt_strings + self.size_dt_strings

    def _splice(self, position: int, old: int, new: int) -> None:
        """Replace `old` bytes at a position of the blob by room for `new`, with what happens to be there."""
        size = self._data_size()
        if size - old + new > self.totalsize:
            raise _no_space(size - old + new, self.totalsize)
        self.data[position + new : size - old + new] = bytes(self.data[position + old : size])

    def _splice_struct(self, offset: int, old: int, new: int) -> None:
        self._splice(self.off_dt_struct + offset, old, new)
        self._set_struct_size(self.size_dt_struct - old + new)
        self.off_dt_strings += new - old

    def _splice_reserve(self, index: int, old: int, new: int) -> None:
        self._splice(self.off_mem_rsvmap + index * RESERVE_SIZE, old * RESERVE_SIZE, new * RESERVE_SIZE)
        self.off_dt_struct += (new - old) * RESERVE_SIZE
        self.off_dt_strings += (new - old) * RESERVE_SIZE

    def _find_or_add_string(self, name: bytes) -> tuple[int, bool]:
        """The offset of a name in the strings block (the tail of a longer one will do); True if added."""
        size = self.size_dt_strings
        start = self.off_dt_strings
        found = self.data.find(name + b"\0", start, start + size)
        if found >= 0:
            return found - start, False
        self._splice(start + size, 0, len(name) + 1)
        self.data[start + size : start + size + len(name) + 1] = name + b"\0"
        self.size_dt_strings = size + len(name) + 1
        return size, True

    # Properties.

    def _add_property(self, node: int, name: str, length: int) -> int:
        """Room for a new property in front of all others; returns the position of its value in the blob."""
        offset = self.first_tag(node)
        encoded = _encode(name)
        string, added = self._find_or_add_string(encoded)
        try:
            self._splice_struct(offset, 0, PROP_SIZE + tag_align(length))
        except FormatError:
            if added:
                self.size_dt_strings -= len(encoded) + 1
            raise
        position = self.off_dt_struct + offset
        _PROP.pack_into(self.data, position, FDT_PROP, length, string)
        return position + PROP_SIZE

    def _resize_property(self, prop: Property, length: int) -> int:
        """Room for another length in the property's place; returns the position of its value in the blob."""
        self._splice_struct(prop.offset + PROP_SIZE, tag_align(len(prop.value)), tag_align(length))
        position = self.off_dt_struct + prop.offset
        _U32.pack_into(self.data, position + 4, length)
        return position + PROP_SIZE

    def setprop(self, node: int, name: str, value: bytes) -> None:
        """Set a property: in its place if the node has it, else in front of the others (fdt_setprop())."""
        prop = self.get_property(node, name)
        if prop is None:
            position = self._add_property(node, name, len(value))
        else:
            position = self._resize_property(prop, len(value))
        self.data[position : position + len(value)] = value

    def setprop_u64(self, node: int, name: str, value: int) -> None:
        """Set a property to a 64-bit value, whatever #address-cells is."""
        self.setprop(node, name, value.to_bytes(8, "big"))

    def setprop_empty(self, node: int, name: str) -> None:
        """Set a property without a value."""
        self.setprop(node, name, b"")

    def appendprop(self, node: int, name: str, value: bytes) -> None:
        """Add to the end of a property's value, or set it if the node has none (fdt_appendprop())."""
        prop = self.get_property(node, name)
        if prop is None:
            position = self._add_property(node, name, len(value))
        else:
            position = self._resize_property(prop, len(prop.value) + len(value)) + len(prop.value)
        self.data[position : position + len(value)] = value

    def appendprop_addrrange(self, parent: int, node: int, name: str, phys: int, size: int) -> None:
        """Append an address and a size in the cells that `parent` prescribes (fdt_appendprop_addrrange()).

        Raises FormatError if they do not fit in those cells or the cell counts are not 1 or 2.
        """
        address_cells, size_cells = self.address_cells(parent), self.size_cells(parent)
        if address_cells not in (1, 2) or size_cells not in (1, 2):
            raise FormatError(
                f"device tree: {address_cells} address and {size_cells} size cells, neither 1 nor 2"
            )
        too_high = address_cells == 1 and (phys > _U32_MAX or _U32_MAX + 1 - phys < size)
        if too_high or (size_cells == 1 and size > _U32_MAX):
            raise FormatError(f"device tree: {name} {phys:#x}, size {size:#x}, does not fit in its cells")
        self.appendprop(
            node, name, phys.to_bytes(4 * address_cells, "big") + size.to_bytes(4 * size_cells, "big")
        )

    def delprop(self, node: int, name: str) -> bool:
        """Delete a property but not its name's string; False if the node has none (fdt_delprop())."""
        prop = self.get_property(node, name)
        if prop is None:
            return False
        self._splice_struct(prop.offset, PROP_SIZE + tag_align(len(prop.value)), 0)
        return True

    def nop_property(self, node: int, name: str) -> bool:
        """Overwrite a property with FDT_NOP tags; False if the node has none (fdt_nop_property())."""
        prop = self.get_property(node, name)
        if prop is None:
            return False
        position = self.off_dt_struct + prop.offset
        size = PROP_SIZE + tag_align(len(prop.value))
        self.data[position : position + size] = _U32.pack(FDT_NOP) * (size // TAG_SIZE)
        return True

    # Nodes and reservations.

    def add_subnode(self, parent: int, name: str) -> int:
        """Add a node behind the parent's properties, before its other children; returns its offset.

        Raises FormatError if the parent has a child of that name already (fdt_add_subnode()).
        """
        if self.subnode_offset(parent, name) is not None:
            raise FormatError(f"device tree: node {name} exists already")
        encoded = _encode(name)
        tag, following = FDT_NOP, self.first_tag(parent)
        offset = following
        while tag in (FDT_PROP, FDT_NOP):
            offset = following
            tag, following = self.next_tag(offset)
        name_size = tag_align(len(encoded) + 1)
        self._splice_struct(offset, 0, TAG_SIZE + name_size + TAG_SIZE)
        position = self.off_dt_struct + offset
        tags = _U32.pack(FDT_BEGIN_NODE) + encoded.ljust(name_size, b"\0") + _U32.pack(FDT_END_NODE)
        self.data[position : position + len(tags)] = tags
        return offset

    def add_mem_rsv(self, phys: int, size: int) -> None:
        """Add a memory reservation behind the others (fdt_add_mem_rsv())."""
        index = len(self.mem_reservations())
        self._splice_reserve(index, 0, 1)
        _RESERVE.pack_into(self.data, self.off_mem_rsvmap + index * RESERVE_SIZE, phys, size)

    def del_mem_rsv(self, index: int) -> None:
        """Delete a memory reservation; IndexError if there is none of that index (fdt_del_mem_rsv())."""
        if not 0 <= index < len(self.mem_reservations()):
            raise IndexError(index)
        self._splice_reserve(index, 1, 0)


def _encode(name: str) -> bytes:
    encoded = name.encode("latin-1")
    if b"\0" in encoded:
        raise ValueError(f"NUL in the name {name!r}")
    return encoded
