"""Running a CPU: every way a run ends, and the registers."""

from __future__ import annotations

import threading

import pytest

from kexecemu.errors import MachineError
from kexecemu.machine.cpu import cpu as cpu_module
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.cpu.registers import Registers
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.memory.descriptors import Granule, TableFormat


@pytest.fixture(params=["native", "python"], autouse=True)
def counter(request, monkeypatch):
    """Every test here runs with both block counters."""
    if request.param == "python":
        monkeypatch.setenv("KEXECEMU_NO_NATIVE", "1")
    else:
        monkeypatch.delenv("KEXECEMU_NO_NATIVE", raising=False)
    return request.param


def test_the_counter_asked_for_is_the_one_in_use(guest, a64, counter):
    guest.start(a64.WFI)
    assert guest.cpu._engine.counter.native is (counter == "native")


def test_a_cpu_that_is_off_does_not_run(guest):
    with pytest.raises(MachineError, match="cpu0 is off"):
        guest.cpu.run()
    with pytest.raises(MachineError, match="cpu0 is off"):
        guest.cpu.deliver_irq()


def test_reset_leaves_nothing_of_the_past(guest, a64):
    guest.start(a64.WFI)
    fresh = guest.cpu.registers()
    guest.cpu.set_x(7, 7)
    guest.cpu.sp = 0x1000
    guest.cpu.set_sysreg("TTBR1_EL1", 0x41000000)
    guest.cpu.set_sysreg("VBAR_EL1", 0x41000000)
    guest.cpu.set_sysreg("SCTLR_EL1", guest.cpu.sysreg("SCTLR_EL1") | 1)
    guest.cpu.pstate = Pstate.EL1H
    assert guest.cpu.registers() != fresh
    guest.cpu.reset(a64.CODE)
    assert guest.cpu.registers() == fresh
    assert fresh["pstate"] == 0x3C5
    assert fresh["SCTLR_EL1"] & 0x1005 == 0
    assert fresh["pc"] == a64.CODE
    assert all(fresh[f"x{n}"] == 0 for n in range(31))


def test_reset_passes_x0(guest, a64):
    guest.cpu.reset(a64.CODE, 0x48000000)
    assert guest.cpu.x(0) == 0x48000000


def test_wfi_is_idle_and_the_pc_is_behind_it(guest, a64):
    guest.start(a64.NOP, a64.WFI, a64.NOP, a64.WFI)
    stop = guest.cpu.run()
    assert (stop.kind, stop.pc, stop.instructions) == (CpuStopKind.IDLE, a64.CODE + 8, 2)
    stop = guest.cpu.run()
    assert (stop.kind, stop.pc, stop.instructions) == (CpuStopKind.IDLE, a64.CODE + 16, 2)
    assert guest.cpu.instructions == 4


@pytest.mark.parametrize("hint", [0xD503203F, 0xD503205F, 0xD503209F], ids=["yield", "wfe", "sev"])
def test_other_hints_do_not_end_a_run(guest, a64, hint):
    guest.start(hint, a64.NOP, a64.WFI)
    assert guest.cpu.run().instructions == 3


def test_a_breakpoint_stops_before_the_block_and_the_next_run_goes_on(guest, a64):
    function = a64.CODE + 0x100
    guest.words(function, a64.add(1, 1, 1), a64.RET)
    guest.start(a64.bl(0x100), a64.bl(0xFC), a64.WFI)
    stops = [function, 0xFFFF800008000000]
    first = guest.cpu.run(stops=stops)
    assert (first.kind, first.pc, first.instructions) == (CpuStopKind.BREAKPOINT, function, 1)
    assert guest.cpu.x(1) == 0
    second = guest.cpu.run(stops=stops)
    assert (second.kind, second.pc, second.instructions) == (CpuStopKind.BREAKPOINT, function, 3)
    assert guest.cpu.x(1) == 1
    assert guest.cpu.run(stops=stops).kind is CpuStopKind.IDLE
    assert guest.cpu.x(1) == 2
    assert guest.cpu.instructions == 1 + 3 + 3


