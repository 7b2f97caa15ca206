"""Exceptions: what is reported, what is delivered, and how a guest returns from them."""

from __future__ import annotations

import pytest

from kexecemu.machine.cpu.exceptions import GuestException, Pstate
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.memory.descriptors import AF, AP_RO, CONT, PXN, UXN, Granule, TableFormat

NOWHERE = 0x2000000000  # phys: no RAM, no device
UPPER = 0xFFFF000010000000  # virt: where the tests map things through TTBR1


def fault_of(guest, **kwargs):
    stop = guest.cpu.run(deliver=False, **kwargs)
    assert stop.kind is CpuStopKind.FAULT, stop
    return stop.fault


# -- what is reported, with the return address of each ---------------------------------------------------


@pytest.mark.parametrize(
    ("word", "esr", "pc_after", "words"),
    [
        ("svc", 0x56001234, 8, "supervisor call"),
        ("brk", 0xF2001234, 4, "BRK instruction"),
        ("smc", 0x02000000, 4, "undefined instruction"),
        ("undefined", 0x02000000, 4, "undefined instruction"),
        ("icc_iar1", 0x02000000, 4, "undefined instruction"),
    ],
)
def test_exceptions_of_instructions(guest, a64, word, esr, pc_after, words):
    code = {
        "svc": a64.svc(0x1234),
        "brk": a64.brk(0x1234),
        "smc": a64.smc(0),
        "undefined": 0x00000000,
        "icc_iar1": 0xD538CC00,  # no GICv3 system registers
    }[word]
    guest.start(a64.NOP, code, a64.WFI)
    fault = fault_of(guest)
    assert (fault.esr, fault.pc - a64.CODE, fault.far, fault.el) == (esr, pc_after, 0, 1)
    assert fault.description == words
    assert not fault.delivered
    assert guest.cpu.pc == fault.pc
    # A call retires, a faulting instruction does not.
    assert guest.cpu.instructions == (2 if word == "svc" else 1)


@pytest.mark.parametrize("granule", list(Granule))
def test_a_data_abort_tells_level_and_direction(guest, a64, granule):
    fmt = TableFormat(granule)
    upper = guest.tables(fmt)
    page = granule.size
    for number, attributes in enumerate((a64.NORMAL_DATA, a64.NORMAL_DATA | AP_RO, a64.NORMAL_DATA & ~AF)):
        upper.map(
            UPPER + number * page, a64.RAM_BASE + 0x100000, page, attributes, blocks=False, contiguous=False
        )
    upper.map(UPPER + 3 * page, a64.RAM_BASE, page, a64.NORMAL, blocks=False, contiguous=False)
    upper.update(UPPER + 3 * page, page, clear_bits=1)
    cases = [  # virt, store?, ISS
        (UPPER + page, True, 0x4F),
        (UPPER + 2 * page, False, 0x0B),
        (UPPER + 2 * page, True, 0x4B),
        (UPPER + 3 * page, True, 0x47),
        (UPPER + 3 * page + 8, False, 0x07),
        (0xFFFF800000000000, False, 0x04 | fmt.start_level),
    ]
    for virt, is_write, iss in cases:
        guest.start(a64.mov(1, virt), a64.store(2, 1) if is_write else a64.load(2, 1), a64.WFI)
        guest.mmu_on(upper, fmt)
        fault = fault_of(guest)
        assert fault.esr == 0x96000000 | iss, str(fault)
        assert fault.far == virt
        assert fault.pc == a64.CODE + 16
        assert fault.is_write is is_write
        assert fault.is_data_abort
    assert "level 3" in GuestException(0, 0, "sync", 0x96000047, 0, 0, 1, 0).description


def test_descriptions_read_as_plain_words():
    def description(esr, kind="sync"):
        return GuestException(0, 0, kind, esr, 0, 0, 1, 0).description

    assert description(0x96000047) == "data abort, translation fault level 3, write"
    assert description(0x9600000F) == "data abort, permission fault level 3, read"
    assert description(0x92000046) == "data abort from EL0, translation fault level 2, write"
    assert description(0x86000004) == "instruction abort, translation fault level 0"
    assert description(0x96000010) == "data abort, external abort, read"
    assert description(0x96000021) == "data abort, alignment fault, read"
    assert description(0x8A000000) == "misaligned PC"
    assert description(0, "irq") == "interrupt"


