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
from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_SECOND
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind

__all__ = ["host_functions"]

Run = Callable[..., CpuStop]
"""Lets a CPU of the kernel run until something other than a host function stops it: Execution.run()."""

_CMA_DMA_TIMEOUT = 10  # CMA_DMA_TIMEOUT_SEC
_STOP_LIMIT = 1_000_000  # instructions; stopping takes hundreds, so a CPU that is still up then is lost
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


def dump_stack(state: KernelState, cpu: Cpu) -> None:
    """dump_stack(): who is running, on what machine, and how it came here."""
    rules = state.config.release.rules
    # x30 still is the return address of the call to dump_stack() itself.
    trace = oops.call_trace(state.guest, rules, cpu.x(30), cpu.x(29), fault=False)
    task = oops.task_line(state.guest, rules, cpu.sysreg("SP_EL0"), cpu.index)
    for line in (task, f"Hardware name: {state.machine_model} (DT)", *trace):
        state.log(line, LogLevel.WARNING)


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


def crash_smp_send_stop(state: KernelState, run: Run, cpu: Cpu) -> None:
    """crash_smp_send_stop(): an IPI to every other CPU that is up; each saves its registers and goes off.

    Once only, as in the kernel: a CPU whose own crash path comes here while it is being stopped changes nothing. A CPU
    that dies on the way stands in panic() for ever, since another one is in there already (panic_smp_self_stop()).
    """
    if state.guest.read_u32("cpus_stopped"):
        return
    state.guest.write_u32("cpus_stopped", 1)
    _stop_others(state, run, cpu)
    if state.crashk_cma_ranges:
        seconds = _CMA_DMA_TIMEOUT
        words = (
            f"{seconds} s for DMA into CMA memory that is still under way: the capture kernel will live there"
        )
        _wait(state, seconds, "crash_cma_clear_pending_dma", words)


def _wait(state: KernelState, seconds: int, kind: str, words: str) -> None:
    """mdelay(): time that passes, though nobody runs through it here."""
    state.say(kind, words, seconds=seconds)
    state.board.idle += seconds * INSTRUCTIONS_PER_SECOND


def _stop_others(state: KernelState, run: Run, cpu: Cpu) -> None:
    lost = {state.guest.vmlinux.virt("panic"), state.guest.phys("cpu_soft_restart")}
    others = [other for other in state.board.cpus if other is not cpu and other.powered]
    state.guest.write_u32("waiting_for_crash_ipi", len(others))
    if not others:
        return
    state.log("SMP: stopping secondary CPUs")
    for other in others:
        if other.deliver_irq():
            _run_off(state, other, run(other, lost, _STOP_LIMIT))
    late = [other.index for other in others if other.powered]
    if late:
        _wait(state, 1, "crash_smp_send_stop", "a second, in which CPUs that were told to stop do not")
        state.log(f"SMP: failed to stop secondary CPUs {_cpu_list(late)}")


def _cpu_list(cpus: list[int]) -> str:
    """%*pbl: 0,2-4."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else f"{one[0]}" for one in runs)


def smp_send_stop(state: KernelState, run: Run, cpu: Cpu) -> None:
    """smp_send_stop(): an IPI to every other CPU that is up; each goes off."""
    others = [other for other in state.board.cpus if other is not cpu and other.powered]
    state.guest.write_u32("waiting_for_stop_ipi", len(others))
    for other in others:
        if other.deliver_irq():
            _run_off(state, other, run(other, limit=_STOP_LIMIT))


def _run_off(state: KernelState, cpu: Cpu, stop: CpuStop) -> None:
    if stop.kind is CpuStopKind.POWER:
        state.say("cpu_off", f"cpu{cpu.index} is off", cpu=cpu.index)


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


_HOST_CALLS: dict[str, Callable[[KernelState, Cpu], None]] = {
    "__create_page_tables": lambda state, cpu: state.early.create(),
    "setup_arch": lambda state, cpu: start_kernel.setup_arch(state),
    "kernel_init_freeable": lambda state, cpu: start_kernel.kernel_init_freeable(state),
    "_printk": printk,
    "dump_stack": dump_stack,
    "crash_save_vmcoreinfo": crash_save_vmcoreinfo,
    "crash_save_cpu": crash_save_cpu,
    "machine_kexec_mask_interrupts": lambda state, cpu: None,  # no interrupt controller to mask
    "report_kernel_fault": report_kernel_fault,
    "report_die": report_die,
}
# Those in which other CPUs run.
_RUNNING_CALLS: dict[str, Callable[[KernelState, Run, Cpu], None]] = {
    "wait_for_cpu_running": wait_for_cpu,
    "crash_smp_send_stop": crash_smp_send_stop,
    "smp_send_stop": smp_send_stop,
}


def host_functions(state: KernelState, run: Run) -> dict[int, Callable[[Cpu], None]]:
    """What the model does where a CPU is about to enter a function: by virtual address, and one by its physical."""
    host: dict[int, Callable[[Cpu], None]] = {}
    for name, function in _HOST_CALLS.items():
        host[state.guest.vmlinux.virt(name)] = partial(function, state)
    for name, running in _RUNNING_CALLS.items():
        host[state.guest.vmlinux.virt(name)] = partial(running, state, run)
    # Called before the MMU is on, at its physical address.
    early = "__create_page_tables"
    host[state.guest.phys(early)] = host[state.guest.vmlinux.virt(early)]
    return host
