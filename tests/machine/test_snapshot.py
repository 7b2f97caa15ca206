"""Going back to a moment: exact, however the board was harmed, as often and in whatever order one likes."""

from __future__ import annotations

import errno
import hashlib
from random import Random

import pytest
from machine.conftest import CODE, NOP, WFI, Guest, add, b, mov, store, store_word
from unicorn.arm64_const import UC_ARM64_REG_Q0, UC_ARM64_REG_Q31

from kexecemu.errors import MachineError
from kexecemu.machine import snapshot
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.memory.ram import HOST_PAGE
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.snapshot import Snapshots, written_pages

LOW, HIGH = PhysRange.of(0x40000000, 1 << 20), PhysRange.of(0x80000000, 1 << 20)
DATA = CODE + 0x10000


def everything(board: Board) -> dict[str, object]:
    """What two boards in the same state have in common, asked for in other ways than Snapshots does."""
    ram = hashlib.sha256()
    for bank in board.ram.banks:
        ram.update(board.ram.read(bank.start, bank.size))
    return {
        "ram": ram.hexdigest(),
        "registers": [cpu.registers() if cpu.powered else None for cpu in board.cpus],
        "vectors": [
            [cpu.uc.reg_read(UC_ARM64_REG_Q0 + number) for number in range(32)] if cpu.powered else None
            for cpu in board.cpus
        ],
        "system": [
            [cpu.sysreg(name) for name in ("SCTLR_EL1", "VBAR_EL1", "ELR_EL1", "TTBR1_EL1", "CPACR_EL1")]
            if cpu.powered
            else None
            for cpu in board.cpus
        ],
        "counts": [cpu.instructions for cpu in board.cpus],
        "exceptions": [len(cpu.exceptions) for cpu in board.cpus],
        "time": board.time,
        "console": board.uart.text,
        "uart": [board.uart.read(offset, 4) for offset in range(0x4, 0x4C, 4)],
        "interrupts": board.gic.snapshot(),
        "timeline": [str(event) for event in board.timeline],
    }


def harm(board: Board, random: Random) -> None:
    """Anything that a run or a stray write can do to a board."""
    ram = board.ram
    for _ in range(random.randrange(1, 30)):
        bank = random.choice(ram.banks)
        size = random.choice([1, 8, 4096, 70000])
        at = random.randrange(bank.start, bank.end - size)
        match random.randrange(4):
            case 0:
                ram.write(at, random.randbytes(size))
            case 1:
                ram.fill(at, size, random.choice([0, 0xAA]))
            case 2:
                ram.write_u64(at & ~7, random.getrandbits(64))
            case 3:
                board.dma.write(at, random.randbytes(size))
    for cpu in board.cpus:
        if not cpu.powered and random.random() < 0.5:
            cpu.reset(random.choice(ram.banks).start)
        if cpu.powered:
            cpu.set_x(random.randrange(31), random.getrandbits(64))
            cpu.uc.reg_write(UC_ARM64_REG_Q0 + random.randrange(32), random.getrandbits(128))
            cpu.set_sysreg("VBAR_EL1", random.getrandbits(20) << 11)
            cpu.run(limit=random.randrange(1, 200), deliver=False)
            if random.random() < 0.2:
                cpu.power_off()
    board.uart.write(0x38, 4, random.getrandbits(11))
    board.uart.write(0, 4, random.randrange(32, 127))
    board.gic.distributor(0).write(0x104, 4, random.getrandbits(32))  # type: ignore[union-attr]
    board.timeline.record("harm", "something happens")


@pytest.fixture
def board():
    with Board([LOW, HIGH], 2) as board:
        random = Random(1)
        board.ram.write(LOW.start + 123, random.randbytes(5000))
        board.ram.write(HIGH.start + 99999, random.randbytes(300000))
        board.boot_cpu.reset(LOW.start)
        yield board


def test_a_restore_is_exact_whatever_happened_in_whatever_order_and_as_often_as_one_likes(board):
    random = Random(7)
    snapshots = Snapshots(board)
    taken = []
    for _ in range(6):
        taken.append((snapshots.take(), everything(board)))
        harm(board, random)
    for _ in range(40):
        moment, expected = random.choice(taken)
        snapshots.restore(moment)
        assert everything(board) == expected
        for _ in range(random.randrange(3)):
            harm(board, random)
    snapshots.restore(taken[3][0])
    again = snapshots.take()
    assert again.pages == taken[3][0].pages
    snapshots.close()
    assert not board.ram.private
    assert everything(board)["ram"] == taken[0][1]["ram"]


def test_a_snapshot_holds_no_page_that_is_as_it_was(board):
    snapshots = Snapshots(board)
    assert snapshots.take().pages == {}
    for bank in board.ram.banks:
        board.ram.read(bank.start, bank.size)
        board.ram.write(bank.start, board.ram.read(bank.start, bank.size))
    assert snapshots.take().pages == {}
    board.ram.write(HIGH.start + HOST_PAGE - 1, b"\1\1")
    assert sorted(snapshots.take().pages) == [(1, 0), (1, HOST_PAGE)]


