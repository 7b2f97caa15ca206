"""What the host does for a guest comes out of a budget: no guest keeps the host for longer than its bound says."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from machine import system_guest as g
from machine.virtio_driver import BlockDriver, Emulated

from kexecemu.machine.board import Board
from kexecemu.machine.cpu import cpu as cpu_module
from kexecemu.machine.cpu import work
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.devices.disk import Disk
from kexecemu.machine.devices.pl011 import Pl011
from kexecemu.machine.devices.uart import CONSOLE_LIMIT, ConsoleLines
from kexecemu.machine.devices.virtio_block import VirtioBlock
from kexecemu.machine.system import System, SystemEndKind

BOUND = 2_000_000
SKIP = g.flat(g.ELR | g.READ | 0, g.add(0, 0, 4), g.ELR | 0, g.ERET)
BACK = g.flat(g.ERET)

# What a guest may do for ever: code, its handler, and the work of one round.
LOOPS: dict[str, tuple[Sequence[g.Words], list[int], int]] = {
    "a load of nothing": ([*g.mov(1, 0x1000), g.ldr_x(2, 1), g.b(-1)], SKIP, work.EXIT),
    "a store to nothing": ([*g.mov(1, 0x1000), g.str_x(2, 1), g.b(-1)], SKIP, work.EXIT),
    "hvc": ([*g.mov(0, 0x84000000), g.HVC, g.b(-2)], BACK, work.EXIT),
    "smc": ([g.SMC, g.b(-1)], SKIP, work.EXIT),
    "svc": ([g.svc(), g.b(-1)], BACK, work.EXCEPTION),
    "undefined": ([g.UDF, g.b(-1)], SKIP, work.EXCEPTION),
    "a device read": ([*g.mov(1, 0x09000018), g.ldr_w(2, 1), g.b(-1)], BACK, work.ACCESS),
    "a flooded console": ([*g.mov(1, 0x09000000), g.str_w(2, 1), g.b(-1)], BACK, work.ACCESS),
    "a timer read": ([g.CNTV_CTL | g.READ | 2, g.b(-1)], BACK, work.EXCEPTION),
    "a timer written": ([g.CNTV_CVAL | 2, g.b(-1)], BACK, work.TIMER),
    "ic": ([g.IALLU, g.b(-1)], BACK, work.MAINTENANCE),
    "tlbi": ([g.TLBI, g.b(-1)], BACK, work.EXCEPTION),
    "a misaligned branch": ([*g.mov(1, g.CODE + 2), g.br(1)], BACK, work.EXIT),
}


def board_with(code: Sequence[g.Words], handler: list[int]) -> Board:
    board = Board("4M")
    for offset in range(0, 0x800, 0x80):
        g.put(board, g.VECTORS + offset, handler)
    g.put(board, g.CODE, *code)
    board.boot_cpu.reset(g.CODE)
    board.boot_cpu.set_sysreg("VBAR_EL1", g.VECTORS)
    return board


@pytest.mark.parametrize("name", LOOPS)
def test_a_guest_that_does_nothing_else_ends_at_its_bound_alike_in_each_form(name):
    code, handler, price = LOOPS[name]
    ends = set()
    for native, internals in ((True, True), (False, True), (False, False)):
        with g.form(native, internals), board_with(code, handler) as board:
            board.work.allow(0, BOUND)
            end = System(board).run(1 << 40)
            assert end.kind is SystemEndKind.BUDGET
            assert BOUND <= board.time + board.work.spent < BOUND + 3 * price + 1000
            ends.add((str(end), board.time, board.work.spent, board.boot_cpu.pc))
            # What has been used up is used up.
            assert System(board).run(1000).kind is SystemEndKind.BUDGET
    assert len(ends) == 1


@pytest.mark.parametrize("name", LOOPS)
def test_without_a_bound_nothing_of_it_shows(name):
    code, handler, _ = LOOPS[name]
    with board_with(code, handler) as board:
        assert System(board).run(5000).time in range(5000, 5010)


@pytest.mark.parametrize("name", ["a load of nothing", "hvc", "a device read", "svc"])
def test_a_purgatory_s_run_has_a_budget_too(name):
    code, handler, price = LOOPS[name]
    ends = set()
    for native in (True, False):
        with g.form(native), board_with(code, handler) as board:
            stop = board.boot_cpu.run(limit=1 << 40, budget=BOUND)
            assert stop.kind is CpuStopKind.DEADLINE
            assert BOUND <= stop.instructions + board.boot_cpu.work < BOUND + work.EXIT + price
            ends.add((stop.pc, stop.instructions, board.boot_cpu.work))
            assert board.boot_cpu.run(limit=100).instructions >= 100  # without a budget none is heeded
    assert len(ends) == 1


def test_the_prices_are_those_of_the_compiled_hooks():
    text = (Path(cpu_module.__file__).parent / "blockcount.c").read_text()
    found = {name: int(value) for name, value in re.findall(r"#define WORK_(\w+)\s+(\d+)", text)}
    assert found == {"EXCEPTION": work.EXCEPTION, "MAINTENANCE": work.MAINTENANCE}


def test_a_limit_alone_bounds_the_work_too(monkeypatch):
    monkeypatch.setattr(work, "FREE", 100_000)
    monkeypatch.setattr(cpu_module, "FREE", 100_000)
    code, handler, _ = LOOPS["hvc"]
    with board_with(code, handler) as board:
        assert System(board).run(50_000).kind is SystemEndKind.BUDGET
        assert 150_000 <= board.time + board.work.spent < 200_000
        assert board.work.allowed is None
    with board_with(code, handler) as board:
        stop = board.boot_cpu.run(limit=50_000)
        assert 150_000 <= stop.instructions + board.boot_cpu.work < 200_000


def test_a_snapshot_puts_the_work_back():
    code, handler, _ = LOOPS["hvc"]
    with board_with(code, handler) as board:
        cpu = board.boot_cpu
        cpu.run(limit=10)
        state, before = cpu.save(), cpu.work
        cpu.run(limit=10)
        assert cpu.work > before > 0
        cpu.restore(state)
        assert cpu.work == before


def test_a_notify_of_256_requests_of_896_mib_is_not_served_beyond_what_is_allowed():
    with Board("1G") as board, Disk(1 << 30) as disk:
        board.attach(31, VirtioBlock(disk, "x"))
        driver = BlockDriver(Emulated(board.virtio, board.ram, 31), 0x40000000, 256)
        driver.set_up()
        board.ram.write(0x40100000, struct.pack("<IIQ", 0, 0, 0))
        head = driver.chain([(0x40100000, 16, False), (0x44000000, 896 << 20, True), (0x40100100, 1, True)])
        board.work.allow(board.time, 2_000_000_000)
        driver.offer(*[head] * 256)
        begin = time.process_time()
        driver.notify()
        assert time.process_time() - begin < 15  # two of them, and not 256
        assert driver.used_idx() == 2
        assert board.work.end == 0
        assert board.work.spent == board.work.allowed


def test_a_ring_that_breaks_the_rules_costs_as_the_longest():
    with Board("4M") as board, Disk(1 << 16) as disk:
        board.attach(31, VirtioBlock(disk, "x"))
        driver = BlockDriver(Emulated(board.virtio, board.ram, 31), 0x40000000, 256)
        driver.set_up()
        driver.offer(300)
        driver.notify()
        assert driver.needs_reset
        assert board.work.spent == work.ACCESS << 15


# -- consoles ----------------------------------------------------------------------------------------------------------


def test_of_a_flood_so_much_is_kept_and_a_line_says_so():
    uart, heard = Pl011(), []
    uart.listeners.append(lambda data: heard.append(len(data)))
    for _ in range(20):
        uart.transmit(b"x" * (1 << 20))
    uart.transmit(b"more")
    assert sum(heard) == (20 << 20) + 4
    kept, _, said = uart.text.partition("\n")
    assert len(kept) == CONSOLE_LIMIT
    assert said == "[kexecemu: the console has printed 16 MiB, and what follows is not kept]\n"
    del uart.output[100:]  # a snapshot
    uart.transmit(b"y")
    assert uart.text.endswith("xy")


def test_of_a_line_without_an_end_so_much_is_heard():
    lines: list[bytes] = []
    listen = ConsoleLines(lines.append)
    for _ in range(100):
        listen(b"z" * 1000)
    listen(b"\nshort\n")
    assert [len(line) for line in lines] == [64 << 10, 5]
