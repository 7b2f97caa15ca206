"""The end of one crash: whoever the first kernel was, and whoever captured."""

from dataclasses import dataclass, field

from kexecemu.crash.damage import Damage
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.stages import CaptureRun, PurgatoryRun
from kexecemu.crash.verdict import Verdict
from kexecemu.crash.vmcore import Vmcore
from kexecemu.linux.capture import DiskVmcore
from kexecemu.machine.timeline import Timeline
from kexecemu.shown import shown
from kexecemu.stray.fault import Injection

__all__ = ["End"]


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
