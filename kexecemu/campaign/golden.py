"""The undisturbed run of a campaign's scenario, taken apart: what every fault is compared with.

It is run twice, once as any scenario is and once piece by piece with every access recorded. Both must end in the same
state to the last byte, or no campaign starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kexecemu.campaign.accesses import Accesses, recorded
from kexecemu.campaign.fault import Ended
from kexecemu.crash.damage import written_by_early_check
from kexecemu.crash.dump import CrashedMemory, Dump
from kexecemu.crash.kernel import End, Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import CaptureRun, PurgatoryEnd, PurgatoryRun, run_capture, run_purgatory
from kexecemu.crash.verdict import VerdictFlags
from kexecemu.errors import MachineError
from kexecemu.kernel.kimage import Kimage
from kexecemu.machine.cpu import Stop, StopKind
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.snapshot import Snapshot, Snapshots
from kexecemu.shown import shown

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

    outcome: Outcome
    region: PhysRange
    loaded: Snapshot
    jump: Snapshot
    jump_stop: Stop
    entry: Snapshot
    memory: bytes
    entry_memory: bytes
    in_panic: Accesses
    in_check: Accesses
    in_capture: Accesses
    purgatory: PurgatoryRun | None
    capture: CaptureRun
    end: Ended
    """What the undisturbed machine comes to."""
    crashed: CrashedMemory
    """What a dump has to show, for whoever goes back to the jump or behind it."""
    back_phys: int
    """x30 at the jump: where a purgatory that objects may return to."""
    check_began: int
    """The boot CPU's instructions at the purgatory's entry."""
    early_check: list[PhysRange]
    """What an early check has written of the purgatory by the jump."""


def golden_run(kernel: Kernel, image: Kimage, snapshots: Snapshots) -> Golden:
    """Run a loaded kernel's crash twice from here, and compare.

    Raises MachineError when it does not end in a dump, or not twice alike.
    """
    assert kernel.crashk_res is not None
    region = kernel.crashk_res
    loaded = snapshots.take()
    end = kernel.panic()
    if end.capture is None or end.outcome is not Outcome.CAPTURED or end.dump is not Dump.TRUE:
        raise MachineError(
            f"the undisturbed run does not end in a dump: {end.outcome.value} ({end.reason}; {end.dump_reason})"
        )
    plain = _state(kernel, snapshots)
    _back(kernel, snapshots, loaded)
    cpu = kernel.board.boot_cpu
    # The first kernel runs at virtual addresses: hooks on memory see physical ones, and its code is not in the region.
    with recorded(cpu, region) as in_panic:
        stop = kernel.crash()
    if stop.kind is not StopKind.LEFT or stop.pc != image.start:
        raise MachineError(f"the undisturbed crash path does not reach the image: {stop}")
    jump = snapshots.take()
    memory = kernel.ram.read(region.start, region.size)
    began = cpu.instructions
    back_phys = cpu.x(30)
    crashed = kernel.crashed_memory(image)
    checker = image.purgatory
    early_check = written_by_early_check(kernel.ram, checker) if checker is not None else []
    purgatory = None
    with recorded(cpu, region) as in_check:
        if checker is not None:
            purgatory = run_purgatory(kernel, image, checker)
    if purgatory is not None and purgatory.end is not PurgatoryEnd.KERNEL:
        raise MachineError(f"the purgatory of the recorded run ended with {purgatory.end.value}")
    entry = snapshots.take()
    entry_memory = kernel.ram.read(region.start, region.size)
    with recorded(cpu, region) as in_capture:
        capture = run_capture(kernel, image)
    # The stub's record lies behind the Image's header. We are the ones who read it, and what is no record is no stub.
    in_capture.note_read(image.kernel_entry, _HEADER_AND_RECORD, cpu.instructions)
    hooked = _state(kernel, snapshots)
    if hooked != plain:
        raise MachineError(f"the recorded run is not the plain one: {_difference(plain, hooked)}")
    _back(kernel, snapshots, loaded)
    return Golden(
        end.outcome,
        region,
        loaded,
        jump,
        stop,
        entry,
        memory,
        entry_memory,
        in_panic,
        in_check,
        in_capture,
        purgatory,
        capture,
        ended(end),
        crashed,
        back_phys,
        began,
        early_check,
    )


def ended(end: End) -> Ended:
    """What a campaign keeps of an end."""
    mended = None
    if end.capture is not None:
        mended = end.verdict is not None and VerdictFlags.REPAIRED in end.verdict.flags
    return Ended(end.outcome.value, end.dump.value, end.dump_reason, end.reported, mended)


def _back(kernel: Kernel, snapshots: Snapshots, loaded: Snapshot) -> None:
    """To right after the load: the machine, and the account of what was written to it."""
    snapshots.restore(loaded)
    kernel.forget_faults()


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
    return ", ".join(wrong) + " differ"
