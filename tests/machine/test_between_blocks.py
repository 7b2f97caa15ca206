"""Both steppers run code that stops between blocks only; nothing of that may show."""

from __future__ import annotations

import struct

import pytest
from machine import system_guest as g
from machine.system_guest import (
    CNTV_CTL,
    CNTV_CVAL,
    CNTV_TVAL,
    CODE,
    DAIFCLR_I,
    DAIFSET_I,
    GICD,
    ISB,
    NOP,
    OFF,
    PROLOGUE,
    READ,
    STACK,
    WFI,
    add,
    b,
    flat,
    mov,
    same,
    store_word,
    str_post,
    svc,
)

NOTHING = 0x48000000
EC_DABT = 0x96000050


@pytest.mark.parametrize(
    "rest",
    [
        [g.str_x(1, 10)],
        [g.str_w(1, 10), NOP, g.str_w(1, 10, 8)],
        [g.ldr_x(1, 10), g.str_x(1, 10)],
        [*mov(12, 1), CNTV_TVAL | 12, CNTV_CTL | 12],
        [add(10, 10, 8), add(1, 1, 8)],
        [svc(3)],
        [g.brk(4)],
        [g.HVC],
        [WFI],
        [g.DAIF | 10],
        [g.VBAR | 1],
        [g.IALLU],
        [g.TLBI],
        [NOP] * 700,
    ],
    ids=lambda words: f"{len(words)}-{words[0]:x}",
)
def test_a_store_to_nothing_is_taken_where_it_is_and_what_follows_in_its_block_leaves_no_trace(rest) -> None:
    skip = b(len(rest) + 1)
    before = flat(PROLOGUE, mov(1, 0x5555), mov(10, STACK), mov(9, NOTHING), [NOP] * 3)
    # The handler goes on behind the store; from there it is jumped over the rest.
    program = [*before, g.str_x(2, 9), skip, *rest, *mov(11, 77), str_post(11, 28), OFF]
    plain = same(program, seeds=(1,))
    assert plain.log[-1] == 77
    # And with nothing but the rest behind the store in its block: the handler ends the machine there.
    ending = flat(OFF)
    vectors = g.vectors()
    handler = flat(mov(20, 88), str_post(20, 28), 0xD5384034 & ~31 | 20, ending)  # MRS X20, ELR_EL1

    def prepare(board) -> None:
        for offset in vectors:
            g.put(board, g.VECTORS + offset, handler)

    ended = same([*before, g.str_x(2, 9), *rest, NOP, b(1), OFF], seeds=(1,), prepare=prepare)
    assert ended.log == [88]
    registers = ended.registers[0]
    assert registers["x20"] == CODE + 4 * len(before)
    assert (registers["x1"], registers["x10"]) == (0x5555, STACK)
    assert struct.unpack_from("<2Q", ended.ram, STACK - 0x40000000) == (0, 0)


def raise_sgi(number: int) -> list[int]:
    return store_word(GICD + 0xF00, 2 << 24 | number)


def test_a_handler_that_unmasks_interrupts_before_it_asks_which_is_interrupted_again() -> None:
    # Its first entry counts and unmasks; the second one, at once, acknowledges. Then the first finds nothing any more.
    nested = flat(
        g.ELR | READ | 16, g.SPSR | READ | 17, mov(25, 1), DAIFCLR_I, DAIFSET_I, g.ELR | 16, g.SPSR | 17
    )
    irq = flat(add(24, 24, 1), g.cbnz(25, len(nested) + 1), nested, g._IRQ)
    program = [PROLOGUE, *mov(24, 0), *mov(25, 0), DAIFCLR_I, raise_sgi(5), [NOP] * 20, b(1), OFF]
    result = same(program, seeds=(1, 2), irq=irq)
    assert result.registers[0]["x24"] == 2


def test_a_wait_does_not_wait_while_an_interrupt_is_pending_and_masked() -> None:
    program = [PROLOGUE, DAIFSET_I, raise_sgi(5), WFI, WFI, *mov(11, 77), str_post(11, 28), DAIFCLR_I, OFF]
    result = same(program, seeds=(1, 2, 3))
    assert result.log[:2] == [77, 5]
    assert "switched off" in result.end


@pytest.mark.parametrize("ticks", [3, 600, 3000])
def test_an_interrupt_that_comes_while_masked_is_taken_where_it_is_unmasked(ticks: int) -> None:
    wait = flat(mov(8, 2000), g.sub(8, 8, 1), g.cbnz(8, -1))
    timer = [*mov(9, ticks), CNTV_TVAL | 9, *mov(9, 1), CNTV_CTL | 9]
    before = flat(PROLOGUE, mov(27, 27), DAIFSET_I, timer, wait, CNTV_CVAL | READ | 9, ISB, wait)
    result = same([*before, DAIFCLR_I, [NOP] * 9, b(1), OFF], seeds=(1, 2))
    assert result.log[:2] == [27, CODE + 4 * (len(before) + 1)]


def test_code_of_one_page_that_is_changed_twice_with_a_run_in_between_is_seen_both_times() -> None:
    page = STACK + 0x4000
    call = [*mov(13, page), 0xD63F01A0]  # BLR X13
    write = lambda number: flat(  # noqa: E731
        mov(9, page),
        mov(10, add(12, 12, number)),
        g.str_w(10, 9),
        mov(10, g.RET),
        g.str_w(10, 9, 4),
        g.DSB,
        g.ivau(9),
        g.DSB,
        ISB,
    )
    program = [PROLOGUE, *mov(12, 0), write(1), call, write(10), call, call, write(100), call, OFF]
    assert same(program, seeds=(1, 2)).registers[0]["x12"] == 1 + 10 + 10 + 100
