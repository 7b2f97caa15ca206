"""panic_force_cpu=: a panic goes on on another CPU than the one that panicked (kernel/panic.c, from 7.0 on)."""

from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.crash.dump_stack import dump_stack
from kexecemu.kernel.crash.smp import Run
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.cpu.stop import CpuStopKind

__all__ = ["panic_dump_stack", "panic_try_force_cpu"]

_PANIC_CPU_INVALID = 0xFFFF_FFFF
_LIMIT = 1_000_000  # instructions; taking the IPI, and standing still, takes hundreds


def panic_try_force_cpu(state: KernelState, run: Run, cpu: Cpu) -> Cpu | None:
    """panic_try_force_cpu() of a CPU at panic()'s first instruction: the CPU that goes on in its place, else None.

    The message is at the address in x0. By the IPI of smp_call_function_single_async() the other CPU, which is idle
    here, comes to panic() itself; the one that called takes itself off the online mask and stands still with its
    interrupts masked (panic_smp_self_stop()): nobody waits for it, and its registers are in no note. Where the other
    CPU does not hear the IPI, that is the end.
    """
    target, layout = state.panic_force_cpu, state.guest.vmlinux
    if target is None or target == cpu.index:
        return None
    if not _online(state, target):
        state.log(f"panic: target CPU {target} is offline, continuing on CPU {cpu.index}")
        return None
    if state.guest.read_u32("panic_cpu") != _PANIC_CPU_INVALID:
        return None  # it is in a crash already, and goes on with that
    state.log(f"panic: Redirecting from CPU {cpu.index} to CPU {target} for crash kernel.")
    caller = layout.describe(cpu.x(30), backtrace=True)
    if not caller.startswith("die+"):  # TAINT_DIE: an oops has said it all
        dump_stack(state, cpu)
    other = state.board.cpus[target]
    words = f"cpu{cpu.index} hands the panic over to cpu{target}, and stands still"
    state.say("panic_redirect", words, cpu=cpu.index, to=target)
    message = cpu.x(0)
    for name in ("__cpu_online_mask", "__cpu_active_mask"):
        state.guest.write(name, state.guest.read(name) & ~(1 << cpu.index))
    cpu.pc, cpu.pstate = layout.virt("cpu_park_loop"), cpu.pstate | Pstate.DAIF
    run(cpu, limit=_LIMIT)
    taken = target not in state.board.stuck_cpus and other.deliver_irq()
    if not taken or run(other, {layout.virt("do_handle_IPI")}, _LIMIT).kind is not CpuStopKind.BREAKPOINT:
        return None
    other.set_x(0, message)
    other.pc = layout.virt("panic")
    return other


def _online(state: KernelState, cpu: int) -> bool:
    """cpu_online(); one that was stopped is not."""
    cpus = state.board.cpus
    return cpu < len(cpus) and cpus[cpu].powered and bool(state.guest.read("__cpu_online_mask") >> cpu & 1)


def panic_dump_stack(state: KernelState, cpu: Cpu) -> None:
    """What panic() says of its CPU's stack: nothing is to be seen on one that was handed the panic."""
    if state.redirected_from is None or cpu.index != state.panic_force_cpu:
        dump_stack(state, cpu)
    else:
        state.log(f"panic: Redirected from CPU {state.redirected_from}, skipping stack dump.")
