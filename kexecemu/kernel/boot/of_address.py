"""Where a device of a device tree lies in physical memory, through the buses above it.

Followed: of_address_to_resource() of drivers/of/address.c, for buses without flags in their addresses.
"""

from collections.abc import Iterator
from itertools import pairwise

from kexecemu.errors import FormatError
from kexecemu.formats.fdt import Fdt, join_cells
from kexecemu.machine.ranges import PhysRange

__all__ = ["bus_windows", "device_areas", "is_memory", "reg_phys", "with_parents"]

_MOST_CELLS = 2  # three have flags, as PCI's
_U64 = 1 << 64
_MOST_AREAS = 64


def with_parents(tree: Fdt) -> Iterator[tuple[int, ...]]:
    """Each node as its path of offsets from the root on, in the order of the tree."""
    path: list[int] = []
    for node in tree.nodes():
        path[node.depth :] = [node.offset]
        yield tuple(path)


def reg_phys(tree: Fdt, path: tuple[int, ...], index: int = 0) -> PhysRange | None:
    """Entry `index` of the reg of the last node of a path, translated; None where the tree does not lead to RAM's bus.

    FormatError for properties that are no cells.
    """
    if len(path) < 2:
        return None
    bus = path[-2]
    address, size = tree.address_cells(bus), tree.size_cells(bus)
    cells = tree.get_cells(path[-1], "reg") or []
    width = address + size
    if address > _MOST_CELLS or size > _MOST_CELLS or len(cells) < (index + 1) * width:
        return None
    cells = cells[index * width :][:width]
    phys = _seen_by_cpus(tree, path, join_cells(cells[:address]))
    length = join_cells(cells[address:])
    return None if phys is None or phys + length > _U64 else PhysRange.of(phys, length)


def is_memory(tree: Fdt, node: int) -> bool:
    """A memory node, or one that firmware is to make one of."""
    kind = tree.getprop(node, "device_type")
    return kind == b"memory\0" or (kind is None and tree.name(node).partition("@")[0] == "memory")


def device_areas(tree: Fdt, path: tuple[int, ...]) -> Iterator[PhysRange]:
    """Where the device at the end of a path has registers, as far as that can be told; nothing of RAM and of CPUs."""
    if len(path) < 2:
        return
    if tree.name(path[1]) in ("reserved-memory", "cpus") or is_memory(tree, path[1]):
        return
    for index in range(_MOST_AREAS):
        try:
            area = reg_phys(tree, path, index)
        except FormatError:
            return
        if area is None:
            return
        if area.size:
            yield area


def bus_windows(tree: Fdt, path: tuple[int, ...]) -> Iterator[PhysRange]:
    """What the bus at the end of a path takes of the addresses of those above it, by its ranges; PCI's as well."""
    if len(path) < 2:
        return
    try:
        ranges = tree.get_cells(path[-1], "ranges") or []
        own, above, size = (
            tree.address_cells(path[-1]),
            tree.address_cells(path[-2]),
            tree.size_cells(path[-1]),
        )
    except FormatError:
        return
    width = own + above + size
    for at in range(0, len(ranges) - width + 1, width):
        phys = _seen_by_cpus(tree, path, join_cells(ranges[at + own : at + own + above]))
        length = join_cells(ranges[at + own + above : at + width])
        if phys is not None and length and phys + length <= _U64:
            yield PhysRange.of(phys, length)


def _seen_by_cpus(tree: Fdt, path: tuple[int, ...], address: int) -> int | None:
    """An address on the bus that the last node of a path is on, through all buses above; None where one has it not."""
    found: int | None = address
    for child, parent in pairwise(reversed(path[:-1])):
        if found is not None:
            found = _through(tree, child, parent, found)
    return found


def _through(tree: Fdt, bus: int, parent: int, address: int) -> int | None:
    """An address on a bus as one of its parent's; None where its ranges do not have it."""
    ranges = tree.get_cells(bus, "ranges")
    if ranges is None:
        return None
    if not ranges:
        return address
    own, above, size = tree.address_cells(bus), tree.address_cells(parent), tree.size_cells(bus)
    if own > _MOST_CELLS or above > _MOST_CELLS or not 0 < size <= _MOST_CELLS:
        return None
    width = own + above + size
    for at in range(0, len(ranges) - width + 1, width):
        start, to, length = (
            join_cells(ranges[first:last])
            for first, last in (
                (at, at + own),
                (at + own, at + own + above),
                (at + own + above, at + width),
            )
        )
        if start <= address < start + length:
            return to + address - start
    return None
