"""How far the devices of a tree reach into memory: what decides where ZONE_DMA ends, and low crash memory with it.

Followed: of_dma_get_max_cpu_address(), of_translate_dma_address() and __of_get_dma_parent() of drivers/of.
"""

from collections.abc import Iterator

from kexecemu.errors import FormatError
from kexecemu.formats.fdt import Fdt, cells
from kexecemu.kernel.boot.fdt_memory import is_available
from kexecemu.kernel.boot.of_address import with_parents

__all__ = ["PHYS_ADDR_MAX", "dma_max_cpu_address"]

PHYS_ADDR_MAX = (1 << 64) - 1
_OF_BAD_ADDR = PHYS_ADDR_MAX
_U64 = 1 << 64
_MOST_CELLS = 4  # OF_MAX_ADDR_CELLS
_MOST_STEPS = 64
_PCI = ("pci", "pciex", "vci", "ht")

Path = tuple[int, ...]


def dma_max_cpu_address(tree: Fdt) -> int:
    """The highest physical address that all DMA masters reach, as dma-ranges tell it; all ones where none does."""
    highest = PHYS_ADDR_MAX
    paths = {path[-1]: path for path in with_parents(tree)}
    for node, path in paths.items():
        try:
            ranges = tree.get_cells(node, "dma-ranges")
            if ranges and all(is_available(tree, one) for one in path[1:]):
                highest = min(highest, _end(tree, paths, path, ranges))
        except FormatError:
            continue  # no cells at all, which a real kernel reads in its own way
    return highest


def _end(tree: Fdt, paths: dict[int, Path], path: Path, ranges: list[int]) -> int:
    above, own = _count(tree, path[:-1], "#address-cells"), _count(tree, path, "#address-cells")
    size = _count(tree, path, "#size-cells")
    end = 0
    for entry in _entries(ranges, own + above + size):
        cpu = _translate(tree, paths, path, entry[own : own + above])
        length = _number(entry[own + above :])
        # What cannot be translated wraps around: so it is in a kernel.
        if (cpu + length) % _U64 > end:
            end = (cpu + length - 1) % _U64
    return end


def _entries(cells: list[int], width: int) -> Iterator[list[int]]:
    return (cells[at : at + width] for at in range(0, len(cells) - width + 1, width))


def _number(cells: list[int]) -> int:
    """of_read_number(): of more than two cells the last two."""
    number = 0
    for cell in cells:
        number = (number << 32 | cell) % _U64
    return number


def _count(tree: Fdt, path: Path, name: str) -> int:
    """#address-cells or #size-cells that hold on the bus at the end of a path: the nearest one above, or 1.

    A PCI or ISA bus has its own, whatever it says.
    """
    if name == "#address-cells" and path and _is_pci(tree, path[-1]):
        return 3
    for node in reversed(path):
        value = tree.get_u32(node, name)
        if value is not None:
            if value > _MOST_CELLS:
                raise FormatError(f"device tree: {name} is {value}")
            return value
    return 1


def _is_pci(tree: Fdt, node: int) -> bool:
    kind = tree.get_strings(node, "device_type") or [""]
    return kind[0] in _PCI or tree.name(node).partition("@")[0] == "pcie"


def _dma_parent(tree: Fdt, paths: dict[int, Path], path: Path) -> Path:
    """What a node's DMA goes through: the interconnect that it names so, or its parent; nothing for the root."""
    node = path[-1]
    names, links = (
        tree.get_strings(node, "interconnect-names") or [],
        tree.get_cells(node, "interconnects") or [],
    )
    if "dma-mem" in names:
        at, index = 0, names.index("dma-mem")
        while at < len(links):
            to = next((one for one in paths if tree.getprop(one, "phandle") == cells(links[at])), None)
            if to is None:
                break
            if index == 0:
                return paths[to]
            index, at = index - 1, at + 1 + (tree.get_u32(to, "#interconnect-cells") or 0)
    return path[:-1]


def _translate(tree: Fdt, paths: dict[int, Path], path: Path, address: list[int]) -> int:
    """of_translate_dma_address() of an address as the parent of a bus has it."""
    bus = _dma_parent(tree, paths, path)
    for _ in range(_MOST_STEPS):
        width, size = _count(tree, bus, "#address-cells"), _count(tree, bus, "#size-cells")
        if not bus or not 0 < width <= _MOST_CELLS or (len(bus) > 1 and not size):
            return _OF_BAD_ADDR
        above = _dma_parent(tree, paths, bus)
        if not above:
            return _number(address)
        next_cells = _count(tree, above, "#address-cells")
        ranges = tree.get_cells(bus[-1], "dma-ranges") or []
        found = _through(ranges, address, width, next_cells, size) if ranges else _number(address)
        if found is None:
            return _OF_BAD_ADDR
        address = [0, 0, found >> 32, found & 0xFFFFFFFF][-next_cells:]
        bus = above
    return _OF_BAD_ADDR


def _through(ranges: list[int], address: list[int], own: int, above: int, size: int) -> int | None:
    flags = 1 if own == 3 else 0
    wanted = _number(address[flags:])
    for entry in _entries(ranges, own + above + size):
        start, length = _number(entry[flags:own]), _number(entry[own + above :])
        if start <= wanted < start + length and entry[:flags] == address[:flags]:
            return (_number(entry[own : own + above]) + wanted - start) % _U64
    return None