def test_the_one_line_form_names_cpu_address_and_level():
    fault = GuestException(1, 5, "sync", 0x96000047, 0xFFFF000012345678, 0xFFFF800008010000, 1, 0x3C5)
    assert str(fault) == (
        "cpu1: data abort, translation fault level 3, write of 0xffff000012345678 "
        "at pc 0xffff800008010000 (EL1, ESR 0x96000047)"
    )


def test_a_store_that_faults_leaves_no_trace(guest, a64):
    # Page-crossing: the first page is writable, the second is not mapped.
    fmt = TableFormat(Granule.K4)
    upper = guest.tables(fmt)
    data = a64.RAM_BASE + 0x100000
    upper.map(UPPER, data, 0x1000, a64.NORMAL_DATA, blocks=False, contiguous=False)
    guest.ram.write(data, b"\x11" * 0x1000)
    # str x2, [x1], #8 with writeback, at the last 4 bytes of the page
    guest.start(a64.mov(1, UPPER + 0xFFC), 0xF8008422, a64.WFI)
    guest.mmu_on(upper, fmt)
    fault = fault_of(guest)
    assert fault.iss == 0x47
    assert guest.cpu.x(1) == UPPER + 0xFFC, "no writeback"
    assert guest.ram.read(data, 0x1000) == b"\x11" * 0x1000


def test_a_prefetch_abort_has_its_own_address_as_far(guest, a64):
    guest.start(a64.mov(1, 0xFFFF800000000000), a64.br(1))
    fault = fault_of(guest)
    assert (fault.esr, fault.far, fault.pc) == (0x86000000, 0xFFFF800000000000, 0xFFFF800000000000)
    assert fault.is_instruction_abort
    assert guest.cpu.instructions == 5


def test_pxn_memory_cannot_be_executed(guest, a64):
    fmt = TableFormat(Granule.K4)
    upper = guest.tables(fmt)
    upper.map(UPPER, a64.RAM_BASE, 0x1000, a64.NORMAL_DATA, blocks=False, contiguous=False)
    guest.start(a64.mov(1, UPPER), a64.br(1))
    guest.mmu_on(upper, fmt)
    assert fault_of(guest).esr == 0x8600000F


def test_a_branch_to_an_odd_address_is_a_misaligned_pc(guest, a64):
    guest.start(a64.mov(1, a64.CODE + 0x102), a64.br(1))
    fault = fault_of(guest)
    assert (fault.esr, fault.far, fault.pc) == (0x8A000000, a64.CODE + 0x102, a64.CODE + 0x102)
    assert guest.cpu.instructions == 5


def test_a_misaligned_exclusive_is_an_alignment_fault(guest, a64):
    guest.start(a64.mov(1, a64.RAM_BASE + 0x100001), 0xC85F7C22)  # ldxr x2, [x1]
    fault = fault_of(guest)
    assert (fault.esr, fault.far) == (0x96000021, a64.RAM_BASE + 0x100001)


# -- external aborts: addresses where nothing is ---------------------------------------------------------


@pytest.mark.parametrize(("is_write", "esr"), [(False, 0x96000010), (True, 0x96000050)])
def test_an_access_to_nothing_is_an_external_abort(guest, a64, is_write, esr):
    guest.start(a64.mov(1, NOWHERE), a64.store(2, 1, 8) if is_write else a64.load(2, 1, 8), a64.WFI)
    fault = fault_of(guest)
    assert (fault.esr, fault.far, fault.pc) == (esr, NOWHERE + 8, a64.CODE + 16)
    assert guest.cpu.instructions == 4


def test_a_fetch_from_nothing_is_an_external_abort(guest, a64):
    guest.start(a64.mov(1, NOWHERE), a64.br(1))
    fault = fault_of(guest)
    assert (fault.esr, fault.far, fault.pc) == (0x86000010, NOWHERE, NOWHERE)
    assert guest.cpu.instructions == 5


def test_a_fetch_from_a_device_is_an_external_abort(guest, a64):
    guest.start(a64.mov(1, guest.board.uart.base_phys), a64.br(1))
    assert fault_of(guest).esr == 0x86000010


def test_running_off_the_end_of_ram_is_an_external_abort(guest, a64):
    end = a64.RAM_BASE + guest.ram.size
    guest.start(a64.NOP, a64.NOP, phys=end - 8)
    fault = fault_of(guest)
    assert (fault.esr, fault.far) == (0x86000010, end)
    assert guest.cpu.instructions == 2


