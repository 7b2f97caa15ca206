"""How far the devices of a tree reach into memory: what decides where ZONE_DMA ends, and low crash memory with it.

Followed: of_dma_get_max_cpu_address(), the parser of ranges and of_translate_dma_address() of drivers/of/address.c, and
__of_get_dma_parent(). What they make of odd trees is what real kernels made of them in QEMU.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.boot.fdt_memory import is_available
from kexecemu.kernel.boot.of_address import with_parents

__all__ = ["PHYS_ADDR_MAX", "dma_max_cpu_address"]

PHYS_ADDR_MAX: Final = (1 << 64) - 1
_OF_BAD_ADDR: Final = PHYS_ADDR_MAX
_U64: Final = 1 << 64
_MOST_CELLS: Final = 4  # OF_MAX_ADDR_CELLS
_MOST_STEPS: Final = 64
_PCI: Final = ("pci", "pciex", "vci", "ht")

Path = tuple[int, ...]


class _Bus(StrEnum):
    """struct of_bus."""

    PCI = "pci"
    ISA = "isa"
    FLAGS = "default-flags"
    DEFAULT = "default"

    @property
    def flag_cells(self) -> int:
        return 0 if self is _Bus.DEFAULT else 1

    def flags(self, cell: int) -> int:
        """get_flags(), or as many bits that say as much: what has to be alike for entries that are one."""
        return cell & _FLAGS[self]

    def matches(self, address: int, entry: int) -> bool:
        """Whether the flags of an address are those of an entry of ranges."""
        if self is _Bus.PCI:
            return _pci_space(address) == _pci_space(entry)
        return self.flags(address) == self.flags(entry)


# Of PCI the kind of space, and whether it may be prefetched.
_FLAGS = {_Bus.PCI: 0x43000000, _Bus.ISA: 1, _Bus.FLAGS: 0xFFFFFFFF, _Bus.DEFAULT: 0}


def _pci_space(cell: int) -> int:
    """IORESOURCE_IO or IORESOURCE_MEM, which memory of 64 bits is as well."""
    return min(cell >> 24 & 3, 2)


def _number(cells_of: list[int]) -> int:
    """of_read_number(): of more than two cells the last two."""
    number = 0
    for cell in cells_of:
        number = (number << 32 | cell) % _U64
    return number


@dataclass(frozen=True)
class _Range:
    flags: int
    bus: int
    cpu: int
    size: int


def dma_max_cpu_address(tree: Fdt, era: Era) -> int:
    """The highest physical address that all DMA masters reach, as dma-ranges tell it; all ones where none does.

    InputError for a tree on which a kernel of the era oopses.
    """
    return _Dma(tree, era).highest()


class _Dma:
    """One walk of a tree."""

    def __init__(self, tree: Fdt, era: Era) -> None:
        self.tree, self.rules = tree, era.rules
        self.paths = {path[-1]: path for path in with_parents(tree)}

    def highest(self) -> int:
        """of_dma_get_max_cpu_address()."""
        found = PHYS_ADDR_MAX
        for node, path in self.paths.items():
            if self.tree.getprop(node, "dma-ranges") and all(
                is_available(self.tree, one) for one in path[1:]
            ):
                found = min(found, self._end(node))
        return found

    def _end(self, node: int) -> int:
        bus, own, above = (
            self._match(node),
            self._bus_cells(node, "#address-cells"),
            self._cells(node, "#address-cells"),
        )
        size = self._bus_cells(node, "#size-cells")
        if self.rules.checks_dma_ranges and (
            bus is None or not 0 < own <= _MOST_CELLS or not size or not 0 < above <= _MOST_CELLS
        ):
            return PHYS_ADDR_MAX
        if bus is None:
            words = f"{self.tree.name(node)} has dma-ranges and no #address-cells"
            raise InputError(f"device tree: {words}: this kernel's of_pci_range_parser_one() oopses")
        end, last = 0, None
        for one in self._ranges(node, bus, own, above, size):
            if last is not None and (one.flags, one.bus, one.cpu) == (
                last.flags,
                (last.bus + last.size) % _U64,
                (last.cpu + last.size) % _U64,
            ):
                last = _Range(last.flags, last.bus, last.cpu, (last.size + one.size) % _U64)
                continue
            end, last = _later(end, last), one
        return _later(end, last)

    def _ranges(self, node: int, bus: _Bus, own: int, above: int, size: int) -> list[_Range]:
        ranges, width = self._raw(node), own + above + size
        found = []
        for at in range(0, len(ranges) - width + 1, width) if width else ():
            cpu = self._translate(node, ranges[at + own :])
            address = _number(ranges[at + bus.flag_cells : at + own])
            length = _number(ranges[at + own + above : at + width])
            found.append(_Range(bus.flags(ranges[at]), address, cpu, length))
        return found

    def _raw(self, node: int) -> list[int]:
        """dma-ranges in whole cells."""
        value = self.tree.getprop(node, "dma-ranges") or b""
        return [int.from_bytes(value[at : at + 4], "big") for at in range(0, len(value) & -4, 4)]

    def _bus_cells(self, node: int, name: str) -> int:
        """of_bus_n_addr_cells(), of_bus_n_size_cells(): the nearest from a node on upwards, or 1."""
        for one in reversed(self.paths[node]):
            value = self.tree.getprop(one, name) or b""
            if len(value) >= 4:
                return int.from_bytes(value[:4], "big")
        return 1

    def _cells(self, node: int, name: str) -> int:
        """of_n_addr_cells(), of_n_size_cells(): of the bus that a node is on."""
        path = self.paths[node]
        return self._bus_cells(path[-2] if len(path) > 1 else node, name)

    def _match(self, node: int) -> _Bus | None:
        """of_match_bus()."""
        tree, name = self.tree, self.tree.name(node).partition("@")[0]
        if (tree.get_strings(node, "device_type") or [""])[0] in _PCI or name == "pcie":
            return _Bus.PCI
        if name == "isa":
            return _Bus.ISA
        has = tree.getprop(node, "#address-cells") is not None
        if not has and self.rules.bus_has_cells:
            return None
        return _Bus.FLAGS if self._bus_cells(node, "#address-cells") == 3 else _Bus.DEFAULT

    def _count(self, bus: _Bus, child: int) -> tuple[int, int] | None:
        """count_cells(), None for what OF_CHECK_COUNTS() refuses."""
        if bus in (_Bus.PCI, _Bus.ISA):
            return (3, 2) if bus is _Bus.PCI else (2, 1)
        address, size = self._cells(child, "#address-cells"), self._cells(child, "#size-cells")
        return (address, size) if 0 < address <= _MOST_CELLS and size > 0 else None

    def _parent(self, node: int) -> int | None:
        """__of_get_dma_parent(): the interconnect that a node names for DMA, or its parent; None for the root."""
        path = self.paths[node]
        above = path[-2] if len(path) > 1 else None
        names = self.tree.get_strings(node, "interconnect-names") or []
        if "dma-mem" not in names:
            return above
        value, left, at = self.tree.getprop(node, "interconnects") or b"", names.index("dma-mem"), 0
        while at + 4 <= len(value):
            phandle, at = value[at : at + 4], at + 4
            if any(phandle):
                to = next((one for one in self.paths if self.tree.getprop(one, "phandle") == phandle), None)
                count = None if to is None else self.tree.getprop(to, "#interconnect-cells")
                if to is None or not count or len(count) < 4:
                    return above
                if left == 0:
                    return to
                at += 4 * int.from_bytes(count[:4], "big")
            elif left == 0:
                return above
            left -= 1
        return above

    def _translate(self, node: int, address: list[int]) -> int:
        """of_translate_dma_address() of an address as the parent of a bus has it, and of what comes behind it."""
        at = self._parent(node)
        bus = None if at is None else self._match(at)
        counts = None if bus is None else self._count(bus, node)
        if at is None or bus is None or counts is None:
            return _OF_BAD_ADDR
        address = (address + [0] * _MOST_CELLS)[: counts[0]]
        for _ in range(_MOST_STEPS):
            above = self._parent(at)
            if above is None:
                return _number(address)
            next_bus = self._match(above)
            next_counts = None if next_bus is None else self._count(next_bus, at)
            if next_bus is None or next_counts is None:
                return _OF_BAD_ADDR
            found = self._through(self._raw(at), bus, next_bus, address, counts, next_counts[0])
            if found is None:
                return _OF_BAD_ADDR
            address, at, bus, counts = found, above, next_bus, next_counts
        return _OF_BAD_ADDR

    def _through(
        self,
        ranges: list[int],
        bus: _Bus,
        next_bus: _Bus,
        address: list[int],
        counts: tuple[int, int],
        above: int,
    ) -> list[int] | None:
        """of_translate_one()."""
        (own, size), flags = counts, bus.flag_cells
        width = own + above + size
        if not ranges:
            kept = next_bus.flag_cells
            start, offset = (
                (address[:kept] + [0] * _MOST_CELLS)[:kept] + [0] * (above - kept),
                _number(address),
            )
            return _translated(next_bus, start, offset)
        wanted = _number(address[flags:])
        for at in range(0, len(ranges) - width + 1, width):
            first, length = (
                _number(ranges[at + flags : at + own]),
                _number(ranges[at + own + above : at + width]),
            )
            same = not flags or bus.matches(address[0], ranges[at])
            if same and first <= wanted < (first + length) % _U64:
                return _translated(next_bus, ranges[at + own : at + own + above], wanted - first)
        return None


def _later(end: int, one: _Range | None) -> int:
    """The end with one more range; what cannot be translated wraps around: so it is in a kernel."""
    if one is None or (one.cpu + one.size) % _U64 <= end:
        return end
    return (one.cpu + one.size - 1) % _U64


def _translated(bus: _Bus, start: list[int], offset: int) -> list[int]:
    """translate() of a bus: an address and an offset, with the flags left as they are."""
    kept = bus.flag_cells
    value = (_number(start[kept:]) + offset) % _U64
    room = len(start) - kept
    return start[:kept] + ([0] * _MOST_CELLS + [value >> 32, value & 0xFFFFFFFF])[_MOST_CELLS + 2 - room :]
