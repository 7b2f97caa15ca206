"""dump_stack(): who is running, on what machine, and how it came here (lib/dump_stack.c)."""

from collections.abc import Iterable

from kexecemu.kernel.boot.loglevel import LogLevel
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.crash import oops
from kexecemu.machine.cpu.cpu import Cpu

__all__ = ["dump_stack", "show_stack"]


def dump_stack(state: KernelState, cpu: Cpu) -> None:
    """dump_stack() of a CPU at a function's first instruction."""
    # x30 still is the return address of the call to the function itself.
    rules = state.config.release.rules
    show_stack(state, cpu, oops.call_trace(state.guest, rules, cpu.x(30), cpu.x(29), fault=False))


def show_stack(state: KernelState, cpu: Cpu, trace: Iterable[str]) -> None:
    """The CPU's task and its machine, and then the lines of a call trace."""
    task = oops.task_line(state.guest, state.config.release.rules, cpu.sysreg("SP_EL0"), cpu.index)
    if state.acpi is not None:
        name = [f"Hardware name: {state.acpi.machine}"] if state.acpi.machine else []
    else:
        name = [f"Hardware name: {state.machine_model} (DT)"] if state.machine_model else []
    for line in (task, *name, *trace):
        state.log(line, LogLevel.WARNING)
