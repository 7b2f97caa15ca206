"""A guest runs the same natively and counted in Python, and wherever else it is stopped on the way: to the last bit.

The programs are random, in what may matter to a stepper: branches, long straight code, masking and unmasking, timers
and counters, interrupts raised and taken back in the middle of a block, exceptions of every kind, code at EL0.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from machine import system_guest as g
from machine.system_guest import (
    CNTPCT,
    CNTVCT,
    CODE,
    DAIFCLR_I,
    DAIFSET_I,
    ELR,
    ERET,
    GICC,
    GICD,
    HVC,
    ISB,
    NOP,
    OFF,
    PROLOGUE,
    READ,
    SPSR,
    STACK,
    UDF,
    VECTORS,
    WFI,
    add,
    add_reg,
    b,
    brk,
    cbnz,
    cbz,
    flat,
    mov,
    put,
    run,
    same,
    store_word,
    str_post,
    sub,
    svc,
)

from kexecemu.machine.cpu.stepper import ends_block

TIMERS = ((g.CNTV_TVAL, g.CNTV_CTL, g.CNTV_CVAL), (g.CNTP_TVAL, g.CNTP_CTL, g.CNTP_CVAL))
SOON = st.sampled_from((0, 1, 2, 3, 5, 10, 30, 100, 400))
REGISTER = st.integers(0, 7)


def raise_sgi(number: int) -> list[int]:
    return store_word(GICD + 0xF00, 2 << 24 | number)


def set_timer(timer: tuple[int, int, int], ticks: int, control: int) -> list[int]:
    tval, ctl, _ = timer
    return [*mov(9, ticks), tval | 9, *mov(9, control), ctl | 9]


def set_comparator(timer: tuple[int, int, int], ticks: int) -> list[int]:
    _, ctl, cval = timer
    return [CNTVCT | READ | 9, add(9, 9, ticks), cval | 9, *mov(9, 1), ctl | 9]


def loop(times: int, length: int) -> list[int]:
    return [*mov(8, times), *[add_reg(1, 1, 8)] * length, sub(8, 8, 1), cbnz(8, -(length + 1))]


def at_el0(masked: int, masked_after: int, body: list[int]) -> list[int]:
    """A few instructions at EL0, up to an SVC that leads back to EL1 behind it."""
    spsr = mov(9, masked)
    return [
        *mov(27, 5 | masked_after),
        g.adr(9, 4 * (4 + len(spsr))),
        ELR | 9,
        *spsr,
        SPSR | 9,
        ERET,
        *body,
        svc(),
    ]


USER = st.sampled_from(
    (NOP, CNTVCT | READ | 9, add_reg(0, 0, 9), str_post(0, 28), brk(1), DAIFCLR_I, svc(1), WFI)
)
PSTATES = st.sampled_from((0, 0x80))
OPERATIONS = st.one_of(
    st.builds(lambda d, n, m, by: [g.eor_ror(d, n, m, by)], REGISTER, REGISTER, REGISTER, st.integers(0, 63)),
    st.sampled_from((1, 2, 5, 30, 300, 600, 1100)).map(lambda count: [NOP] * count),
    st.builds(lambda t, d: [cbz(t, 2), add(d, d, 1)], REGISTER, REGISTER),
    st.builds(loop, st.integers(1, 60), st.integers(1, 6)),
    st.sampled_from(
        ([DAIFSET_I], [DAIFCLR_I], [DAIFCLR_I], [ISB], [b(1)], [g.TPIDR | 9], [g.TLBI], [g.IALLU])
    ),
    PSTATES.map(lambda value: [*mov(9, value), g.DAIF | 9]),
    st.integers(0, 99).map(lambda number: [svc(number)]),
    st.sampled_from(([brk(5)], [UDF], [g.SMC], [*mov(0, 0x84000000), HVC])),
    st.builds(
        lambda phys, access: [*mov(9, phys), access],
        st.sampled_from((0x100000000, 0x48000000, 0x40400000)),
        st.sampled_from((g.ldr_x(2, 9), g.str_x(2, 9))),
    ),
    st.builds(set_timer, st.sampled_from(TIMERS), SOON, st.sampled_from((1, 1, 1, 3, 0))),
    st.builds(set_comparator, st.sampled_from(TIMERS), SOON),
    st.sampled_from((CNTVCT, CNTPCT, *TIMERS[0], *TIMERS[1])).map(
        lambda register: [register | READ | 9, add_reg(0, 0, 9), str_post(9, 28)]
    ),
    st.builds(
        lambda first, ticks: [first, *set_timer(TIMERS[0], ticks, 1), WFI],
        st.sampled_from((DAIFCLR_I, DAIFSET_I)),
        SOON,
    ),
    st.integers(0, 15).map(raise_sgi),
    st.sampled_from((0, 0xF0, 0xF0)).map(lambda priority: store_word(GICC + 4, priority)),
    st.sampled_from((0, 1, 1)).map(lambda on: store_word(GICD, on)),
    st.integers(8, 11).map(lambda spi: store_word(GICD + 0x204, 1 << spi)),
    st.just(store_word(GICD + 0x284, 0xFFFF)),
    st.builds(at_el0, PSTATES, PSTATES, st.lists(USER, min_size=1, max_size=12)),
)

# A timer that expires in the block that an external abort, or a call to firmware, ends: nobody may miss it.
ABORT_PAST_EXPIRY = (
    [DAIFCLR_I],
    set_timer(TIMERS[1], 3, 1),
    [NOP] * 9,
    mov(9, 0),
    [g.str_x(2, 9)],
    loop(40, 4),
)
CALL_PAST_EXPIRY = (
    [DAIFCLR_I],
    set_timer(TIMERS[0], 3, 1),
    [NOP] * 9,
    mov(0, 0x84000000),
    [HVC],
    [NOP] * 99,
    loop(9, 9),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATIONS, min_size=3, max_size=40), st.integers(0, 1023), st.integers(0, 1 << 32))
@example(ABORT_PAST_EXPIRY, 0, 1)
@example(CALL_PAST_EXPIRY, 0, 1)
def test_any_program_runs_the_same_in_both_forms_and_with_any_stops(operations, offset, seed):
    same([PROLOGUE, *operations, DAIFSET_I, OFF], seeds=(seed,), entry=CODE + 4 * offset, limit=400_000)


def test_the_harness_tells_programs_apart():
    # Or all of the above could pass because nothing is seen.
    taken = run([PROLOGUE, DAIFCLR_I, raise_sgi(5), NOP, b(1), OFF])
    masked = run([PROLOGUE, DAIFSET_I, raise_sgi(5), NOP, b(1), OFF])
    assert taken.log and not masked.log
    assert taken.ram != masked.ram


# -- boundaries ------------------------------------------------------------------------------------------------


def interrupted_at(*words: g.Words) -> int:
    """How far behind a store that raises an interrupt it is taken, in instructions."""
    before = [PROLOGUE, raise_sgi(5)]
    result = same([*before, *words, DAIFSET_I, OFF], seeds=(1, 2))
    assert result.log[0] == 5
    return (result.log[1] - CODE) // 4 - len(flat(*before))


@pytest.mark.parametrize("unmask", [[DAIFCLR_I], [*mov(9, 0), g.DAIF | 9]])
def test_unmasking_is_a_boundary(unmask):
    assert interrupted_at(NOP, unmask, [NOP] * 50) == 1 + len(unmask)


def test_a_return_to_unmasked_code_is_a_boundary():
    code = [*mov(9, 5), SPSR | 9, g.adr(9, 12), ELR | 9, ERET, *[NOP] * 5]
    assert interrupted_at(code) == code.index(ERET) + 1


@pytest.mark.parametrize("straight", [1, 511, 512, 513, 1024, 3000])
def test_straight_code_of_any_length_is_not_interrupted_before_its_branch(straight):
    # It is cut at the ends of pages, and every 512 instructions or so by the engine.
    program = [PROLOGUE, DAIFCLR_I, raise_sgi(5), [NOP] * straight, b(2), NOP, NOP, DAIFSET_I, OFF]
    result = same(program, seeds=(1, 2, 3))
    assert result.log[1] == CODE + 4 * (len(flat(*program[:4])) + 2)


def test_an_interrupt_raised_and_taken_back_within_a_block_is_not_seen():
    pend = [*mov(9, GICD), *mov(10, 1 << 8)]
    program = [PROLOGUE, DAIFCLR_I, pend, b(1), g.str_w(10, 9, 0x204), NOP, g.str_w(10, 9, 0x284), b(1), NOP]
    assert not same([*program, DAIFSET_I, OFF], seeds=(1, 2)).log
    program[6] = b(1)  # a boundary in between
    assert same([*program, DAIFSET_I, OFF], seeds=(1, 2)).log[0] == 40


@pytest.mark.parametrize("ticks", range(12))
@pytest.mark.parametrize("tail", [svc(1), brk(1), UDF, b(1), DAIFCLR_I, NOP], ids=hex)
def test_a_deadline_that_meets_any_instruction_is_kept(ticks, tail):
    same(
        [
            PROLOGUE,
            DAIFCLR_I,
            set_timer(TIMERS[0], ticks, 1),
            [NOP] * 7,
            tail,
            [NOP] * 3,
            tail,
            b(1),
            loop(5, 2),
            OFF,
        ],
        seeds=(),
    )


def test_a_timer_is_taken_at_the_first_boundary_at_its_count():
    result = same(
        [PROLOGUE, DAIFCLR_I, set_timer(TIMERS[0], 100, 1), [NOP, b(1)] * 200, DAIFSET_I, OFF], seeds=(1, 2)
    )
    intid, _, count = result.log[:3]
    first = same([PROLOGUE, DAIFCLR_I, mov(9, 100), CNTVCT | READ | 9, str_post(9, 28), OFF]).log[0]
    assert intid == 27
    # Four instructions of the handler go before its own look at the count.
    assert first + 100 <= count <= first + 100 + 4


def test_the_words_behind_which_there_is_a_boundary_are_branches_exceptions_and_what_can_unmask():
    capstone = pytest.importorskip("capstone")
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, 0)
    names = [
        "b",
        "bl",
        "br",
        "blr",
        "ret",
        "eret",
        "cbz",
        "cbnz",
        "tbz",
        "tbnz",
        "svc",
        "hvc",
        "smc",
        "brk",
        "hlt",
    ]
    words = [
        0x14000001, 0x94000001, 0x54000020, 0x5400002E, 0xD61F0120, 0xD63F0120, g.RET, ERET, 0x34000020, 0x35000020,
        0xB4000020, 0xB5000020, 0x36000020, 0x37000020, 0xB7F80020, svc(9), HVC, g.SMC, brk(9), 0xD4400000,
        NOP, WFI, ISB, g.DSB, add(1, 2, 3), g.mov(1, 9)[0], g.ldr_x(1, 2), g.adr(1, 8), g.ldxr(1, 2), g.stxr(1, 2, 3),
        READ | g.DAIF | 3, g.TPIDR | 1, g.CNTV_CTL | 1, g.TLBI, g.IALLU, 0x1E604020, 0x58000041,
    ]  # fmt: skip
    for word in words:
        (instruction,) = decoder.disasm(word.to_bytes(4, "little"), 0)
        assert ends_block(word) is (instruction.mnemonic.split(".")[0] in names), instruction
    assert ends_block(DAIFCLR_I) and ends_block(g.DAIF | 3)
    assert not ends_block(DAIFSET_I)


# -- exceptions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0x100000000, GICD, 0x40400000])
def test_a_branch_to_where_there_is_no_memory_is_a_fetch_that_did_not_retire(where):
    handler = [ELR | READ | 20, str_post(20, 28), CNTVCT | READ | 20, str_post(20, 28), OFF]
    program = [PROLOGUE, mov(9, where), g.br(9)]
    result = same(program, prepare=lambda board: put(board, VECTORS + 0x200, *handler), seeds=(1,))
    assert result.log == [where, (len(flat(*program)) + 2) // 2]


def test_running_off_the_end_of_memory_is_an_abort_at_its_end():
    handler = [ELR | READ | 20, str_post(20, 28), OFF]

    def prepare(board):
        put(board, 0x403FFF00, [NOP] * 64)
        put(board, VECTORS + 0x200, *handler)

    assert same([PROLOGUE, mov(9, 0x403FFF00), g.br(9)], prepare=prepare, seeds=(1,)).log == [0x40400000]


def test_el0_reaches_its_timer_with_leave():
    body = [g.CNTV_CVAL | 31, g.CNTV_CVAL | READ | 1, str_post(1, 28)]
    result = same([PROLOGUE, mov(9, 0x303), g.CNTKCTL | 9, at_el0(0, 0x80, body), OFF])
    assert result.log[0] == 0
    assert result.log[1] >> 26 == 0x15


def test_a_vector_that_faults_at_once_is_the_end():
    result = same([PROLOGUE, svc(1), OFF], prepare=lambda board: put(board, VECTORS + 0x200, UDF))
    assert "lost" in result.end


@pytest.mark.parametrize("handler", [[ERET], [NOP, UDF]], ids=["returns", "faults again"])
def test_a_fault_that_comes_again_and_again_goes_on_for_as_long_as_the_guest_likes(handler):
    # Another CPU, or an interrupt, may mend its cause.
    result = same(
        [PROLOGUE, UDF, OFF], limit=20_000, prepare=lambda board: put(board, VECTORS + 0x200, handler)
    )
    assert "budget" in result.end


def test_an_abort_is_taken_again_until_an_interrupt_ends_it():
    # The load's handler returns to it; the timer's moves the address to where there is memory.
    def prepare(board):
        put(board, VECTORS + 0x200, ERET)
        put(
            board,
            VECTORS + 0x280,
            mov(0, STACK),
            g.CNTV_CTL | 31,
            g.ldr_w(20, 29, 0xC),
            g.str_w(20, 29, 0x10),
            ERET,
        )

    program = [PROLOGUE, set_timer(TIMERS[0], 300, 1), DAIFCLR_I, mov(0, 0x100000000), g.ldr_x(1, 0), OFF]
    assert "off" in same(program, prepare=prepare, seeds=(1,)).end


def test_the_log_of_an_svc_holds_its_syndrome_place_and_count():
    program = [PROLOGUE, svc(0x77)]
    result = same([*program, OFF])
    assert result.log[:2] == [0x56000077, CODE + 4 * len(flat(*program))]
