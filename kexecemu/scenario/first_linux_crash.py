"""The crash of a real first kernel, and what came of it: its own crash path, kexec-tools' purgatory, a second Linux.

The machine is stopped where the crashing CPU has just left the first kernel: damage and the memory that a dump should
hold are taken there. The end is read from where the CPUs stand, which exceptions they met, and what the second Linux
has left on the disk.
"""

from __future__ import annotations

from kexecemu.crash.damage import Damage, find_damage
from kexecemu.crash.dump import CrashedMemory, Dump, judge_dump
from kexecemu.crash.kernel import End, linux_words
from kexecemu.crash.outcome import Outcome, judge, written_bytes_differ
from kexecemu.crash.reason import Facts, reason_of
from kexecemu.crash.stages import LINUX_ENDS, CaptureRun, Progress, PurgatoryEnd, PurgatoryRun
from kexecemu.linux.capture import LinuxCapture, LinuxEnd, run_linux
from kexecemu.linux.first import FirstLinux
from kexecemu.linux.first_store import hang
from kexecemu.machine.system import SystemEnd, SystemEndKind
from kexecemu.machine.system_cpu import SystemCpu

__all__ = ["crash"]

_CRASHES = ("sysrq: Trigger a crash", "Unable to handle kernel", "Internal error: ")
_BYE = "] Bye!"
_PANIC_END = "---[ end Kernel panic"
_OFF = "first: end: "
_BLOCKS = 100_000
"""From "Bye!" to the purgatory's first instruction are some thousand instructions."""

_USUAL = 1_500_000_000
_BRANCH_ENDS = (LinuxEnd.STUCK, LinuxEnd.BUDGET, LinuxEnd.LOST)


def crash(linux: FirstLinux, progress: Progress | None = None) -> End:
    """Type the line that init waits for, so that it crashes by sysrq, and follow the machine to its end.

    Where a store has met an exception the crash has begun already.
    """
    board, image = linux.board, linux.image
    say = board.timeline.record
    if linux.dying:
        say("panic", "the store's exception is Linux's to handle: an oops", message="")
    else:
        say("panic", "a line is typed, and init crashes Linux by sysrq", message="sysrq triggered crash")
        board.uart.feed(b"\n")
    end = _to_the_jump(linux, progress)
    damage = find_damage(board.ram, image, purgatory=True)
    cpu = _arrival(linux) if linux.marks.hit is not None and _BYE in linux.marks.hit else None
    damage += find_damage(board.ram, image, purgatory=False)
    differ = written_bytes_differ(board.ram, linux.injections)
    if cpu is None:
        say("lost", f"Linux's crash path did not get out of it: {end}", pc_virt=end.stop.pc)
        trapped = end.kind is SystemEndKind.FAULT
        reason = "the crash path did not get out of the first kernel"
        none = (Dump.NONE, f"none: {reason}")
        return _end(linux, Outcome.TRAPPED if trapped else Outcome.HUNG, reason, none, damage)
    say("jump", f"cpu{cpu.index} has left the first kernel for {image.start:#x}, MMU off", pc_phys=cpu.pc)
    seen = len(cpu.exceptions)
    crashed = CrashedMemory.of(board.ram, image, watched=False)
    run = run_linux(
        board,
        areas=crashed.loads,
        progress=None if progress is None else lambda done: progress(done, max(done, _USUAL)),
    )
    purgatory, capture = _parts(linux, cpu, run, seen)
    _tell(linux, purgatory, capture)
    vmcore = run.vmcore if capture is not None else None
    dump = judge_dump(crashed, purgatory, capture, vmcore, ())  # nobody writes to memory behind the jump
    outcome = judge(board.ram, linux.injections, damage, purgatory, capture, dump=dump[0], differ=differ)
    facts = Facts(
        image,
        linux.injections,
        damage,
        purgatory,
        capture,
        dump[0],
        crashed.loads,
        checks=linux.setup.checks,
    )
    return _end(linux, outcome, reason_of(outcome, facts), dump, damage, purgatory, capture)


def _to_the_jump(linux: FirstLinux, progress: Progress | None) -> SystemEnd:
    """To the last line of the first kernel, which its crash path prints right before it is left."""
    last = (_BYE, _PANIC_END, _OFF)
    if linux.setup.stuck_cpus:
        end = linux.run_to((*_CRASHES, *last), progress)
        if linux.marks.hit is None or not any(mark in linux.marks.hit for mark in _CRASHES):
            return end
        _cut_off(linux, end.cpu)
    return linux.run_to(last, progress)


