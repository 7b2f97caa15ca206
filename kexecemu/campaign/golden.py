"""The undisturbed run of a campaign's scenario, taken apart: what every fault is compared with.

It is run twice, once as any scenario is and once piece by piece with every access recorded. Both must end in the same
state to the last byte, or no campaign starts.
"""

from dataclasses import dataclass, replace
from typing import Final

from kexecemu.campaign.accesses import Accesses, recorded
from kexecemu.campaign.fault import Ended
from kexecemu.crash.damage import written_by_early_check
from kexecemu.crash.dump import Dump
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.moments import Passed, crash, follow
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import CaptureRun, PurgatoryRun
from kexecemu.crash.verdict import VerdictFlags
from kexecemu.errors import InputError, MachineError
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.snapshot import Snapshot, Snapshots
from kexecemu.shown import shown
from kexecemu.stray.fault import When

__all__ = ["Golden", "ended", "golden_run"]


_HEADER_AND_RECORD: Final = 256
"""Bytes."""


@shown()
@dataclass(frozen=True)
class Golden:
    """The undisturbed run.

    loaded, jump and entry are the machine right after the load, at the jump out of the first kernel, and at the capture
    kernel's first instruction (None where there is no purgatory: the jump is the entry). in_panic, in_check and
    in_capture say what was touched of the crash region on the way from each of them. memory is the crash region at the
    jump, entry_memory at the capture kernel's entry.
    """

    region: PhysRange
    loaded: Snapshot
    jump: Snapshot
    entry: Snapshot
    passed: Passed
    """What is behind the crash at the capture kernel's entry."""
    memory: bytes
    entry_memory: bytes
    in_panic: Accesses
    in_check: Accesses
    in_capture: Accesses
    capture: CaptureRun
    end: Ended
    """What the undisturbed machine comes to."""
    check_began: int
    """The boot CPU's instructions at the purgatory's entry."""
    early_check: list[PhysRange]
    """What an early check has written of the purgatory by the jump."""

    @property
    def purgatory(self) -> PurgatoryRun | None:
        """The purgatory's run; None without one."""
        return self.passed.purgatory

    def held(self, area: PhysRange, *, at_entry: bool = False) -> bytes:
        """What memory holds of the crash region at the jump, or at the capture kernel's entry."""
        start = area.start - self.region.start
        return (self.entry_memory if at_entry else self.memory)[start : start + area.size]

    def at_jump(self, *, crashed: bool = True) -> Passed:
        """What is behind the crash at the jump; without `crashed`, what a dump has to show is noted anew."""
        return Passed(self.passed.left, self.passed.crashed if crashed else None, hashing=self.passed.hashing)

    def while_hashing(self, step: int) -> Passed:
        """What is behind it once the purgatory has done so many 256ths of its run."""
        return replace(self.passed, damage=[], step=step, purgatory=None)


def golden_run(kernel: Kernel, image: Kimage, snapshots: Snapshots) -> Golden:
    """Run a loaded kernel's crash twice from here, and compare.

    Raises MachineError when it does not end in a dump, or not twice alike, InputError where another CPU than the boot
    CPU goes through it.
    """
    region, cpu, checker = kernel.crashk_res, kernel.board.boot_cpu, image.purgatory
    assert region is not None
    loaded = snapshots.take()
    end = kernel.panic()
    if end.capture is None or end.outcome is not Outcome.CAPTURED or end.dump is not Dump.TRUE:
        raise MachineError(
            f"the undisturbed run does not end in a dump: {end.outcome.value} ({end.reason}; {end.dump_reason})"
        )
    if kernel.redirected_from is not None:
        raise InputError(
            "panic_force_cpu=: a campaign knows what the boot CPU does, and it hands its panic over"
        )
    plain = _state(kernel, snapshots)
    snapshots.restore(loaded)
    passed = Passed()
    steps = crash(kernel, passed=passed)

    def stretch(until: When) -> tuple[Accesses, Snapshot, bytes]:
        with recorded(cpu, region) as accesses:
            if not any(when is until for when, _ in steps):
                raise MachineError(f"the recorded run does not come to {until.value}")
        return accesses, snapshots.take(), kernel.ram.read(region.start, region.size)

    # The first kernel runs at virtual addresses: hooks on memory see physical ones, and its code is not in the region.
    in_panic, jump, memory = stretch(When.AT_JUMP)
    # What the MMU reads no hook sees: a map that the load has made is read from the jump on.
    for page in image.table_pages:
        in_panic.note_read(page.start, page.size, cpu.instructions)
    began = cpu.instructions
    early_check = written_by_early_check(kernel.ram, checker) if checker is not None else []
    in_check, entry, entry_memory = stretch(When.AFTER_CHECK)
    for page in image.table_pages:
        in_check.note_read(page.start, page.size, began)
    passed.hashing = passed.purgatory.instructions if passed.purgatory is not None else 0
    at_entry = replace(passed)
    with recorded(cpu, region) as in_capture:
        capture = follow(steps, {}).capture
    assert capture is not None
    # The stub's record lies behind the Image's header. We are the ones who read it, and what is no record is no stub.
    in_capture.note_read(image.kernel_entry, _HEADER_AND_RECORD, cpu.instructions)
    differs = _difference(plain, _state(kernel, snapshots))
    if differs:
        raise MachineError(f"the recorded run is not the plain one: {differs}")
    snapshots.restore(loaded)
    at = (loaded, jump, entry, at_entry, memory, entry_memory)
    return Golden(region, *at, in_panic, in_check, in_capture, capture, ended(end), began, early_check)


def ended(end: End) -> Ended:
    """What a campaign keeps of an end."""
    mended = None
    if end.capture is not None:
        mended = end.verdict is not None and VerdictFlags.REPAIRED in end.verdict.flags
    return Ended(end.outcome.value, end.dump.value, end.dump_reason, end.reported, mended)


def _state(kernel: Kernel, snapshots: Snapshots) -> dict[str, object]:
    """Everything that two equal runs have in common."""
    return {
        "registers": [cpu.registers() for cpu in kernel.board.cpus if cpu.instructions],
        "instructions": kernel.board.instructions,
        "console": bytes(kernel.board.uart.output),
        "memory": snapshots.take().pages,
    }


def _difference(left: dict[str, object], right: dict[str, object]) -> str:
    wrong = [name for name, value in left.items() if right[name] != value]
    return f"{', '.join(wrong)} differ" if wrong else ""
