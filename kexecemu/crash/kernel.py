"""One crash from end to end, as a library: the kernel that can be written to, and the End of its panic.

board  = Board(ram="1G", cpus=2)
kernel = Kernel.boot(board, KernelConfig("6.4", purgatory=True), cmdline="crashkernel=256M")
kernel.kexec_file_load(image, initrd, cmdline="console=ttyAMA0")
kernel.stray_write("initrd+0x1000", b"\\xff")
end = kernel.panic("sysrq triggered crash")
end.outcome, end.damage, end.console, end.timeline, end.vmcore
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kexecemu.arguments import instance
from kexecemu.crash.damage import Damage, find_damage, written_by_early_check
from kexecemu.crash.dump import CrashedMemory, Dump, judge_dump
from kexecemu.crash.outcome import Outcome, judge, written_bytes_differ
from kexecemu.crash.reason import Facts, reason_of
from kexecemu.crash.stages import (
    CaptureEnd,
    CaptureRun,
    Interlude,
    Progress,
    PurgatoryEnd,
    PurgatoryRun,
    run_capture,
    run_purgatory,
)
from kexecemu.crash.verdict import Damaged, Verdict, VerdictFlags, VerdictState, describe_damage
from kexecemu.crash.vmcore import Vmcore
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.kernel import model
from kexecemu.kernel.config import KernelConfig
from kexecemu.kernel.kimage import Kimage
from kexecemu.kernel.vmlinux import Vmlinux
from kexecemu.linux.capture import DiskVmcore, LinuxCapture, LinuxEnd
from kexecemu.machine.board import Board
from kexecemu.machine.cpu import Stop, StopKind
from kexecemu.machine.timeline import Timeline
from kexecemu.shown import shown
from kexecemu.stray.fault import By, Fault, Injection, When, inject

__all__ = ["AtJump", "End", "Kernel", "Reboot", "linux_words"]

# Called at the moment of the jump out of the first kernel; it may look at the machine, and must not change it.
AtJump = Callable[["Kernel", Kimage], None]


@shown()
@dataclass(frozen=True)
class End:
    """The end of one crash.

    outcome as the machine's state says, and reason what of it is this one's own; dump what became of the dump, and
    dump_reason why; damage what differed from the loaded image; console everything that was printed; vmcore the dump,
    None where no capture kernel got far enough to take one; instructions of all CPUs.
    """

    outcome: Outcome
    reason: str
    damage: list[Damage]
    injections: list[Injection]
    console: str
    timeline: Timeline
    instructions: int
    purgatory: PurgatoryRun | None = None
    capture: CaptureRun | None = None
    vmcore: Vmcore | DiskVmcore | None = field(default=None, repr=False)
    dump: Dump = Dump.NONE
    dump_reason: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """What the purgatory's record says; None without one."""
        return self.purgatory.verdict if self.purgatory else None

    @property
    def reported(self) -> bool:
        """The purgatory's own record says that something was wrong: whatever came of it, somebody was told."""
        return self.verdict is not None and self.verdict.objects


@shown()
@dataclass(frozen=True)
class Reboot:
    """The end of an ordinary kexec: how the purgatory ended (None without one) and how the new kernel was entered.

    stop says where the relocation code went; kernel is None when the new kernel was never reached.
    """

    stop: Stop
    purgatory: PurgatoryRun | None = None
    kernel: CaptureRun | None = None