@pytest.mark.parametrize(
    ("word", "x1", "x2", "sp", "virt_offset"),
    [
        (0xF9400420, 0, 0, 0, 8),  # ldr x0, [x1, #8]
        (0xF85F8020, 0x40, 0, 0, 0x38),  # ldur x0, [x1, #-8]
        (0xF8408420, 0x40, 0, 0, 0x40),  # ldr x0, [x1], #8
        (0xF8408C20, 0x40, 0, 0, 0x48),  # ldr x0, [x1, #8]!
        (0xF8627820, 0x40, 0x10, 0, 0xC0),  # ldr x0, [x1, x2, lsl #3]
        (0xB862D820, 0x40, 0xFFFFFFFC, 0, 0x30),  # ldr w0, [x1, w2, sxtw #2]
        (0xB8625820, 0x40, 0x1_00000004, 0, 0x50),  # ldr w0, [x1, w2, uxtw #2]
        (0xF94007E0, 0, 0, 0x100, 0x108),  # ldr x0, [sp, #8]
        (0xA9400C20, 0x80, 0, 0, 0x80),  # ldp x0, x3, [x1]
        (0xC85F7C20, 0x80, 0, 0, 0x80),  # ldxr x0, [x1]
        (0x3DC00020, 0x80, 0, 0, 0x80),  # ldr q0, [x1]
        (0x39400020, 0x83, 0, 0, 0x83),  # ldrb w0, [x1]
    ],
)
def test_far_of_an_external_abort_is_virtual_whatever_the_addressing(
    guest, a64, word, x1, x2, sp, virt_offset
):
    fmt = TableFormat(Granule.K4)
    upper = guest.tables(fmt)
    upper.map(UPPER, NOWHERE, 0x1000, a64.NORMAL_DATA, blocks=False, contiguous=False)
    guest.start(word, a64.WFI)
    guest.mmu_on(upper, fmt)
    guest.cpu.set_x(1, UPPER + x1)
    guest.cpu.set_x(2, x2)
    guest.cpu.sp = UPPER + sp
    fault = fault_of(guest)
    assert (fault.esr, fault.far) == (0x96000010, UPPER + virt_offset)


def test_an_unreachable_instruction_leaves_far_invalid_and_says_so(guest, a64):
    # The code page is unmapped in the tables but still in the TLB, so the instruction cannot be read any more.
    fmt = TableFormat(Granule.K4)
    upper = guest.tables(fmt)
    upper.map(UPPER, NOWHERE, 0x1000, a64.NORMAL_DATA, blocks=False, contiguous=False)
    upper.map(UPPER + 0x1000, a64.CODE, 0x1000, a64.NORMAL, blocks=False, contiguous=False)
    guest.start(a64.b(0), a64.load(0, 1))
    guest.mmu_on(upper, fmt)
    guest.cpu.pc = UPPER + 0x1000
    guest.cpu.run(limit=10)
    upper.update(UPPER + 0x1000, 0x1000, clear_bits=1)
    guest.cpu.set_x(1, UPPER)
    guest.cpu.pc = UPPER + 0x1004
    fault = fault_of(guest)
    assert fault.esr == 0x96000410
    assert not fault.has_far


# -- delivery --------------------------------------------------------------------------------------------


def test_a_guest_handles_a_fault_and_goes_on(guest, a64):
    # The handler reads all exception registers and skips the faulting store.
    handler = [
        a64.mrs(10, "ESR_EL1"),
        a64.mrs(11, "FAR_EL1"),
        a64.mrs(12, "ELR_EL1"),
        a64.mrs(13, "SPSR_EL1"),
    ]
    guest.start(a64.mov(1, NOWHERE), a64.store(2, 1), a64.movz(3, 7), a64.WFI)
    guest.vector(0x200, handler, 0xD53B422E, a64.add(12, 12, 4), a64.msr("ELR_EL1", 12), a64.ERET)
    cpu = guest.cpu
    cpu.pstate = Pstate.EL1H | 1 << 30 | Pstate.A  # Z, and only SError masked
    stop = cpu.run()
    assert stop.kind is CpuStopKind.IDLE
    assert cpu.x(10) == 0x96000050
    assert cpu.x(11) == NOWHERE
    assert cpu.x(12) == a64.CODE + 20
    assert cpu.x(13) == 0x40000105
    assert cpu.x(14) == 0x3C0, "all masked in the handler"
    assert cpu.x(3) == 7
    assert cpu.pstate == 0x40000105, "as before"
    (fault,) = cpu.exceptions
    assert fault.delivered
    assert (fault.pc, fault.pstate, fault.el) == (a64.CODE + 16, 0x40000105, 1)


