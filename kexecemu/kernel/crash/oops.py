"""What the kernel says when it dies: fault reports, oopses and call traces (arch/arm64/mm/fault.c, traps.c)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kexecemu.errors import BusError
from kexecemu.kernel.base.changes import Rules
from kexecemu.kernel.base.vmlinux import GuestKernel
from kexecemu.machine.cpu.exceptions import FSC_EXTERNAL
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.shown import shown

__all__ = ["PtRegs", "call_trace", "die_report", "fault_report", "read_pt_regs", "task_line"]

_EC_NAMES = {0x21: "IABT (current EL)", 0x25: "DABT (current EL)"}
_TRACE_LIMIT = 32
_LEVEL_NAMES = (("pgd", 0), ("p4d", 0), ("pud", 1), ("pmd", 2), ("pte", 3))


@shown()
@dataclass(frozen=True)
class PtRegs:
    """struct pt_regs as the exception entry stored it: x0-x30, sp, pc (virtual), pstate."""

    regs: tuple[int, ...]
    sp: int
    pc: int
    pstate: int

    def as_elf_regs(self) -> tuple[int, ...]:
        """The 34 values of elf_gregset_t: x0-x30, sp, pc, pstate."""
        return (*self.regs, self.sp, self.pc, self.pstate)


def read_pt_regs(guest: GuestKernel, virt: int) -> PtRegs:
    """Read a struct pt_regs at a kernel virtual address from guest memory."""
    values = struct.unpack("<34Q", guest.read_virt(virt, 34 * 8))
    return PtRegs(values[:31], values[31], values[32], values[33])


def _status_text(esr: int) -> str:
    fsc = esr & 0x3F
    level = fsc & 3
    kind = {0x04: "translation", 0x08: "access flag", 0x0C: "permission"}.get(fsc & 0x3C)
    if kind:
        return f"level {level} {kind} fault"
    return "synchronous external abort" if fsc == FSC_EXTERNAL else f"unknown {fsc}"


def _headline(addr: int, esr: int) -> str:
    """The choice that __do_kernel_fault() makes."""
    fsc, is_write = esr & 0x3F, bool(esr & 1 << 6)
    if fsc & 0x3C == 0x0C:
        what = "write to read-only memory" if is_write else "read from unreadable memory"
        if esr >> 26 & 0x3F == 0x21:
            what = "execute from non-executable memory"
        return f"Unable to handle kernel {what} at virtual address {addr:016x}"
    if addr < 4096:
        return f"Unable to handle kernel NULL pointer dereference at virtual address {addr:016x}"
    return f"Unable to handle kernel paging request at virtual address {addr:016x}"


def _show_pte(tables: PageTables, addr: int) -> Iterator[str]:
    """show_pte(): every level by its name; one that is folded (p4d always) repeats the entry above it."""
    entries = {level: entry for level, _, entry in tables.walk(addr).steps}
    top = min(entries)
    for name, level in _LEVEL_NAMES:
        if level < top:
            yield f"{name}={entries[top]:016x}"
        elif level in entries:
            yield f"{name}={entries[level]:016x}"


def fault_report(guest: GuestKernel, tables: PageTables, addr: int, esr: int) -> Iterator[str]:
    """The lines of die_kernel_fault(): headline, Mem abort info, and the walk of the tables (show_pte()).

    addr is virtual (FAR_EL1), esr is ESR_EL1.
    """
    ec = esr >> 26 & 0x3F
    yield _headline(addr, esr)
    yield "Mem abort info:"
    yield f"  ESR = 0x{esr:016x}"
    yield f"  EC = 0x{ec:02x}: {_EC_NAMES.get(ec, 'unknown')}, IL = {32 if esr & 1 << 25 else 16} bits"
    yield f"  SET = {esr >> 11 & 3}, FnV = {esr >> 10 & 1}"
    yield f"  EA = {esr >> 9 & 1}, S1PTW = {esr >> 7 & 1}"
    yield f"  FSC = 0x{esr & 0x3F:02x}: {_status_text(esr)}"
    if ec == 0x25:
        yield "Data abort info:"
        yield f"  ISV = {esr >> 24 & 1}, ISS = 0x{esr & 0xFFFFFF:08x}"
        yield f"  CM = {esr >> 8 & 1}, WnR = {esr >> 6 & 1}"
    granule_kib = tables.fmt.granule.size // 1024
    yield (
        f"swapper pgtable: {granule_kib}k pages, {guest.space.vabits_actual}-bit VAs, "
        f"pgdp={guest.phys('swapper_pg_dir'):016x}"
    )
    yield f"[{addr:016x}] {', '.join(_show_pte(tables, addr))}"


def task_line(guest: GuestKernel, rules: Rules, task_virt: int, cpu: int) -> str:
    """dump_stack_print_info(): who is running."""
    layout = guest.vmlinux
    pid = struct.unpack("<i", guest.read_virt(task_virt + layout.offsetof("task_struct", "pid"), 4))[0]
    comm = guest.string(task_virt + layout.offsetof("task_struct", "comm"), 16)
    release = guest.string(layout.virt("init_uts_ns") + layout.offsetof("new_utsname", "release"), 65)
    uid = " UID: 0" if rules.tells_uid else ""
    kdump = "Kdump: loaded " if guest.read("kexec_crash_image") else ""
    model = " PREEMPT" if rules.tells_preemption else ""
    return f"CPU: {cpu}{uid} PID: {pid} Comm: {comm} {kdump}Not tainted {release} #1{model}"


def call_trace(guest: GuestKernel, rules: Rules, pc: int, frame: int, *, fault: bool) -> Iterator[str]:
    """dump_backtrace(): a line for pc and for each frame record from x29 = frame on; virtual addresses.

    pc is where a fault was, or a return address.
    """
    host_text = (guest.vmlinux.virt("__host_text_start"), guest.vmlinux.virt("__host_text_end"))
    yield "Call trace:"
    mark = f" ({'P' if fault else 'C'})" if rules.marks_trace else ""
    yield f" {guest.vmlinux.describe(pc, backtrace=not fault)}{mark}"
    for _ in range(_TRACE_LIMIT):
        try:
            frame, lr = struct.unpack("<2Q", guest.read_virt(frame, 16))
        except (BusError, ValueError):
            return
        if not lr or host_text[0] <= lr < host_text[1]:
            return  # the end of the stack, or the model that called this function
        yield f" {guest.vmlinux.describe(lr, backtrace=True)}"
        if not frame:
            return


def die_report(
    guest: GuestKernel, rules: Rules, text: str, esr: int, regs: PtRegs, task: str
) -> Iterator[str]:
    """The lines of __die(): the oops itself, who and where, registers, call trace."""
    yield f"Internal error: {text}: {esr:016x} [#1] SMP"
    yield task
    yield f"pc : {guest.vmlinux.describe(regs.pc)}"
    yield f"lr : {guest.vmlinux.describe(regs.regs[30])}"
    yield f"sp : {regs.sp:016x}"
    for high in range(29, -1, -3):
        low = max(high - 2, 0)
        yield " ".join(f"x{number:<2}: {regs.regs[number]:016x}" for number in range(high, low - 1, -1))
    yield from call_trace(guest, rules, regs.pc, regs.regs[29], fault=True)
