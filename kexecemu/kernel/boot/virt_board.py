"""The device tree of the board: a subset of QEMU's `virt`, made from its table in machine/virt.py."""

from __future__ import annotations

from collections.abc import Sequence

from kexecemu.formats.fdt import NodeSpec, build, cells, reg64
from kexecemu.machine import psci, virt
from kexecemu.machine.ranges import PhysRange

__all__ = ["virt_device_tree"]

_CLOCK_PHANDLE = 0x8000
_GIC_PHANDLE = 0x8002


def _start_and_size(*areas: PhysRange) -> list[int]:
    return [number for area in areas for number in (area.start, area.size)]


_GIC: dict[int, NodeSpec] = {
    2: {
        "reg": reg64(*_start_and_size(virt.GIC_DISTRIBUTOR, virt.GIC_CPU_INTERFACE)),
        "compatible": "arm,cortex-a15-gic",
    },
    3: {
        "reg": reg64(*_start_and_size(virt.GIC_DISTRIBUTOR, virt.GIC_REDISTRIBUTORS)),
        "#redistributor-regions": 1,
        "compatible": "arm,gic-v3",
    },
}
_PPI_FLAGS = {2: 0x104, 3: 4}
"""Active high; of a GICv2 also for which CPUs."""
_TIMER_PPIS = (virt.TIMER_SECURE_PPI, virt.TIMER_PHYSICAL_PPI, virt.TIMER_VIRTUAL_PPI, virt.TIMER_HYP_PPI)


def virt_device_tree(
    memory: Sequence[PhysRange],
    cpus: int,
    uart_phys: int,
    *,
    cmdline: str = "",
    virtio_slots: Sequence[int] = (),
    rtc: bool = False,
    initrd: PhysRange | None = None,
    kaslr_seed: int | None = None,
    rng_seed: bytes | None = None,
    gic: int = 2,
) -> bytes:
    """A device tree for a board with this RAM (physical ranges), this many CPUs and a PL011 at uart_phys.

    gic is the interrupt controller's version, 2 or 3.
    virtio_slots are the numbers (0 to 31) of the virtio-mmio transports there are, rtc says whether there is a PL031.
    The rest goes to /chosen, each left out when it is empty or None: cmdline as bootargs, the bytes of an initrd in RAM
    (physical), the 64 bits from which the kernel takes its image's place, and what it stirs into its random numbers.
    Raises ValueError for a slot or a version that there is not, or a seed that is no 64-bit number.
    """
    if gic not in _GIC:
        raise ValueError(f"the board has a GIC of version 2 or 3, not {gic}")
    chosen: dict[str, str | bytes] = {"stdout-path": f"/pl011@{uart_phys:x}"}
    if cmdline:
        chosen["bootargs"] = cmdline
    if initrd is not None:
        chosen["linux,initrd-start"] = reg64(initrd.start)
        chosen["linux,initrd-end"] = reg64(initrd.end)
    if kaslr_seed is not None:
        if not 0 <= kaslr_seed < 1 << 64:
            raise ValueError(f"a KASLR seed is a number of 64 bits, not {kaslr_seed:#x}")
        chosen["kaslr-seed"] = reg64(kaslr_seed)
    if rng_seed is not None:
        chosen["rng-seed"] = rng_seed
    cpu_nodes: dict[str, NodeSpec] = {
        f"cpu@{virt.affinity(index):x}": {
            "device_type": "cpu",
            "compatible": "arm,cortex-a57",
            "reg": virt.affinity(index),
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
            "migrate": psci.MIGRATE | psci.SMC64,
            "cpu_on": psci.CPU_ON | psci.SMC64,
            "cpu_off": psci.CPU_OFF,
            "cpu_suspend": psci.CPU_SUSPEND | psci.SMC64,
            "method": "hvc",
            "compatible": ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"],
        },
        **{
            f"memory@{bank.start:x}": {"reg": reg64(bank.start, bank.size), "device_type": "memory"}
            for bank in memory
        },
        **{
            f"virtio_mmio@{virt.virtio_slot(slot).start:x}": _virtio_node(slot)
            for slot in sorted(set(virtio_slots))
        },
        **(_rtc_node() if rtc else {}),
        f"pl011@{uart_phys:x}": {
            "clock-names": ["uartclk", "apb_pclk"],
            "clocks": cells(_CLOCK_PHANDLE, _CLOCK_PHANDLE),
            "interrupts": cells(0, virt.UART_SPI - virt.FIRST_SPI, 4),
            "reg": reg64(uart_phys, virt.UART.size),
            "compatible": ["arm,pl011", "arm,primecell"],
        },
        f"intc@{virt.GIC_DISTRIBUTOR.start:x}": {
            "phandle": _GIC_PHANDLE,
            **_GIC[gic],
            "#interrupt-cells": 3,
            "interrupt-controller": b"",
        },
        "timer": {
            "interrupts": cells(
                *(cell for ppi in _TIMER_PPIS for cell in (1, ppi - virt.FIRST_PPI, _PPI_FLAGS[gic]))
            ),
            "always-on": b"",
            "compatible": ["arm,armv8-timer", "arm,armv7-timer"],
        },
        "apb-pclk": {
            "phandle": _CLOCK_PHANDLE,
            "clock-output-names": "clk24mhz",
            "clock-frequency": virt.APB_CLOCK_HZ,
            "#clock-cells": 0,
            "compatible": "fixed-clock",
        },
        "cpus": {"#size-cells": 0, "#address-cells": 1, **cpu_nodes},
        "chosen": chosen,
    }
    return build(root)


def _virtio_node(slot: int) -> NodeSpec:
    area = virt.virtio_slot(slot)
    return {
        "dma-coherent": b"",
        "interrupts": cells(0, virt.VIRTIO_SPI - virt.FIRST_SPI + slot, 1),
        "reg": reg64(area.start, area.size),
        "compatible": "virtio,mmio",
    }


def _rtc_node() -> dict[str, NodeSpec]:
    return {
        f"pl031@{virt.RTC.start:x}": {
            "clock-names": "apb_pclk",
            "clocks": cells(_CLOCK_PHANDLE),
            "interrupts": cells(0, virt.RTC_SPI - virt.FIRST_SPI, 4),
            "reg": reg64(virt.RTC.start, virt.RTC.size),
            "compatible": ["arm,pl031", "arm,primecell"],
        }
    }
