"""Where devices lie through the buses above them, against a translation in whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.errors import FormatError
from kexecemu.formats.fdt import Fdt, NodeSpec, build, cells
from kexecemu.kernel.boot.of_address import bus_windows, device_areas, reg_phys, with_parents
from kexecemu.machine.ranges import PhysRange

ALL = 1 << 64
Entry = tuple[int, int, int]  # address on the bus, address above it, bytes


def number(value: int, width: int) -> bytes:
    return (value % (1 << 32 * width)).to_bytes(4 * width, "big")


@dataclass(frozen=True)
class Bus:
    """#address-cells and #size-cells of what is on it, and its ranges; None: it has none."""

    own: int
    size: int
    ranges: tuple[Entry, ...] | None

    def spec(self, above: int, **children: NodeSpec) -> NodeSpec:
        said: dict[str, NodeSpec | bytes] = {
            "#address-cells": cells(self.own),
            "#size-cells": cells(self.size),
        }
        if self.ranges is not None:
            widths = (self.own, above, self.size)
            entries = (number(*one) for entry in self.ranges for one in zip(entry, widths, strict=True))
            said["ranges"] = b"".join(entries)
        return {**said, **children}

    def through(self, address: int) -> int | None:
        if self.ranges is None:
            return None
        for start, to, length in self.ranges:
            if start <= address < start + length:
                return to + address - start
        return address if not self.ranges else None


WIDTH = st.integers(1, 2)
PLACE = st.sampled_from([0, 1, 0x1000, 0x8000, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFF000])
LENGTH = st.sampled_from([0, 1, 0x1000, 0x8000, 0x80000000, 0xFFFFFFFF])
RANGES = st.one_of(st.none(), st.lists(st.tuples(PLACE, PLACE, LENGTH), max_size=3).map(tuple))
BUS = st.builds(Bus, WIDTH, WIDTH, RANGES)


@settings(max_examples=150)
@given(BUS, BUS, st.integers(1, 2), st.lists(st.tuples(PLACE, LENGTH), max_size=3))
def test_each_bus_says_where_it_has_an_address_and_the_first_entry_that_has_it_counts(
    inner: Bus, outer: Bus, root: int, regs: list[tuple[int, int]]
) -> None:
    reg = b"".join(number(at, inner.own) + number(length, inner.size) for at, length in regs)
    device: NodeSpec = {"reg": reg}
    tree = Fdt(
        build(
            {
                "#address-cells": cells(root),
                "#size-cells": cells(2),
                "outer": outer.spec(root, inner=inner.spec(outer.own, device=device)),
            }
        )
    )
    paths = {tree.name(path[-1]): path for path in with_parents(tree)}

    def seen(address: int, *buses: Bus) -> int | None:
        for bus in buses:
            found = bus.through(address)
            if found is None:
                return None
            address = found
        return address

    wanted = list[PhysRange | None]()
    for at, length in regs:
        phys = seen(at, inner, outer)
        wanted.append(None if phys is None or phys + length > ALL else PhysRange.of(phys, length))
    got = [reg_phys(tree, paths["device"], index) for index in range(len(regs))]
    assert got == wanted
    assert reg_phys(tree, paths["device"], len(regs)) is None
    first = wanted.index(None) if None in wanted else len(wanted)
    assert list(device_areas(tree, paths["device"])) == [
        one for one in wanted[:first] if one is not None and one.size
    ]
    for name, bus, above in (("inner", inner, [outer]), ("outer", outer, [])):
        windows = [
            PhysRange.of(phys, length)
            for _, to, length in bus.ranges or ()
            if length and (phys := seen(to, *above)) is not None
        ]
        assert list(bus_windows(tree, paths[name])) == windows


def leaf(parent: NodeSpec, **root: NodeSpec | bytes) -> tuple[Fdt, tuple[int, ...]]:
    """The device on a bus at the root."""
    usual: dict[str, NodeSpec | bytes] = {"#address-cells": cells(2), "#size-cells": cells(2), **root}
    tree = Fdt(build({**usual, "soc": parent}))
    return tree, next(path for path in with_parents(tree) if tree.name(path[-1]) == "device")


def bus(address: int, size: int, reg: bytes, ranges: bytes | None = b"") -> NodeSpec:
    said: dict[str, NodeSpec | bytes] = {"#address-cells": cells(address), "#size-cells": cells(size)}
    return {**said, **({} if ranges is None else {"ranges": ranges}), "device": {"reg": reg}}


