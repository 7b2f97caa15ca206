"""PSCI 1.0 by HVC or SMC, the firmware of the board: switching CPUs and the system on and off (Arm DEN 0022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.machine.cpu.cpu import Cpu  # the numbers are for those that need no engine

__all__ = ["Psci"]

SMCCC_VERSION: Final = 0x80000000
SMCCC_ARCH_FEATURES: Final = 0x80000001
PSCI_VERSION: Final = 0x84000000
CPU_SUSPEND: Final = 0x84000001
CPU_OFF: Final = 0x84000002
CPU_ON: Final = 0x84000003
AFFINITY_INFO: Final = 0x84000004
MIGRATE: Final = 0x84000005
MIGRATE_INFO_TYPE: Final = 0x84000006
SYSTEM_OFF: Final = 0x84000008
SYSTEM_RESET: Final = 0x84000009
PSCI_FEATURES: Final = 0x8400000A

SMC64: Final = 1 << 30
"""Set in a function identifier whose arguments are 64 bits wide."""

SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, ALREADY_ON = 0, -1, -2, -4

AFFINITY_ON, AFFINITY_OFF = 0, 1

_CONSTANTS: Final = {
    PSCI_VERSION: 0x00010000,  # PSCI 1.0
    SMCCC_VERSION: 0x00010001,  # SMCCC 1.1, the first that has the function
    MIGRATE_INFO_TYPE: 2,  # no trusted OS, so none that would have to move
}
_HAS_SMC64: Final = frozenset((CPU_ON, AFFINITY_INFO))
_FUNCTIONS: Final = {*_CONSTANTS, *_HAS_SMC64, CPU_OFF, SYSTEM_OFF, SYSTEM_RESET, PSCI_FEATURES}

AFFINITY_MASK: Final = 0xFF00FFFFFF


@shown()
class Psci:
    """Answers the calls of all CPUs of one board. Anything unknown gets NOT_SUPPORTED."""

    def __init__(self, cpus: Sequence[Cpu]) -> None:
        self._cpus = cpus

    def call(self, cpu: Cpu) -> str | None:
        """Do what x0 asks for and put the answer into x0.

        Returns "cpu_off", "system_off" or "system_reset" if it was that, else None. A power-down call does not
        return to the guest: the CPU (or all of them) is off, its registers as they were.
        """
        function = cpu.x(0) & 0xFFFFFFFF
        wide = bool(function & SMC64)
        plain = function & ~SMC64
        if wide and plain not in _HAS_SMC64:
            plain = -1
        if plain == CPU_OFF:
            cpu.power_off()
            return "cpu_off"
        if plain in (SYSTEM_OFF, SYSTEM_RESET):
            for each in self._cpus:
                each.power_off()
            return "system_off" if plain == SYSTEM_OFF else "system_reset"
        mask = (1 << 64) - 1 if wide else (1 << 32) - 1
        cpu.set_x(0, self._answer(plain, *(cpu.x(n) & mask for n in (1, 2, 3))))
        return None

    def _answer(self, function: int, first: int, second: int, third: int) -> int:
        if function in _CONSTANTS:
            return _CONSTANTS[function]
        if function == SMCCC_ARCH_FEATURES:
            return SUCCESS if first in (SMCCC_VERSION, SMCCC_ARCH_FEATURES) else NOT_SUPPORTED
        if function == PSCI_FEATURES:
            known = first in _FUNCTIONS or (first & SMC64 and first & ~SMC64 in _HAS_SMC64)
            return 0 if known else NOT_SUPPORTED
        if function not in (CPU_ON, AFFINITY_INFO):
            return NOT_SUPPORTED
        target = self._find(first)
        if target is None or (function == AFFINITY_INFO and second != 0):
            return INVALID_PARAMETERS
        if function == AFFINITY_INFO:
            return AFFINITY_ON if target.powered else AFFINITY_OFF
        if target.powered:
            return ALREADY_ON
        target.reset(second, third)
        return SUCCESS

    def _find(self, mpidr: int) -> Cpu | None:
        return next((cpu for cpu in self._cpus if cpu.mpidr & AFFINITY_MASK == mpidr), None)
