"""The device tree of the board that kexecemu emulates: a subset of QEMU's `virt`, with the same addresses."""

from __future__ import annotations

from collections.abc import Sequence

from kexecemu.formats.fdt import NodeSpec, build, cells, reg64
from kexecemu.machine.ranges import PhysRange

__all__ = ["virt_device_tree"]

_CLOCK_PHANDLE = 0x8000
_GIC_PHANDLE = 0x8002


def virt_device_tree(memory: Sequence[PhysRange], cpus: int, uart_phys: int, *, cmdline: str = "") -> bytes:
    """A device tree for a board with this RAM (physical ranges), this many CPUs and a PL011 at uart_phys.

    cmdline becomes /chosen/bootargs, which is left out when it is empty.
    """
    chosen: dict[str, str] = {"stdout-path": f"/pl011@{uart_phys:x}"}
    if cmdline:
        chosen["bootargs"] = cmdline
    cpu_nodes: dict[str, NodeSpec] = {
        f"cpu@{_affinity(index):x}": {
            "device_type": "cpu",
            "compatible": "arm,cortex-a57",
            "reg": _affinity(index),
            "enable-method": "psci",
        }
        for index in range(cpus)
    }
    root: dict[str, NodeSpec | bytes | int | str | list[str]] = {
        "interrupt-parent": _GIC_PHANDLE,
        "model": "linux,dummy-virt",
        "#size-cells": 2,
        "#address-cells": 2,
        "compatible": "linux,dummy-virt",
        "psci": {
            "migrate": 0xC4000005,
            "cpu_on": 0xC4000003,
            "cpu_off": 0x84000002,
            "cpu_suspend": 0xC4000001,
            "method": "hvc",
            "compatible": ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"],
        },
        **{
            f"memory@{bank.start:x}": {"reg": reg64(bank.start, bank.size), "device_type": "memory"}
            for bank in memory
        },
        f"pl011@{uart_phys:x}": {
            "clock-names": ["uartclk", "apb_pclk"],
            "clocks": cells(_CLOCK_PHANDLE, _CLOCK_PHANDLE),
            "interrupts": cells(0, 1, 4),
            "reg": reg64(uart_phys, 0x1000),
            "compatible": ["arm,pl011", "arm,primecell"],
        },
        "intc@8000000": {
            "phandle": _GIC_PHANDLE,
            "reg": reg64(0x8000000, 0x10000, 0x8010000, 0x10000),
            "compatible": "arm,cortex-a15-gic",
            "#interrupt-cells": 3,
            "interrupt-controller": b"",
        },
        "timer": {
            "interrupts": cells(1, 13, 0x104, 1, 14, 0x104, 1, 11, 0x104, 1, 10, 0x104),
            "always-on": b"",
            "compatible": ["arm,armv8-timer", "arm,armv7-timer"],
        },
        "apb-pclk": {
            "phandle": _CLOCK_PHANDLE,
            "clock-output-names": "clk24mhz",
            "clock-frequency": 24_000_000,
            "#clock-cells": 0,
            "compatible": "fixed-clock",
        },
        "cpus": {"#size-cells": 0, "#address-cells": 1, **cpu_nodes},
        "chosen": chosen,
    }
    return build(root)


def _affinity(index: int) -> int:
    """MPIDR affinity of CPU `index` as QEMU's virt numbers them: 16 CPUs (GICv3) to a cluster."""
    return index // 16 << 8 | index % 16
