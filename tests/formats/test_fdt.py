"""Reading and building device trees, against dtc and a real kernel's device tree."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.errors import FormatError
from kexecemu.formats import fdt
from kexecemu.formats.fdt import Fdt, MemReserve, build, cells, reg64

Real = Callable[[str], bytes]

needs_dtc = pytest.mark.skipif(
    shutil.which("dtc") is None, reason="dtc (device-tree-compiler) is not installed"
)

BOARD: fdt.NodeSpec = {
    "#address-cells": 2,
    "#size-cells": 2,
    "compatible": "linux,dummy-virt",
    "model": "a board",
    "aliases": {"serial0": "/soc/pl011@9000000", "loop": "loop"},
    "memory@40000000": {"device_type": "memory", "reg": reg64(0x40000000, 0x30000000)},
    "cpus": {
        "#address-cells": 1,
        "#size-cells": 0,
        "cpu@0": {"device_type": "cpu", "reg": 0, "enable-method": "psci"},
        "cpu@1": {"device_type": "cpu", "reg": 1, "enable-method": "psci"},
    },
    "soc": {
        "ranges": True,
        "pl011@9000000": {
            "compatible": ["arm,pl011", "arm,primecell"],
            "reg": reg64(0x9000000, 0x1000),
            "interrupts": cells(0, 1, 4),
            "odd": b"abc",
        },
    },
    "chosen": {"stdout-path": "/soc/pl011@9000000", "kaslr-seed": reg64(0x0123456789ABCDEF)},
}
BLOB = build(BOARD, mem_reservations=[(0x48000000, 0x10000), (0x7FF000000, 0x1000)])


def _dtc(source: bytes, inform: str, outform: str) -> bytes:
    command = ["dtc", "-q", "-I", inform, "-O", outform, "-o", "-", "-"]
    return subprocess.run(command, input=source, stdout=subprocess.PIPE, check=True).stdout


@needs_dtc
def test_a_tree_built_here_is_byte_for_byte_what_dtc_builds_from_its_source() -> None:
    source = _dtc(BLOB, "dtb", "dts")
    assert b'compatible = "arm,pl011\\0arm,primecell";' in source
    assert b"/memreserve/\t0x00000007ff000000 0x0000000000001000;" in source
    assert _dtc(source, "dts", "dtb") == BLOB


@needs_dtc
def test_values_are_read_as_dtc_compiled_them() -> None:
    source = b"""/dts-v1/;
    /memreserve/ 0x40000000 0x2000;
    / { #address-cells = <1>; #size-cells = <1>;
        aliases { con = "/uart@1000/port"; };
        uart@1000 { reg = <0x1000 0x100>; clock = /bits/ 64 <0x123456789abcdef0>; names = "a", "bc"; on;
            port { label = "p"; }; };
        uart@2000 { reg = <0x2000 0x100>; };
    };"""
    tree = Fdt(_dtc(source, "dts", "dtb"))
    uart = tree.path_offset("/uart@1000")
    assert uart is not None
    # Without a unit address the first that fits is meant.
    assert tree.path_offset("/uart") == uart
    assert tree.path_offset("/uart@2000") not in (None, uart)
    assert tree.path_offset("con") == tree.path_offset("/uart@1000/port")
    assert tree.get_cells(uart, "reg") == [0x1000, 0x100]
    assert tree.get_u64(uart, "clock") == 0x123456789ABCDEF0
    assert tree.get_strings(uart, "names") == ["a", "bc"]
    assert tree.getprop(uart, "on") == b""
    assert tree.getprop(uart, "off") is None
    assert tree.get_u32(0, "#size-cells") == 1
    assert tree.mem_reservations() == [MemReserve(0x40000000, 0x2000)]
    assert [(n.depth, n.name) for n in tree.nodes()] == [
        (0, ""),
        (1, "aliases"),
        (1, "uart@1000"),
        (2, "port"),
        (1, "uart@2000"),
    ]
    assert [n.name for n in tree.subnodes(uart)] == ["port"]
    assert [p.name for p in tree.properties(uart)] == ["reg", "clock", "names", "on"]
    assert tree.name(uart) == "uart@1000"


def test_the_real_kernel_s_device_tree_is_read(real: Real) -> None:
    tree = Fdt(real("main.dtb"))
    chosen = tree.path_offset("/chosen")
    assert tree.totalsize == 1 << 20 and chosen is not None
    assert tree.get_strings(chosen, "stdout-path") == ["/pl011@9000000"]
    # The early kernel wipes the seed that it used and overwrites rng-seed with FDT_NOP tags.
    assert tree.get_u64(chosen, "kaslr-seed") == 0
    assert tree.getprop(chosen, "rng-seed") is None
    memory = tree.path_offset("/memory")
    assert memory is not None
    assert tree.getprop(memory, "reg") == reg64(0x40000000, 0x30000000)


def test_an_alias_that_names_itself_leads_nowhere() -> None:
    assert Fdt(BLOB).path_offset("loop/x") is None
    assert Fdt(BLOB).path_offset("none") is None


def test_missing_cell_counts_are_two_and_one_as_the_specification_says() -> None:
    tree = Fdt(build({"n": {}}))
    assert (tree.address_cells(0), tree.size_cells(0)) == (2, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("#address-cells", 0), ("#address-cells", 5), ("#size-cells", 5)]
)
def test_cell_counts_that_libfdt_refuses_are_refused(name: str, value: int) -> None:
    tree = Fdt(build({name: value}))
    with pytest.raises(FormatError, match=f"{name} is {value}"):
        tree.address_cells(0)
        tree.size_cells(0)


def test_a_value_of_another_length_than_asked_for_is_refused() -> None:
    tree = Fdt(build({"a": b"abc", "b": cells(1, 2, 3), "c": "text"}))
    with pytest.raises(FormatError, match="a has 3 bytes, not whole cells"):
        tree.get_cells(0, "a")
    with pytest.raises(FormatError, match="b has 12 bytes, not 4"):
        tree.get_u32(0, "b")
    with pytest.raises(FormatError, match="b has 12 bytes, not 8"):
        tree.get_u64(0, "b")


def test_an_offset_where_no_node_begins_is_refused() -> None:
    tree = Fdt(BLOB)
    for offset in (-4, 1, 8, 1 << 20):
        with pytest.raises(FormatError, match="structure offset"):
            list(tree.properties(offset))
        with pytest.raises(FormatError, match="structure offset"):
            list(tree.nodes(offset))


def test_padding_is_room_that_counts() -> None:
    blob = build(BOARD, padding=64)
    assert len(blob) == Fdt(blob).totalsize == len(build(BOARD)) + 64
    assert Fdt(blob + b"beyond").totalsize == len(blob)


def test_a_false_property_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="leave the property out"):
        build({"dma-coherent": False})


def _patched(offset: int, *words: int) -> bytes:
    data = bytearray(BLOB)
    struct.pack_into(f">{len(words)}I", data, offset, *words)
    return bytes(data)


STRUCT = Fdt(BLOB).off_dt_struct


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are too short"),
        (BLOB[:35], "35 bytes are too short"),
        (BLOB[:-1], "total size"),
        (_patched(0, 0xD00DFEEE), "magic at offset 0 is 0xd00dfeee"),
        (_patched(4, 39), "total size 0x27"),
        (_patched(20, 15), "version 15"),
        (_patched(24, 18), "compatible with 18"),
        (_patched(8, len(BLOB)), "structure block"),
        (_patched(12, len(BLOB)), "strings block"),
        (_patched(16, 36), "memory reservation block"),
        (_patched(16, len(BLOB) - 8), "have no end"),
        (_patched(STRUCT, 9), "no root node"),
        (_patched(STRUCT + 4, 0x61000000), "no root node with an empty name"),
        (_patched(STRUCT + 8, 7), "unknown tag 0x7 at structure offset 0x8"),
        (_patched(STRUCT + 8, 2, 3, 0, 0), "property outside a node at structure offset 0xc"),
        (_patched(STRUCT + 12, 0x7FFFFFFF), "outside its block"),
        (_patched(STRUCT + 16, 0xFFFFFFF0), "bad string offset 0xfffffff0"),
        (_patched(36, 8), "no tag at structure offset 0x8"),
        (_patched(STRUCT + Fdt(BLOB).size_dt_struct - 4, 2), "end of no node"),
        (_patched(STRUCT + Fdt(BLOB).size_dt_struct - 8, 9), "1 nodes still open"),
    ],
)
def test_a_damaged_tree_is_refused_with_what_and_where(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Fdt(data)


def test_a_tree_of_version_16_is_read_though_it_does_not_say_how_long_its_structure_is() -> None:
    data = bytearray(BLOB)
    struct.pack_into(">I", data, 20, 16)
    struct.pack_into(">I", data, 36, 0xFFFFFFFF)
    tree = Fdt(data)
    assert tree.size_dt_struct == Fdt(BLOB).size_dt_struct
    assert [n.name for n in tree.nodes()] == [n.name for n in Fdt(BLOB).nodes()]


def test_a_tree_a_thousand_nodes_deep_is_read_without_recursion() -> None:
    tag, end = struct.pack(">II", 1, 0x61000000), struct.pack(">I", 2)
    depth = 5000
    structure = struct.pack(">II", 1, 0) + tag * depth + end * (depth + 1) + struct.pack(">I", 9)
    head = struct.pack(">10I", 0xD00DFEED, 56 + len(structure), 56, 56 + len(structure), 40, 17, 16, 0, 0, 0)
    blob = bytearray(head + bytes(16) + structure)
    struct.pack_into(">I", blob, 36, len(structure))
    assert sum(1 for _ in Fdt(blob).nodes()) == depth + 1


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(BLOB) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(BLOB)) | st.just(len(BLOB)),
)
def test_any_damage_gives_a_tree_that_can_be_read_or_a_format_error(
    damage: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(BLOB)
    for place, value in damage:
        data[place] = value
    try:
        tree = Fdt(data[:length])
    except FormatError:
        return
    for node in tree.nodes():
        for prop in tree.properties(node.offset):
            assert tree.getprop(node.offset, prop.name) is not None
    tree.mem_reservations()
    tree.path_offset("serial0")