def test_only_the_first_block_of_a_run_is_exempt_from_stops(guest, a64):
    guest.start(a64.add(1, 1, 1), a64.b(-4))
    for expected in (0, 1, 2):
        stop = guest.cpu.run(stops=[a64.CODE])
        if expected == 0:
            assert stop.instructions == 2
        assert stop.kind is CpuStopKind.BREAKPOINT
        assert guest.cpu.x(1) == expected + 1


def test_a_breakpoint_at_a_vector_counts_though_the_faulting_block_was_the_first(guest, a64):
    guest.start(a64.brk(1))
    guest.vector(0x200, a64.WFI)
    stop = guest.cpu.run(stops=[a64.VECTORS + 0x200])
    assert stop.kind is CpuStopKind.BREAKPOINT
    assert stop.instructions == 0


def test_a_breakpoint_right_behind_a_hypercall_counts(guest, a64):
    guest.start(a64.hvc(), a64.WFI)
    guest.cpu.set_x(0, 0x84000000)
    assert guest.cpu.run(stops=[a64.CODE + 4]).kind is CpuStopKind.BREAKPOINT


def test_many_stops_are_told_apart(guest, a64):
    # 64 functions whose addresses share filter bits with the stops (they are 16 KiB apart), half of them stops.
    program = []
    for number in range(64):
        guest.words(a64.CODE + 0x10000 + number * 0x4000, a64.add(1, 1, 1), a64.RET)
        program.append(a64.bl(0x10000 + number * 0x4000 - 4 * number))
    guest.start(program, a64.WFI)
    stops = {a64.CODE + 0x10000 + number * 0x4000 for number in range(0, 64, 2)}
    seen = []
    while (stop := guest.cpu.run(stops=stops)).kind is CpuStopKind.BREAKPOINT:
        seen.append(stop.pc)
    assert seen == sorted(stops)
    assert guest.cpu.x(1) == 64


def test_changing_stops_between_runs_takes_effect(guest, a64):
    guest.start(a64.b(4), a64.b(4), a64.b(4), a64.WFI)
    assert guest.cpu.run(stops=[a64.CODE + 4]).pc == a64.CODE + 4
    assert guest.cpu.run(stops=[a64.CODE + 8]).pc == a64.CODE + 8
    assert guest.cpu.run().kind is CpuStopKind.IDLE


def test_leaving_a_range_stops_before_the_first_foreign_instruction(guest, a64):
    guest.start(a64.NOP, a64.b(0x100 - 4))
    guest.words(a64.CODE + 0x100, a64.movz(1, 1), a64.WFI)
    stop = guest.cpu.run(within=range(a64.CODE, a64.CODE + 0x100))
    assert (stop.kind, stop.pc, stop.instructions) == (CpuStopKind.LEFT, a64.CODE + 0x100, 2)
    assert guest.cpu.x(1) == 0
    again = guest.cpu.run(within=range(a64.CODE, a64.CODE + 0x100))
    assert (again.kind, again.instructions) == (CpuStopKind.LEFT, 0), "the first block is checked too"
    assert guest.cpu.run().kind is CpuStopKind.IDLE, "the range is forgotten"


def test_leaving_wins_over_a_stop_and_over_alignment(guest, a64):
    odd = a64.CODE + 0x1003
    guest.start(a64.mov(1, odd), a64.br(1))
    stop = guest.cpu.run(stops=[odd], within=range(a64.CODE, a64.CODE + 0x1000))
    assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, odd)


def test_a_branch_to_nothing_is_a_fault_first_and_leaves_at_the_vector(guest, a64):
    # There is no block at such an address: the fetch faults, as on hardware, and the vector is what is outside.
    guest.start(a64.mov(1, 0x1000), a64.br(1))
    guest.vector(0x200, a64.WFI)
    stop = guest.cpu.run(within=range(a64.CODE, a64.CODE + 0x1000))
    assert (stop.kind, stop.pc) == (CpuStopKind.LEFT, a64.VECTORS + 0x200)
    assert [fault.far for fault in guest.cpu.exceptions] == [0x1000]