class Kernel(model.Kernel):
    """A first kernel whose memory can be written astray, and whose panic is followed to its end."""

    def __init__(
        self,
        board: Board,
        config: KernelConfig,
        dtb: bytes,
        vmlinux: Vmlinux,
        purgatory: RelocatableObject | None,
        seed: int,
    ) -> None:
        super().__init__(board, config, dtb, vmlinux, purgatory, seed)
        self._pending: list[Fault] = []  # faults that wait for their moment
        self._injections: list[Injection] = []  # those that have happened
        self.after_check: list[Callable[[], object]] = []
        """What the host does once the purgatory has jumped; a campaign's faults."""

    def inject(self, fault: Fault) -> Injection | None:
        """Make a fault happen: now, or later when its moment is after the check (then None)."""
        instance(fault, Fault, "fault")
        self.check_alive(f"fault at {fault.at}")
        if fault.when is When.AFTER_CHECK:
            self._pending.append(fault)
            return None
        injection = inject(self, fault)
        self._injections.append(injection)
        return injection

    def note_injection(self, injection: Injection) -> None:
        """Somebody else has written: it counts for the outcome as what inject() does."""
        self._injections.append(injection)

    def forget_faults(self) -> None:
        """The machine has gone back to before all faults."""
        self._pending.clear()
        self._injections.clear()
        self.after_check.clear()

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

    def panic(
        self,
        message: str = "sysrq triggered crash",
        *,
        linux: bool = False,
        progress: Progress | None = None,
        at_jump: AtJump | None = None,
    ) -> End:
        """Panic, and follow the machine through purgatory and capture kernel to the end.

        linux follows a capture kernel that is a real Linux to its end, instead of to its first instruction. progress
        is called now and then while the purgatory hashes and while a Linux runs; at_jump once, where the boot CPU
        stands at image.start and has executed nothing there. Raises MachineError when the engine fails.
        """
        return self.follow(self.crash(message), linux=linux, progress=progress, at_jump=at_jump)

    def follow(
        self,
        stop: Stop,
        *,
        linux: bool = False,
        progress: Progress | None = None,
        at_jump: AtJump | None = None,
        while_checking: Interlude | None = None,
        in_capture: Interlude | None = None,
        back_phys: int | None = None,
        resumed: bool = False,
        crashed: CrashedMemory | None = None,
    ) -> End:
        """What comes after crash(), which ended with `stop`; see panic(). For back_phys see run_purgatory().

        resumed says that the CPU stands in the middle of the purgatory: what differs in that one is its own doing.
        crashed is what the dump should show, for a machine that was put back to a moment behind the jump; None notes
        it now.

        while_checking happens so many instructions into the purgatory, in_capture into the capture stub.
        """
        image = self.image
        if image is None or stop.kind is not StopKind.LEFT:
            return self._never_left(stop, image)
        checker = image.purgatory
        own = written_by_early_check(self.ram, checker) if checker is not None else []
        damage = [] if resumed else find_damage(self.ram, image, purgatory=True, own=own)
        purgatory = None
        if stop.pc != image.start:
            # The kernel's own crash path went wrong: its kimage was damaged.
            self.say(
                "misboot",
                f"the first kernel jumped to {stop.pc:#x} instead of {image.start:#x}",
                pc_phys=stop.pc,
            )
            damage += find_damage(self.ram, image, purgatory=False)
            reason = "the first kernel did not jump to the image's entry"
            return self._end(Outcome.MISBOOT, reason, (Dump.NONE, f"none: {reason}"), damage)
        if crashed is None:
            crashed = self.crashed_memory(image)
        if at_jump is not None:
            at_jump(self, image)
        if image.purgatory is not None:
            purgatory = run_purgatory(self, image, image.purgatory, progress, while_checking, back_phys)
            self._tell_purgatory(purgatory, image)
            if purgatory.end is PurgatoryEnd.RETURNED:
                self.resume()
        if purgatory is None or purgatory.end is PurgatoryEnd.KERNEL:
            return self.boot_capture(
                image,
                purgatory,
                damage,
                crashed=crashed,
                linux=linux,
                progress=progress,
                in_capture=in_capture,
            )
        damage += find_damage(self.ram, image, purgatory=False)
        dump = judge_dump(crashed, purgatory, None, None, ())
        outcome = judge(self.ram, self._injections, damage, purgatory, None)
        facts = Facts(image, self._injections, damage, purgatory, None, dump[0], crashed.loads, checker)
        return self._end(outcome, reason_of(outcome, facts), dump, damage, purgatory)

    def crashed_memory(self, image: Kimage) -> CrashedMemory:
        """What a dump has to show, from the moment of the jump out of the first kernel, which is now."""
        return CrashedMemory.of(self.ram, image, image.vmcoreinfo)

    def boot_capture(
        self,
        image: Kimage,
        purgatory: PurgatoryRun | None,
        damage: Sequence[Damage] = (),
        *,
        crashed: CrashedMemory,
        linux: bool = False,
        progress: Progress | None = None,
        in_capture: Interlude | None = None,
    ) -> End:
        """The last part of follow(), from the capture kernel's entry on, where the boot CPU stands.

        purgatory is how it came there, damage what was found of that one's own segment, crashed what the dump should
        show.
        """
        for fault in self._pending:
            self._injections.append(inject(self, fault))
        for action in self.after_check:
            action()
        damage = [*damage, *find_damage(self.ram, image, purgatory=False)]
        self.say(
            "capture", f"the capture kernel starts at {image.kernel_entry:#x}", pc_phys=image.kernel_entry
        )
        # A real Linux makes use of all its memory: what a fault has left there is judged before it does.
        differ = written_bytes_differ(self.ram, self._injections) if linux else None
        changed = crashed.changed() if linux else None
        capture = run_capture(
            self, image, linux=linux, loads=crashed.loads, progress=progress, interlude=in_capture
        )
        self._tell_capture(capture)
        vmcore = self._vmcore(image, capture)
        if changed is None:
            changed = crashed.changed() if vmcore is not None else []
        dump = judge_dump(crashed, purgatory, capture, vmcore, changed, damage)
        outcome = judge(self.ram, self._injections, damage, purgatory, capture, dump=dump[0], differ=differ)
        checker = image.purgatory
        facts = Facts(image, self._injections, damage, purgatory, capture, dump[0], crashed.loads, checker)
        return self._end(outcome, reason_of(outcome, facts), dump, damage, purgatory, capture, vmcore)

    def reboot_by_kexec(self, *, progress: Progress | None = None) -> Reboot:
        """reboot(LINUX_REBOOT_CMD_KEXEC) into the image that was loaded with flags=0, and follow it.

        The stub finds no dump then and says so. Raises InputError without such an image.
        """
        stop = self.reboot()
        image = self.kexec.reboot_image
        assert image is not None
        if stop.kind is not StopKind.LEFT or stop.pc != image.start:
            return Reboot(stop)
        purgatory = None
        if image.purgatory is not None:
            purgatory = run_purgatory(self, image, image.purgatory, progress)
            self._tell_purgatory(purgatory, image)
            if purgatory.end is not PurgatoryEnd.KERNEL:
                return Reboot(stop, purgatory)
        run = run_capture(self, image)
        self._tell_capture(run)
        return Reboot(stop, purgatory, run)

    def _never_left(self, stop: Stop, image: Kimage | None) -> End:
        if image is None:
            reason = "no crash image is loaded: panic() goes on without a dump"
            return self._end(Outcome.HUNG, reason, (Dump.NONE, "none: no crash image is loaded"), [])
        checker = image.purgatory
        own = written_by_early_check(self.ram, checker) if checker is not None else []
        damage = find_damage(self.ram, image, purgatory=True, own=own)
        damage += find_damage(self.ram, image, purgatory=False)
        if self.refusal is not None and stop.pc == self.guest.vmlinux.virt("panic_no_kexec"):
            none = "none: the first kernel does not start an image that it found damaged"
            reason = f"the first kernel gives kdump up: {self.refusal}"
            return self._end(Outcome.DETECTED, reason, (Dump.NONE, none), damage)
        trapped = stop.kind is StopKind.FAULT
        self.say("lost", f"the crash path did not get out of the first kernel: {stop}", pc_virt=stop.pc)
        reason = "the crash path did not get out of the first kernel"
        return self._end(
            Outcome.TRAPPED if trapped else Outcome.HUNG, reason, (Dump.NONE, f"none: {reason}"), damage
        )

    def _tell_purgatory(self, run: PurgatoryRun, image: Kimage) -> None:
        verdict = run.verdict
        content = "is content and jumps"
        if verdict is not None and verdict.objects:
            trapped = verdict.state is VerdictState.TRAPPED
            content = "meets an exception and jumps all the same" if trapped else "jumps all the same"
            if VerdictFlags.REPAIRED in verdict.flags:
                content = "repairs the image and jumps"
        act = {"system_off": "switches off", "system_reset": "resets"}.get(run.power or "", "stops")
        damaged = describe_damage(verdict, image) if verdict is not None else None
        # Code and pointers come before the digests: with these wrong nothing is hashed.
        differs = verdict is None or not verdict.damaged & (Damaged.PURGATORY | Damaged.DTB_POINTER)
        found = "the digests differ" if differs else "the image is not as loaded"
        words = {
            PurgatoryEnd.KERNEL: f"the purgatory {content} to the kernel at {image.kernel_entry:#x}",
            PurgatoryEnd.MISMATCH: f"the purgatory finds that {found}, and {act}",
            PurgatoryEnd.RETURNED: f"the purgatory finds that something is wrong, and returns to {run.pc:#x}",
            PurgatoryEnd.ELSEWHERE: f"the purgatory jumps to {run.pc:#x}, which is not the kernel",
            PurgatoryEnd.TRAPPED: f"the purgatory is ended by an exception: {run.fault}",
            PurgatoryEnd.HUNG: f"the purgatory gets nowhere (pc {run.pc:#x})",
        }
        self.say(
            "purgatory",
            words[run.end] + (f"; damaged: {damaged}" if damaged else ""),
            end=run.end.value,
            pc_phys=run.pc,
            instructions=run.instructions,
            expected=verdict.expected.hex() if verdict else None,
            found=verdict.found.hex() if verdict else None,
            damaged=damaged,
        )

    def _tell_capture(self, run: CaptureRun) -> None:
        words = {
            CaptureEnd.DONE: "the capture kernel has gone through the dump and powers off",
            CaptureEnd.ENTERED: "a real kernel stands at its first instruction, the entry contract is met",
            CaptureEnd.NO_DUMP: "the capture kernel finds no dump: device tree or core header are damaged",
            CaptureEnd.BAD_ENTRY: "the capture kernel was entered against the boot protocol",
            CaptureEnd.TRAPPED: f"the capture kernel is ended by an exception: {run.fault}",
            CaptureEnd.ELSEWHERE: f"the capture kernel runs away to {run.pc:#x}",
            CaptureEnd.HUNG: f"the capture kernel gets nowhere (pc {run.pc:#x})",
            CaptureEnd.HEADERS: "the capture kernel reads the dump's headers and powers off",
            CaptureEnd.OFF: "the capture kernel powers off",
            CaptureEnd.PANIC: "the capture kernel panics",
        }
        text = words[run.end] if run.linux is None else linux_words(run.linux)
        self.say("captured", text, end=run.end.value, pc_phys=run.pc, instructions=run.instructions)

    def _vmcore(self, image: Kimage, capture: CaptureRun) -> Vmcore | DiskVmcore | None:
        """The dump that a capture kernel came to, None where it came to none."""
        if capture.linux is not None:
            return capture.linux.vmcore
        if capture.end is CaptureEnd.DONE and capture.record is not None:
            return Vmcore(self.board, image.dtb_mem, capture.record.elfcorehdr)
        return Vmcore(self.board, image.dtb_mem) if capture.end is CaptureEnd.ENTERED else None

    def _end(
        self,
        outcome: Outcome,
        reason: str,
        dump: tuple[Dump, str],
        damage: Sequence[Damage],
        purgatory: PurgatoryRun | None = None,
        capture: CaptureRun | None = None,
        vmcore: Vmcore | DiskVmcore | None = None,
    ) -> End:
        self.say("outcome", f"{outcome.value}: {reason}", outcome=outcome.value, dump=dump[0].value)
        return End(
            outcome,
            reason,
            list(damage),
            list(self._injections),
            self.board.uart.text,
            self.board.timeline,
            self.board.instructions,
            purgatory,
            capture,
            vmcore,
            *dump,
        )


def linux_words(run: LinuxCapture) -> str:
    """What came of a real capture kernel."""
    who = f"Linux {run.release}" if run.release else "the capture kernel"
    if run.end is LinuxEnd.DONE:
        size = run.vmcore.size if run.vmcore is not None else 0
        if not run.true_dump:
            wrong = ", ".join(str(load.phys) for load in run.wrong_loads) or "their number"
            return f"{who} has copied a dump of {size:#x} bytes that is not what memory held: {wrong} differ"
        count = len(run.read)
        return (
            f"{who} has copied the dump, {size:#x} bytes, and powers off; all {count} loads are as memory was"
        )
    words = {
        LinuxEnd.NO_DUMP: "finds no dump, and powers off",
        LinuxEnd.HEADERS: "reads the dump's headers, and powers off without copying it",
        LinuxEnd.OFF: f"powers off: {run.last_word}"
        if run.last_word
        else "powers off without a word of the dump",
        LinuxEnd.PANIC: f"panics: {run.panic}" if run.panic else "panics",
        LinuxEnd.STUCK: "gets nowhere",
        LinuxEnd.LOST: "is ended by an exception",
        LinuxEnd.BUDGET: "has not come to an end",
    }
    return f"{who} {words[run.end]} ({run.where})"
