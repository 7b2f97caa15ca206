"""Stopping the other CPUs (arch/arm64/kernel/smp.c): the rungs of the ladder, what is said on each, and the time.

An IPI, and a second for all to stop. From 6.12 on a second try by a pseudo-NMI where there is one, which reaches CPUs
with interrupts off. 7.3's third, SDEI, is for firmware that has it, and the board's has none.
"""

from collections.abc import Callable

from kexecemu.kernel.base.cmdline import parameters, strtobool
from kexecemu.kernel.boot.loglevel import LogLevel
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.crash import oops
from kexecemu.kernel.crash.dump_stack import show_stack
from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_SECOND
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.cpu.system_cpu import SystemCpu

__all__ = ["Run", "clear_pending_dma", "crash_smp_send_stop", "smp_send_stop", "warn_of_stale_cpus"]

Run = Callable[..., CpuStop]
"""Lets a CPU of the kernel run until something other than a host function stops it: Execution.run()."""

_CMA_DMA_TIMEOUT = 10  # CMA_DMA_TIMEOUT_SEC
_STOP_LIMIT = 1_000_000  # instructions; stopping takes hundreds, so a CPU that is still up then is lost
_FAILED = "stop_failed"


def crash_smp_send_stop(state: KernelState, run: Run, cpu: Cpu) -> None:
    """crash_smp_send_stop(): an IPI to every other CPU that is up; each saves its registers and goes off.

    Once only, as in the kernel: a CPU whose own crash path comes here while it is being stopped changes nothing. A CPU
    that dies on the way stands in panic() for ever, since another one is in there already (panic_smp_self_stop()).
    """
    if state.guest.read_u32("cpus_stopped"):
        return
    state.guest.write_u32("cpus_stopped", 1)
    _stop_others(state, run, cpu)


def clear_pending_dma(state: KernelState, cpu: Cpu) -> None:
    """crash_cma_clear_pending_dma(), between machine_crash_shutdown() and machine_kexec() of a crash image."""
    image = state.guest.read("kexec_crash_image")
    if state.crashk_cma_ranges and cpu.x(0) == image:
        seconds = _CMA_DMA_TIMEOUT
        words = (
            f"{seconds} s for DMA into CMA memory that is still under way: the capture kernel will live there"
        )
        _wait(state, seconds, "crash_cma_clear_pending_dma", words)


def _wait(state: KernelState, seconds: int, kind: str, words: str) -> None:
    """mdelay(): time that passes, though nobody runs through it here."""
    state.say(kind, words, seconds=seconds)
    state.board.idle += seconds * INSTRUCTIONS_PER_SECOND


def _others(state: KernelState, cpu: Cpu) -> list[SystemCpu]:
    """The other CPUs that are online."""
    gone = (cpu.index, state.redirected_from)
    return [other for other in state.board.cpus if other.powered and other.index not in gone]


def _stop_others(state: KernelState, run: Run, cpu: Cpu) -> None:
    lost = {state.guest.vmlinux.virt("panic"), state.guest.phys("cpu_soft_restart")}
    others = _others(state, cpu)
    state.guest.write_u32("waiting_for_crash_ipi", len(others))
    if not others:
        return
    state.log("SMP: stopping secondary CPUs")
    for other in others:
        if other.index in state.board.stuck_cpus:
            other.pstate |= Pstate.DAIF
        elif other.deliver_irq():
            _run_off(state, other, run(other, lost, _STOP_LIMIT))
    late = [other for other in others if other.powered]
    if not late:
        return
    _wait(state, 1, "crash_smp_send_stop", "a second, in which CPUs that were told to stop do not")
    retries = state.config.release.rules.stop_retries
    if retries and _has_pseudo_nmi(state):
        state.log(f"SMP: retry stop with NMI for CPUs {_numbers(late)}")
        for other in late:
            # With pseudo-NMIs local_irq_disable() is a priority, and PSTATE.I is clear.
            other.pstate &= ~Pstate.I
            if other.deliver_irq():
                _run_off(state, other, run(other, lost, _STOP_LIMIT))
        late = [other for other in late if other.powered]
    if late:
        state.log(f"SMP: failed to stop secondary CPUs {_numbers(late if retries else others)}")
        words = f"cpu{_numbers(late)} cannot be stopped: beside the capture kernel the first one lives on"
        state.say(_FAILED, words, cpus=_numbers(late))


def _has_pseudo_nmi(state: KernelState) -> bool:
    """ipi_should_be_nmi(): CONFIG_ARM64_PSEUDO_NMI, irqchip.gicv3_pseudo_nmi= and a GICv3."""
    asked = [strtobool(value) for value in parameters(state.boot_command_line, "irqchip.gicv3_pseudo_nmi")]
    known = [False, *(value for value in asked if value is not None)]
    return state.config.enabled("ARM64_PSEUDO_NMI") and known[-1] and state.board.gic.version == 3


def _numbers(cpus: list[SystemCpu]) -> str:
    return _cpu_list([cpu.index for cpu in cpus])


def _cpu_list(cpus: list[int]) -> str:
    """%*pbl: 0,2-4."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else f"{one[0]}" for one in runs)


def warn_of_stale_cpus(state: KernelState, cpu: Cpu) -> None:
    """machine_kexec()'s WARN() of a crash where cpus_are_stuck_in_kernel() or smp_crash_stop_failed().

    But for the registers.
    """
    if not state.board.timeline.of(_FAILED) and not state.cpus.spin_tables:
        return
    rules = state.config.release.rules
    state.log("------------[ cut here ]------------", LogLevel.WARNING)
    state.log("Some CPUs may be stale, kdump will be unreliable.")
    head, first, *frames = oops.call_trace(state.guest, rules, cpu.pc, cpu.x(29), fault=True)
    caller = f" {state.guest.vmlinux.describe(cpu.x(30), backtrace=True)}"  # it has made no frame yet
    show_stack(state, cpu, (head, first, caller, *frames))
    state.log("---[ end trace 0000000000000000 ]---", LogLevel.WARNING)


def smp_send_stop(state: KernelState, run: Run, cpu: Cpu) -> None:
    """smp_send_stop(): an IPI to every other CPU that is up; each goes off."""
    others = _others(state, cpu)
    state.guest.write_u32("waiting_for_stop_ipi", len(others))
    for other in others:
        if other.deliver_irq():
            _run_off(state, other, run(other, limit=_STOP_LIMIT))


def _run_off(state: KernelState, cpu: Cpu, stop: CpuStop) -> None:
    if stop.kind is CpuStopKind.POWER:
        state.say("cpu_off", f"cpu{cpu.index} is off", cpu=cpu.index)
