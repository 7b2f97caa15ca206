"""How far devices reach, by dma-ranges: measured with Debian's 6.1.192, 6.12.118 and 7.3.4 in QEMU on these trees.

What those kernels said of ZONE_DMA, on QEMU's virt with 4 GiB and one more bus in its tree.
"""

from __future__ import annotations

import pytest
from kernel_bench import GIB

from kexecemu import Board, Kernel, KernelConfig
from kexecemu.formats.fdt import Fdt, FdtEditor, NodeSpec, build, cells
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.boot.of_dma import PHYS_ADDR_MAX, dma_max_cpu_address
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine import virt
from kexecemu.machine.ranges import PhysRange

RAM = PhysRange.of(virt.RAM_BASE, 4 * GIB)
OWN = {"#address-cells": cells(1), "#size-cells": cells(1)}


def bus(*ranges: int, **more: NodeSpec | bytes | list[str]) -> NodeSpec:
    return {**OWN, "dma-ranges": cells(*ranges), **more}


BUSES: dict[str, tuple[NodeSpec, int, int, int]] = {
    # the bus, of_dma_get_max_cpu_address(), the end of ZONE_DMA in 6.1 and from 6.12 on
    "a GiB": (bus(0x40000000, 0, 0x40000000, 0x40000000), 0x7FFFFFFF, 0x80000000, 0x80000000),
    "no power of two": (bus(0x40000000, 0, 0x40000000, 0x60000000), 0x9FFFFFFF, 1 << 32, 0xA0000000),
    "disabled": (
        bus(0x40000000, 0, 0x40000000, 0x40000000, status=["disabled"]),
        PHYS_ADDR_MAX,
        1 << 32,
        1 << 32,
    ),
    "PCI, whose addresses have flags": (
        {
            "device_type": ["pci"],
            "#address-cells": cells(3),
            "#size-cells": cells(2),
            "dma-ranges": cells(0x2000000, 0, 0x40000000, 0, 0x40000000, 0, 0x50000000),
        },
        0x8FFFFFFF,
        1 << 32,
        0x90000000,
    ),
    "a bus on a bus": (
        bus(0, 0, 0x40000000, 0x80000000, inner=bus(0, 0x10000000, 0x20000000)),
        0x6FFFFFFF,
        0x80000000,
        0x70000000,
    ),
    "two ranges": (
        bus(0, 0, 0x40000000, 0x10000000, 0x10000000, 0, 0x80000000, 0x50000000),
        0xCFFFFFFF,
        1 << 32,
        0xD0000000,
    ),
    # No ZONE_DMA, and nothing is reserved: 6.12 and later look for low memory below the end of it.
    "where no RAM is": (bus(0, 0, 0, 0x20000000), 0x1FFFFFFF, 1 << 32, 0),
    # What its bus cannot reach wraps around: 0xffffffffffffffff + 0x20000000 - 1.
    "an address that its bus has not": (
        bus(0, 0, 0x40000000, 0x20000000, inner=bus(0, 0x70000000, 0x20000000)),
        0x1FFFFFFE,
        1 << 32,
        0,
    ),
}


def grown(name: str | None, node: NodeSpec) -> bytes:
    """QEMU's tree with one more node at its root, or with more properties there."""
    usual = virt_device_tree([RAM], 1, virt.UART.start)
    editor = FdtEditor(usual, len(usual) + 4096)

    def put(parent: int, name: str | None, spec: NodeSpec) -> None:
        at = parent if name is None else editor.add_subnode(parent, name)
        for key, value in spec.items():
            if isinstance(value, bytes):
                editor.setprop(at, key, value)
            elif isinstance(value, int):
                editor.setprop(at, key, cells(value))
            elif isinstance(value, list):
                editor.setprop(at, key, "".join(f"{one}\0" for one in value).encode())
        for key, value in spec.items():
            if isinstance(value, dict):
                put(at, key, value)

    put(0, name, node)
    editor.pack()
    return bytes(editor.data)


def tree(node: NodeSpec) -> bytes:
    return grown("soc@f000000", node)


def end_of_zone_dma(
    dtb: bytes, era: str, cmdline: str = "", config: dict[str, str] | None = None
) -> tuple[int, PhysRange | None]:
    """What the log says of it, 0 for an empty zone; and the crash region."""
    board = Board([RAM], 1)
    with Kernel.boot(board, KernelConfig(era, options=config or {}), cmdline=cmdline, dtb=dtb) as kernel:
        (zone,) = (line for line in board.uart.text.splitlines() if "  DMA      " in line)
        return 0 if zone.endswith("empty") else int(zone[-11:-1], 16) + 1, kernel.crashk_res


@pytest.mark.parametrize("name", BUSES)
def test_devices_reach_as_far_as_their_bus_and_those_above_it(name: str) -> None:
    node, highest, *_ = BUSES[name]
    assert hex(dma_max_cpu_address(Fdt(tree(node)), Era.V6_12)) == hex(highest)


@pytest.mark.parametrize("era", ["6.1", "6.11", "6.12", "7.3"])
@pytest.mark.parametrize("name", BUSES)
def test_zone_dma_ends_where_they_reach_and_the_crash_region_lies_below(name: str, era: str) -> None:
    node, _, bits, address = BUSES[name]
    end = bits if era in ("6.1", "6.11") else address
    board = Board([RAM], 1)
    with Kernel.boot(board, KernelConfig(era), cmdline="crashkernel=256M", dtb=tree(node)) as kernel:
        (zone,) = (line.split("] ", 1)[1] for line in board.uart.text.splitlines() if "  DMA      " in line)
        said = "empty" if end <= RAM.start else f"[mem {RAM.start:#018x}-{end - 1:#018x}]"
        assert zone == f"  DMA      {said}"
        region = kernel.crashk_res
    if end <= RAM.start:
        assert region is None
    else:
        assert region is not None and (region.end, region.size) == (end, 256 << 20)


def test_a_bus_goes_through_the_interconnect_that_it_names_for_dma() -> None:
    """As Allwinner's display engine: not through its parent, whose window would be another."""

    def reach(name: str) -> int:
        return dma_max_cpu_address(
            Fdt(
                build(
                    {
                        "#address-cells": cells(2),
                        "#size-cells": cells(2),
                        "mbus": {
                            **OWN,
                            "phandle": 7,
                            "#interconnect-cells": cells(1),
                            "dma-ranges": cells(0, 0, 0x40000000, 0xC0000000),
                        },
                        "soc": {
                            **OWN,
                            "engine": {
                                **OWN,
                                "interconnects": cells(7, 1),
                                "interconnect-names": [name],
                                "dma-ranges": cells(0, 0x10000000, 0x1000),
                            },
                        },
                    }
                )
            ),
            Era.V6_12,
        )

    assert reach("dma-mem") == 0x50000FFF
    assert reach("write") == 0x10000FFF
