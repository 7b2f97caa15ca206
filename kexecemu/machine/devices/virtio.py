"""A bus of virtio devices: a row of MMIO transports, as QEMU's virt has one."""

from __future__ import annotations

from collections.abc import Callable

from kexecemu.errors import InputError
from kexecemu.machine import virt
from kexecemu.machine.devices.virtio_mmio import MAGIC, VENDOR, Reg, TransportState, VirtioDevice, VirtioMmio
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import VIRTIO_SLOT_SIZE
from kexecemu.shown import shown

__all__ = ["VirtioBus", "VirtioDevice"]


@shown("phys", devices=lambda bus: sum(one is not None for one in bus.slots))
class VirtioBus:
    """A row of slots, each for one device; one MmioDevice in whole pages, as an engine maps it.

    An empty slot shows a transport without a device, as QEMU's do, so that a device tree may name them all.
    """

    def __init__(self, ram: Ram, base_phys: int = virt.VIRTIO.start, slots: int = virt.VIRTIO_SLOTS) -> None:
        """slots must fill whole pages of 4 KiB: a multiple of 8. InputError otherwise."""
        if slots <= 0 or slots * VIRTIO_SLOT_SIZE % 0x1000 or base_phys % 0x1000:
            raise InputError(f"{slots} virtio slots at {base_phys:#x} do not fill whole pages")
        self.base_phys = base_phys
        self._ram = ram
        self.slots: list[VirtioMmio | None] = [None] * slots
        """The transports by slot; None where there is no device."""

    @property
    def phys(self) -> PhysRange:
        """Where all slots are."""
        return self.slot_phys(0, len(self.slots))

    def slot_phys(self, slot: int, count: int = 1) -> PhysRange:
        """Where one slot is, or several in a row: the reg of its node in a device tree."""
        return PhysRange.of(self.base_phys + slot * VIRTIO_SLOT_SIZE, count * VIRTIO_SLOT_SIZE)

    def attach(self, slot: int, device: VirtioDevice, irq: Callable[[bool], object]) -> VirtioMmio:
        """Put a device into an empty slot; InputError where there is none of that number or it is taken."""
        if not 0 <= slot < len(self.slots):
            raise InputError(f"there is no virtio slot {slot}, only 0 to {len(self.slots) - 1}")
        if self.slots[slot] is not None:
            raise InputError(f"virtio slot {slot} is taken")
        transport = self.slots[slot] = VirtioMmio(self._ram, device, irq)
        return transport

    def reset(self) -> None:
        """Reset every device, as a board's reset does. A kexec does not."""
        for transport in self.slots:
            if transport is not None:
                transport.reset()

    def state(self) -> tuple[TransportState | None, ...]:
        """The state of every transport by slot, for restore()."""
        return tuple(None if transport is None else transport.state() for transport in self.slots)

    def restore(self, state: tuple[TransportState | None, ...]) -> None:
        """Go back to a state(), with the same devices in the same slots."""
        for transport, its_state in zip(self.slots, state, strict=True):
            if transport is not None and its_state is not None:
                transport.restore(its_state)

    def read(self, offset: int, size: int) -> int:
        """A load from a slot."""
        transport = self.slots[offset // VIRTIO_SLOT_SIZE]
        if transport is not None:
            return transport.read(offset % VIRTIO_SLOT_SIZE, size)
        empty = {Reg.MAGIC_VALUE: MAGIC, Reg.VERSION: 2, Reg.VENDOR_ID: VENDOR}
        return empty.get(offset % VIRTIO_SLOT_SIZE, 0) if size == 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to a slot."""
        transport = self.slots[offset // VIRTIO_SLOT_SIZE]
        if transport is not None:
            transport.write(offset % VIRTIO_SLOT_SIZE, size, value)
