"""Running the first kernel's guest code: its own way through boot and crash, and functions called from outside.

The CPU executes; whenever it is about to enter a host function the model does that function's work (host_calls.py)
and lets it go on.
"""

from collections.abc import Callable, Collection, Sequence

from kexecemu.errors import BusError
from kexecemu.kernel.base.cmdline import to_bytes
from kexecemu.kernel.boot.state import KernelState
from kexecemu.kernel.crash.context_switch import switch_to
from kexecemu.kernel.crash.host_calls import host_functions
from kexecemu.kernel.crash.stray_write import StrayPiece, in_stray_write, stray_pieces
from kexecemu.kernel.image.purgatory_guard import early_check_limit
from kexecemu.kernel.image.ways import check_limit
from kexecemu.machine.cpu.cpu import Cpu
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.shown import shown

__all__ = ["CALL_LIMIT", "REFUSALS", "SYSRQ_MESSAGE", "Execution"]

CALL_LIMIT = 50_000_000  # instructions of a stretch of the first kernel's code before it counts as hung
SYSRQ_MESSAGE = "sysrq triggered crash"
REFUSALS = (
    "the purgatory has been damaged",
    "the crash image has been damaged",
    "struct kimage has been damaged",
    "the early check has failed",
    "the purgatory has refused the crash image",
)
"""What the guest's kdump_give_up() is called with."""
_THREAD_SIZE = 16384
_SOFT_RESTART_LIMIT = 1000
_JUMP_SIZE = 24  # of cpu_jump_mmu_on(), in bytes
_RELOCATION_LIMIT = 20_000_000_000  # instructions: 16 GiB of image


def _keep(cpu: Cpu) -> Callable[[], None]:
    """What puts the registers of a CPU back to what they are now."""
    kept, sp, pc, pstate = [cpu.x(number) for number in range(31)], cpu.sp, cpu.pc, cpu.pstate

    def put_back() -> None:
        for number, value in enumerate(kept):
            cpu.set_x(number, value)
        cpu.sp, cpu.pc, cpu.pstate = sp, pc, pstate

    return put_back


def _jump(cpu: Cpu, last: range, limit: int) -> CpuStop:
    """Run the last code of a kernel until it is left: LEFT for a jump out of it with the MMU off, and for that alone.

    The MMU is off for nobody else. An exception in that code does not get out of the kernel, and neither does a branch
    out of it with the MMU on, which is BREAKPOINT where it leads.
    """
    stop = cpu.run(within=last, limit=limit, deliver=False)
    if not stop.leaves(last):
        return stop
    if not cpu.sysreg("SCTLR_EL1") & 1:
        return CpuStop(CpuStopKind.LEFT, stop.pc, stop.instructions)
    return stop if stop.fault is not None else CpuStop(CpuStopKind.BREAKPOINT, stop.pc, stop.instructions)


