"""The GICv3's system registers, which the engine takes for undefined instructions: bare-metal guests on a board."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import system_guest as g
from machine.system_guest import (
    CODE,
    DAIFCLR_I,
    DAIFSET_I,
    ERET,
    GICD,
    HVC,
    LOG,
    NOP,
    OFF,
    READ,
    STACK,
    UDF,
    VECTORS,
    WFI,
    XZR,
    add,
    add_reg,
    b,
    cbnz,
    flat,
    ldr_x,
    mov,
    put,
    run,
    same,
    store_word,
    str_post,
    str_x,
    sub,
    svc,
)

from kexecemu.errors import InputError
from kexecemu.machine.board import Board

SGI_FRAME = 0x080B0000


def icc(crn: int, crm: int, op2: int) -> int:
    """An MSR of a system register with op0 3 and op1 0; READ makes an MRS of it."""
    return 0xD5180000 | crn << 12 | crm << 8 | op2 << 5


PMR, IAR1, EOIR1, HPPIR1, RPR, SGI1R = (
    icc(4, 6, 0), icc(12, 12, 0), icc(12, 12, 1), icc(12, 12, 2), icc(12, 11, 3), icc(12, 11, 5),
)  # fmt: skip
CTLR, SRE, IGRPEN1, AP1R1 = icc(12, 12, 4), icc(12, 12, 5), icc(12, 12, 7), icc(12, 9, 1)
ID_AA64PFR0 = icc(0, 4, 0)

GIC_ON = flat(
    store_word(GICD, 3),
    store_word(SGI_FRAME + 0x80, 0xFFFFFFFF),
    store_word(SGI_FRAME + 0x100, 0xFFFFFFFF),
    store_word(GICD + 0x84, 0xFFFFFFFF),
    store_word(GICD + 0x104, 0xFFFFFFFF),
    mov(9, 0xF0),
    PMR | 9,
    mov(9, 1),
    IGRPEN1 | 9,
)
PROLOGUE = flat(mov(28, LOG), mov(9, VECTORS), g.VBAR | 9, GIC_ON)
# An interrupt is acknowledged, logged with its place and the count, its timer switched off.
IRQ = flat(
    IAR1 | READ | 20, str_post(20, 28), g.ELR | READ | 21, str_post(21, 28), g.CNTVCT | READ | 22, str_post(22, 28),
    sub(23, 20, 27), cbnz(23, 2), g.CNTV_CTL | XZR, sub(23, 20, 30), cbnz(23, 2), g.CNTP_CTL | XZR,
    EOIR1 | 20, ERET,
)  # fmt: skip
ON = {"gic": 3, "irq": IRQ}


def sgi(number: int, to: int = 1) -> list[int]:
    return [*mov(9, number << 24 | to), SGI1R | 9]


def logged(*program: g.Words, **options: object) -> list[int]:
    return same([PROLOGUE, *program, OFF], **ON, **options).log


def test_the_registers_read_as_those_of_a_cortex_a57():
    shown = [each | READ | 1 for each in (ID_AA64PFR0, SRE, CTLR, PMR, RPR, IAR1)]
    log = logged(*([word, str_post(1, 28)] for word in shown))
    assert log == [0x01002222, 7, 1 << 15 | 1 << 11 | 4 << 8, 0xF0, 0xFF, 1023]


def test_a_gicv2_board_has_none_of_them():
    prologue = flat(mov(28, LOG), mov(9, VECTORS), g.VBAR | 9)
    result = same([prologue, PMR | READ | 1, ID_AA64PFR0 | READ | 1, str_post(1, 28), OFF])
    assert result.log[0] == 1 << 25, "undefined"
    assert result.log[-1] == 0x2222


def test_register_31_reads_as_zero_and_goes_nowhere():
    log = logged(g.adr(1, 0), PMR | READ | XZR, PMR | XZR, PMR | READ | 1, str_post(1, 28))
    assert log == [0], "neither the stack pointer nor an exception"


@pytest.mark.parametrize(
    "word",
    [AP1R1 | READ, EOIR1 | READ, SGI1R | READ, IAR1, RPR, icc(12, 13, 0), icc(4, 6, 1) | READ, UDF],
    ids=hex,
)
def test_what_there_is_not_is_undefined(word):
    log = logged(NOP, word | 3, NOP)
    assert log[0] == 1 << 25
    assert log[1] == CODE + 4 * len(PROLOGUE) + 4


def test_el0_may_not_use_them():
    user = [PMR | READ | 1, PMR | XZR]
    program = [mov(27, 5), g.adr(9, 20), g.ELR | 9, mov(9, 0), g.SPSR | 9, ERET, *user, svc()]
    log = logged(*program, PMR | READ | 1, str_post(1, 28))
    assert [cause >> 26 for cause in log[:-1:4]] == [0, 0, 0x15]
    assert log[-1] == 0xF0, "nor did it change anything"


def test_each_counts_as_one_instruction():
    count = [g.CNTVCT | READ | 1, str_post(1, 28)]
    body = [PMR | READ | 2, PMR | 2] * 50
    log = logged(*count, *body, *count, *count, *[NOP] * 100, *count)
    assert log[1] - log[0] == log[3] - log[2]


def test_an_interrupt_comes_right_behind_the_instruction_that_raises_it():
    log = logged(DAIFCLR_I, sgi(5), NOP, NOP, b(1), DAIFSET_I)
    assert log[0] == 5
    assert log[1] == CODE + 4 * (len(PROLOGUE) + 1 + len(sgi(5)))


def test_the_mask_is_heeded_as_soon_as_it_is_lifted():
    body = [DAIFCLR_I, PMR | XZR, sgi(5), NOP, b(1), mov(2, 0xF0), PMR | 2, NOP, b(1)]
    log = logged(*body, DAIFSET_I)
    assert log[1] == CODE + 4 * (len(PROLOGUE) + len(flat(*body)) - 2)


def test_a_timer_and_a_wait():
    timer = [*mov(9, 500), g.CNTV_TVAL | 9, *mov(9, 1), g.CNTV_CTL | 9]
    log = logged(DAIFCLR_I, *timer, WFI, NOP, b(1), DAIFSET_I)
    assert log[0] == 27


def test_a_second_cpu_is_reached_by_its_affinity():
    second = CODE + 0x4000
    frame = SGI_FRAME + 20 * 0x20000
    wake = flat(mov(0, 0xC4000003), mov(1, 0x104), mov(2, second), mov(3, 0), HVC)
    wait = [*mov(9, STACK), ldr_x(1, 9), g.cbz(1, -1)]
    there = flat(
        store_word(frame + 0x80, 0xFFFFFFFF), store_word(frame + 0x100, 0xFFFFFFFF), mov(9, 0xF0), PMR | 9,
        mov(9, 1), IGRPEN1 | 9, mov(9, STACK), str_x(9, 9), DAIFSET_I, WFI, IAR1 | READ | 2, mov(9, STACK + 8),
        str_x(2, 9), EOIR1 | 2, g.CPU_OFF,
    )  # fmt: skip
    send = sgi(7, 1 << 16 | 1 << 4)
    done = [*mov(9, STACK + 8), ldr_x(1, 9), g.cbz(1, -1)]
    native, counting = (
        run(
            [PROLOGUE, wake, wait, send, done, str_post(1, 28), OFF],
            is_native=is_native,
            prepare=lambda board: put(board, second, there),
            cpus=21,
            slice_of=lambda cpus: 100,
            **ON,
        )
        for is_native in (True, False)
    )
    assert native.log == [7]
    assert native == counting


@pytest.mark.parametrize(("gic", "cpus"), [(1, 1), (4, 1), (3, 124)])
def test_a_board_that_there_is_not_is_refused(gic, cpus):
    with pytest.raises(InputError):
        Board("4M", cpus, gic=gic)


REGISTERS = st.sampled_from((IAR1, EOIR1, HPPIR1, RPR, PMR, CTLR, SRE, IGRPEN1, AP1R1, ID_AA64PFR0, SGI1R))
SOON = st.integers(1, 300)
OPERATIONS = st.one_of(
    st.sampled_from((1, 2, 5, 30, 300)).map(lambda count: [NOP] * count),
    st.sampled_from(([DAIFSET_I], [DAIFCLR_I], [DAIFCLR_I], [g.ISB], [b(1)], [svc(3)], [UDF], [g.IALLU])),
    REGISTERS.map(lambda register: [register | READ | 9, add_reg(0, 0, 9), str_post(9, 28)]),
    st.builds(lambda register, value: [*mov(9, value), register | 9], REGISTERS, st.sampled_from((0, 1, 0xF0))),
    st.integers(0, 15).map(sgi),
    st.just([IAR1 | READ | 20, str_post(20, 28), EOIR1 | 20]),
    st.builds(
        lambda ticks, wait: [*mov(9, ticks), g.CNTV_TVAL | 9, *mov(9, 1), g.CNTV_CTL | 9, *wait],
        SOON,
        st.sampled_from(([], [DAIFCLR_I, WFI])),
    ),
    st.integers(1, 40).map(
        lambda times: [*mov(8, times), add(1, 1, 1), PMR | READ | 2, sub(8, 8, 1), cbnz(8, -3)]
    ),
    st.integers(1, 31).map(lambda spi: store_word(GICD + 0x204, 1 << spi)),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATIONS, min_size=3, max_size=40), st.integers(0, 1023), st.integers(0, 1 << 32))
def test_any_program_runs_the_same_in_both_forms_and_with_any_stops(operations, offset, seed):
    same([PROLOGUE, *operations, DAIFSET_I, OFF], seeds=(seed,), entry=CODE + 4 * offset, limit=400_000, **ON)


def test_the_harness_tells_programs_apart():
    taken, masked = (run([PROLOGUE, first, sgi(5), NOP, b(1), OFF], **ON) for first in (DAIFCLR_I, DAIFSET_I))
    assert (len(taken.log), len(masked.log)) == (3, 0)
