"""Flattened device trees, byte for byte as libfdt 1.6 would leave them.

Four files: fdt_blob checks the bytes, fdt_read reads nodes and properties, fdt_edit changes a tree in place, and here
a new one is made of nested mappings, in the bytes that dtc would write. The exact bytes matter: a kernel edits the
device tree that it was booted with and hands the result, strings in the order in which libfdt happened to append them,
to the kernel that it loads, and digests are taken over that.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence

from kexecemu.formats import fdt_blob
from kexecemu.formats.fdt_blob import MemReserve, tag_align
from kexecemu.formats.fdt_edit import FdtEditor
from kexecemu.formats.fdt_read import Fdt

__all__ = ["Fdt", "FdtEditor", "MemReserve", "NodeSpec", "build", "cells", "join_cells", "reg64"]

# An int is one cell, a str a string, True an empty property; sequences are several of these; bytes stand as
# they are.
PropertyValue = bytes | int | str | Sequence["int | str"]
NodeSpec = Mapping[str, "PropertyValue | NodeSpec"]

_U32 = struct.Struct(">I")
_PROP = struct.Struct(">III")


def cells(*values: int) -> bytes:
    """Each value as one 32-bit cell."""
    return b"".join(value.to_bytes(4, "big") for value in values)


def join_cells(values: Iterable[int]) -> int:
    """The number that cells hold together, most significant first (of_read_number()): the way back from cells()."""
    number = 0
    for value in values:
        number = number << 32 | value
    return number


def reg64(*values: int) -> bytes:
    """Each value as two cells: addresses and sizes where #address-cells and #size-cells are 2."""
    return b"".join(value.to_bytes(8, "big") for value in values)


def build(
    root: NodeSpec,
    *,
    mem_reservations: Iterable[tuple[int, int]] = (),
    boot_cpuid_phys: int = 0,
    padding: int = 0,
) -> bytes:
    """A version 17 blob of a tree.

    root maps names to property values and, for nodes, to further mappings. A node's properties come before
    its nodes, else in the order given. mem_reservations are (phys, size) in bytes; `padding` bytes of free
    room are added at the end and counted in totalsize.
    """
    strings = bytearray()
    structure = bytearray()
    _add_node(structure, strings, "", root)
    structure += _U32.pack(fdt_blob.FDT_END)
    reserve = b"".join(reg64(phys, size) for phys, size in mem_reservations) + bytes(16)
    struct_offset = fdt_blob.HEADER_SIZE + len(reserve)
    strings_offset = struct_offset + len(structure)
    offsets = (struct_offset, strings_offset, fdt_blob.HEADER_SIZE)
    total = strings_offset + len(strings) + padding
    header = cells(fdt_blob.FDT_MAGIC, total, *offsets, 17, 16, boot_cpuid_phys, len(strings), len(structure))
    return header + reserve + bytes(structure) + bytes(strings) + bytes(padding)


def _add_node(structure: bytearray, strings: bytearray, name: str, spec: NodeSpec) -> None:
    encoded = name.encode("latin-1") + b"\0"
    structure += _U32.pack(fdt_blob.FDT_BEGIN_NODE) + encoded.ljust(tag_align(len(encoded)), b"\0")
    for key, value in spec.items():
        if not isinstance(value, Mapping):
            data = _value(value)
            structure += _PROP.pack(fdt_blob.FDT_PROP, len(data), _string(strings, key))
            structure += data.ljust(tag_align(len(data)), b"\0")
    for key, value in spec.items():
        if isinstance(value, Mapping):
            _add_node(structure, strings, key, value)
    structure += _U32.pack(fdt_blob.FDT_END_NODE)


def _string(strings: bytearray, name: str) -> int:
    encoded = name.encode("latin-1") + b"\0"
    found = strings.find(encoded)
    if found < 0:
        found = len(strings)
        strings += encoded
    return found


def _value(value: PropertyValue) -> bytes:
    if value is True:
        return b""
    if value is False:
        raise ValueError("False is no property value: leave the property out")
    if isinstance(value, bytes):
        return value
    if isinstance(value, int):
        return cells(value)
    if isinstance(value, str):
        return value.encode() + b"\0"
    return b"".join(_value(part) for part in value)
