"""The block device, one request at a time: what is on the disk, in RAM, in the status and in the used ring."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine.virtio_driver import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    INDIRECT_DESC,
    OUT,
    WRITE_ZEROES,
    BlockDriver,
    Emulated,
)

from kexecemu.errors import InputError
from kexecemu.machine.devices.disk import Disk
from kexecemu.machine.devices.virtio_block import VirtioBlock
from kexecemu.machine.devices.virtio_mmio import VirtioBus
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

RAM = PhysRange.of(0x40000000, 8 << 20)
RINGS = 0x40000000
DATA = 0x40100000
SECTORS = 4096
OK, IOERR, UNSUPP = 0, 1, 2
PATTERN = bytes(n * 7 & 0xFF for n in range(256)) * 2


class Bench:
    """RAM, a disk behind a block device, and a driver that has it set up."""

    def __init__(self, disk: Disk | None = None, features: int | None = None) -> None:
        self.ram = Ram([RAM])
        self.disk = disk or Disk(SECTORS * 512)
        bus = VirtioBus(self.ram)
        self.machine = Emulated(bus, self.ram, 31)
        self.transport = bus.attach(31, VirtioBlock(self.disk, "vmcore"), self.machine.levels.append)
        self.driver = BlockDriver(self.machine, RINGS)
        self.driver.set_up(features)
        self.request = self.driver.request


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_sector_is_written_and_read_back(bench):
    bench.ram.write(DATA, PATTERN)
    assert bench.request(OUT, 7, out=[(DATA, 512)]) == (OK, 1)
    assert bench.disk.read(7 * 512, 512) == PATTERN
    assert bench.request(IN, 7, into=[(DATA + 0x1000, 512)]) == (OK, 513)
    assert bench.ram.read(DATA + 0x1000, 513) == PATTERN + b"\0"


def test_254_segments_of_a_page_are_one_request(bench):
    pages = [(DATA + 0x2000 * n, 4096) for n in range(254)]
    for n, (phys, _) in enumerate(pages):
        bench.ram.write(phys, bytes([n]) * 4096)
    assert bench.driver.machine.load(0x10C) == 254
    assert bench.request(OUT, 8, out=pages, indirect=True) == (OK, 1)
    assert bench.disk.read(4096, 254 * 4096) == b"".join(bytes([n]) * 4096 for n in range(254))
    back = [(phys + 0x1000, 4096) for phys, _ in reversed(pages)]
    assert bench.request(IN, 8, into=back) == (OK, 254 * 4096 + 1)
    assert [bench.ram.read(phys, 4096) for phys, _ in back] == [bytes([n]) * 4096 for n in range(254)]


def test_a_read_of_more_than_one_piece_is_whole():
    disk = Disk(8 << 20)
    disk.write(0, bytes(range(256)) * (6 << 12))
    bench = Bench(disk)
    for first in (0x500200, 0x400000, 0x3FFFFF):
        bench.ram.fill(DATA, 6 << 20)
        parts = [(DATA, first), (DATA + first, (6 << 20) - first)]
        assert bench.request(IN, 0, into=parts) == (OK, (6 << 20) + 1)
        assert bench.ram.read(DATA, 6 << 20) == disk.read(0, 6 << 20)


def test_a_flush_and_the_serial(bench):
    assert bench.request(FLUSH) == (OK, 1)
    assert bench.request(GET_ID, into=[(DATA, 20)]) == (OK, 21)
    assert bench.ram.read(DATA, 20) == b"vmcore".ljust(20, b"\0")
    bench.ram.fill(DATA, 64, 0xEE)
    assert bench.request(GET_ID, into=[(DATA, 4), (DATA + 16, 30)]) == (OK, 20)
    assert bench.ram.read(DATA, 64) == b"vmco" + b"\xee" * 12 + b"re".ljust(16, b"\0") + b"\xee" * 32


@pytest.mark.parametrize(
    ("sector", "length"),
    [(SECTORS, 512), (SECTORS - 1, 1024), ((1 << 64) - 1, 512), (1 << 55, 512), (0, 511), (0, 513)],
)
def test_sectors_that_are_not_there_and_half_sectors_are_an_error(bench, sector, length):
    bench.ram.write(DATA, PATTERN * 3)
    assert bench.request(IN, sector, into=[(DATA, length)]) == (IOERR, 0)
    assert bench.ram.read(DATA, 1536) == PATTERN * 3
    assert bench.request(OUT, sector, out=[(DATA, length)]) == (IOERR, 1)
    assert bench.disk.read(0, bench.disk.size) == bytes(bench.disk.size)
    assert not bench.driver.needs_reset()


@pytest.mark.parametrize("kind", [2, 3, 5, 9, 12, 14, 0x80000000, 0xFFFFFFFF])
def test_a_kind_of_request_that_is_not_known_is_unsupported(bench, kind):
    assert bench.request(kind, into=[(DATA, 512)]) == (UNSUPP, 0)


def test_what_was_not_negotiated_is_unsupported():
    bench = Bench(features=INDIRECT_DESC)
    bench.ram.write(DATA, struct.pack("<QII", 0, 1, 0))
    assert bench.request(FLUSH) == (UNSUPP, 1)
    for kind in (DISCARD, WRITE_ZEROES):
        assert bench.request(kind, out=[(DATA, 16)]) == (UNSUPP, 1)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_sectors_are_zeroed(bench, kind):
    bench.disk.write(0, PATTERN * 5)
    bench.ram.write(DATA, struct.pack("<QII", 1, 3, 0))
    assert bench.request(kind, out=[(DATA, 16)]) == (OK, 1)
    assert bench.disk.read(0, 5 * 512) == PATTERN + bytes(3 * 512) + PATTERN


@pytest.mark.parametrize(
    ("kind", "fields", "status"),
    [
        (DISCARD, (SECTORS - 1, 2, 0), IOERR),
        (DISCARD, (0, 0x400000, 0), IOERR),
        (DISCARD, (0, 1, 1), UNSUPP),
        (WRITE_ZEROES, (0, 1, 1), OK),
        (WRITE_ZEROES, (0, 1, 2), UNSUPP),
        (WRITE_ZEROES, (SECTORS, 1, 0), IOERR),
    ],
)
def test_ranges_to_zero_are_checked(bench, kind, fields, status):
    bench.disk.write(0, PATTERN)
    bench.ram.write(DATA, struct.pack("<QII", *fields))
    assert bench.request(kind, out=[(DATA, 16)])[0] == status
    assert bench.disk.read(0, 512) == (PATTERN if status else bytes(512))


@pytest.mark.parametrize(("length", "status"), [(8, IOERR), (32, UNSUPP)])
def test_one_whole_range_can_be_zeroed_at_a_time(bench, length, status):
    bench.disk.write(0, PATTERN)
    bench.ram.write(DATA, struct.pack("<QIIQII", 0, 1, 0, 1, 1, 0))
    assert bench.request(DISCARD, out=[(DATA, length)])[0] == status
    assert bench.disk.read(0, 512) == PATTERN


def test_a_read_only_disk_says_so_and_refuses_writes(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(PATTERN)
    bench = Bench(Disk.open(path, read_only=True))
    assert bench.driver.features & 1 << 5
    assert not bench.driver.features & (1 << 13 | 1 << 14)
    assert bench.request(IN, into=[(DATA, 512)]) == (OK, 513)
    assert bench.request(OUT, out=[(DATA + 512, 512)]) == (IOERR, 1)
    assert path.read_bytes() == bench.ram.read(DATA, 512) == PATTERN


def test_a_writable_disk_is_not_offered_as_read_only(bench):
    assert not bench.driver.features & 1 << 5


def test_a_host_that_cannot_read_is_an_input_output_error(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    bench = Bench(Disk.open(path))
    os.truncate(path, 0)
    assert bench.request(IN, into=[(DATA, 512)]) == (IOERR, 0)


@pytest.mark.parametrize(
    "parts",
    [
        [(RINGS + 0x40000, 15, False), (DATA, 1, True)],
        [(RINGS + 0x40000, 16, False)],
        [(DATA, 513, True)],
    ],
    ids=["a short header", "no status", "no header"],
)
def test_what_is_no_request_at_all_needs_a_reset(bench, parts):
    bench.driver.offer(bench.driver.chain(parts))
    bench.driver.notify()
    assert bench.driver.needs_reset() and bench.driver.used_idx() == 0
    assert "block request" in bench.transport.trouble


@pytest.mark.parametrize("serial", ["x" * 21, "é", "a\0b"])
def test_a_serial_that_does_not_fit_is_refused(serial):
    with pytest.raises(InputError, match="serial"):
        VirtioBlock(Disk(512), serial)


def test_the_last_byte_of_data_may_share_the_status_s_descriptor(bench):
    bench.disk.write(0, PATTERN)
    bench.ram.fill(DATA, 0x1000, 0xEE)
    assert bench.driver.run([(RINGS + 0x40000, 16, False), (DATA, 511, True), (DATA + 511, 2, True)]) == 513
    assert bench.ram.read(DATA, 514) == PATTERN + b"\0\xee"


@settings(max_examples=100, deadline=None)
@given(data=st.data(), sectors=st.integers(1, 6), kind=st.sampled_from([IN, OUT]))
def test_a_request_may_be_cut_anywhere(data, sectors, kind):
    """Virtio 1.2, 2.7.4.2: a device must not rely on where the driver cuts header, data and status."""
    bench = Bench()
    size = sectors * 512
    content = (PATTERN * 6)[:size]
    bench.disk.write(512, content if kind == IN else bytes(size))
    stream = struct.pack("<IIQ", kind, 0, 1) + (content if kind == OUT else b"")
    parts = []
    for base, length, writable in (
        (DATA, len(stream), False),
        (DATA + 0x8000, 1 + (size if kind == IN else 0), True),
    ):
        cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6))) if length > 1 else []
        for start, end in zip([0, *cuts], [*cuts, length], strict=True):
            parts.append((base + start, end - start, writable))
    bench.ram.write(DATA, stream)
    bench.ram.fill(DATA + 0x8000, 0x4000, 0xEE)
    length = bench.driver.run(parts, indirect=data.draw(st.booleans()))
    answer = bench.ram.read(DATA + 0x8000, 0x4000)
    assert length == (size + 1 if kind == IN else 1)
    assert answer == ((content if kind == IN else b"") + b"\0").ljust(0x4000, b"\xee")
    assert bench.disk.read(0, 512 * 8) == (bytes(512) + content).ljust(512 * 8, b"\0")
