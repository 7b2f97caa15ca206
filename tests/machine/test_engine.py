"""One test for each behaviour of Unicorn 2.1.4 that the machine is built on, with the bare engine where possible.

When an upgrade of Unicorn breaks one of these, the comment says which part of kexecemu.machine rests on it.
"""

from __future__ import annotations

import ctypes
import struct

import pytest
import unicorn
from unicorn import (
    UC_ARCH_ARM64,
    UC_CTL_IO_WRITE,
    UC_CTL_TLB_FLUSH,
    UC_HOOK_BLOCK,
    UC_HOOK_INSN,
    UC_HOOK_INTR,
    UC_MODE_ARM,
    UC_PROT_ALL,
    Uc,
)
from unicorn.arm64_const import (
    UC_ARM64_INS_MRS,
    UC_ARM64_INS_MSR,
    UC_ARM64_INS_SYS,
    UC_ARM64_REG_PC,
    UC_ARM64_REG_PSTATE,
    UC_ARM64_REG_X0,
    UC_ARM64_REG_X1,
    UC_CPU_ARM64_A57,
)
from unicorn.unicorn_py3.unicorn import uclib

from kexecemu.machine.cpu import engine
from kexecemu.machine.cpu.stop import CpuStopKind
from kexecemu.machine.memory.descriptors import VALID, Granule, TableFormat

CODE = 0x40000000
ROOT = 0x40010000
UPPER = 0xFFFF000010000000


def bare(*words: int) -> Uc:
    """An engine with 1 MiB of RAM, a program, and nothing else."""
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM, cpu=UC_CPU_ARM64_A57)
    uc.mem_map(CODE, 1 << 20)
    uc.mem_write(CODE, struct.pack(f"<{len(words)}I", *words))
    uc.reg_write(UC_ARM64_REG_PSTATE, 0x3C5)
    return uc


def test_the_version_is_the_one_that_was_measured():
    assert unicorn.__version__ == "2.1.4"


@pytest.mark.parametrize("widths", [True, False])
def test_el1_is_walked_as_aarch64_only_with_the_widths_set_above_it(a64, widths):
    # Engine sets SCR_EL3 and HCR_EL2 first of all. One 1 GiB block maps the program, at level 1 of a 39-bit space.
    uc = bare(a64.movz(0, 7), a64.WFI)
    uc.ctl_exits_enabled(True)
    faults = []
    uc.hook_add(UC_HOOK_INTR, lambda uc, number, _: (faults.append(number), uc.emu_stop()))
    uc.mem_write(ROOT, struct.pack("<2Q", 0, 0x40000000 | a64.NORMAL | VALID))
    if widths:
        uc.cpr_write(3, 6, 1, 1, 0, engine.SCR_EL3)
        uc.cpr_write(3, 4, 1, 1, 0, engine.HCR_EL2)
    uc.cpr_write(3, 0, 2, 0, 0, ROOT)
    uc.cpr_write(3, 0, 2, 0, 2, 25 | 25 << 16 | 2 << 30 | 5 << 32)
    uc.cpr_write(3, 0, 10, 2, 0, 0xFF)
    uc.cpr_write(3, 0, 1, 0, 0, uc.cpr_read(3, 0, 1, 0, 0) | 1)
    uc.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)
    uc.emu_start(CODE, 0)
    assert (uc.reg_read(UC_ARM64_REG_X0) == 7) is widths
    assert bool(faults) is not widths


def test_with_no_exit_address_the_syndrome_survives_the_end_of_a_run(a64):
    # Engine.syndrome() reads it after the run; an exit address that does not translate would overwrite it.
    def syndrome_of_svc(exits: bool) -> int:
        uc = bare(a64.svc(0x77))
        uc.cpr_write(3, 6, 1, 1, 0, engine.SCR_EL3)
        uc.cpr_write(3, 4, 1, 1, 0, engine.HCR_EL2)
        uc.hook_add(UC_HOOK_INTR, lambda uc, number, _: uc.emu_stop())
        uc.ctl_exits_enabled(exits)
        uc.emu_start(CODE, (1 << 64) - 1)
        context = uc.context_save()
        address = ctypes.cast(context.context, ctypes.c_void_p).value
        return int.from_bytes(ctypes.string_at(address + engine.syndrome_offset(), 4), "little")

    assert syndrome_of_svc(True) == 0x56000077
    assert syndrome_of_svc(False) != 0x56000077, "the reason is gone: exits need not be switched off any more"


