"""Where firmware fills in RAM that a tree leaves open: around its devices, against a look at each piece alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt, FdtEditor, NodeSpec, build, cells
from kexecemu.kernel.boot.fill_memory import GRAIN, fill_memory
from kexecemu.machine import virt

MIB, GIB = 1 << 20, 1 << 30
Areas = list[tuple[int, int]]


def number(value: int, width: int) -> bytes:
    return value.to_bytes(4 * width, "big")


def tree(
    base: int | None, devices: Areas, *, address: int = 2, size: int = 2, more: NodeSpec | None = None
) -> bytes:
    """A memory node at a place, if any, and devices at the root."""
    memory: NodeSpec = {"device_type": ["memory"]}
    root: NodeSpec = {"#address-cells": cells(address), "#size-cells": cells(size)}
    nodes = {
        f"device@{at}": {"reg": number(start, address) + number(length, size)}
        for at, (start, length) in enumerate(devices)
    }
    named = {} if base is None else {f"memory@{base:x}": memory}
    return build({**root, **named, **nodes, **(more or {})})


def banks(dtb: bytes) -> Areas:
    found = Fdt(dtb)
    (node,) = (one for one in found.nodes() if one.name.startswith("memory"))
    assert found.getprop(node.offset, "device_type") == b"memory\0"
    reg, address = found.getprop(node.offset, "reg") or b"", 4 * found.address_cells(0)
    width = address + 4 * found.size_cells(0)
    assert not len(reg) % width
    entries = [reg[at : at + width] for at in range(0, len(reg), width)]
    return [(int.from_bytes(one[:address], "big"), int.from_bytes(one[address:], "big")) for one in entries]


def naive(base: int, devices: Areas, size: int) -> Areas:
    """Piece by piece from the base on: what no device has a byte of, but for holes that are too small."""
    taken = {
        piece
        for start, length in devices
        if length
        for piece in range(start // GRAIN, (start + length - 1) // GRAIN + 1)
    }
    found: Areas = []
    piece, end = -(-base // GRAIN), max(taken, default=-1) + 1
    while size and piece < end:
        hole = 0
        while piece + hole < end and piece + hole not in taken:
            hole += 1
        if hole and piece + hole < end and hole * GRAIN >= min(64 * MIB, size):
            used = min(hole * GRAIN, size)
            found.append((piece * GRAIN, used))
            size -= used
        if piece + hole == end:
            break
        piece += hole + 1
    if size:
        found.append((max(end, piece) * GRAIN, size))
    return found


def split(areas: Areas) -> Areas:
    """In banks of 2 GiB."""
    return [
        (at, min(2 * GIB, start + length - at))
        for start, length in areas
        for at in range(start, start + length, 2 * GIB)
    ]


@settings(max_examples=60)
@given(
    st.sampled_from([0, GIB, GIB + MIB, 2 * GIB, 1 << 32]),
    st.lists(st.tuples(st.integers(0, 6 << 9), st.integers(0, 5 * MIB)), max_size=8),
    st.sampled_from([MIB, 32 * MIB, 64 * MIB, 66 * MIB, GIB, 5 * GIB + 4096]),
)
def test_ram_is_what_no_device_has_a_byte_of(base: int, devices: Areas, size: int) -> None:
    # Devices lie where RAM is looked for, by MiB from its base on.
    there = [(base + at * MIB + (length & 0xFF000), length) for at, length in devices]
    assert banks(fill_memory(tree(base, there), size)) == split(naive(base, there, size))


def bus(ranges: bytes, **more: NodeSpec) -> NodeSpec:
    return {"#address-cells": cells(2), "#size-cells": cells(2), "ranges": ranges, **more}


def window(start: int, length: int) -> bytes:
    return number(0, 2) + number(start, 2) + number(length, 2)


@pytest.mark.parametrize(
    ("soc", "found"),
    [
        (bus(b""), [(GIB, 256 * MIB)]),
        (bus(window(GIB + 64 * MIB, MIB)), [(GIB, 64 * MIB), (GIB + 66 * MIB, 192 * MIB)]),
        # As large as RAM, or around its base: that says nothing of devices.
        (bus(window(GIB + 64 * MIB, GIB)), [(GIB, 256 * MIB)]),
        (bus(window(GIB + 64 * MIB, GIB - 1)), [(GIB, 64 * MIB), (2 * GIB + 64 * MIB, 192 * MIB)]),
        (bus(window(GIB - MIB, 2 * MIB)), [(GIB, 256 * MIB)]),
        (bus(window(GIB, MIB)), [(GIB, 256 * MIB)]),
        (bus(window(GIB - MIB, MIB)), [(GIB, 256 * MIB)]),
        # What is on it lies where its window leads.
        (
            bus(window(GIB, 2 * GIB), **{"x@0": {"reg": number(64 * MIB, 2) + number(MIB, 2)}}),
            [(GIB, 64 * MIB), (GIB + 66 * MIB, 192 * MIB)],
        ),
    ],
)
def test_room_that_a_bus_has_for_devices_is_no_ram(soc: NodeSpec, found: Areas) -> None:
    assert banks(fill_memory(tree(GIB, [], more={"soc": soc}), 256 * MIB)) == found


@pytest.mark.parametrize(
    ("name", "reg", "base"),
    [
        ("memory@40000000", None, GIB),
        ("memory@1,0", None, 0x10000000 >> 24),
        ("memory@80000000", number(GIB, 2) + number(0, 2), GIB),  # the entry before the name
        ("memory", None, GIB),
        ("memory@ram", None, GIB),
        ("memory@0", number(0, 2) + number(0, 2) + number(GIB, 2) + number(0, 2), 0),
    ],
)
def test_ram_begins_where_the_node_says(name: str, reg: bytes | None, base: int) -> None:
    root: NodeSpec = {"#address-cells": cells(2), "#size-cells": cells(2)}
    memory: NodeSpec = {"device_type": ["memory"], **({} if reg is None else {"reg": reg})}
    ((start, length),) = banks(fill_memory(build({**root, name: memory}), 64 * MIB))
    assert (start, length) == (-(-base // GRAIN) * GRAIN, 64 * MIB)


@pytest.mark.parametrize(
    ("reserved", "base"),
    [
        ([], GIB),
        ([0x50000000], GIB),
        ([0x3FFFFFFF], 0),
        ([0x7FFFFFFF, 0x90000000], GIB),
        ([0x80000000], 0x80000000),
        ([0xFFFFFFFF], 0x80000000),
        ([1 << 32], 1 << 32),
        ([0], 0),
    ],
)
def test_where_nothing_says_it_ram_begins_at_the_highest_usual_place_below_what_is_reserved(
    reserved: list[int], base: int
) -> None:
    nodes = {f"r@{at:x}": {"reg": number(at, 2) + number(1, 2)} for at in reserved}
    ((start, _),) = banks(fill_memory(tree(None, [], more={"reserved-memory": bus(b"", **nodes)}), 64 * MIB))
    assert start == base


def test_a_new_node_is_called_by_its_base_and_a_disabled_one_is_passed_over() -> None:
    found = Fdt(fill_memory(tree(None, []), 64 * MIB))
    assert found.path_offset("/memory@40000000") is not None
    off: NodeSpec = {"device_type": ["memory"], "status": ["disabled"]}
    found = Fdt(fill_memory(tree(2 * GIB, [], more={"memory@0": off}), 64 * MIB))
    node = found.path_offset("/memory@80000000")
    assert node is not None and found.getprop(node, "reg") == number(2 * GIB, 2) + number(64 * MIB, 2)


@pytest.mark.parametrize(
    ("address", "size", "base", "wanted", "words"),
    [
        (3, 2, None, MIB, "its root has other cells than firmware writes memory with"),
        (2, 0, None, MIB, "its root has other cells than firmware writes memory with"),
        (0, 1, None, MIB, "its root has other cells than firmware writes memory with"),
        (2, 3, None, MIB, "its root has other cells than firmware writes memory with"),
        (1, 1, 1 << 32, MIB, "RAM at 0x100000000 is beyond 0x100000000"),
        (2, 2, virt.PHYS_LIMIT, MIB, f"RAM at {virt.PHYS_LIMIT:#x} is beyond {virt.PHYS_LIMIT:#x}"),
        (1, 1, GIB, 4 * GIB, "RAM of 0x100000000 bytes does not fit among its devices: 0xc0000000 do"),
    ],
)
def test_what_does_not_fit_is_refused(
    address: int, size: int, base: int | None, wanted: int, words: str
) -> None:
    root: NodeSpec = {"#address-cells": cells(address), "#size-cells": cells(size)}
    named = {} if base is None else {f"memory@{base:x}": {"device_type": ["memory"]}}
    with pytest.raises(InputError, match=f"^device tree: {re.escape(words)}$"):
        fill_memory(build({**root, **named}), wanted)


def test_the_tree_is_no_longer_than_it_has_to_be() -> None:
    found = fill_memory(tree(None, []), 64 * MIB)
    again = FdtEditor(found)
    again.pack()
    assert again.to_bytes() == found


def test_with_one_cell_each_a_bank_is_as_large_as_that_can_say() -> None:
    found = fill_memory(tree(GIB, [], address=1, size=1), 3 * GIB)
    assert banks(found) == [(GIB, 2 * GIB), (3 * GIB, GIB)]
