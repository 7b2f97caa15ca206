"""What a first kernel is to its crash: a machine with a crash image loaded, that can be written to, and that panics.

Two make one: the model (kexecemu.crash.kernel.Kernel) and a real Linux (kexecemu.linux.first.FirstLinux).
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from kexecemu.kernel.image.kimage import Kimage
from kexecemu.machine.cpu.stop import CpuStop
from kexecemu.machine.cpu.system_cpu import SystemCpu
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown
from kexecemu.stray.inject import Target

__all__ = ["FirstKernel", "Left", "Progress", "through"]


_Run = TypeVar("_Run")

Progress = Callable[[int, int], None]
"""Called with (instructions done, instructions expected); the second is a guess."""


def through(stage: Generator[object, None, _Run]) -> _Run:
    """Run a stage to its end, whatever it stops at."""
    while True:
        try:
            next(stage)
        except StopIteration as end:
            run: _Run = end.value
            return run


@shown()
@dataclass(frozen=True)
class Left:
    """How a first kernel was left.

    cpu is the one that crashed, and stop how it came to stand where it stands; out says that this is its first
    instruction outside of the first kernel, MMU off. refused is why that kernel did not want to start the image, and
    trapped that an exception ended its crash path.
    """

    cpu: SystemCpu
    stop: CpuStop
    out: bool
    refused: str | None = None
    trapped: bool = False


class FirstKernel(Target, Protocol):
    """The kernel that crashes.

    purgatory_budget  instructions that its purgatory gets at least, whatever the image's size; 0 for what is usual
    """

    purgatory_budget: int

    @property
    def image(self) -> Kimage | None:
        """The crash image that is loaded, None without one."""

    @property
    def crashing_cpu(self) -> SystemCpu:
        """The CPU that goes through the crash, and leaves this kernel."""

    @property
    def crashk_res(self) -> PhysRange | None:
        """The crash kernel's physical memory."""

    @property
    def crashk_low_res(self) -> PhysRange | None:
        """The low part of it, if there are two."""

    def leave(self, message: str) -> Generator[None, None, Left]:
        """Panic, up to the first instruction outside of this kernel; yields once on the way, with the MMU still on.

        It yields nothing where the crash path does not come that far.
        """

    def resume(self) -> CpuStop:
        """Go on in the dying kernel where a purgatory has returned to."""
