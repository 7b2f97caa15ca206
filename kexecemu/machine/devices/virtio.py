"""A bus of virtio devices: a row of MMIO transports, as QEMU's virt has one."""

from __future__ import annotations

from collections.abc import Callable

from kexecemu.errors import InputError
from kexecemu.machine import virt
from kexecemu.machine.devices.virtio_mmio import IDENTITY, VirtioDevice, VirtioMmio
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.virt import VIRTIO_SLOT_SIZE
from kexecemu.shown import shown

__all__ = ["VirtioBus", "VirtioDevice"]


@shown("phys", devices=lambda bus: sum(one is not None for one in bus.slots))
class VirtioBus:
    """A row of slots, each for one device; one MmioDevice in whole pages, as an engine maps it.

    An empty slot shows a transport without a device, as QEMU's do, so that a device tree may name them all.
    """

    phys = virt.VIRTIO

    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self.slots: list[VirtioMmio | None] = [None] * virt.VIRTIO_SLOTS
        """The transports by slot; None where there is no device."""

    def attach(self, slot: int, device: VirtioDevice, irq: Callable[[bool], object]) -> VirtioMmio:
        """Put a device into an empty slot; InputError where there is none of that number or it is taken."""
        if not 0 <= slot < len(self.slots):
            raise InputError(f"there is no virtio slot {slot}, only 0 to {len(self.slots) - 1}")
        if self.slots[slot] is not None:
            raise InputError(f"virtio slot {slot} is taken")
        transport = self.slots[slot] = VirtioMmio(self._ram, device, irq)
        return transport

    def read(self, offset: int, size: int) -> int:
        """A load from a slot."""
        transport = self.slots[offset // VIRTIO_SLOT_SIZE]
        if transport is not None:
            return transport.read(offset % VIRTIO_SLOT_SIZE, size)
        return IDENTITY.get(offset % VIRTIO_SLOT_SIZE, 0) if size == 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to a slot."""
        transport = self.slots[offset // VIRTIO_SLOT_SIZE]
        if transport is not None:
            transport.write(offset % VIRTIO_SLOT_SIZE, size, value)