@pytest.mark.parametrize("flush", [True, False])
def test_code_written_by_the_host_runs_only_after_a_flush(a64, flush):
    # Cpu drops the translations when Ram.generation moved.
    uc = bare(a64.movz(0, 1), a64.WFI)
    uc.ctl_exits_enabled(True)
    uc.emu_start(CODE, 0)
    assert uc.reg_read(UC_ARM64_REG_X0) == 1
    uc.mem_write(CODE, struct.pack("<I", a64.movz(0, 2)))
    if flush:
        uc.ctl_flush_tb()
    uc.emu_start(CODE, 0)
    assert uc.reg_read(UC_ARM64_REG_X0) == (2 if flush else 1)


def test_code_written_through_a_shared_mapping_runs_only_after_a_flush(guest, a64):
    # The same for Ram's own mapping, beside the engine's back.
    guest.start(a64.movz(0, 1), a64.WFI)
    guest.cpu.run()
    bank = guest.ram.mapped[0]
    bank.map[0:4] = struct.pack("<I", a64.movz(0, 2))  # not through Ram.write(): the generation stays
    guest.cpu.pc = a64.CODE
    guest.cpu.run()
    assert guest.cpu.x(0) == 1
    guest.ram.generation += 1
    guest.cpu.pc = a64.CODE
    guest.cpu.run()
    assert guest.cpu.x(0) == 2


def test_the_guests_own_stores_to_code_are_seen_at_once(guest, a64):
    guest.start(
        a64.mov(1, a64.CODE + 0x1000), a64.mov(2, a64.movz(0, 2)), a64.bl(0x1000 - 32), a64.store_word(2, 1), a64.ISB,
        a64.bl(0x1000 - 44), a64.WFI,
    )  # fmt: skip
    guest.words(a64.CODE + 0x1000, a64.movz(0, 1), a64.add(5, 5, 0), a64.RET)
    assert guest.cpu.run(stops=[a64.CODE + 36]).kind is CpuStopKind.BREAKPOINT
    assert guest.cpu.x(0) == 1
    assert guest.cpu.run().kind is CpuStopKind.IDLE
    assert guest.cpu.x(0) == 2


# -- the TLB: a missing invalidation can be seen ---------------------------------------------------------


def load_twice(guest, a64, between):
    """Map a page, load from it, take it away by a host write to its PTE, do `between`, load again."""
    fmt = TableFormat(Granule.K4)
    upper = guest.tables(fmt)
    upper.map(UPPER, a64.RAM_BASE + 0x100000, 0x1000, a64.NORMAL_DATA, blocks=False, contiguous=False)
    guest.start(
        a64.mov(1, UPPER),
        a64.load(2, 1),
        a64.b(8),
        a64.TLBI_VMALLE1,
        a64.DSB,
        a64.ISB,
        a64.load(2, 1),
        a64.WFI,
    )
    guest.mmu_on(upper, fmt)
    cpu = guest.cpu
    assert cpu.run(stops=[a64.CODE + 28], deliver=False).kind is CpuStopKind.BREAKPOINT
    upper.update(UPPER, 0x1000, clear_bits=VALID)
    between(cpu)
    return cpu.run(deliver=False)


def test_a_changed_pte_stays_stale_across_runs_without_an_invalidation(guest, a64):
    def to_the_load(cpu):
        cpu.pc = a64.CODE + 32

    assert load_twice(guest, a64, to_the_load).kind is CpuStopKind.IDLE


def test_a_tlbi_by_the_guest_makes_the_change_seen(guest, a64):
    def to_the_tlbi(cpu):
        cpu.pc = a64.CODE + 24

    assert load_twice(guest, a64, to_the_tlbi).fault.iss == 0x07


def test_flush_tlb_by_the_host_makes_the_change_seen(guest, a64):
    def flush(cpu):
        cpu.flush_tlb()
        cpu.pc = a64.CODE + 32

    assert load_twice(guest, a64, flush).fault.iss == 0x07


def test_dropping_translated_code_does_not_drop_the_tlb(guest, a64):
    def flush_code(cpu):
        cpu._engine.flush_code()
        cpu.pc = a64.CODE + 32

    assert load_twice(guest, a64, flush_code).kind is CpuStopKind.IDLE


# -- registers -------------------------------------------------------------------------------------------


def test_pstate_written_by_the_host_takes_effect_at_once(guest, a64):
    # Registers.pstate writes a system register after PSTATE to make the engine look at it.
    guest.start(a64.mrs(1, "SCTLR_EL1"), a64.WFI)
    guest.cpu.pstate = 0  # EL0
    fault = guest.cpu.run(deliver=False).fault
    assert (fault.el, fault.pc) == (0, a64.CODE)
    assert fault.ec in (0x00, 0x18)


