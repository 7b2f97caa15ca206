"""The stepper without native hooks: where the engine counts, and a Linux whose own instructions alone are hooked."""

from __future__ import annotations

import struct

import pytest
from machine import system_guest as g
from machine.system_guest import (
    CNTVCT,
    DAIFCLR_I,
    NOP,
    OFF,
    PROLOGUE,
    READ,
    add,
    brk,
    mov,
    put,
    str_post,
    sub,
    svc,
)
from unicorn import UC_HOOK_INTR
from unicorn.arm64_const import UC_ARM64_INS_MSR, UC_ARM64_REG_PC, UC_ARM64_REG_X0
from unicorn.unicorn_const import UC_HOOK_INSN

from kexecemu.machine.board import Board
from kexecemu.machine.cpu.engine import open_engine
from kexecemu.machine.cpu.engine_internals import Internals, offsets
from kexecemu.machine.cpu.system_hooks import SystemHooks

MSR_TPIDR = 0xD518D080


def engine(*words: int):
    uc = open_engine()
    uc.mem_map(0, 0x10000)
    uc.mem_write(0, struct.pack(f"<{len(words)}I", *words))
    return uc


def counters(uc):
    inside = Internals(uc)
    return inside.done, inside.limit


def test_the_counters_are_found_and_apart():
    found = offsets()
    assert found.counter != found.limit
    assert found.counter % 8 == found.limit % 8 == 0


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 511, 512, 513, 2000])
def test_the_counter_is_one_more_than_what_has_retired_when_the_count_stopped_it(count):
    uc = engine(*[add(0, 0, 1)] * 0x1000)
    done, limit = counters(uc)
    uc.emu_start(0, 0, count=count)
    assert uc.reg_read(UC_ARM64_REG_X0) == count
    assert uc.reg_read(UC_ARM64_REG_PC) == 4 * count
    assert (done.value, limit.value) == (count + 1, count)


def test_the_counter_is_what_has_retired_when_a_wait_ended_the_run():
    for count in (4, 5, 100):
        uc = engine(NOP, NOP, NOP, g.WFI, NOP, NOP)
        done, limit = counters(uc)
        uc.emu_start(0, 0, count=count)
        assert done.value == 4 <= limit.value


def test_in_a_hook_the_counter_counts_the_instruction_itself_and_the_limit_can_be_lowered_to_it():
    uc = engine(*[add(0, 0, 1)] * 9, MSR_TPIDR, *[add(0, 0, 1)] * 99)
    done, limit = counters(uc)
    seen = []

    def hook(uc, register, named, _):
        seen.append(done.value)
        limit.value = done.value
        return 0

    uc.hook_add(UC_HOOK_INSN, hook, aux1=UC_ARM64_INS_MSR)
    uc.emu_start(0, 0, count=90)
    assert seen == [10]
    assert (uc.reg_read(UC_ARM64_REG_X0), uc.reg_read(UC_ARM64_REG_PC)) == (9, 40)


def test_the_limit_can_be_lowered_from_a_device_and_the_store_runs_once():
    uc = engine(*mov(1, 0x100000), *[add(0, 0, 1)] * 5, g.str_w(0, 1), *[add(0, 0, 1)] * 50)
    done, limit = counters(uc)
    stores = []

    def store(uc, offset, size, value, _):
        stores.append((value, done.value))
        limit.value = done.value

    uc.mmio_map(0x100000, 0x1000, None, None, store, None)
    uc.emu_start(0, 0, count=40)
    assert stores == [(5, 7)]
    assert uc.reg_read(UC_ARM64_REG_PC) == 7 * 4


@pytest.mark.parametrize(
    "word,counted",
    [(svc(), True), (g.HVC, True), (brk(), True), (g.UDF, True)],
    ids=["svc", "hvc", "brk", "undefined"],
)
def test_an_exception_is_counted_with_the_instruction_that_raised_it(word, counted):
    # The stepper takes it back where it has not retired.
    uc = engine(NOP, NOP, word, NOP)
    uc.cpr_write(3, 6, 1, 1, 0, 0x501)
    uc.hook_add(UC_HOOK_INTR, lambda uc, number, _: uc.emu_stop())
    done, _ = counters(uc)
    uc.emu_start(0, 0, count=50)
    assert done.value == 3


