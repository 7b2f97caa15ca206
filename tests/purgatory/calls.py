"""Functions of the purgatory called one by one: so often, and with such arguments, as no whole run would have them."""

from __future__ import annotations

from pathlib import Path

from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc
from unicorn import arm64_const as arm64
from unicorn.arm64_const import UC_CPU_ARM64_A57 as CPU_A57

from tests.purgatory.conftest import CPACR_EL1, RAM, El, enter_el, load, set_sysreg

CODE, STACK, BACK = RAM, RAM + 0xF0000, RAM + 0xFF000
SCRATCH = RAM + 0x100000  # up to SCRATCH_END for whoever calls
SCRATCH_END = RAM + 0x400000


class Functions:
    """A purgatory in RAM, entered at any function: EL1 or EL2, MMU off, FP and SIMD on."""

    def __init__(self, path: Path, el: El = El.EL1) -> None:
        self.el = el
        self.loaded = load(path, CODE)
        self.uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM, cpu=CPU_A57)
        self.uc.mem_map(RAM, SCRATCH_END - RAM)
        self.uc.mem_write(CODE, self.loaded.image)
        enter_el(self.uc, el)
        set_sysreg(self.uc, CPACR_EL1, 3 << 20)

    def __call__(self, name: str, *arguments: int) -> int:
        """x0 of a function with these arguments."""
        for index, value in enumerate(arguments):
            self.uc.reg_write(getattr(arm64, f"UC_ARM64_REG_X{index}"), value)
        self.uc.reg_write(arm64.UC_ARM64_REG_SP, STACK)
        self.uc.reg_write(arm64.UC_ARM64_REG_X30, BACK)
        self.uc.emu_start(self.loaded.symbols[name][0], BACK)
        assert self.uc.reg_read(arm64.UC_ARM64_REG_PC) == BACK
        return int(self.uc.reg_read(arm64.UC_ARM64_REG_X0))

    def set(self, symbol: str, value: bytes) -> None:
        """Set a symbol, as a loader does."""
        phys, size = self.loaded.symbols[symbol]
        assert len(value) <= size
        self.uc.mem_write(phys, value)

    def get(self, symbol: str) -> bytes:
        return bytes(self.uc.mem_read(*self.loaded.symbols[symbol]))