def test_a_table_base_written_by_the_host_takes_effect_at_once(guest, a64):
    fmt = TableFormat(Granule.K4)
    first, second = guest.tables(fmt), guest.tables(fmt)
    for tables, offset in ((first, 0x100000), (second, 0x101000)):
        tables.map(UPPER, a64.RAM_BASE + offset, 0x1000, a64.NORMAL_DATA, blocks=False, contiguous=False)
        guest.ram.write_u64(a64.RAM_BASE + offset, offset)
    guest.start(a64.mov(1, UPPER), a64.load(2, 1), a64.WFI)
    guest.mmu_on(first, fmt)
    guest.cpu.run()
    assert guest.cpu.x(2) == 0x100000
    guest.cpu.set_sysreg("TTBR1_EL1", second.root_phys)
    guest.cpu.pc = a64.CODE
    guest.cpu.run()
    assert guest.cpu.x(2) == 0x101000


def test_mpidr_at_el1_is_vmpidr(a64):
    # Registers.reset sets VMPIDR_EL2; MPIDR_EL1 itself cannot be written, and a hook on MRS would slow all of them.
    uc = bare(a64.mrs(0, "MPIDR_EL1"), a64.WFI)
    uc.ctl_exits_enabled(True)
    uc.cpr_write(3, 6, 1, 1, 0, engine.SCR_EL3)
    uc.cpr_write(3, 4, 0, 0, 5, 0x80000203)
    uc.emu_start(CODE, 0)
    assert uc.reg_read(UC_ARM64_REG_X0) == 0x80000203


# -- stopping --------------------------------------------------------------------------------------------


def test_wfi_ends_a_run_with_the_pc_behind_it(a64):
    uc = bare(a64.NOP, a64.WFI)
    uc.ctl_exits_enabled(True)
    uc.emu_start(CODE, 0)
    assert uc.reg_read(UC_ARM64_REG_PC) == CODE + 8


