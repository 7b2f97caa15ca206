"""Reading a flattened device tree: nodes, properties and their values."""

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from kexecemu.errors import FormatError
from kexecemu.formats.fdt_blob import FDT_BEGIN_NODE, FDT_END_NODE, FDT_NOP, FDT_PROP, FdtBlob, Property
from kexecemu.shown import shown

__all__ = ["Fdt", "Node"]

_MAX_CELLS = 4
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


@shown()
class Node(NamedTuple):
    """A node: its offset in the structure block, its depth (the root's is 0), its name with unit address."""

    offset: int
    depth: int
    name: str


@shown(
    "version",
    "totalsize",
    model=lambda tree: (tree.get_strings(0, "model") or [None])[0],
    nodes=lambda tree: sum(1 for _ in tree.nodes()),
)
class Fdt(FdtBlob):
    """A device tree to read.

    Nodes are named by their offset in the structure block, as in libfdt; the root's is 0. Raises FormatError
    for anything but a sound tree, and from any method that is given an offset where no node begins.
    """

    # Nodes.

    def nodes(self, top: int = 0) -> Iterator[Node]:
        """The node at `top`, whose depth counts as 0, and all below it, in the order of the blob."""
        if isinstance(self.data, bytearray):
            yield from self._walk(top)
            return
        if self._sound.nodes is None:
            self._sound.nodes = list(self._walk(0))
        known = self._sound.nodes
        at = bisect_left(known, top, key=itemgetter(0))
        if at == len(known) or known[at][0] != top:
            self.first_tag(top)  # says what is wrong with it
        base = known[at][1]
        yield Node(top, 0, known[at][2])
        for offset, depth, name in islice(known, at + 1, None):
            if depth <= base:
                return
            yield Node(offset, depth - base, name)

    def _walk(self, top: int) -> Iterator[Node]:
        """nodes(), tag by tag."""
        depth = 0
        offset = top
        self.first_tag(top)
        while True:
            tag, following = self.next_tag(offset)
            if tag == FDT_BEGIN_NODE:
                yield Node(offset, depth, self.name_at(offset))
                depth += 1
            elif tag == FDT_END_NODE:
                depth -= 1
                if depth == 0:
                    return
            offset = following

    def first_tag(self, node: int) -> int:
        """The offset of the first tag inside a node; FormatError if no node begins at `node`."""
        tag, following = self.next_tag(node)
        if tag != FDT_BEGIN_NODE:
            raise FormatError(f"device tree: no node begins at structure offset {node:#x}")
        return following

    def name(self, node: int) -> str:
        """The name of a node with its unit address; empty for the root."""
        self.first_tag(node)
        return self.name_at(node)

    def subnodes(self, parent: int) -> Iterator[Node]:
        """The direct children of a node."""
        return (node for node in self.nodes(parent) if node.depth == 1)

    def subnode_offset(self, parent: int, name: str) -> int | None:
        """The first child of that name; a name without a unit address matches one that has it, too."""
        for node in self.subnodes(parent):
            if node.name == name or ("@" not in name and node.name.partition("@")[0] == name):
                return node.offset
        return None

    def path_offset(self, path: str) -> int | None:
        """The node at an absolute path or at one that begins with an alias; None if there is none."""
        node: int | None = 0
        if not path.startswith("/"):
            alias, _, path = path.partition("/")
            aliases = self.path_offset("/aliases")
            value = None if aliases is None else self.getprop(aliases, alias)
            # An alias must be absolute: one that names another alias could go round for ever.
            if value is None or not value.startswith(b"/"):
                return None
            node = self.path_offset(value.split(b"\0", 1)[0].decode("latin-1"))
        for part in filter(None, path.split("/")):
            if node is None:
                return None
            node = self.subnode_offset(node, part)
        return node

    # Properties.

    def properties(self, node: int) -> Iterator[Property]:
        """The properties of a node, in the order of the blob."""
        return (self.property_at(offset) for offset in self._property_offsets(node))

    def _property_offsets(self, node: int) -> Iterable[int]:
        if isinstance(self.data, bytearray):
            return self._walk_properties(node)
        known = self._sound.properties
        if node not in known:
            known[node] = list(self._walk_properties(node))
        return known[node]

    def _walk_properties(self, node: int) -> Iterator[int]:
        offset = self.first_tag(node)
        while True:
            tag, following = self.next_tag(offset)
            if tag == FDT_PROP:
                yield offset
            elif tag != FDT_NOP:
                return
            offset = following

    def get_property(self, node: int, name: str) -> Property | None:
        """The first property of that name."""
        wanted = name.encode("latin-1") + b"\0"
        for offset in self._property_offsets(node):
            string = self.off_dt_strings + self.u32(self.off_dt_struct + offset + 8)
            if self.data.startswith(wanted, string):
                return self.property_at(offset)
        return None

    def getprop(self, node: int, name: str) -> bytes | None:
        """The value of a property; None if the node has no such property."""
        prop = self.get_property(node, name)
        return None if prop is None else prop.value

    def get_u32(self, node: int, name: str) -> int | None:
        """A property of one cell; FormatError if it has another length."""
        values = self.get_cells(node, name)
        if values is not None and len(values) != 1:
            raise FormatError(f"device tree: {name} has {4 * len(values)} bytes, not 4")
        return None if values is None else values[0]

    def get_u64(self, node: int, name: str) -> int | None:
        """A property of 64 bits; FormatError if it has another length."""
        value = self.getprop(node, name)
        if value is not None and len(value) != _U64.size:
            raise FormatError(f"device tree: {name} has {len(value)} bytes, not 8")
        return None if value is None else int.from_bytes(value, "big")

    def get_cells(self, node: int, name: str) -> list[int] | None:
        """A property as 32-bit cells; FormatError if its length is not a multiple of 4."""
        value = self.getprop(node, name)
        if value is not None and len(value) % _U32.size:
            raise FormatError(f"device tree: {name} has {len(value)} bytes, not whole cells")
        return None if value is None else [cell for (cell,) in _U32.iter_unpack(value)]

    def get_strings(self, node: int, name: str) -> list[str] | None:
        """A property as a list of strings; bytes that are not UTF-8 are shown as escapes."""
        value = self.getprop(node, name)
        if value is None:
            return None
        return [part.decode("utf-8", "backslashreplace") for part in value.removesuffix(b"\0").split(b"\0")]

    def address_cells(self, node: int) -> int:
        """#address-cells of a node, 2 if it has none (fdt_address_cells()); FormatError if not 1 to 4."""
        count = self._cell_count(node, "#address-cells", 2)
        if count == 0:
            raise FormatError("device tree: #address-cells is 0")
        return count

    def size_cells(self, node: int) -> int:
        """#size-cells of a node, 1 if it has none (fdt_size_cells()); FormatError if it is above 4."""
        return self._cell_count(node, "#size-cells", 1)

    def _cell_count(self, node: int, name: str, default: int) -> int:
        count = self.get_u32(node, name)
        if count is not None and count > _MAX_CELLS:
            raise FormatError(f"device tree: {name} is {count}, at most {_MAX_CELLS} is allowed")
        return default if count is None else count
