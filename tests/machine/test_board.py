"""The board as a whole: sizes, sharing of RAM between CPUs, time."""

from __future__ import annotations

import pytest

from kexecemu.errors import InputError
from kexecemu.machine.board import Board, parse_size
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.ranges import PhysRange


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1G", 1 << 30),
        ("768M", 768 << 20),
        ("64k", 64 << 10),
        ("0x1000", 4096),
        ("4096", 4096),
        (5, 5),
        ("2GiB", 2 << 30),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "1X", "-1", "1.5G", "0", 0, -4096, "1 2", "0x", "1Gi"])
def test_nonsense_is_no_size(text):
    with pytest.raises(InputError):
        parse_size(text)


def test_ram_given_as_banks_is_taken_as_it_is():
    banks = (PhysRange.of(0x40000000, 1 << 20), PhysRange.of(0x100000000, 2 << 20))
    assert Board(banks).ram.banks == banks


def test_ram_given_as_a_size_begins_at_ram_base():
    assert Board("16M", ram_base=0x80000000).ram.banks == (PhysRange.of(0x80000000, 16 << 20),)


@pytest.mark.parametrize(
    "bad", [{"ram": 4097}, {"cpus": 0}, {"cpus": 124}, {"ram": [PhysRange.of(0x9000000, 1 << 20)]}]
)
def test_a_board_that_cannot_be_is_refused(bad):
    with pytest.raises(InputError):
        Board(**bad)


def test_all_cpus_and_the_host_see_one_ram(new_guest, a64):
    guest = new_guest(2)
    first, second = guest.board.cpus
    data = a64.RAM_BASE + 0x10000
    guest.start(a64.mov(1, data), a64.movz(2, 0x77), a64.store(2, 1), a64.WFI)
    assert first.run().kind is CpuStopKind.IDLE
    assert guest.ram.read_u64(data) == 0x77
    guest.start(a64.mov(1, data), a64.load(3, 1), a64.WFI, phys=a64.CODE + 0x1000, cpu=second)
    second.run()
    assert second.x(3) == 0x77
    guest.board.dma.write(data, b"\x55")
    second.pc -= 8
    second.run()
    assert second.x(3) == 0x55


def test_code_that_one_cpu_writes_is_run_as_written_by_another(new_guest, a64):
    # Each engine keeps its own translations; the second must not run what it translated before.
    guest = new_guest(2)
    first, second = guest.board.cpus
    shared = a64.CODE + 0x1000
    guest.start(a64.movz(0, 1), a64.WFI, phys=shared, cpu=second)
    second.run()
    assert second.x(0) == 1
    guest.start(a64.mov(1, shared), a64.mov(2, a64.movz(0, 2)), a64.store_word(2, 1), a64.WFI)
    before = guest.ram.generation
    first.run()
    assert guest.ram.generation == before, "only the guest wrote"
    second.pc = shared
    second.run()
    assert second.x(0) == 2


def test_time_is_what_all_cpus_retired(new_guest, a64):
    guest = new_guest(2)
    for cpu, length in zip(guest.board.cpus, (3, 7), strict=True):
        guest.start([a64.NOP] * length, a64.WFI, phys=a64.CODE + cpu.index * 0x1000, cpu=cpu)
        cpu.run()
    assert [cpu.instructions for cpu in guest.board.cpus] == [4, 8]
    assert guest.board.instructions == 12
    assert guest.board.timeline.record("test", "now").when == 12


@pytest.mark.parametrize(("cpus", "gic"), [(1, 2), (8, 2), (9, 3), (123, 3)])
def test_a_board_of_more_cpus_than_a_gicv2_takes_has_a_gicv3(cpus, gic):
    with Board("4M", cpus) as board:
        assert (board.gic.version, board.gic.cpus) == (gic, cpus)
    with Board("4M", cpus, gic=3) as board:
        assert board.gic.version == 3


def test_a_gicv2_that_is_asked_for_has_no_ninth_cpu():
    with Board("4M", 8, gic=2) as board:
        assert board.gic.version == 2
    with pytest.raises(
        InputError, match=r"^a board with a GICv2 has 1 to 8 CPUs, not 9; with a GICv3 up to 123$"
    ):
        Board("4M", 9, gic=2)


def test_a_cpu_that_never_ran_costs_no_engine():
    board = Board("16M", 64)
    assert board.instructions == 0
    assert all(cpu._created is None for cpu in board.cpus)