def test_stops_at_blocks_change_nothing_against_one_run_with_count(guest, a64):
    # A chaotic loop over memory: 300,000 instructions in one go by count=, and in many stretches by the block hook.
    program = [
        *a64.mov(1, a64.RAM_BASE + 0x10000),
        a64.movz(3, 0x3FF8),
        0x8A030044,  # loop: and x4, x2, x3
        0x8B040024,  # add x4, x1, x4
        a64.load(5, 4),
        0x8B050042,  # add x2, x2, x5
        a64.add(2, 2, 0x9D),
        0xCAC23442,  # eor x2, x2, x2, ror #13
        a64.store(2, 4),
        0xF240005F,  # tst x2, #1
        0x54000040,  # b.eq +8
        a64.add(6, 6, 1),
        a64.b(-40),
    ]
    guest.start(program)
    cpu = guest.cpu
    limit = 37
    while cpu.instructions < 300_000:
        cpu.run(limit=min(limit, 300_000 - cpu.instructions))
        limit = limit * 5 % 997 + 1
    other = Uc(UC_ARCH_ARM64, UC_MODE_ARM, cpu=UC_CPU_ARM64_A57)
    memory = ctypes.create_string_buffer(guest.ram.size + 4096)
    pointer = -(-ctypes.addressof(memory) // 4096) * 4096
    other.mem_map_ptr(a64.RAM_BASE, guest.ram.size, UC_PROT_ALL, pointer)
    other.mem_write(a64.CODE, struct.pack(f"<{len(program)}I", *program))
    other.reg_write(UC_ARM64_REG_PSTATE, 0x3C5)
    other.emu_start(a64.CODE, 0, count=cpu.instructions)
    assert other.reg_read(UC_ARM64_REG_PC) == cpu.pc
    assert [other.reg_read(UC_ARM64_REG_X0 + n) for n in range(8)] == [cpu.x(n) for n in range(8)]
    assert bytes(other.mem_read(a64.RAM_BASE, 0x20000)) == guest.ram.read(a64.RAM_BASE, 0x20000)
    assert cpu.x(6) > 10_000


NODES = CODE + 0x20000
CHASE = (0xF9400000, 0xF9400000, 0x91000442, 0x17FFFFFD)  # ldr x0, [x0]; ldr x0, [x0]; add x2, x2, #1; b .-12


def chase() -> Uc:
    """An engine that follows pointers: x0 has bit 4 set exactly when PC is behind the first of the two loads."""
    uc = bare(*CHASE)
    uc.ctl_exits_enabled(True)
    for number in range(64):
        node = NODES + 32 * number
        uc.mem_write(node, struct.pack("<4Q", node + 16, 0, NODES + 32 * ((number + 1) % 64), 0))
    uc.reg_write(UC_ARM64_REG_X0, NODES)
    return uc


def torn(uc: Uc) -> bool:
    return bool(uc.reg_read(UC_ARM64_REG_X0) & 16) is not (uc.reg_read(UC_ARM64_REG_PC) == CODE + 4)


def test_a_stop_from_another_thread_leaves_a_load_done_and_yet_to_do():
    # Why nothing here uses timeout=, a thread that calls uc_emu_stop: PC is not where the registers are.
    # On a busy host it may call before the engine has started, and is lost: then the guest stops itself some time.
    uc, blocks = chase(), []
    uc.hook_add(UC_HOOK_BLOCK, lambda uc, *_: blocks.append(0) or (len(blocks) % 100_000 or uc.emu_stop()))
    uc.reg_write(UC_ARM64_REG_PC, CODE)
    for _ in range(5000):
        uc.emu_start(uc.reg_read(UC_ARM64_REG_PC), 0, timeout=20)
        if torn(uc):
            return
    pytest.fail("the reason is gone: asynchronous stops are exact now")


def test_a_stop_by_count_or_before_a_block_leaves_nothing_half_done():
    uc = chase()
    uc.reg_write(UC_ARM64_REG_PC, CODE)
    for number in range(500):
        uc.emu_start(uc.reg_read(UC_ARM64_REG_PC), 0, count=1 + number % 7)
        assert not torn(uc)
    uc = chase()
    blocks = []
    uc.hook_add(
        UC_HOOK_BLOCK, lambda uc, virt, size, _: blocks.append(virt) or (len(blocks) % 9 or uc.emu_stop())
    )
    uc.reg_write(UC_ARM64_REG_PC, CODE)
    for _ in range(500):
        uc.emu_start(uc.reg_read(UC_ARM64_REG_PC), 0)
        assert uc.reg_read(UC_ARM64_REG_PC) == CODE
        assert not torn(uc)


@pytest.mark.parametrize("stops", [True, False])
def test_a_stop_from_a_device_s_callback_runs_the_store_twice(a64, stops):
    # Why devices never stop the engine, and why an interrupt that a store raises is noted and looked for at a boundary.
    uc = bare(a64.mov(1, 0x9000000)[0], a64.movk(1, 0x900, 16), a64.store_word(0, 1), a64.WFI)
    uc.ctl_exits_enabled(True)
    stores = []

    def store(uc, offset, size, value, _):
        stores.append(offset)
        if stops and len(stores) == 1:
            uc.emu_stop()

    uc.mmio_map(0x9000000, 0x1000, None, None, store, None)
    uc.emu_start(CODE, 0)
    while uc.reg_read(UC_ARM64_REG_PC) != CODE + 16:
        uc.emu_start(uc.reg_read(UC_ARM64_REG_PC), 0)
    assert len(stores) == (2 if stops else 1)


def test_two_block_hooks_see_the_same_blocks(a64):
    # It works; the counter still replaces its hook instead of adding one, because calls are inlined for one hook only.
    uc = bare(a64.movz(0, 3), a64.sub(0, 0, 1), a64.cbnz(0, -4), a64.WFI)
    uc.ctl_exits_enabled(True)
    seen = [[], []]
    for each in seen:
        uc.hook_add(UC_HOOK_BLOCK, lambda uc, virt, size, into: into.append((virt, size)), each)
    uc.emu_start(CODE, 0)
    assert seen[0] == seen[1]
    assert seen[0] == [(CODE, 12), (CODE + 4, 8), (CODE + 4, 8), (CODE + 12, 4)]


# -- hooks on system instructions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind,word",
    [
        (UC_ARM64_INS_MRS, 0xD53BE040),  # mrs x0, cntvct_el0
        (UC_ARM64_INS_MSR, 0xD51BE340),  # msr cntv_cval_el0, x0
        (UC_ARM64_INS_SYS, 0xD50B7520),  # ic ivau, x0
        (UC_ARM64_INS_SYS, 0xD508831F),  # tlbi vmalle1is
    ],
    ids=hex,
)
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_hook_on_a_system_instruction_sees_where_it_is(a64, kind, word, before):
    # blockcount.c and NativeStepper.now work out from PC how much of the block has retired.
    uc = bare(*[a64.NOP] * before, word, a64.NOP, a64.WFI)
    uc.ctl_exits_enabled(True)
    seen = []
    uc.hook_add(UC_HOOK_INSN, lambda uc, *_: seen.append(uc.reg_read(UC_ARM64_REG_PC)) or 0, aux1=kind)
    uc.emu_start(CODE, 0)
    assert seen == [CODE + 4 * before]


