"""One crash from end to end, as a library: the kernel that can be written to, and the End of its panic.

board  = Board(ram="1G", cpus=2)
kernel = Kernel.boot(board, KernelConfig("6.4", purgatory=True), cmdline="crashkernel=256M")
kernel.kexec_file_load(image, initrd, cmdline="console=ttyAMA0")
kernel.stray_write("initrd+0x1000", b"\\xff")
end = kernel.panic("sysrq triggered crash")
end.outcome, end.damage, end.console, end.timeline, end.vmcore
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kexecemu.arguments import instance
from kexecemu.crash.end import End
from kexecemu.crash.moments import SYSRQ, crash, follow, injecting
from kexecemu.crash.running import capture_stage, run_purgatory
from kexecemu.crash.stages import CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.words import tell_capture, tell_purgatory
from kexecemu.kernel import model
from kexecemu.kernel.crash.stray_store import late_cpu_number
from kexecemu.machine.cpu.stop import CpuStop, CpuStopKind
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown
from kexecemu.stray.fault import By, Fault, Injection, When
from kexecemu.stray.first import Left, Progress, through
from kexecemu.stray.inject import inject
from kexecemu.stray.target import resolve

__all__ = ["Kernel", "Reboot"]


@shown()
@dataclass(frozen=True)
class Reboot:
    """The end of an ordinary kexec: how the purgatory ended (None without one) and how the new kernel was entered.

    stop says where the relocation code went; kernel is None when the new kernel was never reached.
    """

    stop: CpuStop
    purgatory: PurgatoryRun | None = None
    kernel: CaptureRun | None = None


class Kernel(model.KernelModel):
    """A first kernel whose memory can be written astray, and whose panic is followed to its end.

    purgatory_budget is FirstKernel's.
    """

    purgatory_budget: int = 0

    @cached_property
    def injections(self) -> list[Injection]:
        """The stray writes that have happened."""
        return self._account()

    @cached_property
    def _pending(self) -> list[Fault]:
        """Faults that wait for their moment."""
        return self._account()

    def _account(self) -> list[Any]:
        """A list that goes back to what it was whenever the machine does."""
        self.board.accounts.append([])
        return self.board.accounts[-1]

    def place(self, fault: Fault) -> PhysRange:
        """The physical bytes that a fault writes; InputError for a target that is not there."""
        return resolve(self, fault)

    def storing(self, by: By) -> int:
        """Target.storing(): the CPU that crashes, and for a late one that which does not stop."""
        return late_cpu_number(self) if by is By.LATE_CPU else self.crashing_cpu.index

    def inject(self, fault: Fault) -> Injection | None:
        """Make a fault happen: now, or at its moment where that is later than the load (then None)."""
        instance(fault, Fault, "fault")
        self.check_alive(f"fault at {fault.at}")
        if fault.when in (When.AFTER_LOAD, When.BEFORE_PANIC, When.DURING_LOAD):
            return inject(self, fault)
        self._pending.append(fault)
        return None

    def stray_write(self, at: str, data: bytes, *, width: int = 1) -> Injection:
        """A CPU stores `data` at a target through the linear map; stores are `width` bytes wide."""
        injection = self.inject(Fault(at, write=data, width=width))
        assert injection is not None
        return injection

    def dma_write(self, at: str, data: bytes, when: When = When.AFTER_LOAD) -> Injection | None:
        """A DMA master writes `data` at a target, behind the MMU."""
        return self.inject(Fault(at, write=data, by=By.DMA, when=when))

    def flip(self, at: str, mask: int = 1, *, by: By = By.CPU) -> Injection | None:
        """Invert the bits of `mask` in the byte at a target."""
        return self.inject(Fault(at, flip=mask, by=by))

    def panic(self, message: str = SYSRQ, *, linux: bool = False, progress: Progress | None = None) -> End:
        """Panic, and follow the machine through purgatory and capture kernel to the end.

        linux follows a capture kernel that is a real Linux to its end, instead of to its first instruction. progress
        is called now and then while the purgatory hashes and while a Linux runs. Raises MachineError when the engine
        fails.
        """
        acts = injecting(self, self._pending)
        return follow(crash(self, message, acts, linux=linux, progress=progress), acts)

    def leave(self, message: str) -> Generator[None, None, Left]:
        """FirstKernel.leave(): begin_crash(), which stops right before the MMU goes off, and finish_crash()."""
        stop = self.begin_crash(message)
        if self.about_to_leave:
            yield
        return self.left(self.finish_crash(stop))

    def left(self, stop: CpuStop) -> Left:
        """How this kernel was left, where crash() or finish_crash() ended with `stop`."""
        refused = self.refusal if stop.pc == self.guest.vmlinux.virt("panic_no_kexec") else None
        out, trapped = stop.kind is CpuStopKind.LEFT, stop.kind is CpuStopKind.FAULT
        return Left(self.crashing_cpu, stop, out, refused, trapped)

    def reboot_by_kexec(self, *, progress: Progress | None = None) -> Reboot:
        """reboot(LINUX_REBOOT_CMD_KEXEC) into the image that was loaded with flags=0, and follow it.

        The stub finds no dump then and says so. Raises InputError without such an image.
        """
        stop = self.reboot()
        image = self.kexec.reboot_image
        assert image is not None
        if stop.kind is not CpuStopKind.LEFT or stop.pc != image.start:
            return Reboot(stop)
        purgatory = None
        if image.purgatory is not None:
            purgatory = run_purgatory(self, image, progress)
            tell_purgatory(self.board.timeline, purgatory, image)
            if purgatory.end is not PurgatoryEnd.KERNEL:
                return Reboot(stop, purgatory)
        run = through(capture_stage(self.board.boot_cpu, self.board, image))
        tell_capture(self.board.timeline, run)
        return Reboot(stop, purgatory, run)
