"""QEMU's virt machine (hw/arm/virt.c), as far as this board is one: where everything is, and which interrupt it has.

This is the only table: the board's devices, its device tree and what is handed over to QEMU are made from it.
Addresses are physical, interrupts are numbered as the interrupt controller does: PPIs from 16, SPIs from 32 on.
"""

from collections.abc import Iterable
from typing import Final

from kexecemu.errors import InputError
from kexecemu.machine.ranges import PhysRange

__all__ = ["affinity", "virtio_slot"]

RAM_BASE: Final = 0x40000000
PHYS_LIMIT: Final = 1 << 44
"""Cortex-A57: ID_AA64MMFR0_EL1.PARange is 44 bits."""
RAM_GRAIN: Final = 0x2000
"""QEMU rounds RAM up to whole pieces of this."""

FLASH: Final = PhysRange.of(0x00000000, 0x08000000)
GIC_DISTRIBUTOR: Final = PhysRange.of(0x08000000, 0x10000)
GIC_CPU_INTERFACE: Final = PhysRange.of(0x08010000, 0x10000)
"""Of a GICv2."""
GIC_MSI_FRAME: Final = PhysRange.of(0x08020000, 0x1000)
"""Of a GICv2."""
GIC_ITS: Final = PhysRange.of(0x08080000, 0x20000)
"""Of a GICv3."""
GIC_REDISTRIBUTORS: Final = PhysRange.of(0x080A0000, 0xF60000)
"""Of a GICv3."""
UART: Final = PhysRange.of(0x09000000, 0x1000)
RTC: Final = PhysRange.of(0x09010000, 0x1000)
FW_CFG_AND_GPIO: Final = PhysRange.of(0x09020000, 0x20000)
VIRTIO: Final = PhysRange.of(0x0A000000, 0x4000)
PLATFORM_BUS: Final = PhysRange.of(0x0C000000, 0x02000000)
PCIE: Final = PhysRange.of(0x10000000, 0x30000000)
PCIE_CONFIG: Final = PhysRange.of(0x4010000000, 0x10000000)

VIRTIO_SLOT_SIZE: Final = 0x200
"""Bytes of registers and configuration for one device."""
VIRTIO_SLOTS: Final = VIRTIO.size // VIRTIO_SLOT_SIZE
REDISTRIBUTOR_SIZE: Final = 0x20000

FIRST_PPI: Final = 16
FIRST_SPI: Final = 32
SPIS: Final = 256
TIMER_SECURE_PPI, TIMER_PHYSICAL_PPI, TIMER_VIRTUAL_PPI, TIMER_HYP_PPI = 29, 30, 27, 26
UART_SPI: Final = FIRST_SPI + 1
RTC_SPI: Final = FIRST_SPI + 2
VIRTIO_SPI: Final = FIRST_SPI + 16
"""Of the first slot; the others follow."""

GICV2_CPUS: Final = 8
"""A GICv2 has interfaces for so many."""
GICV3_CPUS: Final = GIC_REDISTRIBUTORS.size // REDISTRIBUTOR_SIZE
"""So many redistributors have room."""
CPUS_PER_CLUSTER: Final = 16
"""What one SGI of a GICv3 can reach."""

APB_CLOCK_HZ: Final = 24_000_000

ABSENT: Final = (
    (FLASH, 0),
    (GIC_MSI_FRAME, 0),
    (FW_CFG_AND_GPIO, 0),
    (PLATFORM_BUS, 0),
    (PCIE, 0xFF),
    (PCIE_CONFIG, 0xFF),
)
"""What this board has not, and the byte that is read there: no device in PCIe's configuration space reads as ones."""
ABSENT_GICV3: Final = ((GIC_ITS, 0),)


def affinity(cpu: int) -> int:
    """Aff3.Aff2.Aff1.Aff0 of a CPU, a byte each."""
    return cpu // CPUS_PER_CLUSTER << 8 | cpu % CPUS_PER_CLUSTER


def virtio_slot(slot: int) -> PhysRange:
    """The registers of one virtio transport; ValueError for a slot that there is not."""
    if not 0 <= slot < VIRTIO_SLOTS:
        raise ValueError(f"the board has virtio slots 0 to {VIRTIO_SLOTS - 1}, not {slot}")
    return PhysRange.of(VIRTIO.start + slot * VIRTIO_SLOT_SIZE, VIRTIO_SLOT_SIZE)


def check_bbm(bbm: int) -> int:
    """A level of FEAT_BBM; InputError where there is no such."""
    if not 0 <= bbm <= 3:
        raise InputError(f"bbm: CPUs have FEAT_BBM of level 0 to 3, not {bbm}")
    return bbm


def check_stuck(stuck: Iterable[int], cpus: int) -> frozenset[int]:
    """CPUs that are stuck, of so many; InputError for one that there is not."""
    found = frozenset(stuck)
    wrong = sorted(index for index in found if not 0 <= index < cpus)
    if wrong:
        raise InputError(f"stuck_cpus: the board has CPUs 0 to {cpus - 1}, not {wrong[0]}")
    return found