@shown("in_panic", "at_crash_end")
class Execution:
    """The CPUs of a board as the first kernel uses them."""

    def __init__(self, state: KernelState) -> None:
        self._state, self._board, self._guest = state, state.board, state.guest
        self._host = host_functions(state, self.run)
        self._restart_phys = state.guest.phys("cpu_soft_restart")
        self._mmu_on_virt = state.guest.vmlinux.virt("cpu_jump_mmu_on")
        self._last = {self._restart_phys, self._mmu_on_virt}
        self._crash_ends = self._last | {state.guest.vmlinux.virt("panic_no_kexec")}

    @property
    def in_panic(self) -> bool:
        """The CPU that crashes stands where its path is about to leave this kernel: to switch its MMU off, mostly."""
        return self._state.crashing_cpu.pc in self._last

    @property
    def at_crash_end(self) -> bool:
        """That CPU stands where begin_crash() ends when all is well: there, or where there is nothing to start."""
        return self._state.crashing_cpu.pc in self._crash_ends

    def run(self, cpu: Cpu, until: Collection[int] = (), limit: int | None = None) -> CpuStop:
        """Run a CPU, doing the kernel's thinking at every host function, until something else stops it.

        until are virtual addresses (block starts) that end the run; limit is in instructions, and the host's work for
        them comes out of it as well. Where one CPU's work is handed over to another, that one is run on.
        """
        stops = [*self._host, *until]
        left, worked = limit, cpu.work
        while True:
            budget = None if left is None else max(left + worked - cpu.work, 0)
            stop = cpu.run(stops=stops, limit=left, budget=budget)
            if left is not None:
                left = max(left - stop.instructions, 0)
            if stop.kind is not CpuStopKind.BREAKPOINT or stop.pc in until:
                return stop
            other = self._host[stop.pc](cpu)
            if isinstance(other, Cpu):
                cpu, worked = other, other.work

    def call(self, function: str, *arguments: int, task: str, until: Collection[int] = ()) -> CpuStop:
        """Call a C function of the guest in a task's context on the boot CPU, and put the idle loop back after it.

        arguments are register values. It ends at host_return, or at make_task_dead where the task died in an oops.
        Virtual addresses in `until` end the call early, and leave the CPU there. Where a pointer of the kernel's own
        leads out of RAM the call ends with FAULT: the kernel was stamped on.
        """
        try:
            return self._call(function, arguments, task, until)
        except BusError:
            return CpuStop(CpuStopKind.FAULT, self._board.boot_cpu.pc, 0)

    def _call(self, function: str, arguments: Sequence[int], task: str, until: Collection[int]) -> CpuStop:
        cpu, guest = self._board.boot_cpu, self._guest
        put_back, idle_task = _keep(cpu), cpu.sysreg("SP_EL0")
        task_virt = self._state.task_virt(task)
        stack_phys = guest.space.virt_to_phys(task_virt + guest.vmlinux.offsetof("task_struct", "stack"))
        stack = guest.ram.read_u64(stack_phys)
        switch_to(self._guest, task_virt)
        cpu.set_sysreg("SP_EL0", task_virt)
        cpu.sp = stack + _THREAD_SIZE - guest.vmlinux.sizeof("pt_regs")
        for number, value in enumerate(arguments):
            cpu.set_x(number, value)
        cpu.set_x(29, 0)
        cpu.set_x(30, guest.vmlinux.virt("host_return"))
        cpu.pc = guest.vmlinux.virt(function)
        returned, died = guest.vmlinux.virt("host_return"), guest.vmlinux.virt("make_task_dead")
        image = self._state.image
        limit = CALL_LIMIT + early_check_limit(image) + check_limit(image)
        stop = self.run(cpu, {returned, died, *until}, limit)
        if stop.kind is CpuStopKind.BREAKPOINT and stop.pc in (returned, died):
            switch_to(self._guest, idle_task)
            put_back()
            cpu.set_sysreg("SP_EL0", idle_task)
        return stop

    def stray_write(self, virt: int, data: bytes, width: int = 1) -> bool:
        """Store bytes at a kernel virtual address by really executing stores of `width` bytes in kworker context.

        False when a store faulted and its task died in the guest's own oops, or with panic_on_oops the whole kernel: it
        is in_panic then. Long data is written in pieces; the first that faults ends the write.
        """
        returned = CpuStopKind.BREAKPOINT, self._guest.vmlinux.virt("host_return")
        for piece in stray_pieces(self._guest, virt, data, width):
            stop = self.call("stray_write", *piece, task="task_kworker", until=self._crash_ends)
            if (stop.kind, stop.pc) != returned:
                return False
        return True

    def store_in_panic(self, virt: int, data: bytes, width: int = 1) -> bool:
        """Store bytes at a kernel virtual address on the CPU that is in_panic; False when a store faulted.

        The CPU's registers are put back after it. Where a store faults, the guest's own vectors take the exception.
        die() finds that nobody may start kexec: panic_cpu is this CPU, and so crash_kexec() returns. With panic_on_oops
        panic() follows, whose __crash_kexec() finds __kexec_lock taken by the crash that is under way and returns too;
        the lock is not in the guest, kexec_trylock() is done here in its place. So there is no dump: the CPU is left at
        panic_no_kexec(), or without panic_on_oops at make_task_dead(), where the panicking task is killed and nobody
        goes on with the crash.
        """
        pieces = stray_pieces(self._guest, virt, data, width)
        return all(self._store_in_panic(piece) for piece in pieces)

    def _store_in_panic(self, piece: StrayPiece) -> bool:
        cpu, virt = self._state.crashing_cpu, self._guest.vmlinux.virt
        put_back = _keep(cpu)
        locked, returned = virt("__crash_kexec"), virt("host_return")
        until = {returned, virt("make_task_dead"), virt("panic_no_kexec"), locked}
        with in_stray_write(cpu, self._guest, piece):
            stop = self.run(cpu, until, CALL_LIMIT)
        while stop.kind is CpuStopKind.BREAKPOINT and stop.pc == locked:
            cpu.pc = cpu.x(30)
            stop = self.run(cpu, until, CALL_LIMIT)
        if stop.kind is not CpuStopKind.BREAKPOINT or stop.pc != returned:
            return False
        put_back()
        return True

    def begin_crash(self, message: str = SYSRQ_MESSAGE) -> CpuStop:
        """panic() up to the last moment with the MMU on: the other CPUs are stopped, everything is said.

        The stop is BREAKPOINT at cpu_soft_restart's physical address: machine_kexec() has called it through the
        identity map, behind the guard's comparison where there is one. Every image gets there, but for one with a
        purgatory that is entered with the MMU on: that is cpu_jump_mmu_on(). Or it is BREAKPOINT at
        panic_no_kexec when no crash image is loaded, or when the kernel does not want to start it (see Kernel.refusal).
        DEADLINE, FAULT or IDLE mean that the crash path itself went wrong. A kernel that an oops has brought there
        already stays where it stands, whatever the message.
        """
        guest = self._guest
        if self.at_crash_end:
            return CpuStop(CpuStopKind.BREAKPOINT, self._state.crashing_cpu.pc, 0)
        if message == SYSRQ_MESSAGE:
            return self.call("write_sysrq_trigger", task="task_bash", until=self._crash_ends)
        guest.ram.write(guest.phys("panic_request"), to_bytes(message)[:255] + b"\0")
        why = guest.vmlinux.virt("panic_request")
        return self.call("panic_on_request", why, task="task_bash", until=self._crash_ends)

    def finish_crash(self, stop: CpuStop) -> CpuStop:
        """From where begin_crash() ended with `stop` to the first instruction outside the kernel: LEFT, MMU off mostly.

        PC is the physical address that machine_kexec() jumps to, also where nothing can be fetched there. A crash that
        did not come to its last moment with the MMU on, or that a store then has led astray, is not continued: the stop
        says where the CPU stands. An exception in the last code is FAULT.
        """
        if self._is_last(stop) and not self.in_panic:
            return CpuStop(CpuStopKind.BREAKPOINT, self._state.crashing_cpu.pc, 0)
        return self._leave(stop)

    def _is_last(self, stop: CpuStop) -> bool:
        return stop.kind is CpuStopKind.BREAKPOINT and stop.pc in self._last

    def _leave(self, stop: CpuStop) -> CpuStop:
        cpu, guest = self._state.crashing_cpu, self._guest
        if not self._is_last(stop):
            return stop
        if stop.pc == self._mmu_on_virt:
            function = range(self._mmu_on_virt, self._mmu_on_virt + _JUMP_SIZE)
            return cpu.run(within=function, limit=_SOFT_RESTART_LIMIT, deliver=False)
        # Over the last branch, to wherever it leads: only then is it known that it leads to the image's entry.
        idmap = range(guest.phys("__idmap_text_start"), guest.phys("__idmap_text_end"))
        return _jump(cpu, idmap, _SOFT_RESTART_LIMIT)

    def resume(self) -> CpuStop:
        """Go on in machine_kexec() where a purgatory has returned to: BREAKPOINT at panic_no_kexec if all is well."""
        until = {self._guest.vmlinux.virt("panic_no_kexec")}
        return self.run(self._state.crashing_cpu, until, CALL_LIMIT)

    def kexec(self, control_page: range | None) -> CpuStop:
        """reboot(LINUX_REBOOT_CMD_KEXEC): up to the first instruction outside the relocation code.

        control_page are the physical addresses of that code, None where nothing is to be moved. The returned stop is
        LEFT with PC at the physical address that the code jumped to (MMU off); anything else went wrong on the way.
        """
        if control_page is None:
            return self._leave(self.call("kernel_kexec", task="task_bash", until=self._last))
        stop = self.call("kernel_kexec", task="task_bash", until={control_page.start})
        if stop.kind is not CpuStopKind.BREAKPOINT or stop.pc != control_page.start:
            return stop
        return _jump(self._board.boot_cpu, control_page, _RELOCATION_LIMIT)