def test_a_limit_is_met_at_the_next_block(guest, a64):
    guest.start(a64.add(1, 1, 1), a64.add(1, 1, 1), a64.b(-8))
    stop = guest.cpu.run(limit=100)
    assert (stop.kind, stop.instructions, guest.cpu.x(1)) == (CpuStopKind.DEADLINE, 102, 68)
    assert guest.cpu.run(limit=0).instructions == 0
    assert guest.cpu.run(limit=1).instructions == 3
    assert guest.cpu.instructions == 105


def test_slices_do_not_show(guest, a64, monkeypatch):
    monkeypatch.setattr(cpu_module, "SLICE", 10)
    guest.start(a64.add(1, 1, 1), a64.b(-4))
    stop = guest.cpu.run(limit=1000)
    assert (stop.kind, stop.instructions, guest.cpu.x(1)) == (CpuStopKind.DEADLINE, 1000, 500)
    # A breakpoint is found though slices begin at it.
    monkeypatch.setattr(cpu_module, "SLICE", 1)
    guest.cpu.pc = a64.CODE
    assert guest.cpu.run(stops=[a64.CODE]).instructions == 2


def test_another_thread_sees_the_count_rise(guest, a64, counter):
    guest.start(a64.sub(1, 1, 1), a64.cbnz(1, -4), a64.WFI)
    rounds = 20_000_000 if counter == "native" else 100_000
    guest.cpu.set_x(1, rounds)
    seen = []
    done = threading.Event()

    def watch():
        while not done.is_set():
            seen.append(guest.cpu.instructions)

    watcher = threading.Thread(target=watch)
    watcher.start()
    stop = guest.cpu.run()
    done.set()
    watcher.join()
    assert stop.instructions == 2 * rounds + 1
    assert seen == sorted(seen)
    assert any(0 < count < stop.instructions for count in seen)


def test_a_host_write_to_code_that_already_ran_is_executed(guest, a64):
    guest.start(a64.movz(1, 1), a64.b(-4))
    guest.cpu.run(limit=4)
    guest.words(a64.CODE, a64.movz(1, 2))
    guest.cpu.pc = a64.CODE
    guest.cpu.run(limit=2)
    assert guest.cpu.x(1) == 2


def test_all_general_registers_are_apart(guest, a64):
    guest.start(a64.WFI)
    for number in range(31):
        guest.cpu.set_x(number, number + 1 << 32)
    assert [guest.cpu.x(number) for number in range(31)] == [number + 1 << 32 for number in range(31)]
    guest.cpu.set_x(3, -1)
    assert guest.cpu.x(3) == (1 << 64) - 1
    with pytest.raises(IndexError):
        guest.cpu.x(31)


def test_the_guest_reads_what_the_host_set_and_back(guest, a64):
    names = [
        "TPIDR_EL1",
        "TPIDR_EL0",
        "CONTEXTIDR_EL1",
        "FAR_EL1",
        "ELR_EL1",
        "MAIR_EL1",
        "TTBR0_EL1",
        "VBAR_EL1",
    ]
    guest.start(
        [a64.mrs(1 + n, name) for n, name in enumerate(names)],
        a64.movz(20, 0x4000),
        [a64.msr(name, 20) for name in names],
        a64.WFI,
    )
    for number, name in enumerate(names):
        guest.cpu.set_sysreg(name, 0x1000 * (number + 1))
    guest.cpu.run()
    assert [guest.cpu.x(1 + n) for n in range(len(names))] == [0x1000 * (n + 1) for n in range(len(names))]
    assert {name: guest.cpu.sysreg(name) for name in names} == dict.fromkeys(names, 0x4000)


def test_an_unknown_system_register_is_named(guest, a64):
    guest.start(a64.WFI)
    for access in (lambda: guest.cpu.sysreg("TTBR9_EL1"), lambda: guest.cpu.set_sysreg("TTBR9_EL1", 0)):
        with pytest.raises(MachineError, match="TTBR9_EL1"):
            access()


