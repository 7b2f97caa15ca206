"""The same driver, doing the same things to our block device and to QEMU's: both must answer alike.

QEMU's qtest protocol reads and writes registers and RAM of a machine whose CPU stands still, so no guest is needed.
"""

from __future__ import annotations

import base64
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machine.virtio_driver import (
    DISCARD,
    EVENT_IDX,
    FLUSH,
    GET_ID,
    IN,
    INDIRECT,
    INDIRECT_DESC,
    NEXT,
    OUT,
    VERSION_1,
    WRITE,
    WRITE_ZEROES,
    BlockDriver,
    Driver,
    Emulated,
)
from qtest import Qtest

from kexecemu.machine.devices.disk import Disk
from kexecemu.machine.devices.virtio_block import VirtioBlock
from kexecemu.machine.devices.virtio_mmio import VirtioBus
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

pytestmark = pytest.mark.real

RAM = PhysRange.of(0x40000000, 64 << 20)
BUS = 0x0A000000
RINGS = 0x41000000
DATA = 0x41100000
SECTORS = 6000
SLOT = 31  # QEMU fills its slots from the highest one down
LIMIT_SECONDS = 10

# Every feature that Linux's driver takes and both devices offer. QEMU's have more: geometry, topology, a cache that
# can be switched.
FEATURES = VERSION_1 | INDIRECT_DESC | EVENT_IDX | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 13 | 1 << 14