@pytest.mark.parametrize(
    ("address", "size", "reg", "found"),
    [
        (2, 2, number(1 << 40, 2) + number(1 << 33, 2), PhysRange.of(1 << 40, 1 << 33)),
        (2, 0, number(1 << 40, 2), PhysRange.of(1 << 40, 0)),
        (3, 2, number(0, 3) + number(1, 2), None),
        (2, 3, number(0, 2) + number(1, 3), None),
        (2, 2, number(ALL - 0x1000, 2) + number(0x1000, 2), PhysRange(ALL - 0x1000, ALL)),
        (2, 2, number(ALL - 0x1000, 2) + number(0x1001, 2), None),
        (1, 1, number(0x1000, 1), None),  # too short
        (1, 1, b"", None),
    ],
)
def test_a_reg_has_one_or_two_cells_each_and_ends_where_addresses_do(
    address: int, size: int, reg: bytes, found: PhysRange | None
) -> None:
    assert reg_phys(*leaf(bus(address, size, reg))) == found


def test_what_is_at_the_root_is_where_it_says_and_the_root_itself_nowhere() -> None:
    root: NodeSpec = {"#address-cells": cells(2), "#size-cells": cells(2), "ranges": number(0, 6)}
    tree = Fdt(build({**root, "device": {"reg": number(0x1000, 2) + number(0x10, 2)}}))
    top, device = with_parents(tree)
    assert reg_phys(tree, device) == PhysRange.of(0x1000, 0x10)
    assert reg_phys(tree, top) is None and not [*device_areas(tree, top), *bus_windows(tree, top)]


def test_ram_cpus_and_what_is_reserved_are_no_devices_nor_is_what_cannot_be_read() -> None:
    reg = number(0x1000, 1) + number(0x1000, 1)
    root: NodeSpec = {"#address-cells": cells(1), "#size-cells": cells(1)}
    for name, is_device in (
        ("reserved-memory", False),
        ("cpus", False),
        ("memory@1000", False),
        ("soc", True),
        ("cpus@0", True),
    ):
        tree = Fdt(build({**root, name: {**bus(1, 1, reg), "reg": reg}}))
        for path in list(with_parents(tree))[1:]:
            assert bool(list(device_areas(tree, path))) is is_device
    tree, path = leaf(bus(1, 1, b"abc"))
    assert not list(device_areas(tree, path))
    with pytest.raises(FormatError):
        reg_phys(tree, path)
    tree, path = leaf(bus(1, 1, reg, b"abc"))
    assert not list(bus_windows(tree, path[:-1]))


@pytest.mark.parametrize("cell", [(3, 1), (1, 0), (1, 3)])
def test_a_bus_whose_cells_are_none_has_no_address_but_where_its_ranges_are_empty(
    cell: tuple[int, int],
) -> None:
    inner: NodeSpec = {"#address-cells": cells(1), "#size-cells": cells(1), "ranges": b""}
    device: NodeSpec = {"reg": number(0x10, 1) + number(1, 1)}
    for ranges, found in ((b"", PhysRange.of(0x10, 1)), (number(0, 2 * (cell[0] + 2 + cell[1])), None)):
        outer: NodeSpec = {"#address-cells": cells(cell[0]), "#size-cells": cells(cell[1]), "ranges": ranges}
        tree, path = leaf({**outer, "inner": {**inner, "device": device}})
        assert reg_phys(tree, path) == found


def test_of_a_device_with_many_areas_64_are_looked_at() -> None:
    reg = b"".join(number(at, 1) + number(1, 1) for at in range(0, 200, 2))
    assert len(list(device_areas(*leaf(bus(1, 1, reg))))) == 64


def test_a_window_of_a_bus_with_flags_is_where_the_bus_above_has_it() -> None:
    """As PCI's: three cells, and the place above it behind them; one that would end beyond all addresses is none."""
    windows = [(0x1000, 0x100), (ALL - 0x100, 0x100), (ALL - 0x100, 0x101)]
    ranges = b"".join(
        number(0x2000000, 1) + number(0, 2) + number(at, 2) + number(size, 2) for at, size in windows
    )
    tree, path = leaf(bus(3, 2, b"", ranges))
    assert list(bus_windows(tree, path[:-1])) == [PhysRange.of(*one) for one in windows[:2]]
