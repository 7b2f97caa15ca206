"""What came of a crash with faults in it, judged from the machine's state alone."""

import enum
from collections.abc import Sequence

from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import ONLY_FOR_THE_PURGATORY, Dump
from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.machine.memory.ram import Ram
from kexecemu.stray.fault import Injection

__all__ = ["Outcome", "judge", "written_bytes_differ"]


class Outcome(enum.StrEnum):
    """The end of a crash. The strings are relied on from outside."""

    CAPTURED = "captured"
    PREVENTED = "prevented"
    DETECTED = "detected"
    MASKED = "masked"
    LATENT = "latent"
    SILENT = "silent"
    TRAPPED = "trapped"
    MISBOOT = "misboot"
    HUNG = "hung"
    ERROR = "error"

    @property
    def meaning(self) -> str:
        """One sentence for people."""
        return _MEANINGS[self]


_MEANINGS = {
    Outcome.CAPTURED: "nothing was harmed and the dump was taken",
    Outcome.PREVENTED: "the write faulted, memory is intact and the dump was taken",
    Outcome.DETECTED: "the purgatory, or the first kernel, found that the loaded image is not as loaded",
    Outcome.MASKED: "the write changed nothing and the dump was taken",
    Outcome.LATENT: "bytes changed that nobody checks or reads, or that made no difference; the dump was taken",
    Outcome.SILENT: "corrupt bytes reached the capture kernel and nobody noticed",
    Outcome.TRAPPED: "an exception or a panic ended the purgatory or the capture kernel",
    Outcome.MISBOOT: "control left the code that it should be in",
    Outcome.HUNG: "no verdict and no dump: the budget of instructions ran out, or the capture kernel gave up",
    Outcome.ERROR: "kexecemu itself failed",
}

_PURGATORY_ENDS = {
    PurgatoryEnd.MISMATCH: Outcome.DETECTED,
    PurgatoryEnd.RETURNED: Outcome.DETECTED,
    PurgatoryEnd.ELSEWHERE: Outcome.MISBOOT,
    PurgatoryEnd.TRAPPED: Outcome.TRAPPED,
    PurgatoryEnd.HUNG: Outcome.HUNG,
}
_CAPTURE_ENDS = {
    CaptureEnd.TRAPPED: Outcome.TRAPPED,
    CaptureEnd.PANIC: Outcome.TRAPPED,
    CaptureEnd.ELSEWHERE: Outcome.MISBOOT,
    CaptureEnd.BAD_ENTRY: Outcome.MISBOOT,
    CaptureEnd.HUNG: Outcome.HUNG,
}


def judge(
    ram: Ram,
    injections: Sequence[Injection],
    damage: Sequence[Damage],
    purgatory: PurgatoryRun | None,
    capture: CaptureRun | None,
    *,
    dump: Dump = Dump.TRUE,
    differ: bool | None = None,
) -> Outcome:
    """The outcome of a crash that got as far as the jump out of the first kernel.

    damage is what differs from the loaded image: in the purgatory as it was when it was entered, in the other
    segments as they are when the capture kernel starts. Where several faults were injected the worst that came of
    them counts. dump is what judge_dump() says of a capture kernel that took one, or could have. differ is
    written_bytes_differ() at the jump, for a capture kernel that has used its memory since; None asks memory as it is
    now.
    """
    if purgatory is not None and purgatory.end is not PurgatoryEnd.KERNEL:
        return _PURGATORY_ENDS[purgatory.end]
    if purgatory is not None and purgatory.verdict is not None and purgatory.verdict.objects:
        return Outcome.DETECTED  # found, reported, and booted all the same, repaired or not
    if capture is None:
        return Outcome.HUNG
    if capture.end in _CAPTURE_ENDS:
        return _CAPTURE_ENDS[capture.end]
    if any(one.segment not in ONLY_FOR_THE_PURGATORY for one in damage):
        return Outcome.SILENT
    if capture.end in (CaptureEnd.NO_DUMP, CaptureEnd.OFF):
        return Outcome.HUNG
    # One that had the dump at hand and copied nothing has not hung, and nothing that was written astray kept it from
    # copying: it was given no disk, or told not to. What came of the writes is judged as ever; dump says "none".
    if dump is Dump.WRONG or (dump is Dump.NONE and capture.end is CaptureEnd.DONE):
        return Outcome.SILENT  # nor is it a capture where the capture kernel took it that there was a dump
    if damage or (written_bytes_differ(ram, injections) if differ is None else differ):
        return Outcome.LATENT
    if any(one.exception is not None for one in injections):
        return Outcome.PREVENTED
    return Outcome.MASKED if injections else Outcome.CAPTURED


def written_bytes_differ(ram: Ram, injections: Sequence[Injection]) -> bool:
    """Some byte that was written is not what it was before the first write that hit it."""
    original: dict[int, int] = {}
    for one in injections:
        for offset, byte in enumerate(one.before):
            original.setdefault(one.phys + offset, byte)
    now = ((one, enumerate(ram.read(one.phys, len(one.before)))) for one in injections if one.changed)
    return any(byte != original[one.phys + at] for one, held in now for at, byte in held)