@pytest.mark.parametrize(
    "word,kind", [(0xD53BE340, UC_ARM64_INS_MRS), (0xD51BE340, UC_ARM64_INS_MSR)], ids=["mrs", "msr"]
)
def test_a_hook_is_called_for_what_el0_may_not_do(a64, word, kind):
    # CNTKCTL_EL1 is 0, so EL0's access to a timer must trap. The hook comes before that; the trap, if it returns 0.
    uc = bare(word, a64.WFI)
    uc.ctl_exits_enabled(True)
    uc.cpr_write(3, 6, 1, 1, 0, engine.SCR_EL3)
    uc.cpr_write(3, 4, 1, 1, 0, engine.HCR_EL2)
    uc.reg_write(UC_ARM64_REG_PSTATE, 0)
    uc.cpr_write(3, 0, 4, 0, 0, 0)
    called, trapped = [], []
    uc.hook_add(UC_HOOK_INSN, lambda uc, *_: called.append(1) or 0, aux1=kind)
    uc.hook_add(UC_HOOK_INTR, lambda uc, number, _: (trapped.append(number), uc.emu_stop()))
    uc.emu_start(CODE, 0)
    assert called and trapped


# -- an exception entered from within its hook -----------------------------------------------------------


def write_registers(uc: Uc, values: dict[int, int]) -> None:
    """uc_reg_write_batch, as blockcount.c uses it."""
    numbers = (ctypes.c_int * len(values))(*values)
    words = [ctypes.c_uint64(value) for value in values.values()]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(word) for word in words))
    assert uclib.uc_reg_write_batch(uc._uch, numbers, pointers, len(values)) == 0


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("word", [0xD4000001, 0xD4200000, 0], ids=["svc", "brk", "undefined"])
def test_a_pc_written_in_the_hook_of_an_exception_is_where_the_run_goes_on(a64, word, batch):
    # blockcount.c enters exceptions so. Nothing may stop for them, or a system call would cost ten times as much.
    uc = bare(word, a64.WFI)
    uc.ctl_exits_enabled(True)
    uc.mem_write(CODE + 0x100, struct.pack("<2I", a64.movz(0, 7), a64.WFI))

    def enter(uc, number, _):
        if batch:
            write_registers(uc, {UC_ARM64_REG_X1: 5, UC_ARM64_REG_PC: CODE + 0x100})
        else:
            uc.reg_write(UC_ARM64_REG_PC, CODE + 0x100)

    uc.hook_add(UC_HOOK_INTR, enter)
    uc.emu_start(CODE, 0)
    assert uc.reg_read(UC_ARM64_REG_X0) == 7
    assert uc.reg_read(UC_ARM64_REG_X1) == (5 if batch else 0)
    assert uc.reg_read(UC_ARM64_REG_PC) == CODE + 0x108


# -- which stores, and which requests, drop translated code ----------------------------------------------

PAGE_PHYS = 0x40100000
RUNS, RUNS_TOO, DATA = UPPER, UPPER + 0x101000, UPPER + 0x202000  # virt, all of that page


def three_mappings(guest, a64):
    """The MMU on, and one page mapped three times: twice for code, once for data."""
    fmt = TableFormat(Granule.K4)
    upper = guest.tables(fmt)
    for virt, flags in ((RUNS, a64.NORMAL), (RUNS_TOO, a64.NORMAL), (DATA, a64.NORMAL_DATA)):
        upper.map(virt, PAGE_PHYS, 0x1000, flags, blocks=False, contiguous=False)
    guest.start(a64.store_word(2, 1), a64.ISB, a64.br(3))
    guest.words(PAGE_PHYS, a64.movz(0, 1), a64.WFI)
    guest.mmu_on(upper, fmt)
    return guest.cpu