class Behind:
    """QEMU's device and RAM, as a driver sees them."""

    def __init__(self, qemu: Qtest) -> None:
        self._qemu = qemu

    def load(self, offset: int, size: int = 4) -> int:
        return self._qemu.read(BUS + SLOT * 0x200 + offset, size)

    def store(self, offset: int, value: int, size: int = 4) -> None:
        self._qemu.write(BUS + SLOT * 0x200 + offset, value, size)

    def read(self, phys: int, length: int) -> bytes:
        return base64.b64decode(self._qemu.command(f"b64read {phys:#x} {length:#x}"))

    def write(self, phys: int, data: bytes) -> None:
        self._qemu.command(f"b64write {phys:#x} {len(data):#x} {base64.b64encode(data).decode()}")

    def settle(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not done():
            assert time.monotonic() < end, "QEMU does not answer the request"


@pytest.fixture(scope="module")
def qemu_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("virtio") / "disk"
    image.write_bytes(bytes(SECTORS * 512))
    return image


@pytest.fixture(scope="module")
def theirs(qemu_image: Path) -> Iterator[Behind]:
    disk = ("-drive", f"if=none,id=disk,format=raw,discard=unmap,file={qemu_image}")
    device = ("-device", "virtio-blk-device,drive=disk,serial=vmcore")
    with Qtest("-global", "virtio-mmio.force-legacy=false", *disk, *device) as qemu:
        yield Behind(qemu)


@pytest.fixture
def ours() -> Emulated:
    ram = Ram([RAM])
    bus = VirtioBus(ram)
    machine = Emulated(bus, ram, SLOT)
    bus.attach(SLOT, VirtioBlock(Disk(SECTORS * 512), "vmcore"), machine.levels.append)
    return machine


def test_everything_that_we_offer_qemu_offers_too(ours, theirs):
    mine, other = (Driver(machine, RINGS).offered() for machine in (ours, theirs))
    assert mine == FEATURES
    assert mine & ~other == 0


def test_the_configuration_says_the_same_of_the_same_disk(ours, theirs):
    # Of features that we have not: a geometry, and the state of a cache that can be switched.
    for offset in sorted(set(range(0x100, 0x200)) - {0x110, 0x111, 0x112, 0x113, 0x120}):
        assert ours.load(offset, 1) == theirs.load(offset, 1), hex(offset)
    for offset in (0x100, 0x104, 0x10C, 0x114, 0x124, 0x138, 0x13C, 0x140):
        assert ours.load(offset) == theirs.load(offset), hex(offset)


def test_registers_and_empty_slots_read_alike(ours, theirs):
    for machine in (ours, theirs):
        machine.store(0x70, 0)
    # Not alike: the vendor; the features; QueueNumMax (QEMU allows 1024 whatever the device wants); the base of a
    # shared memory region that is not there (ours is virtio 1.2's, QEMU 7.2 leaves it at 0).
    for offset in sorted(set(range(0, 0x100, 4)) - {0x0C, 0x10, 0x34, 0xB8, 0xBC}):
        assert ours.load(offset) == theirs.load(offset), hex(offset)
    for offset in sorted(set(range(-0x200, 0, 4)) - {-0x200 + 0x0C}):
        assert ours.load(offset) == theirs.load(offset), hex(offset)


def random_request(rng: random.Random) -> dict:
    """Mostly sound requests, with some that reach beyond the disk or are of no known kind."""
    kind = rng.choice([IN, IN, IN, OUT, OUT, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, WRITE_ZEROES, 16, 98])
    request = {"kind": kind, "sector": 0, "out": [], "into": [], "indirect": rng.random() < 0.5}
    if kind in (IN, OUT):
        parts, total = [], 0
        for n in range(rng.choice([1, 1, 2, 5, 40])):
            length = rng.choice([512, 1024, 4096, 8192])
            parts.append((DATA + 0x2000 * n, length))
            total += length // 512
        beyond = rng.random() < 0.1
        request["sector"] = rng.randrange(SECTORS - total + 1) + (SECTORS if beyond else 0)
        if rng.random() < 0.05:
            parts.append((DATA + 0x1FF000, 100))
        request["into" if kind == IN else "out"] = parts
    elif kind == GET_ID:
        request["into"] = [(DATA, 20)]
    elif kind in (DISCARD, WRITE_ZEROES):
        first = rng.randrange(SECTORS)
        flags = rng.choice([0, 0, 0, 1, 2]) if kind == WRITE_ZEROES else rng.choice([0, 0, 0, 1])
        count = rng.choice([1, 8, 100, SECTORS, 0x400000])
        request["range"] = struct.pack("<QII", first, count, flags)
        request["out"] = [(DATA, 16)]
    return request


def test_500_requests_have_the_same_answers_and_leave_the_same_disk(ours, theirs, qemu_image):
    drivers = [BlockDriver(machine, RINGS) for machine in (ours, theirs)]
    for driver in drivers:
        driver.set_up(FEATURES)
        driver.ask_for_interrupt(0)
    rng = random.Random(5)
    statuses = set()
    for n in range(500):
        request = random_request(rng)
        filling = request.pop("range", None) or rng.randbytes(0x2000)
        event = n + rng.choice([0, 0, 1, 3])
        seen = []
        for driver in drivers:
            for phys, length in request["out"]:
                driver.machine.write(phys, (filling * 2)[phys // 0x2000 % 97 :][:length].ljust(length, b"."))
            for phys, length in request["into"]:
                driver.machine.write(phys, bytes(length))  # QEMU does not pad the serial
            if n:
                driver.ask_for_interrupt(event)
            status, length = driver.request(**request)
            # Of a read that failed, QEMU reports the room for the data as written although it is not.
            counted = length if status == 0 or not request["into"] else None
            data = b"".join(driver.machine.read(*part) for part in request["into"]) if status == 0 else b""
            seen.append((status, counted, driver.interrupts, driver.avail_event(), data))
        assert seen[0] == seen[1], (n, request)
        statuses.add(seen[0][0])
    assert statuses == {0, 1, 2}
    assert drivers[0].request(FLUSH) == drivers[1].request(FLUSH)
    disk = ours.bus.slots[SLOT].device.disk
    assert disk.read(0, disk.size) == qemu_image.read_bytes()


MALFORMED = {
    "a loop": [(DATA, 16, NEXT, 1), (DATA, 1, NEXT, 0)],
    "a next beyond the table": [(DATA, 16, NEXT, 256)],
    "a buffer of no bytes": [(DATA, 16, NEXT, 1), (DATA, 0, WRITE | NEXT, 2), (DATA, 1, WRITE, 0)],
    "readable behind writable": [(DATA, 16, NEXT, 1), (DATA, 1, WRITE | NEXT, 2), (DATA, 512, 0, 0)],
    "an empty indirect table": [(DATA, 0, INDIRECT, 0)],
    "an indirect table and a half": [(RINGS + 16, 24, INDIRECT, 0), (DATA, 16, 0, 0)],
    "a loop in a table": [(RINGS + 16, 16, INDIRECT, 0), (DATA, 16, NEXT, 0)],
    "a next beyond its table": [(RINGS + 16, 16, INDIRECT, 0), (DATA, 16, NEXT, 1), (DATA, 1, WRITE, 0)],
    "a short header": [(DATA, 15, NEXT, 1), (DATA, 1, WRITE, 0)],
    "no status": [(DATA, 16, 0, 0)],
}


@pytest.mark.parametrize("name", [*MALFORMED, "a head beyond the table", "more requests than descriptors"])
def test_what_needs_a_reset_needs_one_in_qemu_too(ours, theirs, name):
    seen = []
    for machine in (ours, theirs):
        driver = BlockDriver(machine, RINGS)
        driver.set_up(FEATURES)
        machine.write(DATA, bytes(16))
        table = MALFORMED.get(name, [(DATA, 16, NEXT, 1), (DATA + 16, 1, WRITE, 0)])
        machine.write(driver.desc, b"".join(struct.pack("<QIHH", *each) for each in table))
        heads = {"a head beyond the table": [256], "more requests than descriptors": [0] * 257}.get(name, [0])
        driver.offer(*heads)
        driver.notify()
        seen.append((machine.load(0x70), machine.load(0x60) & 2, driver.used_idx()))
        machine.store(0x70, 0)
    assert seen[0] == seen[1]
    assert seen[0] == (0x4F, 2, 0)
