# SPDX-License-Identifier: GPL-2.0-or-later
"""One Unicorn engine as a CPU of the minikernel: reset state, exceptions by hand, stops at host functions."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING

from unicorn import UC_ARCH_ARM64, UC_HOOK_CODE, UC_HOOK_INTR, UC_MODE_ARM, Uc
from unicorn import arm64_const as arm64

if TYPE_CHECKING:
    from minikernel_guest import Guest

X = [arm64.UC_ARM64_REG_X0 + n for n in range(29)] + [arm64.UC_ARM64_REG_X29, arm64.UC_ARM64_REG_X30]
CP_REGS = {
    # crn, crm, op0, op1, op2
    "SCR_EL3": (1, 1, 3, 6, 0),
    "HCR_EL2": (1, 1, 3, 4, 0),
    "SCTLR_EL1": (1, 0, 3, 0, 0),
    "TTBR0_EL1": (2, 0, 3, 0, 0),
    "SPSR_EL1": (4, 0, 3, 0, 0),
    "VBAR_EL1": (12, 0, 3, 0, 0),
}
DATA_ABORT, PREFETCH_ABORT, UNDEFINED, BRK, HVC = 4, 3, 1, 7, 11
PSCI_CPU_OFF, PSCI_CPU_ON = 0x84000002, 0xC4000003


class Cpu:
    """One engine: the registers that it needs at reset, exceptions delivered by hand."""

    def __init__(self, guest: Guest, index: int) -> None:
        self.guest = guest
        self.index = index
        self.stopped = ""
        self.exceptions = 0
        self.uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.uc.ctl_set_cpu_model(arm64.UC_CPU_ARM64_A57)
        self.uc.mem_map_ptr(guest.ram.phys, guest.ram.size, 7, guest.ram.host_address)
        self.set_cp("SCR_EL3", 0x501)
        self.set_cp("HCR_EL2", 1 << 31)
        self.uc.reg_write(arm64.UC_ARM64_REG_PSTATE, 0x3C5)
        self.uc.reg_write(arm64.UC_ARM64_REG_VBAR_EL1, 0)
        self.uc.hook_add(UC_HOOK_INTR, self._interrupt)
        for virt in range(guest.virt("__host_text_start"), guest.virt("__host_text_end"), 16):
            for address in (virt, guest.phys(virt)):
                self.uc.hook_add(UC_HOOK_CODE, self._host_function, begin=address, end=address)
        self.uc.hook_add(UC_HOOK_CODE, self._capture_entry, begin=guest.entry_phys, end=guest.entry_phys)

    def x(self, number: int) -> int:
        return int(self.uc.reg_read(X[number]))

    def set_x(self, number: int, value: int) -> None:
        self.uc.reg_write(X[number], value)

    def cp(self, name: str) -> int:
        return int(self.uc.reg_read(arm64.UC_ARM64_REG_CP_REG, CP_REGS[name]))

    def set_cp(self, name: str, value: int) -> None:
        self.uc.reg_write(arm64.UC_ARM64_REG_CP_REG, (*CP_REGS[name], value))

    @property
    def current(self) -> int:
        return int(self.uc.reg_read(arm64.UC_ARM64_REG_SP_EL0))

    @property
    def sp(self) -> int:
        return int(self.uc.reg_read(arm64.UC_ARM64_REG_SP))

    @property
    def pstate(self) -> int:
        return int(self.uc.reg_read(arm64.UC_ARM64_REG_PSTATE))

    @property
    def pc(self) -> int:
        return int(self.uc.reg_read(arm64.UC_ARM64_REG_PC))

    def run(self, pc: int) -> str:
        """Run from `pc` until WFI ("idle"), a host function that stops, CPU_OFF ("off") or ENTRY_PHYS."""
        self.stopped = "idle"
        self.uc.emu_start(pc, 0xFFFF_FFFF_FFFF_FFFC)
        if self.guest.failure is not None:
            raise self.guest.failure
        return self.stopped

    def stop(self, why: str) -> None:
        self.stopped = why
        self.uc.emu_stop()

    def deliver(self, offset: int, esr: int, far: int) -> None:
        """Take an exception from EL1h to EL1h."""
        spsr = self.pstate
        self.uc.reg_write(arm64.UC_ARM64_REG_ESR_EL1, esr)
        self.uc.reg_write(arm64.UC_ARM64_REG_FAR_EL1, far)
        self.uc.reg_write(arm64.UC_ARM64_REG_ELR_EL1, self.pc)
        self.uc.reg_write(arm64.UC_ARM64_REG_PSTATE, 0x3C5)
        self.set_cp("SPSR_EL1", spsr)
        self.uc.reg_write(arm64.UC_ARM64_REG_PC, self.cp("VBAR_EL1") + offset)

    def take_irq(self) -> str:
        """An interrupt arrives while the CPU is idle."""
        assert not self.pstate & 0x80, "the idle loop has interrupts masked"
        self.deliver(0x280, 0, 0)
        return self.run(self.pc)

    def _interrupt(self, uc: Uc, number: int, _data: object) -> None:
        if number == HVC:
            self.guest.psci(self)
            return
        self.exceptions += 1
        if self.exceptions > 20:
            self.guest.failure = AssertionError(f"exceptions without end, the last at {self.pc:#x}")
            self.stop("failed")
            return
        syndrome, _fsr, virt, _el = struct.unpack_from("<IIQI", bytes(uc.context_save()), syndrome_offset())
        # A fault that has no syndrome of its own is an undefined instruction.
        self.deliver(0x200, syndrome if number in (DATA_ABORT, PREFETCH_ABORT, BRK) else 0x02000000, virt)

    def _host_function(self, _uc: Uc, address: int, _size: int, _data: object) -> None:
        virt = address if address >= self.guest.virt("_text") else self.guest.kernel_virt(address)
        try:
            self.guest.host_function(self, self.guest.names[virt])
        except BaseException as error:
            self.guest.failure = error
            self.stop("failed")

    def _capture_entry(self, *_: object) -> None:
        self.stop("capture")


@functools.cache
def syndrome_offset() -> int:
    """Where a saved context of this engine has the syndrome of the last exception."""
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    uc.ctl_set_cpu_model(arm64.UC_CPU_ARM64_A57)
    uc.mem_map(0x1000, 0x1000)
    uc.mem_write(0x1000, struct.pack("<I", 0xD42B4B40))  # brk #0x5a5a
    uc.hook_add(UC_HOOK_INTR, lambda uc, *_: uc.emu_stop())
    uc.emu_start(0x1000, 0x2000, count=1)
    return bytes(uc.context_save()).index(struct.pack("<I", 0xF2005A5A))