def test_a_handler_mends_the_table_and_the_store_is_done(guest, a64):
    fmt = TableFormat(Granule.K4)
    upper = guest.tables(fmt)
    data = a64.RAM_BASE + 0x100000
    upper.map(UPPER, data, 0x1000, a64.NORMAL_DATA, blocks=False, contiguous=False)
    descriptor = upper.walk(UPPER)
    upper.update(UPPER, 0x1000, clear_bits=1)
    guest.start(a64.mov(1, UPPER), a64.movz(2, 0x1234), a64.store(2, 1), a64.WFI)
    guest.vector(
        0x200,
        a64.mov(3, descriptor.entry_phys),
        a64.mov(4, descriptor.descriptor),
        a64.store(4, 3),
        a64.DSB,
        a64.ERET,
    )
    guest.mmu_on(upper, fmt)
    assert guest.cpu.run().kind is CpuStopKind.IDLE
    assert guest.ram.read_u64(data) == 0x1234
    assert len(guest.cpu.exceptions) == 1


def test_an_exception_from_el0_switches_the_stack_and_back(guest, a64):
    guest.start(a64.ERET, phys=a64.CODE)
    user = a64.CODE + 0x1000
    guest.words(user, a64.svc(3), a64.movz(5, 1), a64.b(0))
    guest.vector(0x400, a64.add(20, 31, 0), a64.mrs(21, "SP_EL0"), a64.mrs(22, "SPSR_EL1"), a64.ERET)
    cpu = guest.cpu
    cpu.sp = 0x1000
    cpu.set_sysreg("SP_EL0", 0x2000)
    cpu.set_sysreg("ELR_EL1", user)
    cpu.set_sysreg("SPSR_EL1", 0)
    cpu.run(limit=12)
    assert (cpu.x(20), cpu.x(21), cpu.x(22), cpu.x(5)) == (0x1000, 0x2000, 0, 1)
    assert cpu.pstate & Pstate.EL_MASK == 0
    assert (cpu.sp, cpu.sysreg("SP_EL0"), cpu.sysreg("SP_EL1")) == (0x2000, 0x2000, 0x1000)
    assert cpu.sysreg("ESR_EL1") == 0x56000003
    assert cpu.exceptions == [], "a supervisor call is no fault"


def test_an_exception_on_the_thread_stack_takes_the_first_vectors(guest, a64):
    guest.start(0xD50040BF, a64.brk(1), a64.WFI)  # msr spsel, #0
    guest.vector(0x000, a64.movz(9, 1), a64.WFI)
    guest.cpu.sp = 0x1110
    guest.cpu.set_sysreg("SP_EL0", 0x2220)
    guest.cpu.run()
    assert guest.cpu.x(9) == 1
    assert guest.cpu.sp == 0x1110
    assert guest.cpu.sysreg("SPSR_EL1") & 0xF == 4


@pytest.mark.parametrize(
    ("kind", "offset"), [("sync", 0x200), ("irq", 0x280), ("fiq", 0x300), ("serror", 0x380)]
)
def test_each_kind_has_its_vector(guest, a64, kind, offset):
    guest.start(a64.WFI)
    guest.vector(offset, a64.WFI)
    cpu = guest.cpu
    cpu.set_sysreg("ESR_EL1", 0x111)
    cpu.enter_exception(kind, 0xBF000002, None)
    assert cpu.pc == a64.VECTORS + offset
    assert cpu.sysreg("ELR_EL1") == a64.CODE
    assert cpu.sysreg("ESR_EL1") == (0xBF000002 if kind in ("sync", "serror") else 0x111)


def test_an_interrupt_waits_for_its_mask(guest, a64):
    guest.start(a64.WFI, a64.daifclr(2), a64.WFI, a64.movz(6, 6), a64.WFI)
    guest.vector(0x280, a64.add(7, 7, 1), a64.ERET)
    cpu = guest.cpu
    cpu.run()
    before = cpu.registers()
    assert cpu.deliver_irq() is False
    assert cpu.registers() == before
    assert cpu.run().pc == a64.CODE + 12
    assert cpu.deliver_irq() is True
    assert cpu.run().kind is CpuStopKind.IDLE
    assert (cpu.x(7), cpu.x(6)) == (1, 6)
    assert [fault.kind for fault in cpu.exceptions] == ["irq"]