def test_a_page_is_written_when_it_was_written_and_not_when_it_was_read_or_never_touched(board):
    """What is taken costs what was written, not what there is."""
    snapshots = Snapshots(board)
    low, high = board.ram.mapped
    assert written_pages(low) == written_pages(high) == []
    board.ram.read(LOW.start, LOW.size // 2)
    assert written_pages(low) == []
    board.ram.write(LOW.start + HOST_PAGE - 1, b"\1\1")
    board.ram.write(LOW.end - 1, b"\1")
    assert written_pages(low) == [0, HOST_PAGE, LOW.size - HOST_PAGE]
    assert written_pages(high) == []
    snapshots.close()


def test_ram_is_itself_while_there_are_snapshots(board):
    before = board.ram.read(HIGH.start, HIGH.size)
    snapshots = Snapshots(board)
    ram = board.ram
    assert ram.read(HIGH.start, HIGH.size) == before
    ram.write(HIGH.start + 7, b"abc\0d")
    assert ram.read(HIGH.start + 7, 5) == bytes(ram.view(HIGH.start + 7, 5)) == b"abc\0d"
    assert ram.read_cstring(HIGH.start + 7, 10) == b"abc"
    ram.fill(HIGH.start + 99999, 300000)
    assert not any(ram.read(HIGH.start + 99999, 300000))
    ram.fill(LOW.start, LOW.size, 0x5A)
    assert ram.read(LOW.start, LOW.size) == b"\x5a" * LOW.size
    ram.write_u32(LOW.start, 0x12345678)
    assert ram.read_u32(LOW.start) == 0x12345678
    touched = list(ram.data_ranges(PhysRange(0, HIGH.end)))
    rest = [one for one in (LOW, HIGH) if not any(other.covers(one) for other in touched)]
    assert not any(byte for one in rest for byte in ram.read(one.start, one.size))
    snapshots.close()
    assert ram.read(HIGH.start, HIGH.size) == before


def test_a_vector_register_comes_back(board):
    cpu = board.boot_cpu
    cpu.uc.reg_write(UC_ARM64_REG_Q31, 0x0123 << 100 | 77)
    snapshots = Snapshots(board)
    taken = snapshots.take()
    cpu.uc.reg_write(UC_ARM64_REG_Q31, 0)
    snapshots.restore(taken)
    assert cpu.uc.reg_read(UC_ARM64_REG_Q31) == 0x0123 << 100 | 77


@pytest.fixture
def guest():
    guest = Guest()
    yield guest
    guest.board.close()


def counts_to(guest: Guest, number: int) -> None:
    """A program that puts a number into x0."""
    guest.words(CODE, mov(0, number), WFI)


def test_code_that_the_host_has_changed_runs_as_it_is_after_a_restore_and_a_flush(guest):
    counts_to(guest, 1)
    guest.cpu.reset(CODE)
    snapshots = Snapshots(guest.board)
    taken = snapshots.take()
    for _ in range(3):
        guest.cpu.run()
        assert guest.cpu.x(0) == 1
        snapshots.restore(taken)
        counts_to(guest, 2)
        guest.cpu.run()
        assert guest.cpu.x(0) == 2
        snapshots.restore(taken)
        guest.cpu.flush_code()


def test_code_that_the_guest_has_changed_runs_as_it_is_after_a_restore_and_a_flush(guest):
    """It writes a NOP over the branch that it came by, and the next time goes straight on."""
    target = CODE + 0x100
    guest.words(CODE, b(0x100))
    guest.words(CODE + 4, mov(0, 5), WFI)
    guest.words(target, mov(1, CODE), mov(2, NOP), store_word(2, 1), mov(0, 3), WFI)
    guest.cpu.reset(CODE)
    snapshots = Snapshots(guest.board)
    taken = snapshots.take()
    for _ in range(3):
        assert guest.cpu.run().kind is CpuStopKind.IDLE
        assert guest.cpu.x(0) == 3 and guest.ram.read_u32(CODE) == NOP
        guest.cpu.pc = CODE
        guest.cpu.run()
        assert guest.cpu.x(0) == 5
        snapshots.restore(taken)
        guest.cpu.flush_code()
        assert guest.ram.read_u32(CODE) == b(0x100)


def test_going_on_from_the_middle_is_going_through_it(guest):
    """A loop of stores, stopped in its middle: every end is the end of the run that was never stopped."""
    guest.words(CODE, mov(0, DATA), [store(1, 0), add(0, 0, 8), add(1, 1, 1), b(-12)])
    guest.cpu.reset(CODE)
    snapshots = Snapshots(guest.board)
    begin = snapshots.take()
    guest.cpu.run(limit=4000)
    whole = everything(guest.board)
    assert guest.ram.read_u64(DATA + 8 * 100) == 100
    snapshots.restore(begin)
    guest.cpu.run(limit=1000)
    middle, done = snapshots.take(), guest.cpu.instructions
    for _ in range(3):
        guest.cpu.run(limit=4000 - done)
        assert everything(guest.board) == whole
        guest.ram.fill(DATA, 1 << 16, 0xFF)
        snapshots.restore(middle)


def test_boards_do_not_know_of_each_other():
    boards = [Guest(), Guest()]
    snapshots = []
    for number, each in enumerate(boards):
        counts_to(each, number)
        each.cpu.reset(CODE)
        snapshots.append(Snapshots(each.board))
    taken = [each.take() for each in snapshots]
    for each in boards:
        each.ram.write(DATA, b"harmed")
    snapshots[0].restore(taken[0])
    assert boards[0].ram.read(DATA, 6) == bytes(6)
    assert boards[1].ram.read(DATA, 6) == b"harmed"
    snapshots[0].close()
    boards[0].board.close()
    snapshots[1].restore(taken[1])
    boards[1].cpu.run()
    assert boards[1].cpu.x(0) == 1
    boards[1].board.close()


@pytest.mark.parametrize("how", ["cannot be opened", "says nothing"])
def test_a_host_that_does_not_tell_which_pages_were_written_is_one_clear_error(board, monkeypatch, how):
    snapshots = Snapshots(board)
    if how == "says nothing":
        monkeypatch.setattr(snapshot.os, "pread", lambda *_: b"")
    else:

        def refuse(*_: object, **__: object):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(snapshot, "open", refuse, raising=False)
    with pytest.raises(MachineError, match="does not tell which pages were written"):
        snapshots.take()
