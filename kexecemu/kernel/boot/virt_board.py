"""The device tree of the board: a subset of QEMU's `virt`, made from its table in machine/virt.py."""

from collections.abc import Sequence

from kexecemu.formats.fdt import NodeSpec, build, cells, reg64
from kexecemu.machine import psci, virt
from kexecemu.machine.ranges import PhysRange

__all__ = ["virt_device_tree"]

_CLOCK_PHANDLE = 0x8000
_GIC_PHANDLE = 0x8002


def _reg(*areas: PhysRange) -> bytes:
    return reg64(*(number for area in areas for number in (area.start, area.size)))


def _spi(number: int, trigger: int = 4) -> bytes:
    return cells(0, number - virt.FIRST_SPI, trigger)


_GIC: dict[int, NodeSpec] = {
    2: {"reg": _reg(virt.GIC_DISTRIBUTOR, virt.GIC_CPU_INTERFACE), "compatible": "arm,cortex-a15-gic"},
    3: {
        "reg": _reg(virt.GIC_DISTRIBUTOR, virt.GIC_REDISTRIBUTORS),
        "#redistributor-regions": 1,
        "compatible": "arm,gic-v3",
    },
}
_PPI_FLAGS = {2: 0x104, 3: 4}
"""Active high; of a GICv2 also for which CPUs."""
_TIMER_PPIS = (virt.TIMER_SECURE_PPI, virt.TIMER_PHYSICAL_PPI, virt.TIMER_VIRTUAL_PPI, virt.TIMER_HYP_PPI)
_PSCI: NodeSpec = {
    "migrate": psci.MIGRATE | psci.SMC64,
    "cpu_on": psci.CPU_ON | psci.SMC64,
    "cpu_off": psci.CPU_OFF,
    "cpu_suspend": psci.CPU_SUSPEND | psci.SMC64,
    "method": "hvc",
    "compatible": ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"],
}
_RTC: NodeSpec = {
    "clock-names": "apb_pclk",
    "clocks": cells(_CLOCK_PHANDLE),
    "interrupts": _spi(virt.RTC_SPI),
    "reg": _reg(virt.RTC),
    "compatible": ["arm,pl031", "arm,primecell"],
}
_CLOCK: NodeSpec = {
    "phandle": _CLOCK_PHANDLE,
    "clock-output-names": "clk24mhz",
    "clock-frequency": virt.APB_CLOCK_HZ,
    "#clock-cells": 0,
    "compatible": "fixed-clock",
}


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
    if kaslr_seed is not None and not 0 <= kaslr_seed < 1 << 64:
        raise ValueError(f"a KASLR seed is a number of 64 bits, not {kaslr_seed:#x}")
    root: dict[str, NodeSpec | bytes | int | str | list[str]] = {
        "interrupt-parent": _GIC_PHANDLE,
        "model": "linux,dummy-virt",
        "#size-cells": 2,
        "#address-cells": 2,
        "compatible": "linux,dummy-virt",
        "psci": _PSCI,
        **{f"memory@{bank.start:x}": {"reg": _reg(bank), "device_type": "memory"} for bank in memory},
        **{
            f"virtio_mmio@{virt.virtio_slot(at).start:x}": _virtio_node(at)
            for at in sorted(set(virtio_slots))
        },
        **({f"pl031@{virt.RTC.start:x}": _RTC} if rtc else {}),
        f"pl011@{uart_phys:x}": _uart(uart_phys),
        f"intc@{virt.GIC_DISTRIBUTOR.start:x}": {
            "phandle": _GIC_PHANDLE,
            **_GIC[gic],
            "#interrupt-cells": 3,
            "interrupt-controller": b"",
        },
        "timer": _timer(gic),
        "apb-pclk": _CLOCK,
        "cpus": {
            "#size-cells": 0,
            "#address-cells": 1,
            **{f"cpu@{virt.affinity(index):x}": _cpu_node(index) for index in range(cpus)},
        },
        "chosen": _chosen(uart_phys, cmdline, initrd, kaslr_seed, rng_seed),
    }
    return build(root)


def _uart(uart_phys: int) -> NodeSpec:
    return {
        "clock-names": ["uartclk", "apb_pclk"],
        "clocks": cells(_CLOCK_PHANDLE, _CLOCK_PHANDLE),
        "interrupts": _spi(virt.UART_SPI),
        "reg": reg64(uart_phys, virt.UART.size),
        "compatible": ["arm,pl011", "arm,primecell"],
    }


def _timer(gic: int) -> NodeSpec:
    interrupts = (cell for ppi in _TIMER_PPIS for cell in (1, ppi - virt.FIRST_PPI, _PPI_FLAGS[gic]))
    return {
        "interrupts": cells(*interrupts),
        "always-on": b"",
        "compatible": ["arm,armv8-timer", "arm,armv7-timer"],
    }


def _chosen(
    uart_phys: int, cmdline: str, initrd: PhysRange | None, kaslr_seed: int | None, rng_seed: bytes | None
) -> NodeSpec:
    return {
        "stdout-path": f"/pl011@{uart_phys:x}",
        **({"bootargs": cmdline} if cmdline else {}),
        **({"linux,initrd-start": reg64(initrd.start)} if initrd is not None else {}),
        **({"linux,initrd-end": reg64(initrd.end)} if initrd is not None else {}),
        **({"kaslr-seed": reg64(kaslr_seed)} if kaslr_seed is not None else {}),
        **({"rng-seed": rng_seed} if rng_seed is not None else {}),
    }


def _cpu_node(index: int) -> NodeSpec:
    reg = virt.affinity(index)
    return {"device_type": "cpu", "compatible": "arm,cortex-a57", "reg": reg, "enable-method": "psci"}


def _virtio_node(slot: int) -> NodeSpec:
    return {
        "dma-coherent": b"",
        "interrupts": _spi(virt.VIRTIO_SPI + slot, 1),
        "reg": _reg(virt.virtio_slot(slot)),
        "compatible": "virtio,mmio",
    }