# -- exceptions that lead nowhere ------------------------------------------------------------------------


def test_without_vectors_a_fault_ends_the_run(guest, a64):
    guest.start(a64.brk(1))
    guest.cpu.set_sysreg("VBAR_EL1", NOWHERE)
    stop = guest.cpu.run()
    assert stop.kind is CpuStopKind.FAULT
    assert stop.fault.pc == NOWHERE + 0x200
    assert [fault.delivered for fault in guest.cpu.exceptions] == [True, False]


def test_a_vector_that_faults_at_once_ends_the_run(guest, a64):
    guest.start(a64.NOP, a64.brk(1))
    guest.vector(0x200, 0)
    stop = guest.cpu.run()
    assert stop.kind is CpuStopKind.FAULT
    assert (stop.fault.esr, stop.fault.pc, stop.instructions) == (0x02000000, a64.VECTORS + 0x200, 1)


@pytest.mark.parametrize("moves_sp", [True, False])
def test_a_handler_without_a_stack_ends_the_run(guest, a64, moves_sp):
    # As a kernel's vectors do: make room on the stack, save registers there; the stack pointer is wild.
    guest.start(a64.brk(1))
    guest.vector(0x200, a64.sub(31, 31, 0x150 if moves_sp else 0), 0xA90007E0)  # stp x0, x1, [sp]
    guest.cpu.sp = NOWHERE
    stop = guest.cpu.run(limit=100_000)
    assert stop.kind is CpuStopKind.FAULT
    assert stop.fault.pc == a64.VECTORS + 0x204
    assert stop.instructions < 100


def test_returning_to_the_cause_for_ever_ends_the_run(guest, a64):
    guest.start(a64.brk(1))
    guest.vector(0x200, a64.ERET)
    stop = guest.cpu.run(limit=100_000)
    assert stop.kind is CpuStopKind.FAULT
    assert stop.fault.esr == 0xF2000001


def test_many_handled_exceptions_at_one_place_are_progress(guest, a64):
    loop = [a64.brk(1), a64.sub(5, 5, 1), a64.cbnz(5, -8), a64.WFI]
    guest.start(loop)
    guest.vector(0x200, a64.mrs(9, "ELR_EL1"), a64.add(9, 9, 4), a64.msr("ELR_EL1", 9), a64.ERET)
    guest.cpu.set_x(5, 500)
    assert guest.cpu.run().kind is CpuStopKind.IDLE
    assert len(guest.cpu.exceptions) == 500


def test_many_supervisor_calls_at_one_place_are_progress(guest, a64):
    guest.start(a64.svc(), a64.sub(5, 5, 1), a64.cbnz(5, -8), a64.WFI)
    guest.vector(0x200, a64.ERET)
    guest.cpu.set_x(5, 500)
    stop = guest.cpu.run()
    assert stop.kind is CpuStopKind.IDLE
    assert stop.instructions == 500 * 4 + 1


def test_demand_paging_at_one_instruction_is_progress(guest, a64):
    # One store in a loop touches 100 invalid pages; the handler sets the valid bit of each and retries.
    fmt = TableFormat(Granule.K4)
    upper = guest.tables(fmt)
    upper.map(UPPER, a64.RAM_BASE + 0x100000, 100 << 12, a64.NORMAL_DATA, blocks=False, contiguous=False)
    entries = upper.walk(UPPER).entry_phys
    upper.update(UPPER, 100 << 12, clear_bits=1)
    guest.start(
        a64.mov(1, UPPER),
        a64.movz(5, 100),
        a64.store(5, 1),
        0x91400421,
        a64.sub(5, 5, 1),
        a64.cbnz(5, -12),
        a64.WFI,
    )  # add x1, x1, #1, lsl #12
    guest.vector(0x200, a64.load(9, 10), a64.add(9, 9, 1), 0xF8008549, a64.ERET)  # str x9, [x10], #8
    guest.mmu_on(upper, fmt)
    guest.cpu.set_x(10, entries)
    assert guest.cpu.run().kind is CpuStopKind.IDLE
    assert len(guest.cpu.exceptions) == 100
    assert guest.ram.read_u64(a64.RAM_BASE + 0x100000 + (99 << 12)) == 1


def test_attribute_names_are_the_bits_of_the_architecture():
    assert (AP_RO, AF, CONT, PXN, UXN) == (1 << 7, 1 << 10, 1 << 52, 1 << 53, 1 << 54)
