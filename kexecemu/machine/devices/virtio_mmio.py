"""virtio over MMIO: version 2 of the transport of virtio 1.2, section 4.2, as drivers/virtio/virtio_mmio.c drives it.

A request is served inside the store to QueueNotify: when the store retires, the answer is in RAM, the used ring has
moved and the interrupt line is up. Nothing can happen in between, so a run is the same every time.
"""

from collections.abc import Callable
from typing import Final, Protocol

from kexecemu.errors import InputError
from kexecemu.machine import virt
from kexecemu.machine.cpu.work import ACCESS, HostWork
from kexecemu.machine.devices.virtqueue import (
    RING_EVENT_IDX,
    RING_INDIRECT_DESC,
    TABLE_MAX,
    Chain,
    RingError,
    Virtqueue,
)
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.virt import VIRTIO_SLOT_SIZE
from kexecemu.shown import shown

__all__ = ["VERSION_1", "VirtioBus", "VirtioDevice", "VirtioMmio"]

VERSION_1 = 1 << 32
"""VIRTIO_F_VERSION_1 as a mask: without it a driver is a legacy one, which this transport does not serve."""


class Reg:
    """Offsets of the registers, by their names in linux/virtio_mmio.h; of an address, its low half."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_NUM_MAX = 0x034
    QUEUE_NUM = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC = 0x080
    QUEUE_AVAIL = 0x090
    QUEUE_USED = 0x0A0
    CONFIG = 0x100


IDENTITY = {
    Reg.MAGIC_VALUE: int.from_bytes(b"virt", "little"),
    Reg.VERSION: 2,
    Reg.VENDOR_ID: int.from_bytes(b"kxec", "little"),
}

SHM = range(0x0B0, 0x0C0, 4)  # length and base of the selected shared memory region

DRIVER_OK = 4
FEATURES_OK = 8
NEEDS_RESET = 0x40

INT_VRING = 1
INT_CONFIG = 2

_U32 = 0xFFFFFFFF
_ADDRESSES = (Reg.QUEUE_DESC, Reg.QUEUE_AVAIL, Reg.QUEUE_USED)


class VirtioDevice(Protocol):
    """What stands behind a transport: what it offers, and how it serves a request."""

    @property
    def device_id(self) -> int:
        """The kind of device, as linux/virtio_ids.h numbers them."""

    @property
    def features(self) -> int:
        """The feature bits that it offers, without VERSION_1 and those of the rings."""

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """The most descriptors that each queue can have: powers of 2."""

    @property
    def config(self) -> bytes:
        """The configuration space, which never changes."""

    def serve(self, ram: Ram, queue: int, chain: Chain, features: int) -> int:
        """Do what a request asks, with the features that were negotiated.

        Returns how many bytes of the writable part have been written, counted from its first on. RingError for what
        is no request at all. Called while a CPU runs.
        """


class _Queue:
    """What a driver has written about a queue, and its rings once it is ready."""

    def __init__(self, num_max: int) -> None:
        self.num_max = num_max
        self.num = num_max
        self.addresses = dict.fromkeys(_ADDRESSES, 0)
        self.rings: Virtqueue | None = None


@shown("device")
class VirtioMmio:
    """One slot: the registers of a transport and the device behind it.

    irq is called with the level of the interrupt line whenever that changes.
    """

    def __init__(self, ram: Ram, device: VirtioDevice, irq: Callable[[bool], object], work: HostWork) -> None:
        self.device: Final = device
        self._ram = ram
        self._work = work
        self._irq = irq
        self._offered = device.features | RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1
        self._interrupt_status = 0
        self._fixed = {Reg.DEVICE_ID: device.device_id, **IDENTITY}
        # A shared memory region whose length is ~0 is one that does not exist.
        self._fixed |= dict.fromkeys(SHM, _U32)
        self._forget()

    def _forget(self) -> None:
        self.trouble: str | None = None
        """What the driver did wrong, when the device needs a reset."""
        self._status = 0
        self._device_features_sel = self._driver_features_sel = 0
        self._features = 0
        self._queue_sel = 0
        self._queues = [_Queue(size) for size in self.device.queue_sizes]

    def reset(self) -> None:
        """Forget all that a driver set up and lower the interrupt line, as a store of 0 to Status does."""
        self._forget()
        self._set_interrupts(0)

    def read(self, offset: int, size: int) -> int:
        """A load. Registers are words: any other access to one reads as zero."""
        if offset >= Reg.CONFIG:
            at = offset - Reg.CONFIG
            piece = self.device.config[at : at + size]
            return int.from_bytes(piece if len(piece) == size else b"\xff" * size, "little")
        if size != 4:
            return 0
        match offset:
            case Reg.INTERRUPT_STATUS:
                return self._interrupt_status
            case Reg.STATUS:
                return self._status
            case Reg.DEVICE_FEATURES:
                return self._offered >> 32 * self._device_features_sel & _U32
            case Reg.QUEUE_NUM_MAX:
                return self._queue.num_max if self._queue else 0
            case Reg.QUEUE_READY:
                return int(self._queue is not None and self._queue.rings is not None)
        return self._fixed.get(offset, 0)  # 0 for ConfigGeneration: the configuration never changes

    def write(self, offset: int, size: int, value: int) -> None:
        """A store; to anything but a writable register, and of anything but a word, it does nothing."""
        if size != 4:
            return
        value &= _U32
        match offset:
            case Reg.QUEUE_NOTIFY:
                self._notify(value)
            case Reg.INTERRUPT_ACK:
                self._set_interrupts(self._interrupt_status & ~value)
            case Reg.STATUS:
                self._write_status(value)
            case Reg.DEVICE_FEATURES_SEL:
                self._device_features_sel = value
            case Reg.DRIVER_FEATURES_SEL:
                self._driver_features_sel = value
            case Reg.DRIVER_FEATURES:
                # Once it has agreed on the features, the driver may not change its mind.
                if not self._status & FEATURES_OK and self._driver_features_sel < 2:
                    shift = 32 * self._driver_features_sel
                    self._features = self._features & ~(_U32 << shift) | value << shift
            case Reg.QUEUE_SEL:
                self._queue_sel = value
            case _:
                if (queue := self._queue) is not None:
                    self._write_queue(queue, offset, value)

    @property
    def _queue(self) -> _Queue | None:
        return self._queues[self._queue_sel] if self._queue_sel < len(self._queues) else None

    def _write_queue(self, queue: _Queue, offset: int, value: int) -> None:
        if offset == Reg.QUEUE_READY:
            self._ready(queue, bool(value & 1))
        elif queue.rings is not None:
            pass  # the rest is fixed while the queue is in use
        elif offset == Reg.QUEUE_NUM:
            queue.num = value
        elif offset & ~4 in queue.addresses:
            shift = 8 * (offset & 4)
            old = queue.addresses[offset & ~4]
            queue.addresses[offset & ~4] = old & ~(_U32 << shift) | value << shift

    def _ready(self, queue: _Queue, ready: bool) -> None:
        if not ready:
            queue.rings = None
        elif queue.rings is None:
            try:
                queue.rings = self._rings(queue)
            except RingError as error:
                self._break(error)

    def _rings(self, queue: _Queue) -> Virtqueue:
        if queue.num > queue.num_max:
            raise RingError(f"a queue of {queue.num} descriptors where {queue.num_max} are the most")
        desc, avail, used = (queue.addresses[offset] for offset in _ADDRESSES)
        return Virtqueue(self._ram, queue.num, desc, avail, used, self._features)

    def _write_status(self, value: int) -> None:
        if not value:
            self.reset()
            return
        agreed = not self._features & ~self._offered and self._features & VERSION_1
        if value & FEATURES_OK and not agreed:
            value &= ~FEATURES_OK  # reading it back, the driver sees that we do not go along
        self._status = value & 0xFF & ~NEEDS_RESET | self._status & NEEDS_RESET

    def _notify(self, index: int) -> None:
        if self._status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK or index >= len(self._queues):
            return
        rings = self._queues[index].rings
        if rings is None:
            return
        broken: RingError | None = None
        try:
            for chain in rings.chains():
                if not self._work.take(ACCESS * chain.parts + chain.bytes):
                    break  # nobody runs this guest any further
                rings.push(chain, self.device.serve(self._ram, index, chain, self._features))
        except RingError as error:
            broken = error
            self._work.take(ACCESS * TABLE_MAX)  # it was looked for in a table of whatever length
        if rings.publish():  # also what was well before the trouble
            self._set_interrupts(self._interrupt_status | INT_VRING)
        if broken is not None:
            self._break(broken)

    def _break(self, error: RingError) -> None:
        self.trouble = str(error)
        self._status |= NEEDS_RESET
        if self._status & DRIVER_OK:
            self._set_interrupts(self._interrupt_status | INT_CONFIG)

    def _set_interrupts(self, status: int) -> None:
        before, self._interrupt_status = self._interrupt_status, status
        if bool(before) != bool(status):
            self._irq(bool(status))


@shown("phys", devices=lambda bus: sum(one is not None for one in bus.slots))
class VirtioBus:
    """A row of slots, each for one device; one MmioDevice in whole pages, as an engine maps it.

    An empty slot shows a transport without a device, as QEMU's do, so that a device tree may name them all.
    """

    def __init__(self, ram: Ram, work: HostWork | None = None, phys: PhysRange = virt.VIRTIO) -> None:
        self.phys = phys
        self._ram = ram
        self._work = work or HostWork(lambda: 0)
        self.slots: list[VirtioMmio | None] = [None] * virt.VIRTIO_SLOTS
        """The transports by slot; None where there is no device."""

    def attach(self, slot: int, device: VirtioDevice, irq: Callable[[bool], object]) -> VirtioMmio:
        """Put a device into an empty slot; InputError where there is none of that number or it is taken."""
        if not 0 <= slot < len(self.slots):
            raise InputError(f"there is no virtio slot {slot}, only 0 to {len(self.slots) - 1}")
        if self.slots[slot] is not None:
            raise InputError(f"virtio slot {slot} is taken")
        transport = self.slots[slot] = VirtioMmio(self._ram, device, irq, self._work)
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
