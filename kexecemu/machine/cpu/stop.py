"""Why a CPU stopped running."""

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from kexecemu.machine.cpu.exceptions import GuestException
from kexecemu.shown import shown

__all__ = ["CpuStop", "CpuStopKind"]


class CpuStopKind(StrEnum):
    """Why Cpu.run() returned."""

    BREAKPOINT = "breakpoint"
    LEFT = "left"
    DEADLINE = "deadline"
    IDLE = "idle"
    POWER = "power"
    FAULT = "fault"


@shown()
@dataclass(frozen=True, slots=True)
class CpuStop:
    """How one Cpu.run() ended: why, at which virtual PC, after how many instructions of this run.

    fault is set for FAULT, power ("cpu_off", "system_off" or "system_reset") for POWER.
    """

    kind: CpuStopKind
    pc: int
    instructions: int
    fault: GuestException | None = None
    power: str | None = None

    def leaves(self, within: Container[int]) -> bool:
        """Control has left these addresses: a jump to where nothing can be fetched is a jump before it is an exception.

        For a run that did not deliver exceptions.
        """
        astray = self.kind is CpuStopKind.FAULT and self.fault is not None and self.fault.pc not in within
        return self.kind is CpuStopKind.LEFT or astray

    def __str__(self) -> str:
        detail = f": {self.fault}" if self.fault else f" ({self.power})" if self.power else ""
        return f"{self.kind} at {self.pc:#x} after {self.instructions} instructions{detail}"