def _cut_off(linux: FirstLinux, crashing: int) -> None:
    """The CPUs that are to be stuck get into an endless loop with interrupts masked, or at least hear none."""
    for index in linux.setup.stuck_cpus:
        if index == crashing:
            text = f"cpu{index} is the one that crashes: it is not stuck"
        else:
            # One that runs a program has no such loop at hand: it goes on until it waits for an interrupt.
            linux.board.gic.deafen(index)
            hung = hang(linux.board.cpus[index], linux.kernel_map)
            where = "is in an endless loop with interrupts masked" if hung else "hears no interrupt any more"
            text = f"cpu{index} {where}"
        linux.board.timeline.record("stuck", text, cpu=index)


def _arrival(linux: FirstLinux) -> SystemCpu | None:
    """The CPU that stands at its first instruction in the crash region, found block by block; None when none does."""
    region = linux.crashk_res
    assert region is not None
    for _ in range(_BLOCKS):
        for cpu in linux.board.cpus:
            if cpu.powered and cpu.pc in region:
                return cpu
        if linux.system.run(1).kind is not SystemEndKind.BUDGET:
            return None
    return None


def _parts(
    linux: FirstLinux, cpu: SystemCpu, run: LinuxCapture, seen: int
) -> tuple[PurgatoryRun, CaptureRun | None]:
    """How the purgatory ended, and how the second Linux did if it was started: from where the CPU stands."""
    image = linux.image
    purgatory, kernel = image.segment("purgatory"), image.segment("kernel")
    assert purgatory is not None and kernel is not None
    # An exception in the purgatory goes to the dead kernel's vectors, where nothing can be fetched without its MMU.
    lost = run.end is LinuxEnd.LOST
    fault = cpu.exceptions[-1] if lost and len(cpu.exceptions) > seen else None
    pc = cpu.sysreg("ELR_EL1") if lost else cpu.pc

    def ended(end: PurgatoryEnd) -> PurgatoryRun:
        return PurgatoryRun(end, pc, run.instructions, None, fault)

    if lost and pc in purgatory.area:
        return ended(PurgatoryEnd.TRAPPED), None
    if run.end in _BRANCH_ENDS:
        if pc in purgatory.area:
            function = linux.said.symbols.get("purgatory", purgatory.area)
            stopped = cpu.spins() and pc in function
            return ended(PurgatoryEnd.MISMATCH if stopped else PurgatoryEnd.HUNG), None
        if not _in_crash_memory(linux, cpu, pc):
            return ended(PurgatoryEnd.ELSEWHERE), None
    return (
        PurgatoryRun(PurgatoryEnd.KERNEL, image.kernel_entry, 0, None),
        CaptureRun(LINUX_ENDS[run.end], pc, run.instructions, None, fault, run),
    )


def _in_crash_memory(linux: FirstLinux, cpu: SystemCpu, pc: int) -> bool:
    """An address of code (virtual, as the CPU sees it) is in memory that the crash kernel owns."""
    phys = cpu.code_phys(pc)
    return phys is not None and any(phys in area for area in (linux.crashk_res, linux.crashk_low_res) if area)


def _tell(linux: FirstLinux, purgatory: PurgatoryRun, capture: CaptureRun | None) -> None:
    entry = linux.image.kernel_entry
    hashes = "is content" if linux.setup.checks else "checks nothing (--no-checks)"
    words = {
        PurgatoryEnd.KERNEL: f"kexec-tools' purgatory {hashes} and jumps to the kernel at {entry:#x}",
        PurgatoryEnd.MISMATCH: "kexec-tools' purgatory finds that the digests differ, and stops in an endless loop",
        PurgatoryEnd.ELSEWHERE: f"kexec-tools' purgatory runs away to {purgatory.pc:#x}",
        PurgatoryEnd.TRAPPED: f"kexec-tools' purgatory is ended by an exception: {purgatory.fault}",
        PurgatoryEnd.HUNG: f"kexec-tools' purgatory gets nowhere (pc {purgatory.pc:#x})",
    }
    say = linux.board.timeline.record
    say("purgatory", words[purgatory.end], end=purgatory.end.value, pc_phys=purgatory.pc)
    if capture is not None and capture.linux is not None:
        say("captured", linux_words(capture.linux), end=capture.end.value, instructions=capture.instructions)


def _end(
    linux: FirstLinux,
    outcome: Outcome,
    reason: str,
    dump: tuple[Dump, str],
    damage: list[Damage],
    purgatory: PurgatoryRun | None = None,
    capture: CaptureRun | None = None,
) -> End:
    board = linux.board
    board.timeline.record("outcome", f"{outcome.value}: {reason}", outcome=outcome.value, dump=dump[0].value)
    return End(
        outcome,
        reason,
        damage,
        list(linux.injections),
        board.uart.text,
        board.timeline,
        board.instructions,
        purgatory,
        capture,
        capture.linux.vmcore if capture is not None and capture.linux is not None else None,
        *dump,
    )
