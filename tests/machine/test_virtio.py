"""The transport and its queues, under a driver that follows the specification and under some that do not."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine.virtio_driver import (
    DRIVER_OK,
    EVENT_IDX,
    INDIRECT,
    INDIRECT_DESC,
    NEEDS_RESET,
    NEXT,
    VERSION_1,
    WRITE,
    Driver,
    Emulated,
)

from kexecemu.errors import InputError
from kexecemu.machine import virt
from kexecemu.machine.devices.virtio_mmio import VirtioBus
from kexecemu.machine.devices.virtqueue import Chain
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

RAM = PhysRange.of(0x40000000, 4 << 20)
RINGS = 0x40000000
DATA = 0x40100000
BACK = 0x40200000


@dataclass
class Mirror:
    """A device that answers with what it was sent, backwards, as far as there is room."""

    device_id: int = 42
    features: int = 1 << 3 | 1 << 35
    queue_sizes: tuple[int, ...] = (256, 8)
    config: bytes = bytes(range(1, 12))
    seen: list[int] = field(default_factory=list)

    def serve(self, ram: Ram, queue: int, chain: Chain, features: int) -> int:
        self.seen.append(queue)
        answer = b"".join(chain.readable)[::-1]
        done = 0
        for phys, length in chain.writable:
            ram.write_dma(phys, answer[done : done + length])
            done += len(answer[done : done + length])
        return done


class Bench:
    """RAM, a bus, a Mirror in slot 5 and a driver for it."""

    def __init__(self, size: int = 256) -> None:
        self.ram = Ram([RAM])
        self.bus = VirtioBus(self.ram)
        self.device = Mirror()
        self.machine = Emulated(self.bus, self.ram, 5)
        self.transport = self.bus.attach(5, self.device, self.machine.levels.append)
        self.driver = Driver(self.machine, RINGS, size)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_empty_slot_is_a_transport_without_a_device(bench):
    assert bench.bus.phys == PhysRange(0x0A000000, 0x0A004000)
    assert virt.virtio_slot(5) == PhysRange(0x0A000A00, 0x0A000C00)
    for slot in (0, 4, 6, 31):
        base = slot * 0x200
        assert [bench.bus.read(base + offset, 4) for offset in (0, 4, 8)] == [0x74726976, 2, 0]
        bench.bus.write(base + 0x70, 4, 1)
        assert bench.bus.read(base + 0x70, 4) == 0
        assert bench.bus.read(base + 0x100, 1) == 0


def test_a_device_shows_what_it_is(bench):
    load = bench.machine.load
    assert [load(offset) for offset in (0, 4, 8)] == [0x74726976, 2, 42]
    assert bench.driver.offered() == 1 << 3 | 1 << 35 | VERSION_1 | INDIRECT_DESC | EVENT_IDX
    assert bench.driver._feature_word(2) == 0
    assert load(0xFC) == 0, "the configuration never changes"
    assert (load(0xB0), load(0xB4)) == (0xFFFFFFFF, 0xFFFFFFFF), "there is no shared memory"


def test_the_configuration_is_read_in_any_size_and_ends_where_it_ends(bench):
    load = bench.machine.load
    assert load(0x100, 1) == 1
    assert load(0x101, 2) == 0x0302
    assert load(0x104, 4) == 0x08070605
    assert load(0x100, 8) == 0x0807060504030201
    assert load(0x10B, 1) == 0xFF
    assert load(0x10A, 2) == 0xFFFF
    bench.machine.store(0x100, 0x55, 1)
    assert load(0x100, 1) == 1


@pytest.mark.parametrize("size", [1, 2, 8])
def test_registers_are_words_and_nothing_else(bench, size):
    assert bench.machine.load(0, size) == 0
    bench.machine.store(0x70, 1, size)
    assert bench.machine.load(0x70) == 0


@pytest.mark.parametrize("features", [1 << 3, VERSION_1 | 1 << 4, VERSION_1 | 1 << 63, 0])
def test_features_that_were_not_offered_or_a_legacy_driver_are_not_agreed_to(bench, features):
    m = bench.machine
    m.store(0x70, 1)
    m.store(0x70, 3)
    for sel in (0, 1):
        m.store(0x24, sel)
        m.store(0x20, features >> 32 * sel & 0xFFFFFFFF)
    m.store(0x70, 11)
    assert m.load(0x70) == 3


def test_features_are_fixed_once_agreed_upon(bench):
    bench.driver.set_up(1 << 3, queue=False)
    bench.machine.store(0x24, 0)
    bench.machine.store(0x20, INDIRECT_DESC)
    bench.driver.set_up_queue()
    bench.driver.offer(bench.driver.chain([(DATA, 4, False)], table=bench.driver.tables))
    bench.driver.notify()
    assert bench.driver.needs_reset(), "an indirect table that was not negotiated"


def test_there_are_64_features_and_no_more(bench):
    for sel in (2, 0xFFFFFFFF):
        bench.machine.store(0x24, sel)
        bench.machine.store(0x20, 0xFFFFFFFF)
        assert bench.driver._feature_word(sel) == 0
    bench.driver.set_up()


def test_a_request_is_answered_within_the_notification(bench):
    bench.driver.set_up()
    bench.ram.write(DATA, b"capture kernel")
    assert bench.driver.run([(DATA, 14, False), (BACK, 20, True)]) == 14
    assert bench.ram.read(BACK, 15) == b"lenrek erutpac\0"
    assert bench.driver.interrupts == 1
    assert bench.machine.levels == [True, False]


def test_requests_of_several_queues_know_theirs(bench):
    bench.driver.set_up()
    other = Driver(bench.machine, RINGS + 0x80000, 8)
    other.set_up_queue(1)
    other.offer(other.chain([(DATA, 1, False)]))
    other.notify(1)
    bench.driver.run([(DATA, 1, False)])
    assert bench.device.seen == [1, 0]


def test_many_requests_under_one_notification_are_answered_in_order(bench):
    bench.driver.set_up()
    heads = [bench.driver.chain([(DATA + n, 1, False), (BACK + n, 1, True)], first=2 * n) for n in range(100)]
    bench.ram.write(DATA, bytes(range(100)))
    bench.driver.offer(*reversed(heads))
    bench.driver.notify()
    assert [bench.driver.used_entry(n) for n in range(100)] == [(head, 1) for head in reversed(heads)]
    assert bench.ram.read(BACK, 100) == bytes(range(100))
    assert bench.machine.levels == [True]


def test_the_ring_s_indices_wrap_at_65536():
    bench = Bench(size=8)
    bench.driver.set_up()
    bench.driver.chain([(DATA, 1, False), (BACK, 1, True)])
    for n in range(0, 65536 + 64, 8):
        bench.driver.ask_for_interrupt(n + 7)
        bench.driver.offer(*[0] * 8)
        bench.driver.notify()
        assert bench.driver.used_idx() == n + 8 & 0xFFFF
        assert bench.driver.avail_event() == n + 8 & 0xFFFF
        assert bench.machine.load(0x60) == 1
        bench.machine.store(0x64, 1)
    assert len(bench.device.seen) == 65536 + 64


def test_interrupts_come_only_for_the_index_that_was_asked_for(bench):
    bench.driver.set_up()
    raised = []
    for n in range(6):
        bench.driver.ask_for_interrupt(4 if n else 0)
        bench.driver.run([(DATA, 1, False)])
        raised.append(bench.driver.interrupts)
    assert raised == [1, 0, 0, 0, 1, 0]


def test_without_the_event_index_a_flag_suppresses_interrupts(bench):
    bench.driver.set_up(INDIRECT_DESC)
    bench.ram.write(bench.driver.avail, b"\1\0")
    bench.driver.run([(DATA, 1, False)])
    assert bench.driver.interrupts == 0
    bench.ram.write(bench.driver.avail, b"\0\0")
    bench.driver.run([(DATA, 1, False)])
    assert bench.driver.interrupts == 1
    assert bench.driver.avail_event() == 0, "that place does not belong to the ring"


@pytest.mark.parametrize("features", [INDIRECT_DESC, EVENT_IDX])
def test_a_notification_without_a_request_does_nothing(bench, features):
    bench.driver.set_up(features)
    bench.driver.notify()
    bench.machine.store(0x50, 7)
    assert bench.device.seen == [] and bench.machine.levels == []


def test_nothing_is_served_before_the_driver_is_ready_or_after_its_queue_is_not(bench):
    bench.driver.set_up()
    bench.driver.chain([(DATA, 1, False)])
    for prepare in (
        lambda: bench.machine.store(0x70, 11),
        lambda: (bench.machine.store(0x70, 15), bench.machine.store(0x44, 0)),
    ):
        prepare()
        bench.driver.offer(0)
        bench.machine.store(0x50, 0)
        assert bench.device.seen == []
    assert bench.machine.load(0x44) == 0


def test_a_reset_forgets_everything_and_lowers_the_interrupt(bench):
    bench.driver.set_up()
    bench.driver.offer(bench.driver.chain([(DATA, 1, False)]))
    bench.machine.store(0x50, 0)
    assert bench.machine.levels == [True]
    bench.machine.store(0x70, 0)
    assert bench.machine.levels == [True, False]
    assert [bench.machine.load(offset) for offset in (0x44, 0x60, 0x70)] == [0, 0, 0]
    bench.driver.set_up()
    assert bench.driver.run([(DATA, 1, False)]) == 0


def test_a_queue_cannot_be_moved_while_it_is_in_use(bench):
    bench.driver.set_up()
    for _ in range(2):
        assert bench.driver.run([(DATA, 1, False), (BACK, 1, True)]) == 1
        bench.machine.store(0x80, BACK)
        bench.machine.store(0x38, 4)
        bench.machine.store(0x44, 1)
    assert bench.driver.run([(DATA, 1, False), (BACK, 1, True)]) == 1
    assert bench.device.seen == [0, 0, 0]


def test_a_queue_that_does_not_exist_shows_no_size(bench):
    bench.machine.store(0x30, 2)
    assert bench.machine.load(0x34) == 0
    bench.machine.store(0x44, 1)
    assert bench.machine.load(0x44) == 0


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        *((0x38, 0), (0x38, 100), (0x38, 512)),
        *((0x80, RINGS + 8), (0x90, RINGS + 0x4001), (0xA0, RINGS + 0x8002)),
        *((0x84, 1), (0x94, 1), (0xA4, 1), (0xA0, RAM.end - 0x800)),
    ],
    ids=hex,
)
def test_rings_that_cannot_be_are_refused(bench, offset, value):
    m = bench.machine
    bench.driver.set_up()
    m.store(0x44, 0)
    m.store(offset, value)
    m.store(0x44, 1)
    assert m.load(0x44) == 0
    assert m.load(0x70) == 15 | NEEDS_RESET
    assert m.load(0x60) == 2
    assert bench.transport.trouble


def malformed(name: str, table: list[tuple[int, int, int, int]], heads: tuple[int, ...] = (0,)):
    return pytest.param(table, heads, id=name)


MALFORMED = [
    malformed("a loop", [(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)]),
    malformed("a descriptor that follows itself", [(DATA, 1, NEXT, 0)]),
    malformed("a next beyond the table", [(DATA, 1, NEXT, 256)]),
    malformed("a head beyond the table", [(DATA, 1, 0, 0)], heads=(256,)),
    malformed("a buffer below RAM", [(0x1000, 1, 0, 0)]),
    malformed("a buffer over the end of RAM", [(RAM.end - 1, 2, WRITE, 0)]),
    malformed("a buffer at the end of all addresses", [((1 << 64) - 1, 2, WRITE, 0)]),
    malformed("a buffer of no bytes", [(DATA, 0, 0, 0)]),
    malformed("readable behind writable", [(DATA, 1, NEXT | WRITE, 1), (DATA, 1, 0, 0)]),
    malformed("an indirect table that goes on", [(RINGS + 16, 16, INDIRECT | NEXT, 1), (DATA, 1, 0, 0)]),
    malformed("an empty indirect table", [(DATA, 0, INDIRECT, 0)]),
    malformed("an indirect table and a half", [(RINGS + 16, 24, INDIRECT, 0), (DATA, 1, 0, 0)]),
    malformed("an indirect table without end", [(RINGS + 16, 0x80010, INDIRECT, 0), (DATA, 1, 0, 0)]),
    malformed("an indirect table outside RAM", [(0x1000, 16, INDIRECT, 0)]),
    malformed("a table inside a table", [(RINGS + 16, 16, INDIRECT, 0), (RINGS + 16, 16, INDIRECT, 0)]),
    malformed("a loop in a table", [(RINGS + 16, 16, INDIRECT, 0), (DATA, 1, NEXT, 0)]),
    malformed(
        "a next beyond its own table", [(RINGS + 16, 16, INDIRECT, 0), (DATA, 1, NEXT, 1), (DATA, 1, 0, 0)]
    ),
    malformed("more requests than descriptors", [(DATA, 1, 0, 0)], heads=(0,) * 257),
]


@pytest.mark.parametrize(("table", "heads"), MALFORMED)
def test_a_malformed_ring_needs_a_reset_and_works_after_it(bench, table, heads):
    bench.driver.set_up()
    bench.ram.write(bench.driver.desc, b"".join(struct.pack("<QIHH", *each) for each in table))
    bench.driver.offer(*heads)
    bench.driver.notify()
    assert bench.machine.load(0x70) & (NEEDS_RESET | DRIVER_OK) == NEEDS_RESET | DRIVER_OK
    assert bench.machine.load(0x60) == 2
    assert bench.machine.levels == [True]
    assert bench.device.seen == [], "a bad request was served"
    bench.machine.store(0x50, 0)
    assert bench.driver.used_idx() == 0
    bench.driver.set_up()
    assert bench.transport.trouble is None
    assert bench.driver.run([(DATA, 1, False), (BACK, 1, True)]) == 1


def test_a_chain_of_more_than_4_gib_is_refused(bench):
    bench.driver.set_up()
    parts = [(RAM.start, RAM.size, False)] * 256
    bench.driver.offer(bench.driver.chain(parts[:200] * 6, table=bench.driver.tables))
    bench.driver.notify()
    assert bench.driver.needs_reset()


def test_what_came_before_a_malformed_request_is_handed_back(bench):
    bench.driver.set_up()
    good = bench.driver.chain([(DATA, 1, False), (BACK, 1, True)])
    bad = bench.driver.chain([(0x1000, 1, False)], first=9)
    bench.driver.offer(good, bad, good)
    bench.driver.notify()
    assert bench.driver.used_idx() == 1
    assert bench.machine.load(0x60) == 3
    bench.driver.chain([(DATA, 1, False)], first=9)
    bench.machine.store(0x50, 0)
    assert bench.driver.used_idx() == 1, "only a reset makes it serve again"


def test_that_a_reset_is_needed_is_the_device_s_to_say(bench):
    bench.driver.set_up()
    bench.machine.store(0x70, 15 | NEEDS_RESET)
    assert bench.machine.load(0x70) == 15
    bench.driver.offer(256)
    bench.machine.store(0x50, 0)
    bench.machine.store(0x70, 15)
    assert bench.machine.load(0x70) == 15 | NEEDS_RESET


def test_before_the_driver_is_ready_trouble_raises_no_interrupt(bench):
    bench.driver.set_up(queue=False)
    bench.machine.store(0x70, 11)
    bench.machine.store(0x44, 1)
    assert bench.machine.load(0x70) == 11 | NEEDS_RESET
    assert bench.machine.levels == []


def test_a_device_that_writes_over_its_own_ring_comes_to_an_end(bench):
    bench.driver.set_up()
    # The answer makes the ring look as if another request had been made meanwhile.
    bench.ram.write(DATA, b"\2\0")
    bench.driver.offer(bench.driver.chain([(DATA, 2, False), (bench.driver.avail + 3, 2, True)]))
    bench.driver.notify()
    assert bench.device.seen == [0]


@pytest.mark.parametrize("slot", [-1, 32, 5])
def test_a_slot_that_is_taken_or_not_there_is_refused(bench, slot):
    with pytest.raises(InputError, match=f"virtio slot {slot}"):
        bench.bus.attach(slot, Mirror(), print)


cuts = st.lists(st.integers(1, 64), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(out=cuts, into=cuts, direct=st.integers(0, 80), indirect=st.booleans())
def test_however_a_request_is_cut_and_described_the_device_sees_one_stream(out, into, direct, indirect):
    bench = Bench()
    bench.driver.set_up()
    sent = bytes(n * 7 & 0xFF for n in range(sum(out)))
    parts, at = [], 0
    for n, length in enumerate(out):
        bench.ram.write(DATA + 0x1000 * n, sent[at : at + length])
        parts.append((DATA + 0x1000 * n, length, False))
        at += length
    parts += [(BACK + 0x1000 * n, length, True) for n, length in enumerate(into)]
    if indirect:
        # Some descriptors of the ring itself, then one for a table with the rest.
        direct = min(direct, len(parts) - 1)
        bench.driver.chain(parts[direct:], first=direct, table=bench.driver.tables)
        for n, (phys, length, writable) in enumerate(parts[:direct]):
            flags = NEXT | (WRITE if writable else 0)
            bench.ram.write(bench.driver.desc + 16 * n, struct.pack("<QIHH", phys, length, flags, n + 1))
    else:
        bench.driver.chain(parts)
    bench.driver.offer(0)
    bench.driver.notify()
    room = min(sum(out), sum(into))
    assert bench.driver.used_entry(0) == (0, room)
    got = b"".join(bench.ram.read(phys, length) for phys, length, writable in parts if writable)
    assert got == sent[::-1][:room].ljust(sum(into), b"\0")


descriptors = st.tuples(
    st.sampled_from([DATA, RINGS, RINGS + 0x40, BACK, RAM.end - 16, 0x1000]),
    st.sampled_from([0, 1, 16, 48, 64, 1 << 20, 0xFFFFFFFF]),
    st.integers(0, 7),
    st.integers(0, 9),
)


@settings(max_examples=400, deadline=None)
@given(
    table=st.lists(descriptors, min_size=8, max_size=8),
    heads=st.lists(st.integers(0, 8), max_size=8),
    idx=st.integers(0, 9),
)
def test_whatever_the_rings_hold_every_request_is_answered_or_the_device_needs_a_reset(table, heads, idx):
    bench = Bench(size=8)
    bench.driver.set_up()
    bench.ram.write(bench.driver.desc, b"".join(struct.pack("<QIHH", *each) for each in table))
    bench.ram.write(bench.driver.avail + 4, struct.pack(f"<{len(heads)}H", *heads))
    bench.ram.write(bench.driver.avail + 2, struct.pack("<H", idx))
    bench.machine.store(0x50, 0)
    if not bench.driver.needs_reset():
        assert len(bench.device.seen) == idx
    bench.driver.set_up()
    assert bench.driver.run([(DATA, 1, False), (BACK, 1, True)]) == 1
