"""The functions of the guest kernel that the model performs while the CPU stands at their first instruction.

The guest's code for each is a bare return (fixtures/minikernel/host.S says what each is for). Arguments are in x0
and up as in any call; what a function writes it writes to guest memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from kexecemu.formats.elfnote import crash_note
from kexecemu.kernel import oops, start_kernel
from kexecemu.kernel.timekeeping import ktime_get_real_seconds, update_wall_time
from kexecemu.kernel.vmcoreinfo import append_crashtime, write_note
from kexecemu.machine.cpu import Cpu, StopKind

if TYPE_CHECKING:
    from kexecemu.kernel.model import Kernel

__all__ = ["HOST_CALLS", "HostCall"]

HostCall = Callable[["Kernel", Cpu], None]

_STOP_LIMIT = 1_000_000  # instructions; stopping takes hundreds, so a CPU that is still up then is lost
_FORMAT = re.compile(r"%(?:s|lx|d|%)")


def _signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def printk(kernel: Kernel, cpu: Cpu) -> None:
    """_printk(fmt, ...): format from guest memory; %s, %lx and %d are all that the guest uses."""
    argument = 0

    def expand(match: re.Match[str]) -> str:
        nonlocal argument
        if match.group() == "%%":
            return "%"
        argument += 1
        value = cpu.x(argument)
        if match.group() == "%s":
            return kernel.guest.string(value)
        return f"{value:x}" if match.group() == "%lx" else str(_signed32(value))

    kernel.log(_FORMAT.sub(expand, kernel.guest.string(cpu.x(0))).rstrip("\n"))


def dump_stack(kernel: Kernel, cpu: Cpu) -> None:
    """dump_stack(): who is running, on what machine, and how it came here."""
    kernel.log(oops.task_line(kernel.guest, cpu.sysreg("SP_EL0"), cpu.index))
    kernel.log(f"Hardware name: {kernel.machine_model} (DT)")
    # x30 still is the return address of the call to dump_stack() itself.
    for line in oops.call_trace(kernel.guest, cpu.x(30) - 4, cpu.x(29)):
        kernel.log(line)


def crash_save_vmcoreinfo(kernel: Kernel, cpu: Cpu) -> None:
    """crash_save_vmcoreinfo(): go over to the safe copy, add CRASHTIME, rewrite the note.

    The write goes into a control page inside the crash region: a legitimate change that no digest may cover.
    """
    guest = kernel.guest
    image_virt = guest.read("kexec_crash_image")
    text = kernel.vmcoreinfo()
    if image_virt:
        safecopy = kernel.safecopy_phys
        if safecopy:
            guest.write("vmcoreinfo_data", guest.space.linear_virt(safecopy))
            text = guest.ram.read(safecopy, guest.read("vmcoreinfo_size"))
    update_wall_time(guest, kernel.now_ns)
    text = append_crashtime(text, ktime_get_real_seconds(guest))
    kernel.store_vmcoreinfo(text)
    write_note(guest, text)


def crash_save_cpu(kernel: Kernel, cpu: Cpu) -> None:
    """crash_save_cpu(regs, cpu): an NT_PRSTATUS note with these registers into the CPU's crash_notes."""
    guest = kernel.guest
    regs = oops.read_pt_regs(guest, cpu.x(0))
    task = cpu.sysreg("SP_EL0")
    pid = guest.ram.read_u32(guest.space.virt_to_phys(task + guest.vmlinux.offsetof("task_struct", "pid")))
    note = crash_note(pid, regs.as_elf_regs())
    phys = kernel.crash_notes_phys(cpu.x(1))
    guest.ram.write(phys, note)
    kernel.say(
        "crash_save_cpu",
        f"cpu{cpu.x(1)} saves its registers (pid {pid}, pc {guest.vmlinux.describe(regs.pc)})",
        cpu=cpu.x(1),
        pc_virt=regs.pc,
        note_phys=phys,
    )


