"""What an exception taken by a guest CPU was: data about the guest, never a Python exception."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from kexecemu.shown import shown

if TYPE_CHECKING:
    from kexecemu.machine.cpu.registers import Registers

__all__ = ["ExceptionKind", "GuestException", "Pstate", "Recursion"]

ExceptionKind = Literal["sync", "irq", "fiq", "serror"]


class Pstate:
    """Bits of PSTATE, as in SPSR_EL1."""

    F = 1 << 6
    I = 1 << 7  # noqa: E741 (the architecture's name)
    A = 1 << 8
    D = 1 << 9
    DAIF = D | A | I | F
    PAN = 1 << 22
    NZCV = 0xF << 28
    EL_MASK = 3 << 2
    SP_ELX = 1
    EL1H = 1 << 2 | SP_ELX


EC_UNKNOWN = 0x00
EC_SVC64 = 0x15
EC_IABT_LOWER = 0x20
EC_IABT_SAME = 0x21
EC_PC_ALIGNMENT = 0x22
EC_DABT_LOWER = 0x24
EC_DABT_SAME = 0x25

ESR_IL = 1 << 25
ISS_WNR = 1 << 6
ISS_FNV = 1 << 10
FSC_EXTERNAL = 0x10

_CLASSES = {
    EC_UNKNOWN: "undefined instruction",
    0x01: "trapped WFI or WFE",
    0x07: "trapped floating point or SIMD access",
    0x0E: "illegal execution state",
    EC_SVC64: "supervisor call",
    0x16: "hypervisor call",
    0x17: "secure monitor call",
    0x18: "trapped system register access",
    EC_IABT_LOWER: "instruction abort from EL0",
    EC_IABT_SAME: "instruction abort",
    EC_PC_ALIGNMENT: "misaligned PC",
    EC_DABT_LOWER: "data abort from EL0",
    EC_DABT_SAME: "data abort",
    0x26: "misaligned SP",
    0x2C: "trapped floating point exception",
    0x2F: "SError",
    0x30: "breakpoint from EL0",
    0x31: "breakpoint",
    0x32: "software step from EL0",
    0x33: "software step",
    0x34: "watchpoint from EL0",
    0x35: "watchpoint",
    0x3C: "BRK instruction",
}

_STATUS_WITH_LEVEL = {
    0x00: "address size fault",
    0x04: "translation fault",
    0x08: "access flag fault",
    0x0C: "permission fault",
    0x14: "external abort on a table walk",
}
_STATUS = {FSC_EXTERNAL: "external abort", 0x21: "alignment fault", 0x30: "TLB conflict"}


@shown()
@dataclass(frozen=True, slots=True)
class GuestException:
    """One exception: what the CPU wrote, or would have written, into its EL1 exception registers.

    when is in instructions of the whole board; pc_virt is the preferred return address (ELR_EL1), which for a
    fault is the faulting instruction; far_virt is 0 where the exception has no fault address; el is the level
    that the exception came from. An interrupt has an esr of 0.
    """

    cpu: int
    when: int
    kind: ExceptionKind
    esr: int
    far: int
    pc: int
    el: int
    pstate: int
    delivered: bool = True
    """False when the guest's vectors never saw it."""

    @property
    def ec(self) -> int:
        """The exception class, ESR bits 31:26."""
        return self.esr >> 26 & 0x3F

    @property
    def iss(self) -> int:
        """The instruction specific syndrome, ESR bits 24:0."""
        return self.esr & 0x1FFFFFF

    @property
    def is_data_abort(self) -> bool:
        """A load or store could not be done."""
        return self.kind == "sync" and self.ec in (EC_DABT_LOWER, EC_DABT_SAME)

    @property
    def is_instruction_abort(self) -> bool:
        """An instruction could not be fetched."""
        return self.kind == "sync" and self.ec in (EC_IABT_LOWER, EC_IABT_SAME)

    @property
    def is_write(self) -> bool:
        """WnR: the data abort came from a store (or a cache maintenance instruction)."""
        return self.is_data_abort and bool(self.iss & ISS_WNR)

    @property
    def dfsc(self) -> int:
        """The fault status code of an abort, ISS bits 5:0; 4 to 7 are translation faults at level 0 to 3."""
        return self.iss & 0x3F

    @property
    def has_far(self) -> bool:
        """True when far is the address that faulted."""
        if self.is_data_abort or self.is_instruction_abort:
            return not (self.dfsc == FSC_EXTERNAL and self.iss & ISS_FNV)
        return self.kind == "sync" and self.ec == EC_PC_ALIGNMENT

    @property
    def status(self) -> str:
        """The fault status of an abort in words, for example "translation fault level 3"; else empty."""
        if not (self.is_data_abort or self.is_instruction_abort):
            return ""
        if self.dfsc in _STATUS:
            return _STATUS[self.dfsc]
        base = _STATUS_WITH_LEVEL.get(self.dfsc & 0x3C)
        return f"{base} level {self.dfsc & 3}" if base else f"fault status {self.dfsc:#04x}"

    @property
    def description(self) -> str:
        """One line in plain words, without addresses: "data abort, translation fault level 3, write"."""
        if self.kind != "sync":
            return {"irq": "interrupt", "fiq": "fast interrupt", "serror": "SError"}[self.kind]
        words = [_CLASSES.get(self.ec, f"exception class {self.ec:#04x}")]
        if self.status:
            words.append(self.status)
        if self.is_data_abort:
            words.append("write" if self.is_write else "read")
        return ", ".join(words)

    def __str__(self) -> str:
        where = f" of {self.far:#x}" if self.has_far else ""
        return (
            f"cpu{self.cpu}: {self.description}{where} at pc {self.pc:#x} (EL{self.el}, ESR {self.esr:#010x})"
        )


NO_PROGRESS: Final = 32
"""An exception that recurs this often in a row, with little done in between, is an endless recursion."""
NO_PROGRESS_WITHIN: Final = 1000


@shown()
@dataclass
class Recursion:
    """What is remembered of one CPU's last exceptions. Counts are the CPU's instructions."""

    entered_at: int = -1
    """When the last exception was taken; negative if none was since the host has touched the CPU."""
    repeats: int = 0
    last_far: int = -1
    last_sp: int = -1

    def makes_progress(self, cpu: Registers, fault: GuestException, now: int) -> bool:
        """False when taking the fault would only lead to the same fault again."""
        since = now - self.entered_at
        if self.entered_at >= 0 and since == 0:
            return False  # the vector's very first instruction faults
        # A handler that faults always at the same place comes back with the ELR and ESR of the time before, and
        # deeper in its stack if it moved SP; one that returns to the cause without mending it, with the same FAR.
        # Demand paging at one instruction has another FAR each time, a handler that skips has moved ELR, and the
        # return address of an SVC is no fault at all.
        sp = cpu.sp
        again = (
            fault.ec != EC_SVC64
            and fault.pc == cpu.sysreg("ELR_EL1")
            and fault.esr == cpu.sysreg("ESR_EL1")
            and (fault.far == self.last_far or sp < self.last_sp)
            and since < NO_PROGRESS_WITHIN
        )
        self.last_far, self.last_sp = fault.far, sp
        self.repeats = self.repeats + 1 if again else 0
        return self.repeats < NO_PROGRESS