@pytest.mark.parametrize(
    "virt,seen", [(RUNS, True), (RUNS_TOO, True), (DATA, False)], ids=["itself", "code", "data"]
)
def test_a_store_drops_translated_code_only_through_a_mapping_that_may_be_executed(guest, a64, virt, seen):
    # Why the steppers follow the guest's IC. (The first such store is seen: only then is the TLB's entry a fast one.)
    cpu = three_mappings(guest, a64)
    for value in (1, 2):
        cpu.set_x(1, virt)
        cpu.set_x(2, a64.movz(0, value))
        cpu.set_x(3, RUNS)
        cpu.pc = CODE
        assert cpu.run().kind is CpuStopKind.IDLE
    assert guest.ram.read_u32(PAGE_PHYS) == a64.movz(0, 2)
    assert cpu.x(0) == (2 if seen else 1)


@pytest.mark.parametrize(
    "drop,dropped",
    [
        (lambda engine: None, False),
        (lambda engine: engine.drop_code(RUNS, 64), True),
        (lambda engine: engine.drop_code(RUNS + 64, 64), False),
        (lambda engine: engine.drop_code(RUNS_TOO, 64), True),
        (lambda engine: engine.drop_code(DATA, 64), False),
        (lambda engine: engine.drop_code(UPPER + 0x900000, 64), False),
        (lambda engine: engine.drop_code_phys([PAGE_PHYS], 64), True),
        (lambda engine: engine.drop_code_phys([PAGE_PHYS + 0x1000], 64), False),
    ],
    ids=["nothing", "itself", "another line", "code", "data", "nowhere", "physical", "another page"],
)
def test_code_is_dropped_by_where_an_address_leads_as_a_fetch(guest, a64, drop, dropped):
    # ctl_remove_cache of an address that may not be executed does nothing, and says nothing. So the kernel's address of
    # a page of a program is no use; without the MMU any address is physical.
    cpu = three_mappings(guest, a64)
    cpu.pc = RUNS
    cpu.run()
    guest.ram.mapped[0].map[0x100000:0x100004] = struct.pack("<I", a64.movz(0, 2))
    drop(cpu._engine)
    cpu.pc = RUNS
    cpu.run()
    assert cpu.x(0) == (2 if dropped else 1)
    assert cpu.sysreg("SCTLR_EL1") & 1


# -- two engines on one memory ---------------------------------------------------------------------------


def test_an_exclusive_store_fails_when_another_cpu_changed_the_word(new_guest, a64):
    guest = new_guest(2)
    first, second = guest.board.cpus
    data = a64.RAM_BASE + 0x10000
    # ldxr x2, [x1]; b; stxr w3, x4, [x1]
    guest.start(a64.mov(1, data), 0xC85F7C22, a64.b(4), 0xC8037C24, a64.WFI)
    guest.start(
        a64.mov(1, data), a64.movz(2, 9), a64.store(2, 1), a64.WFI, phys=a64.CODE + 0x1000, cpu=second
    )
    first.set_x(4, 5)
    assert first.run(stops=[a64.CODE + 24]).kind is CpuStopKind.BREAKPOINT
    second.run()
    first.run()
    assert first.x(3) == 1, "stxr reports failure"
    assert guest.ram.read_u64(data) == 9
    first.pc = a64.CODE
    first.run()
    assert first.x(3) == 0
    assert guest.ram.read_u64(data) == 5


def test_the_syndrome_lies_at_one_place_in_a_context():
    assert engine.syndrome_offset() > 0


# -- what is not modelled; when one of these fails, the list in kexecemu.machine.cpu.engine must change ----------------


def test_an_unaligned_access_to_device_memory_does_not_fault(guest, a64):
    guest.start(a64.mov(1, a64.RAM_BASE + 0x10001), 0xF8000022, a64.WFI)  # stur x2, [x1]; the MMU is off
    assert guest.cpu.run(deliver=False).kind is CpuStopKind.IDLE


def test_a_table_outside_ram_reads_as_zeros(guest, a64):
    guest.start(a64.NOP)
    guest.mmu_on(guest.tables(TableFormat(Granule.K4)), TableFormat(Granule.K4))
    guest.cpu.set_sysreg("TTBR0_EL1", 0x90000000)
    fault = guest.cpu.run(deliver=False).fault
    assert fault.esr == 0x86000004, "hardware: an external abort on the walk, 0x86000014"


def test_floating_point_is_never_trapped(guest, a64):
    guest.start(0x1E604020, a64.WFI)  # fmov d0, d1
    assert guest.cpu.sysreg("CPACR_EL1") >> 20 & 3 == 0, "trapped at EL1, by the register"
    guest.cpu.set_sysreg("CPACR_EL1", 0)
    assert guest.cpu.run(deliver=False).kind is CpuStopKind.IDLE