def test_stack_pointers_are_banked_by_pstate(guest, a64):
    guest.start(a64.WFI)
    cpu = guest.cpu
    cpu.sp = 0x1000
    cpu.set_sysreg("SP_EL0", 0x2000)
    assert (cpu.sp, cpu.sysreg("SP_EL0"), cpu.sysreg("SP_EL1")) == (0x1000, 0x2000, 0x1000)
    cpu.pstate = Pstate.DAIF  # EL0
    assert (cpu.sp, cpu.sysreg("SP_EL0"), cpu.sysreg("SP_EL1")) == (0x2000, 0x2000, 0x1000)
    cpu.sp = 0x2222
    cpu.set_sysreg("SP_EL1", 0x1111)
    cpu.pstate = Pstate.EL1H
    assert (cpu.sp, cpu.sysreg("SP_EL0"), cpu.sysreg("SP_EL1")) == (0x1111, 0x2222, 0x1111)
    with pytest.raises(MachineError):
        cpu.pstate = 0x3C9  # EL2h


def test_every_cpu_reads_its_own_mpidr(new_guest, a64):
    guest = new_guest(18)
    read = []
    for cpu in (guest.board.cpus[0], guest.board.cpus[15], guest.board.cpus[17]):
        guest.start(a64.mrs(1, "MPIDR_EL1"), a64.WFI, cpu=cpu)
        cpu.run()
        read.append(cpu.x(1))
        assert cpu.mpidr == cpu.x(1)
    assert read == [0x80000000, 0x8000000F, 0x80000101]


def test_two_runs_of_one_program_are_the_same(new_guest, a64):
    def once():
        guest = new_guest()
        guest.start(a64.movz(1, 999), a64.add(2, 2, 3), a64.sub(1, 1, 1), a64.cbnz(1, -8), a64.brk(7))
        guest.vector(0x200, a64.mrs(9, "ESR_EL1"), a64.WFI)
        guest.cpu.run()
        return guest.cpu.registers(), guest.cpu.instructions, guest.cpu.exceptions

    assert once() == once()


def test_a_cpu_works_without_a_board(guest, a64):
    cpu = Cpu(3, guest.ram)
    guest.start(a64.hvc(), a64.WFI, cpu=cpu)
    assert cpu.run().kind is CpuStopKind.IDLE
    assert cpu.x(0) == (1 << 64) - 1, "NOT_SUPPORTED: there is no firmware"


def test_translate_follows_the_registers_as_the_cpu_does(guest, a64):
    assert isinstance(guest.cpu, Registers)
    guest.start(a64.WFI)
    assert guest.cpu.translate(0x1234) == 0x1234, "the MMU is off"
    fmt = TableFormat(Granule.K4, 39)
    upper = guest.tables(fmt)
    upper.map(0xFFFFFF8000000000, a64.RAM_BASE, 0x200000, a64.NORMAL, blocks=True, contiguous=False)
    guest.mmu_on(upper, fmt)
    assert guest.cpu.translate(0xFFFFFF8000012345) == a64.RAM_BASE + 0x12345
    assert guest.cpu.translate(a64.RAM_BASE + 5) == a64.RAM_BASE + 5
    assert guest.cpu.translate(0xFFFF800000000000) is None, "beyond 39 bits"
    assert guest.cpu.translate(0xFFFFFF8000200000) is None, "a hole"


def test_the_guests_clock_is_the_boards_instructions(new_guest, a64):
    # Unicorn's own counters read the host's clock: no two runs would be the same.
    guest = new_guest(2)
    first, second = guest.board.cpus
    cntvct, cntpct, cntfrq = 0xD53BE040, 0xD53BE020, 0xD53BE000
    guest.start([a64.NOP] * 98, a64.b(4), cntvct | 1, cntpct | 2, cntfrq | 3, cntvct | 31, a64.WFI)
    first.run()
    # 99 instructions before the first read, 100 before the second; two a tick.
    assert (first.x(1), first.x(2), first.x(3)) == (49, 50, 62_500_000)
    guest.start(cntvct | 1, a64.WFI, phys=a64.CODE + 0x1000, cpu=second)
    second.run()
    assert second.x(1) == 104 // 2