def crash_smp_send_stop(kernel: Kernel, cpu: Cpu) -> None:
    """crash_smp_send_stop(): an IPI to every other CPU that is up; each saves its registers and goes off.

    Once only, as in the kernel: a CPU whose own crash path comes here while it is being stopped changes nothing. A CPU
    that dies on the way stands in panic() for ever, since another one is in there already (panic_smp_self_stop()).
    """
    if kernel.cpus_stopped:
        return
    kernel.cpus_stopped = True
    lost = {kernel.guest.vmlinux.virt("panic"), kernel.guest.phys("cpu_soft_restart")}
    others = [other for other in kernel.board.cpus if other is not cpu and other.powered]
    kernel.guest.write_u32("waiting_for_crash_ipi", len(others))
    if not others:
        return
    kernel.log("SMP: stopping secondary CPUs")
    for other in others:
        if other.deliver_irq():
            stop = kernel.run(other, lost, _STOP_LIMIT)
            if stop.kind is StopKind.POWER:
                kernel.say("cpu_off", f"cpu{other.index} is off", cpu=other.index)
    late = [str(other.index) for other in others if other.powered]
    if late:
        kernel.log(f"SMP: failed to stop secondary CPUs {','.join(late)}")


def smp_send_stop(kernel: Kernel, cpu: Cpu) -> None:
    """smp_send_stop(): an IPI to every other CPU that is up; each goes off."""
    others = [other for other in kernel.board.cpus if other is not cpu and other.powered]
    kernel.guest.write_u32("waiting_for_stop_ipi", len(others))
    for other in others:
        if other.deliver_irq() and kernel.run(other, limit=_STOP_LIMIT).kind is StopKind.POWER:
            kernel.say("cpu_off", f"cpu{other.index} is off", cpu=other.index)


def report_kernel_fault(kernel: Kernel, cpu: Cpu) -> None:
    """report_kernel_fault(addr, esr, regs): "Unable to handle kernel ..." and what the tables say."""
    for line in oops.fault_report(kernel.guest, kernel.tables, cpu.x(0), cpu.x(1)):
        kernel.log(line)


def report_die(kernel: Kernel, cpu: Cpu) -> None:
    """report_die(str, esr, regs): "Internal error: ...", registers and call trace."""
    guest = kernel.guest
    text = guest.string(cpu.x(0))
    regs = oops.read_pt_regs(guest, cpu.x(2))
    task = oops.task_line(guest, cpu.sysreg("SP_EL0"), cpu.index)
    for line in oops.die_report(guest, text, cpu.x(1), regs, task):
        kernel.log(line)
    kernel.say(
        "oops",
        f"{text} on cpu{cpu.index} at {guest.vmlinux.describe(regs.pc)}",
        cpu=cpu.index,
        esr=cpu.x(1),
        pc_virt=regs.pc,
    )


def nothing(kernel: Kernel, cpu: Cpu) -> None:
    """A step that has no effect in this machine (there is no interrupt controller to mask)."""


def wait_for_cpu(kernel: Kernel, cpu: Cpu) -> None:
    """wait_for_completion_timeout(&cpu_running): the CPU that PSCI has just started runs until it is idle."""
    for other in kernel.board.cpus:
        if other is not cpu and other.powered:
            kernel.run(other)


HOST_CALLS: dict[str, HostCall] = {
    "__create_page_tables": lambda kernel, cpu: start_kernel.create_page_tables(kernel),
    "setup_arch": lambda kernel, cpu: start_kernel.setup_arch(kernel),
    "kernel_init_freeable": lambda kernel, cpu: start_kernel.kernel_init_freeable(kernel),
    "wait_for_cpu_running": wait_for_cpu,
    "_printk": printk,
    "dump_stack": dump_stack,
    "crash_save_vmcoreinfo": crash_save_vmcoreinfo,
    "crash_smp_send_stop": crash_smp_send_stop,
    "crash_save_cpu": crash_save_cpu,
    "smp_send_stop": smp_send_stop,
    "machine_kexec_mask_interrupts": nothing,
    "report_kernel_fault": report_kernel_fault,
    "report_die": report_die,
}
