"""dma-ranges as nobody should write them: what Debian's 6.1, 6.12, 6.18 and 7.3 made of each in QEMU, with 4 GiB.

A tester's trees, each a node more at the root of QEMU's virt; the limits are of ZONE_DMA, 0 for an empty one.
"""

from __future__ import annotations

import pytest
from test_of_dma import end_of_zone_dma, grown

from kexecemu import InputError
from kexecemu.formats.fdt import NodeSpec, cells
from kexecemu.machine.ranges import PhysRange

ALL = 1 << 32


def bus(address: int | None, size: int | None, *ranges: int, **more: object) -> NodeSpec:
    """With #address-cells and #size-cells, if any."""
    node: dict[str, object] = {}
    if address is not None:
        node["#address-cells"] = cells(address)
    if size is not None:
        node["#size-cells"] = cells(size)
    if ranges:
        node["dma-ranges"] = cells(*ranges)
    return {**node, **more}  # type: ignore[dict-item]


GIB = (0, 0, 0, 0x40000000, 0, 0x40000000)
TWO_GIB = (0x43000000, 0, 0, 0, 0x40000000, 0, 0x80000000)
FLAGS = (1, 0, 0, 0, 0x40000000, 0, 0x80000000)
PCI = {"device_type": ["pci"]}


def interconnect(provider: NodeSpec, names: list[str], *links: int) -> NodeSpec:
    device = bus(1, 1, 0, 0, 0x20000000, interconnects=cells(*links), **{"interconnect-names": names})
    window = {"ranges": cells(0, 0, 0, 0x80000000)}
    return bus(1, 1, mbus={"phandle": 0x77, **provider}, dev=device, **window)


MBUS = bus(1, 1, 0, 0x40000000, 0x40000000)
LINKED = {"#interconnect-cells": cells(1)}

# name of the node, the node, and the end of ZONE_DMA in 6.1, 6.12 and 7.3.
ODD: dict[str, tuple[str, NodeSpec, int, int, int]] = {
    "a bus on one without cells": (
        "outer",
        {"ranges": b"", "soc": bus(2, 2, *GIB, ranges=b"")},
        0x80000000,
        0x80000000,
        0,
    ),
    "no #size-cells to speak of": ("soc", bus(2, 0, 0, 0, 0, 0x60000000), 0x80000000, 0x60000000, ALL),
    "no #address-cells to speak of": ("soc", bus(0, 2, *GIB[2:]), 0x80000000, 0x80000000, ALL),
    "five #size-cells": ("soc", bus(2, 5, *GIB[:4], 0, 0, 0, *GIB[4:]), 0x80000000, 0x80000000, 0x80000000),
    "ISA": (
        "isa",
        bus(2, 1, 0, 0, 0, 0x40000000, 0x40000000, sub=bus(1, 1, 0, 2, 0x100000, 0x10000000)),
        0x80000000,
        0x50100000,
        0x50100000,
    ),
    "PCI on PCI, prefetchable": (
        "pcie@1",
        bus(
            3,
            2,
            *TWO_GIB,
            **PCI,
            **{"pci@0": bus(3, 2, 0x2000000, 0, 0, 0x2000000, 0, 0, 0, 0x40000000, **PCI)},
        ),
        0x80000000,
        0x80000000,
        0x80000000,
    ),
    "flags through an empty property": (
        "b",
        bus(3, 2, *FLAGS, m=bus(3, 2, **{"dma-ranges": b""}, c=bus(2, 2, 0, 0, 1, 0, 0, 0, 0x40000000))),
        0x80000000,
        0x80000000,
        0x80000000,
    ),
    "flags through an entry": (
        "b",
        bus(
            3,
            2,
            *FLAGS,
            m=bus(3, 2, 7, 0, 0, 1, 0, 0, 0, 0x80000000, c=bus(2, 2, 0, 0, 7, 0, 0, 0, 0x40000000)),
        ),
        0x80000000,
        0x80000000,
        0x80000000,
    ),
    "a bus on PCI with one #size-cell": (
        "pcie@1",
        bus(
            3,
            1,
            0x43000000,
            0,
            0,
            0,
            0x40000000,
            0x40000000,
            **PCI,
            sub=bus(1, 1, 0, 0x43000000, 0, 0x1000, 0x20000000),
        ),
        ALL,
        0,
        0,
    ),
    "an interconnect without #interconnect-cells": (
        "soc",
        interconnect(MBUS, ["dma-mem"], 0x77, 3),
        ALL,
        0,
        0,
    ),
    "an interconnect of other cells": (
        "soc",
        interconnect({**bus(2, 1, 0, 0, 0x40000000, 0x40000000), **LINKED}, ["dma-mem"], 0x77, 3),
        ALL,
        0,
        0,
    ),
    "an interconnect behind an empty one": (
        "soc",
        interconnect({**MBUS, **LINKED}, ["a", "dma-mem"], 0, 0x77, 3),
        0x80000000,
        0x60000000,
        0x60000000,
    ),
    "two ranges that are one, and wrap around": (
        "soc",
        bus(2, 2, 0, 0, 0, 0, 0x80000000, 0, 0x80000000, 0, 0x80000000, 0, 0x80000000, 0, ranges=b""),
        ALL,
        0,
        0,
    ),
    "bytes that are no whole cells": (
        "soc",
        bus(2, 2, **{"dma-ranges": cells(*GIB) + b"\0"}),
        0x80000000,
        0x80000000,
        0x80000000,
    ),
    "a byte": ("soc", bus(2, 2, **{"dma-ranges": b"\0"}), ALL, 0, 0),
    "cells of two cells": (
        "soc",
        bus(None, 2, *GIB, **{"#address-cells": cells(2, 0)}),
        0x80000000,
        0x80000000,
        0x80000000,
    ),
    "no whole pages": (
        "soc",
        bus(2, 2, 0, 0, 0, 0x40000000, 0, 0x34567890),
        0x80000000,
        0x74567000,
        0x74567000,
    ),
}


@pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])
@pytest.mark.parametrize("name", ODD)
def test_zone_dma_ends_where_a_real_kernel_had_it(name: str, era: str) -> None:
    node, spec, *ends = ODD[name]
    assert hex(end_of_zone_dma(grown(node, spec), era)[0]) == hex(ends[("6.1", "6.12", "7.3").index(era)])


@pytest.mark.parametrize(("era", "start"), [("6.12", 0x12B600000), ("7.3", 0x12F600000)])
def test_a_limit_of_one_byte_is_no_limit_of_a_reservation(era: str, start: int) -> None:
    """1 is MEMBLOCK_ALLOC_NOLEAKTRACE. CMA of 64 MiB, as in the kernels that were asked."""
    end, region = end_of_zone_dma(
        grown("soc", bus(2, 2, 0, 0, 0)), era, "crashkernel=256M", {"CMA_SIZE_MBYTES": "64"}
    )
    assert (end, region) == (0, PhysRange.of(start, 256 << 20))


@pytest.mark.parametrize(("era", "end"), [("6.12", 0x80000000), ("6.18", None), ("7.3", ALL)])
def test_dma_ranges_without_cells_are_read_then_oopsed_on_then_ignored(era: str, end: int | None) -> None:
    dtb = grown("soc", {"ranges": b"", "dma-ranges": cells(*GIB)})
    if end is None:
        with pytest.raises(InputError, match="soc has dma-ranges and no #address-cells"):
            end_of_zone_dma(dtb, era)
    else:
        assert end_of_zone_dma(dtb, era)[0] == end


def test_the_root_s_own_is_an_address_that_nothing_translates() -> None:
    dtb = grown(None, {"dma-ranges": cells(*GIB)})
    assert [end_of_zone_dma(dtb, era)[0] for era in ("6.1", "6.12", "7.3")] == [ALL, 0, 0]
