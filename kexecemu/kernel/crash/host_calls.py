"""The functions of the guest kernel that the model performs while the CPU stands at their first instruction.

The guest's code for each is a bare return (fixtures/minikernel/host.S says what each is for). Arguments are in x0
and up as in any call; what a function writes it writes to guest memory.
"""

import re
from collections.abc import Callable
from functools import partial

from kexecemu.formats.elfnote import crash_note
from kexecemu.kernel.boot import start_kernel
from kexecemu.kernel.boot.loglevel import LogLevel, split_level
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.boot.timekeeping import ktime_get_real_seconds, update_wall_time
from kexecemu.kernel.boot.vmcoreinfo import append_crashtime, write_note
from kexecemu.kernel.crash import oops
from kexecemu.kernel.crash.redirect import panic_dump_stack, panic_try_force_cpu
from kexecemu.kernel.crash.smp import (
    Run,
    clear_pending_dma,
    crash_smp_send_stop,
    smp_send_stop,
    warn_of_stale_cpus,
)
from kexecemu.machine.cpu.cpu import Cpu

__all__ = ["host_functions"]

_FORMAT = re.compile(r"%(?:s|lx|d|%)")


def printk(state: KernelState, cpu: Cpu) -> None:
    """_printk(fmt, ...): format from guest memory; %s, %lx and %d are all that the guest uses."""
    argument = 0

    def expand(match: re.Match[str]) -> str:
        nonlocal argument
        if match.group() == "%%":
            return "%"
        argument += 1
        value = cpu.x(argument)
        if match.group() == "%s":
            return state.guest.string(value)
        return f"{value:x}" if match.group() == "%lx" else str((value + (1 << 31)) % (1 << 32) - (1 << 31))

    level, form = split_level(state.guest.string(cpu.x(0)))
    state.log(_FORMAT.sub(expand, form).rstrip("\n"), level)


def crash_save_vmcoreinfo(state: KernelState, cpu: Cpu) -> None:
    """crash_save_vmcoreinfo(): go over to the safe copy, add CRASHTIME, rewrite the note.

    The write goes into a control page inside the crash region: a legitimate change that no digest may cover.
    """
    guest = state.guest
    safecopy_virt = guest.read("vmcoreinfo_data_safecopy")
    if safecopy_virt:
        guest.write("vmcoreinfo_data", safecopy_virt)
    text = state.vmcoreinfo()
    update_wall_time(guest, state.now_ns)
    text = append_crashtime(text, ktime_get_real_seconds(guest))
    state.store_vmcoreinfo(text)
    write_note(guest, text)


def crash_save_cpu(state: KernelState, cpu: Cpu) -> None:
    """crash_save_cpu(regs, cpu): an NT_PRSTATUS note with these registers into the CPU's crash_notes."""
    guest = state.guest
    regs = oops.read_pt_regs(guest, cpu.x(0))
    task = cpu.sysreg("SP_EL0")
    pid_phys = guest.space.virt_to_phys(task + guest.vmlinux.offsetof("task_struct", "pid"))
    pid = int.from_bytes(guest.ram.read(pid_phys, 4), "little", signed=True)  # pid_t
    note = crash_note(pid, regs.as_elf_regs())
    phys = state.crash_notes_phys(cpu.x(1))
    guest.ram.write(phys, note)
    words = f"cpu{cpu.x(1)} saves its registers (pid {pid}, pc {guest.vmlinux.describe(regs.pc)})"
    state.say("crash_save_cpu", words, cpu=cpu.x(1), pc_virt=regs.pc, note_phys=phys)


def report_kernel_fault(state: KernelState, cpu: Cpu) -> None:
    """report_kernel_fault(addr, esr, regs): "Unable to handle kernel ..." and what the tables say."""
    for line in oops.fault_report(state.guest, state.tables, cpu.x(0), cpu.x(1)):
        state.log(line, LogLevel.ALERT)


def report_die(state: KernelState, cpu: Cpu) -> None:
    """report_die(str, esr, regs): "Internal error: ...", registers and call trace."""
    guest, rules = state.guest, state.config.release.rules
    text = guest.string(cpu.x(0))
    regs = oops.read_pt_regs(guest, cpu.x(2))
    task = oops.task_line(guest, rules, cpu.sysreg("SP_EL0"), cpu.index)
    headline, *rest = oops.die_report(guest, rules, text, cpu.x(1), regs, task)
    state.log(headline, LogLevel.EMERG)
    for line in rest:
        state.log(line, LogLevel.WARNING)
    # Guest memory may hold anything there, and an event is one line.
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
    words = f"{text} on cpu{cpu.index} at {guest.vmlinux.describe(regs.pc)}"
    state.say("oops", words, cpu=cpu.index, esr=cpu.x(1), pc_virt=regs.pc)


def wait_for_cpu(state: KernelState, run: Run, cpu: Cpu) -> None:
    """wait_for_completion_timeout(&cpu_running): the CPU that PSCI has just started runs until it is idle."""
    for other in state.board.cpus:
        if other is not cpu and other.powered:
            run(other)


def machine_kexec(state: KernelState, cpu: Cpu) -> None:
    """What comes before the jump, and what is said there."""
    clear_pending_dma(state, cpu)
    warn_of_stale_cpus(state, cpu)


_HOST_CALLS: dict[str, Callable[[KernelState, Cpu], object]] = {
    "__create_page_tables": lambda state, cpu: state.early.create(),
    "setup_arch": lambda state, cpu: start_kernel.setup_arch(state),
    "kernel_init_freeable": lambda state, cpu: start_kernel.kernel_init_freeable(state),
    "_printk": printk,
    "dump_stack": panic_dump_stack,
    "crash_save_vmcoreinfo": crash_save_vmcoreinfo,
    "crash_save_cpu": crash_save_cpu,
    "machine_kexec": machine_kexec,
    "machine_kexec_mask_interrupts": lambda state, cpu: None,  # no interrupt controller to mask
    "report_kernel_fault": report_kernel_fault,
    "report_die": report_die,
}
# Those in which other CPUs run.
_RUNNING_CALLS: dict[str, Callable[[KernelState, Run, Cpu], Cpu | None]] = {
    "wait_for_cpu_running": wait_for_cpu,
    "crash_smp_send_stop": crash_smp_send_stop,
    "smp_send_stop": smp_send_stop,
}
HostFunction = Callable[[Cpu], object]
"""Does the work of a function that a CPU is about to enter; what it gives is the CPU that then goes on in its place."""


def host_functions(state: KernelState, run: Run) -> dict[int, HostFunction]:
    """What the model does where a CPU is about to enter a function: by virtual address, and one by its physical."""
    host: dict[int, HostFunction] = {}
    for name, function in _HOST_CALLS.items():
        host[state.guest.vmlinux.virt(name)] = partial(function, state)
    for name, running in _RUNNING_CALLS.items():
        host[state.guest.vmlinux.virt(name)] = partial(running, state, run)
    if state.config.release.rules.panic_force_cpu:
        host[state.guest.vmlinux.virt("panic")] = partial(panic_try_force_cpu, state, run)
    # Called before the MMU is on, at its physical address.
    early = "__create_page_tables"
    host[state.guest.phys(early)] = host[state.guest.vmlinux.virt(early)]
    return host
