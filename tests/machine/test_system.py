"""A board as a machine: CPUs in turn, interrupts between them, idling, firmware, budgets. The guests are bare metal."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from machine import system_guest as g
from machine.system_guest import (
    CODE,
    CPU_OFF,
    DAIFCLR_I,
    DSB,
    ELR,
    ERET,
    GIC_ON,
    GICC,
    GICD,
    ISB,
    LOG,
    NOP,
    OFF,
    PROLOGUE,
    READ,
    RESET,
    SPSR,
    STACK,
    VECTORS,
    WFI,
    Words,
    add,
    b,
    cbnz,
    flat,
    ivau,
    ldr_x,
    ldxr,
    mov,
    put,
    run,
    same,
    store_word,
    str_post,
    str_w,
    str_x,
    stxr,
    sub,
)

from kexecemu.machine.board import Board
from kexecemu.machine.memory.descriptors import AF, ATTR_IDX, PXN, SH_INNER, UXN, Granule, TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.system import System, SystemEndKind

SECOND = CODE + 0x4000
DONE = STACK + 0x40
BLR_X11 = 0xD63F0160
SGI_TO = [1 << 16, 1 << 17, 1 << 18, 1 << 19]


def cpu_on(cpu: int, entry: int = SECOND) -> list[int]:
    return flat(mov(0, 0xC4000003), mov(1, cpu), mov(2, entry), mov(3, cpu), g.HVC)


def increment(phys: int, times: int = 1) -> list[int]:
    """Add one to a doubleword, so often, by exclusive load and store."""
    once = [ldxr(1, 9), add(1, 1, 1), stxr(2, 1, 9), cbnz(2, -3)]
    return flat(mov(9, phys), mov(8, times), once, sub(8, 8, 1), cbnz(8, -5))


def wait_for(phys: int, value: int) -> list[int]:
    return flat(mov(9, phys), ldr_x(1, 9), sub(1, 1, value), cbnz(1, -2))


def word(result: g.Result, phys: int) -> int:
    return int.from_bytes(result.ram[phys - 0x40000000 :][:8], "little")


def with_second(*words: Words) -> Callable[[Board], None]:
    return lambda board: put(board, SECOND, *words)


NATIVE = pytest.mark.parametrize("is_native", [True, False], ids=["native", "counting"])


# -- several CPUs ----------------------------------------------------------------------------------------------


@NATIVE
@pytest.mark.parametrize("cpus", [2, 4])
@pytest.mark.parametrize("length", [1, 3, 37, 1000])
def test_counters_shared_by_exclusive_accesses_are_exact(cpus, length, is_native):
    program = [
        *(cpu_on(n) for n in range(1, cpus)),
        increment(STACK, 300),
        increment(DONE),
        wait_for(DONE, cpus),
        OFF,
    ]
    second = with_second(increment(STACK, 300), increment(DONE), CPU_OFF)
    result = run(program, prepare=second, cpus=cpus, slice_of=lambda cpus: length, is_native=is_native)
    assert "switched off" in result.end
    assert word(result, STACK) == 300 * cpus
    assert min(result.instructions) > 1500


def test_without_exclusive_accesses_increments_are_lost():
    # Or the test above would prove nothing: the CPUs do come in between each other.
    lossy = flat(
        mov(9, STACK), mov(8, 300), ldr_x(1, 9), add(1, 1, 1), str_x(1, 9), sub(8, 8, 1), cbnz(8, -4)
    )
    # A read held over a slice: a branch between the load and the store makes a place to stop at.
    lossy[-4:-4] = [b(1)]
    lossy[-1] = cbnz(8, -6 + 1)
    program = [cpu_on(1), lossy, increment(DONE), wait_for(DONE, 2), OFF]
    result = run(
        program, prepare=with_second(lossy, increment(DONE), CPU_OFF), cpus=2, slice_of=lambda cpus: 3
    )
    assert 300 <= word(result, STACK) < 600


def shared_work(cpus: int) -> tuple[list[Words], Callable[[Board], None]]:
    program = [
        *(cpu_on(n) for n in range(1, cpus)),
        increment(STACK, 99),
        increment(DONE),
        wait_for(DONE, cpus),
        OFF,
    ]
    return program, with_second(increment(STACK, 99), increment(DONE), CPU_OFF)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_a_budget_ends_a_run_and_the_next_one_goes_on_as_if_there_had_been_none(cpus):
    program, second = shared_work(cpus)
    whole = run(program, prepare=second, cpus=cpus, slice_of=lambda cpus: 100)
    for is_native in (True, False):
        chance = random.Random(cpus)
        for lengths in ((1,), (1, 7, 50, 333), (101,)):
            cut = run(
                program,
                prepare=second,
                cpus=cpus,
                slice_of=lambda cpus: 100,
                is_native=is_native,
                pieces=lambda lengths=lengths, chance=chance: chance.choice(lengths),
            )
            assert cut == whole


def test_both_forms_interleave_cpus_alike():
    program, second = shared_work(4)
    same(program, prepare=second, cpus=4, seeds=(), slice_of=lambda cpus: 61)


def test_a_cpu_that_is_switched_on_need_not_wait_for_the_end_of_a_long_turn():
    program = [cpu_on(1), wait_for(DONE, 1), OFF]
    result = run(program, prepare=with_second(increment(DONE), CPU_OFF), cpus=2)
    assert result.time < 200_000


def test_a_cpu_gets_its_context_and_starts_masked_with_the_mmu_off():
    result = run(
        [cpu_on(1), wait_for(DONE, 1), OFF],
        prepare=with_second(
            mov(9, LOG), str_x(0, 9), g.DAIF | READ | 1, str_x(1, 9, 8), increment(DONE), CPU_OFF
        ),
        cpus=2,
    )
    assert (word(result, LOG), word(result, LOG + 8)) == (1, 0x3C0)


def test_a_cpu_that_spins_with_interrupts_masked_does_not_stop_the_others():
    # The other one switches the machine off.
    result = run([cpu_on(1), *[NOP] * 3, NOP, b(-1)], prepare=with_second(increment(STACK, 500), OFF), cpus=2)
    assert "cpu1" in result.end and "switched off" in result.end


@NATIVE
def test_software_interrupts_go_from_cpu_to_cpu_and_back(is_native):
    # CPU 1 waits; each of 20 interrupts wakes it, and it answers with one that wakes CPU 0.
    def answer(to: int) -> list[int]:
        return flat(mov(9, GICD + 0xF00), mov(10, SGI_TO[to] | 3), str_w(10, 9))

    local = flat(store_word(GICC, 1), store_word(GICC + 4, 0xF0), store_word(GICD + 0x100, 0xFFFF))
    acknowledge = flat(mov(9, GICC), g.ldr_w(11, 9, 0xC), str_w(11, 9, 0x10), str_post(11, 28))
    second = flat(local, mov(28, LOG + 0x1000), increment(DONE), mov(8, 20))
    body = flat(WFI, acknowledge, answer(0), sub(8, 8, 1))
    second += [*body, cbnz(8, -len(body)), *CPU_OFF]
    ping = flat(answer(1), WFI, acknowledge, sub(8, 8, 1))
    first = flat(
        mov(28, LOG), GIC_ON, cpu_on(1), wait_for(DONE, 1), mov(8, 20), ping, cbnz(8, -len(ping)), OFF
    )
    result = run(first, prepare=with_second(second), cpus=2, is_native=is_native)
    assert "switched off" in result.end
    # The number of the interrupt, and who has sent it.
    assert [word(result, LOG + 8 * n) for n in range(20)] == [3 | 1 << 10] * 20
    assert [word(result, LOG + 0x1000 + 8 * n) for n in range(20)] == [3] * 20


@NATIVE
def test_a_cpu_that_was_woken_goes_on_after_its_interrupt(is_native):
    second = flat(
        store_word(GICC, 1),
        store_word(GICC + 4, 0xF0),
        store_word(GICD + 0x100, 0xFFFF),
        increment(DONE),
        WFI,
    )
    second += flat(mov(9, GICC), g.ldr_w(11, 9, 0xC), str_w(11, 9, 0x10), increment(STACK, 200), OFF)
    first = [GIC_ON, cpu_on(1), wait_for(DONE, 1), store_word(GICD + 0xF00, SGI_TO[1]), b(0)]
    result = run(
        first,
        prepare=with_second(second),
        cpus=2,
        slice_of=lambda cpus: 100,
        limit=50_000,
        is_native=is_native,
    )
    assert "cpu1" in result.end and "switched off" in result.end
    assert word(result, STACK) == 200


# -- what one CPU does for all ---------------------------------------------------------------------------------

PAGE, ALIAS = 0xFFFF000010000000, 0xFFFF000020100000  # virt; PAGE runs, ALIAS is data
PAGE_PHYS = 0x40300000
NORMAL = AF | SH_INNER | UXN | ATTR_IDX(0)
USER_EXECUTES = AF | SH_INNER | PXN | 1 << 6 | 1 << 7 | 1 << 11


class Mmu:
    """Page tables for all CPUs: RAM and the controller as they are, PAGE and ALIAS above; switched on by the guest."""

    def __init__(self, board: Board) -> None:
        self.next = 0x40380000
        fmt = TableFormat(Granule.K4)
        self.upper, self.lower = (PageTables(board.ram, fmt, self.page(), self.page) for _ in range(2))
        self.map(self.upper, PAGE, PAGE_PHYS, NORMAL)
        self.map(self.upper, ALIAS, PAGE_PHYS, NORMAL | PXN)
        self.map(self.lower, 0x40000000, 0x40000000, NORMAL, 4 << 20)
        self.map(self.lower, GICD, GICD, AF | PXN | UXN | ATTR_IDX(1), 0x20000)
        put(board, PAGE_PHYS, mov(0, 1), g.RET)
        tables = range(0x40380000, self.next, 8)
        self.pte_phys = next(at for at in tables if board.ram.read_u64(at) & 0xFFFFFFFFF003 == PAGE_PHYS | 3)
        self.pte = board.ram.read_u64(self.pte_phys)

    def page(self) -> int:
        self.next += 0x1000
        return self.next - 0x1000

    @staticmethod
    def map(tables: PageTables, virt: int, phys: int, flags: int, size: int = 0x1000) -> None:
        tables.map(virt, phys, size, flags, blocks=False, contiguous=False)

    def on(self) -> list[int]:
        tcr = 16 | 16 << 16 | 2 << 30 | 5 << 32
        registers = {
            0xD518A200: 0xFF,
            0xD5182040: tcr,
            0xD5182000: self.lower.root_phys,
            0xD5182020: self.upper.root_phys,
        }
        code = flat(*(flat(mov(9, value), msr | 9) for msr, value in registers.items()), ISB)
        return [*code, 0xD5381009, 0xB2400129, 0xD5181009, ISB]  # SCTLR_EL1.M


def mmu_run(
    program: Callable[[Mmu], Sequence[Words]],
    second: Callable[[Mmu], Sequence[Words]] = lambda mmu: [NOP],
    prepare: Callable[[Board, Mmu], object] = lambda board, mmu: None,
    **options: object,
) -> g.Result:
    """run() with page tables to use."""
    with Board("4M") as board:
        layout = Mmu(board)  # the same on every board

    def fill(board: Board) -> None:
        mmu = Mmu(board)
        put(board, SECOND, *second(mmu))
        prepare(board, mmu)

    return run(program(layout), prepare=fill, **options)  # type: ignore[arg-type]


CALL = flat(mov(11, PAGE), BLR_X11)


def rewrite(value: int) -> list[int]:
    """Change what PAGE returns, through ALIAS; the engine sees the first such store only."""
    return flat(mov(12, ALIAS), mov(13, mov(0, value)[0]), str_w(13, 12), DSB)


def invalidate(*instructions: int) -> list[int]:
    return flat(*instructions, DSB, ISB)


LOCAL_IC = {
    "ivau": flat(mov(14, PAGE), invalidate(ivau(14))),
    "iallu": invalidate(g.IALLU),
    "ialluis": invalidate(g.IALLUIS),
}


@NATIVE
@pytest.mark.parametrize("ic", LOCAL_IC.values(), ids=LOCAL_IC)
@pytest.mark.parametrize("near", [False, True], ids=["", "an interrupt waits"])
def test_code_changed_through_an_alias_runs_after_its_ic(ic, near, is_native):
    waiting = flat(store_word(GICD + 0xF00, 2 << 24)) if near else []
    result = mmu_run(
        lambda mmu: [
            PROLOGUE,
            mmu.on(),
            rewrite(1),
            CALL,
            waiting,
            rewrite(2),
            ic,
            CALL,
            str_post(0, 28),
            OFF,
        ],
        is_native=is_native,
    )
    assert result.log == [2]


@NATIVE
@pytest.mark.parametrize("waits", [False, True], ids=["", "an interrupt waits"])
def test_straight_code_may_change_what_lies_ahead_in_it(waits, is_native):
    # No branch comes between the IC and the changed instruction, only the ISB that the architecture wants.
    start = flat(mov(12, ALIAS), mov(13, mov(0, 7)[0]), mov(14, PAGE))
    target = 0x100 + 4 * (len(start) + 6)
    body = flat(start, str_w(13, 12, target), DSB, add(14, 14, target), ivau(14), DSB, ISB, mov(0, 1))
    before = flat(
        mov(12, ALIAS), mov(13, mov(0, 1)[0]), str_w(13, 12, target)
    )  # for the next store to go unseen
    waiting = flat(store_word(GICD + 0xF00, 2 << 24)) if waits else []

    def prepare(board: Board, mmu: Mmu) -> None:
        put(board, PAGE_PHYS + 0x100, body, str_post(0, 28), g.RET)

    def program(mmu: Mmu) -> list[Words]:
        first, second = (flat(mov(11, PAGE + offset), BLR_X11) for offset in (target, 0x100))
        return [PROLOGUE, mmu.on(), before, first, waiting, second, OFF]

    assert mmu_run(program, prepare=prepare, is_native=is_native).log == [1, 7]


@NATIVE
def test_code_changed_through_an_alias_is_the_old_one_without_an_ic(is_native):
    # As on hardware it may be. When this fails, the engine sees more stores than it did: blockcount.c can go simpler.
    result = mmu_run(
        lambda mmu: [PROLOGUE, mmu.on(), rewrite(1), CALL, rewrite(2), DSB, ISB, CALL, str_post(0, 28), OFF],
        is_native=is_native,
    )
    assert result.log == [1]


def user_page(straight: int) -> g.Result:
    """A program runs in a page, the kernel gives the page other contents by its own address, the program runs again.

    A page of the kernel whose address differs from that one in its upper bits only has run meanwhile.
    """
    user, kernel = 0x10000000, ALIAS + (1 << 24)

    def prepare(board: Board, mmu: Mmu) -> None:
        mmu.map(mmu.lower, user, PAGE_PHYS, USER_EXECUTES)
        mmu.map(mmu.upper, kernel, PAGE_PHYS + 0x1000, NORMAL)
        put(board, PAGE_PHYS + 0x1000, [NOP] * straight, g.RET)
        put(board, PAGE_PHYS + 4, g.svc())
        put(board, VECTORS + 0x400, SPSR | 27, ELR | 25, ERET)  # a system call goes to x25, at EL1
        change = flat(rewrite(2), mov(14, ALIAS), [ivau(14), add(14, 14, 64)] * 64, DSB, ISB)
        again = flat(mov(25, SECOND + 0x1000), mov(9, user), ELR | 9, SPSR | 31, ERET)
        put(board, SECOND, str_post(0, 28), change, again)
        put(board, SECOND + 0x1000, str_post(0, 28), OFF)

    start = flat(mov(27, 0x3C5), mov(25, SECOND), mov(9, 0x10000000), ELR | 9, SPSR | 31, ERET)
    call = flat(mov(11, kernel), BLR_X11)
    return mmu_run(lambda mmu: [PROLOGUE, mmu.on(), call, rewrite(1), start], prepare=prepare)


def test_a_program_s_page_may_be_filled_anew_by_the_kernel():
    assert user_page(1).log == [1, 2]


def test_a_program_s_page_may_be_filled_anew_whatever_kernel_code_has_run():
    # blockcount.c folds addresses when it marks which lines have run.
    assert user_page(1023).log == [1, 2]


def broadcast(change: Callable[[Mmu], list[int]], **options: object) -> int:
    """CPU 0 calls PAGE, lets CPU 1 change it, and calls it again: what the second call gives."""
    result = mmu_run(
        lambda mmu: [PROLOGUE, mmu.on(), CALL, cpu_on(1), wait_for(DONE, 1), CALL, str_post(0, 28), OFF],
        lambda mmu: [mmu.on(), CALL, change(mmu), increment(DONE), CPU_OFF],
        lambda board, mmu: put(board, PAGE_PHYS + 0x1000, mov(0, 3), g.RET),
        cpus=2,
        **options,
    )
    return result.log[0]


@NATIVE
@pytest.mark.parametrize("ic", [LOCAL_IC["ivau"], LOCAL_IC["ialluis"]], ids=["ivau", "ialluis"])
def test_an_ic_is_heard_by_the_other_cpus(ic, is_native):
    assert broadcast(lambda mmu: rewrite(2) + ic, is_native=is_native) == 2


def test_without_an_ic_the_other_cpus_keep_their_code():
    assert broadcast(lambda mmu: rewrite(2)) == 1


def remap(mmu: Mmu) -> list[int]:
    return flat(mov(9, mmu.pte_phys), mov(10, mmu.pte + 0x1000), str_x(10, 9), DSB)


@NATIVE
@pytest.mark.parametrize(
    "tlbi",
    [
        [g.TLBI_IS],
        flat(mov(9, PAGE >> 12 & (1 << 44) - 1), 0xD5088369),
        flat(mov(9, PAGE >> 12 & (1 << 44) - 1), 0xD5088329),
    ],
    ids=["vmalle1is", "vaae1is", "vae1is"],
)
def test_a_tlbi_for_all_is_heard_by_the_other_cpus(tlbi, is_native):
    assert broadcast(lambda mmu: flat(remap(mmu), tlbi, DSB, ISB), is_native=is_native) == 3


def test_a_tlbi_for_oneself_is_not():
    assert broadcast(lambda mmu: flat(remap(mmu), g.TLBI, DSB, ISB)) == 1


@pytest.mark.parametrize("ic", [LOCAL_IC["ivau"]], ids=["ivau"])
def test_maintenance_is_heard_though_a_budget_ends_there(ic):
    for length in (1, 3, 50):
        assert (
            broadcast(
                lambda mmu: rewrite(2) + ic, pieces=lambda length=length: length, slice_of=lambda cpus: 50
            )
            == 2
        )


# -- idling ----------------------------------------------------------------------------------------------------


@NATIVE
def test_time_skips_to_the_next_timer_when_all_wait(is_native):
    timer = flat(mov(9, 1_000_000), g.CNTV_TVAL | 9, mov(9, 1), g.CNTV_CTL | 9)
    result = run(
        [PROLOGUE, timer, DAIFCLR_I, WFI, OFF],
        limit=10_000_000,
        is_native=is_native,
    )
    assert "switched off" in result.end
    assert result.log[0] == 27
    assert 1_000_000 <= result.log[2] <= 1_000_100
    assert result.instructions[0] < 200
    assert 2_000_000 <= result.time < 2_000_300


def test_the_earliest_timer_of_all_cpus_decides():
    def timer(ticks: int) -> list[int]:
        return flat(mov(9, ticks), g.CNTP_TVAL | 9, mov(9, 1), g.CNTP_CTL | 9)

    local = flat(store_word(GICC, 1), store_word(GICC + 4, 0xF0), store_word(GICD + 0x100, 0xFFFFFFFF))
    result = run(
        [PROLOGUE, cpu_on(1), timer(50_000), WFI, OFF],
        prepare=with_second(local, timer(20_000), WFI, OFF),
        cpus=2,
    )
    assert "cpu1" in result.end
    assert 40_000 < result.time < 41_000


def test_a_masked_interrupt_ends_the_waiting_and_is_not_taken():
    result = same([PROLOGUE, store_word(GICD + 0xF00, 2 << 24 | 4), WFI, str_post(9, 28), OFF])
    assert result.log == [GICD + 0xF00]


def test_waiting_for_nothing_is_the_end():
    result = same([PROLOGUE, WFI, OFF], seeds=(1,))
    assert "idle for good" in result.end


def test_a_timer_whose_interrupt_is_switched_off_wakes_nobody():
    timer = flat(mov(9, 100), g.CNTV_TVAL | 9, mov(9, 1), g.CNTV_CTL | 9)
    result = same([PROLOGUE, store_word(GICD + 0x180, 0xFFFFFFFF), timer, WFI, OFF], seeds=(1,))
    assert "idle for good" in result.end
    assert result.time >= 200


def test_a_budget_ends_in_the_middle_of_idling_and_the_next_run_goes_on():
    timer = flat(mov(9, 1_000_000), g.CNTV_TVAL | 9, mov(9, 1), g.CNTV_CTL | 9)
    program = [PROLOGUE, timer, DAIFCLR_I, WFI, OFF]
    whole = run(program)
    assert run(program, pieces=lambda: 77_777) == whole
    short = run(program, limit=500_000)
    assert "budget" in short.end
    assert short.time == 500_000


# -- the end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last,kind", [(OFF, "off"), (RESET, "reset"), ([b(0)], None), (CPU_OFF, "idle")])
def test_how_a_run_ended_is_told(last, kind):
    with Board("4M") as board:
        put(board, CODE, last)
        board.boot_cpu.reset(CODE)
        end = System(board).run(10_000)
        if kind is not None:
            assert end.kind is SystemEndKind(kind)
        assert end.cpu == 0
        assert end.time == board.time <= 10_000


def test_after_a_reset_every_cpu_can_be_started_again():
    # CPU 0 waits when CPU 1 resets the machine.
    with Board("4M", 2) as board:
        put(board, CODE, cpu_on(1), WFI, b(-1))
        put(board, SECOND, increment(STACK, 5), RESET)
        system = System(board)
        board.boot_cpu.reset(CODE)
        assert system.run(1_000_000).kind is SystemEndKind.RESET
        put(board, CODE, OFF)
        board.boot_cpu.reset(CODE)
        assert system.run(1_000_000).kind is SystemEndKind.OFF


def test_what_a_device_raises_comes_out_of_the_run():
    with Board("4M") as board:
        put(board, CODE, store_word(board.uart.base_phys, 65), OFF)
        board.boot_cpu.reset(CODE)

        def fail(offset: int, size: int, value: int) -> None:
            raise ZeroDivisionError

        board.uart.write = fail  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            System(board).run(1000)


def test_a_cpu_that_spins_does_not_end_the_run_while_another_one_has_a_timer_set():
    timer = flat(mov(9, 30_000), g.CNTP_TVAL | 9, mov(9, 1), g.CNTP_CTL | 9)
    local = flat(store_word(GICC, 1), store_word(GICC + 4, 0xF0), store_word(GICD + 0x100, 0xFFFFFFFF))
    second = with_second(local, timer, increment(DONE), WFI, OFF)
    result = run(
        [GIC_ON, cpu_on(1), wait_for(DONE, 1), b(0)], prepare=second, cpus=2, slice_of=lambda cpus: 100
    )
    assert "cpu1" in result.end and "switched off" in result.end


@pytest.mark.parametrize("second", [[b(0)], [WFI, *OFF], CPU_OFF], ids=["spins", "waits", "is off"])
def test_a_run_ends_when_one_cpu_spins_masked_and_the_other_cannot_help(second):
    result = run(
        [GIC_ON, cpu_on(1), wait_for(DONE, 1), b(0)], prepare=with_second(increment(DONE), second), cpus=2
    )
    assert "stuck" in result.end


def test_a_wfe_and_a_branch_back_to_it_is_an_endless_loop_as_well():
    with Board("4M") as board:
        put(board, CODE, 0xD503205F, b(-1))
        board.boot_cpu.reset(CODE)
        assert System(board).run(10**9).kind is SystemEndKind.STUCK


def test_progress_is_told_the_time():
    with Board("4M") as board:
        put(board, CODE, NOP, b(-1))
        board.boot_cpu.reset(CODE)
        seen: list[int] = []
        System(board, slice_of=lambda cpus: 1000).run(10_000, progress=seen.append)
    assert len(seen) >= 9
    assert seen == sorted(seen)
    assert seen[:2] == [0, 1000]


def test_a_branch_to_a_misaligned_address_behind_a_call_to_firmware_is_no_second_call():
    program = [PROLOGUE, *g.mov(0, 0x84000000), g.HVC, *g.mov(13, g.CODE + 0x402), 0xD61F01A0]  # BR X13
    result = g.same(program, seeds=(1,), limit=20_000)
    assert result.log[0] >> 26 == 0x22
    assert result.log[1] == g.CODE + 0x402