def test_one_may_lower_the_limit_but_the_next_run_starts_afresh():
    uc = engine(*[add(0, 0, 1)] * 100)
    _, limit = counters(uc)
    uc.emu_start(0, 0, count=3)
    limit.value = 1
    uc.emu_start(12, 0, count=20)
    assert uc.reg_read(UC_ARM64_REG_X0) == 23


# -- a Linux: hooks at its own instructions only ---------------------------------------------------------------

VIRT = 0xFFFF800008000000
IMAGE_PHYS = 0x40300000
PAGES = 0x40380000


def linux(*body: g.Words, user: g.Words = ()) -> g.Result:
    """A guest that looks like a Linux: an Image, run at a kernel's address, which sets its vectors; then `body`."""
    code = g.flat(mov(9, g.VECTORS | 0xFFFF << 48), g.VBAR | 9, *body, OFF)
    vectors = VIRT + 0x10000
    code[: len(mov(9, g.VECTORS | 0xFFFF << 48))] = mov(9, vectors)

    def prepare(board: Board) -> None:
        header = struct.pack("<2I6Q2I", 0x91005A4D, 0, 0, 0x40000, 0xA, 0, 0, 0, 0x644D5241, 64)
        board.ram.write(IMAGE_PHYS, header)
        put(board, IMAGE_PHYS + 0x1000, code)
        for offset, handler in g.vectors().items():
            put(board, IMAGE_PHYS + 0x10000 + offset, handler)
        put(board, 0x40340000, *([user] if isinstance(user, int) else user))
        # One block of 1 GiB each: as it is below, VIRT on the Image above; user code may run in the last 2 MiB.
        board.ram.write_u64(PAGES, PAGES + 0x1000 | 3)
        board.ram.write_u64(PAGES + 0x1000, 0x60000000000401 | 1 << 10)
        board.ram.write_u64(PAGES + 0x1008, 0x40000000 | 0x705)
        # Above: level 0 entry 256 of a 48-bit space (bit 47 set), level 1, level 2 by blocks of 2 MiB.
        board.ram.write_u64(PAGES + 0x2000 + 256 * 8, PAGES + 0x3000 | 3)
        board.ram.write_u64(PAGES + 0x3000, PAGES + 0x4000 | 3)
        board.ram.write_u64(PAGES + 0x4000 + 64 * 8, PAGES + 0x5000 | 3)
        for page in range(0x80):
            board.ram.write_u64(PAGES + 0x5000 + page * 8, IMAGE_PHYS + page * 0x1000 | 0x703)

    tcr = 16 | 16 << 16 | 2 << 30 | 5 << 32
    setup = [
        registers
        for msr, value in (
            (0xD518A200, 0xFF),
            (0xD5182040, tcr),
            (0xD5182000, PAGES),
            (0xD5182020, PAGES + 0x2000),
        )
        for registers in (*mov(9, value), msr | 9)
    ]
    start = g.flat(
        PROLOGUE, setup, g.ISB, 0xD5381009, 0xB2400129, 0xD5181009, g.ISB, mov(11, VIRT + 0x1000), g.br(11)
    )
    return g.same([start], prepare=prepare, seeds=(1,))


def test_a_linux_reads_its_counter_and_programs_its_timer_through_the_hooks_at_its_own_instructions(
    monkeypatch,
):
    narrowed = []
    narrow = SystemHooks._narrow

    def noted(self):
        narrow(self)
        narrowed.append(self._code.image)

    monkeypatch.setattr(SystemHooks, "_narrow", noted)
    timer = g.flat(mov(9, 50), g.CNTV_TVAL | 9, mov(9, 1), g.CNTV_CTL | 9)
    wait = g.flat(mov(8, 100), sub(8, 8, 1), g.cbnz(8, -1))
    result = linux(
        CNTVCT | READ | 9, str_post(9, 28), g.CNTV_CVAL | READ | 9, str_post(9, 28), timer, DAIFCLR_I, wait
    )
    assert narrowed and all(image is not None and image.virt == VIRT for image in narrowed)
    assert 0 < result.log[0] < 200
    assert result.log[2] == 27
