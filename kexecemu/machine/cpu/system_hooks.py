"""The hooks of CountingStepper: timers' registers, caches' maintenance, and which Linux it is that runs.

Registers of the timer cannot be hooked everywhere, because the hook would see every MRS of the guest. The hooks are
everywhere until a Linux has set its vectors, and only at the kernel's own instructions from then on. They run inside
the engine: none of them may stop it, but all may cut the stretch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from unicorn import arm64_const as uc64
from unicorn import unicorn_const as const
from unicorn.unicorn_py3.arch.arm64 import UcRegCP64

from kexecemu.machine.cpu.blockcount import CODE, INSTRUCTIONS_PER_TICK
from kexecemu.machine.cpu.engine import CpuEngine
from kexecemu.machine.cpu.guest_code import GuestCode, StaleCode, find_image, sites
from kexecemu.machine.cpu.work import EXCEPTION, MAINTENANCE

__all__ = ["EL0PCTEN", "EL0VCTEN", "SystemHooks"]

_VBAR_EL1: Final = (3, 0, 12, 0, 0)
_SCTLR_EL1: Final = (3, 0, 1, 0, 0)
_CNTKCTL_EL1: Final = (3, 0, 14, 1, 0)
_ID_AA64PFR0_EL1: Final = (3, 0, 0, 4, 0)
EL0PCTEN, EL0VCTEN = 1, 2
"""Of CNTKCTL_EL1: EL0 may read the physical, and the virtual counter."""


if TYPE_CHECKING:
    from kexecemu.machine.cpu.counting import CountingStepper
    from kexecemu.machine.cpu.system_cpu import SystemCpu

    _NamedPointer = ctypes._Pointer[UcRegCP64]

_Hook = Callable[[int, UcRegCP64], int]
"""Given UC_ARM64_REG_ of the general register, and the system register; true if the engine is to leave it at that."""

# uint32_t cb(uc_engine *, enum uc_arm64_reg, const uc_arm64_cp_reg *, void *)
_INSN = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(UcRegCP64), ctypes.c_void_p
)


class SystemHooks:
    """Hooks on MRS, MSR and SYS instructions of one engine."""

    def __init__(
        self, engine: CpuEngine, owner: SystemCpu, stretch: CountingStepper, code: GuestCode, stale: StaleCode
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._stretch = stretch
        self._code = code
        self._stale = stale
        self.cntkctl = 0
        """CNTKCTL_EL1 as the guest believes that it is."""
        self.kernel_moves = False
        """A kernel has come up, or is about to leave for another one: follow_kernel() is due."""
        self._mmu_off = False
        self._hooks: list[int] = []
        self.raised: BaseException | None = None
        """What a hook has raised: to be raised behind the run."""
        # Tens of thousands of times in a boot: past the binding, which costs several times the rest.
        self._callbacks = {
            uc64.UC_ARM64_INS_MRS: self._insn(self._on_mrs),
            uc64.UC_ARM64_INS_MSR: self._insn(self._on_msr),
            uc64.UC_ARM64_INS_SYS: self._insn(self._on_sys),
        }
        self._widen()

    def reset(self) -> None:
        """The CPU has been switched on anew."""
        self.cntkctl = 0
        if self._code.image is not None:
            self._widen()

    def _insn(self, hook: _Hook) -> ctypes._CFunctionType:
        def call(uc: int, register: int, named: _NamedPointer, _: int) -> int:
            # ctypes would print whatever is raised here and go on.
            try:
                return hook(register, named[0])
            except BaseException as error:
                self.raised = error
                self._stretch.cut_here()
                return 1

        return _INSN(call)

    def _on_mrs(self, register: int, named: UcRegCP64) -> int:
        key = (named.op0, named.op1, named.crn, named.crm, named.op2)
        if key == _CNTKCTL_EL1:
            value = self.cntkctl
        elif key == _ID_AA64PFR0_EL1 and self._engine.counter.state.id_aa64pfr0:
            value = self._engine.counter.state.id_aa64pfr0
        elif key[:3] != (3, 3, 14) or named.op2 > 2:
            return 0
        elif named.crm == 0 and named.op2:
            value = (self._engine.counter.state.elsewhere + self._stretch.now) // INSTRUCTIONS_PER_TICK
        elif named.crm in (2, 3):
            value = self._owner.read_timer(named.crm, named.op2)
        else:
            return 0
        if register != uc64.UC_ARM64_REG_XZR:
            self._engine.put(register, value)
        return 1

    def _on_msr(self, register: int, named: UcRegCP64) -> int:
        if self._engine.aborting:
            return 1
        key = (named.op0, named.op1, named.crn, named.crm, named.op2)
        if key[:3] == (3, 3, 14) and named.crm in (2, 3) and named.op2 <= 2:
            self._owner.write_timer(named.crm, named.op2, named.val)
        elif key == _CNTKCTL_EL1:
            # EL0's reads of the counter must come here, where the guest believes that they do not.
            self.cntkctl = named.val
            self._engine.write_sysreg("CNTKCTL_EL1", named.val & ~(EL0PCTEN | EL0VCTEN))
            return 1
        elif key == _VBAR_EL1 and named.val >> 63 and self._code.image is None:
            self.kernel_moves = True
            self._stretch.cut()
        elif key == _SCTLR_EL1 and not named.val & 1 and self._code.image is not None:
            self.kernel_moves = self._mmu_off = True
            self._stretch.cut()
        return 0

    def _on_sys(self, register: int, named: UcRegCP64) -> int:
        if self._engine.aborting:
            return 0
        if named.crn == 8:
            self._owner.charge(EXCEPTION)
        if named.crn != 7 or named.crm not in (1, 5):
            return 0  # not IC
        self._owner.charge(MAINTENANCE)
        self._engine.counter.state.maintenance |= CODE
        if named.op1 != 3:
            self._stale.everything()
        elif not self._stale.line(named.val, self._stretch.now):
            return 0
        self._stretch.cut_here()
        return 0

    def follow_kernel(self) -> None:
        """Between two runs: a kernel may have come up, or be about to leave for another one."""
        self._code.forget()
        if self._mmu_off:
            self._widen()
        else:
            self._narrow()
        self.kernel_moves = self._mmu_off = False

    def _unhook(self) -> None:
        for hook in self._hooks:
            self._engine.counter.unhook_one(hook)
        self._hooks.clear()

    def _hook(self, kind: int, virt: int | None = None) -> None:
        hook = self._engine.counter.hook(const.UC_HOOK_INSN, self._callbacks[kind], kind, at=virt)
        self._hooks.append(hook)

    def _widen(self) -> None:
        """Hook every MRS, MSR and SYS: slow, and right for any guest."""
        self._unhook()
        self._code.image = None
        for kind in self._callbacks:
            self._hook(kind)
        self._engine.flush_code()

    def _narrow(self) -> None:
        """Hook the instructions of the Linux that runs here alone; any other guest stays as it is."""
        virt = self._engine.get(uc64.UC_ARM64_REG_PC)
        phys = self._owner.code_phys(virt)
        image = find_image(self._owner.ram, virt, phys) if phys is not None else None
        if image is None:
            return
        self._unhook()
        self._code.image = image
        for virt, kind in sites(self._owner.ram, image):
            self._hook(kind, virt)
        self._engine.flush_code()
