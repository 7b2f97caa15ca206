"""The purgatory on a CPU whose system registers are a table: any level, any features, any state at entry.

An emulator has the registers of one CPU. Here MRS, MSR and all other system instructions are looked at and done by the
table, so the MMU never goes on, and code that only newer CPUs or VHE would come to is run as well.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from unicorn import UC_ARCH_ARM64, UC_HOOK_CODE, UC_HOOK_MEM_WRITE, UC_MODE_ARM, Uc
from unicorn import arm64_const as arm64
from unicorn.arm64_const import UC_CPU_ARM64_A57 as CPU_A57

from tests.purgatory.conftest import (
    CPACR_EL1,
    DTB,
    KERNEL_ENTRY,
    PURGATORY,
    RAM,
    RAM_SIZE,
    Bench,
    El,
    Region,
    load,
    set_sysreg,
)

# (op0, op1, CRn, CRm, op2), as it is encoded.
NAMES = {
    "sctlr_el1": (3, 0, 1, 0, 0), "sctlr_el2": (3, 4, 1, 0, 0),
    "cpacr_el1": (3, 0, 1, 0, 2), "cptr_el2": (3, 4, 1, 1, 2),
    "vbar_el1": (3, 0, 12, 0, 0), "vbar_el2": (3, 4, 12, 0, 0),
    "mair_el1": (3, 0, 10, 2, 0), "mair_el2": (3, 4, 10, 2, 0),
    "tcr_el1": (3, 0, 2, 0, 2), "tcr_el2": (3, 4, 2, 0, 2),
    "ttbr0_el1": (3, 0, 2, 0, 0), "ttbr0_el2": (3, 4, 2, 0, 0),
    "tcr2_el1": (3, 0, 2, 0, 3), "tcr2_el2": (3, 4, 2, 0, 3),
    "gcscr_el1": (3, 0, 2, 5, 0), "gcscr_el2": (3, 4, 2, 5, 0),
    "esr_el1": (3, 0, 5, 2, 0), "esr_el2": (3, 4, 5, 2, 0),
    "elr_el1": (3, 0, 4, 0, 1), "elr_el2": (3, 4, 4, 0, 1),
    "far_el1": (3, 0, 6, 0, 0), "far_el2": (3, 4, 6, 0, 0),
    "currentel": (3, 0, 4, 2, 2), "hcr_el2": (3, 4, 1, 1, 0), "ctr_el0": (3, 3, 0, 0, 1),
    "pfr0": (3, 0, 0, 4, 0), "pfr1": (3, 0, 0, 4, 1), "isar0": (3, 0, 0, 6, 0),
    "mmfr0": (3, 0, 0, 7, 0), "mmfr3": (3, 0, 0, 7, 3),
}  # fmt: skip
BY_CODE = {
    (op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2): name
    for name, (op0, op1, crn, crm, op2) in NAMES.items()
}
SPSEL = 3 << 14 | 0 << 11 | 4 << 7 | 2 << 3 | 0  # the engine has it, and stacks of its own with it
NOP = 0xD503201F  # of compilers, between functions and in front of loops
PLAIN = {
    0xD503427F: "smstop sm", 0xD508751F: "ic iallu", 0xD508871F: "tlbi vmalle1", 0xD50C871F: "tlbi alle2",
    0xD503379F: "dsb nsh", 0xD5033F9F: "dsb sy", 0xD5033FBF: "dmb sy", 0xD5033FDF: "isb", 0xD50041BF: "spsel 1",
}  # fmt: skip
BY_ADDRESS = {0xD50B7E20: "dc civac", 0xD5087620: "dc ivac"}
SP_EL0, SP_OWN = 0xBAD0, 0x5150
Event = tuple[str, int]


@dataclass
class Cpu:
    """A purgatory in RAM, and the registers that it finds. Those that are not in the table do not exist."""

    path: Path
    el: El
    registers: dict[str, int]
    regions: list[Region] = field(default_factory=list)
    digest: bytes = bytes(32)
    symbols: dict[str, bytes] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)  # writes, other system instructions, stores, calls

    def __post_init__(self) -> None:
        self.bench = Bench(load(self.path, PURGATORY), PURGATORY)
        self.uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM, cpu=CPU_A57)
        self.uc.ctl_exits_enabled(True)
        self.uc.mem_map(RAM, RAM_SIZE)
        image = self.bench.image_with(self.regions, self.digest, KERNEL_ENTRY, 0, self.symbols)
        self.uc.mem_write(PURGATORY, image)
        self.uc.reg_write(arm64.UC_ARM64_REG_PSTATE, 0x3C5)
        set_sysreg(self.uc, CPACR_EL1, 3 << 20)
        # Two stacks, and EL1t: nobody says which one the dead kernel had. mov sp, x0; msr spsel, #0; mov sp, x1
        self.uc.mem_write(RAM, struct.pack("<4I", 0x9100001F, 0xD50040BF, 0x9100003F, 0xD503201F))
        self.set_x(0, SP_OWN)
        self.set_x(1, SP_EL0)
        self.uc.emu_start(RAM, 0, count=3)
        self.uc.hook_add(UC_HOOK_CODE, self._on_code)
        self.uc.hook_add(UC_HOOK_MEM_WRITE, self._on_store)
        self.ends: set[int] = {KERNEL_ENTRY, self.at("purgatory_stop")}

    def at(self, symbol: str) -> int:
        return self.bench.loaded.symbols[symbol][0]

    def get(self, symbol: str) -> bytes:
        return bytes(self.uc.mem_read(*self.bench.loaded.symbols[symbol]))

    def set(self, symbol: str, value: int) -> None:
        self.uc.mem_write(self.at(symbol), struct.pack("<Q", value))

    @property
    def suffix(self) -> str:
        """Of the names of the registers that rule here: with VHE those of EL1 mean those of EL2."""
        return "_el2" if self.el is El.EL2 else "_el1"

    def x(self, number: int) -> int:
        return int(self.uc.reg_read(getattr(arm64, f"UC_ARM64_REG_X{number}"))) if number < 31 else 0

    def set_x(self, number: int, value: int) -> None:
        self.uc.reg_write(getattr(arm64, f"UC_ARM64_REG_X{number}"), value)

    def _on_store(self, _uc: Uc, _access: int, phys: int, _size: int, _value: int, _data: object) -> None:
        if self.events[-1][0] != "store":
            self.events.append(("store", phys))

    def _on_code(self, uc: Uc, pc: int, _size: int, _data: object) -> None:
        if pc in self.ends:
            uc.emu_stop()
            return
        (word,) = struct.unpack("<I", uc.mem_read(pc, 4))
        code, register = word >> 5 & 0xFFFF, word & 31
        if word >> 26 == 0b100101:
            self.events.append(("call", pc))
            return
        if word >> 22 != 0b1101010100 or code == SPSEL or word == NOP:
            return
        if word in PLAIN:
            self.events.append((PLAIN[word], 0))
            if PLAIN[word] == "spsel 1":
                return
        elif word & ~31 in BY_ADDRESS:
            self.events.append((BY_ADDRESS[word & ~31], self.x(register)))
        else:
            name = BY_CODE[code]
            if word >> 21 & 1:
                self.set_x(register, self.registers[name])
            else:
                assert name in self.registers, f"{name} is not there"
                self.registers[name] = self.x(register)
                self.events.append((name, self.x(register)))
        uc.reg_write(arm64.UC_ARM64_REG_PC, pc + 4)

    def go(self, start: int, *more: int) -> int:
        """On from there, to the kernel, the stop loop or one of `more`: where it has ended."""
        self.ends |= set(more)
        self.ends.discard(start)
        self.uc.emu_start(start, 0, count=5_000_000)
        pc = int(self.uc.reg_read(arm64.UC_ARM64_REG_PC))
        assert pc in self.ends, hex(pc)
        return pc

    def enter(self, symbol: str, *more: int) -> int:
        """By the contract: the device tree in x0, and nothing that is known in the others."""
        for number in range(31):
            self.set_x(number, 0xBAD0000 + number)
        self.set_x(0, DTB)
        return self.go(self.at(symbol), *more)

    def writes(self) -> list[Event]:
        """Registers that were written, in order."""
        return [event for event in self.events if event[0] in NAMES]


LEVELS = {El.EL1: 1 << 2, El.EL2: 2 << 2, El.VHE: 2 << 2}


def registers(
    el: El, gcs: bool = True, tcr2: bool = True, sme: bool = True, sha2: bool = True
) -> dict[str, int]:
    """What a dead kernel leaves, other values in each; fields beside the ones asked for say the opposite."""

    def one_field(shift: int, there: bool) -> int:
        return 1 << shift if there else 0xFFFFFFFFFFFFFFFF & ~(0xF << shift)

    both = {
        name: 0x1111_0000_0000_0000 + 0x10 * number + (2 if name.endswith("_el2") else 1)
        for number, name in enumerate(NAMES)
        if name.endswith(("_el1", "_el2"))
    }
    if "cptr_el2" in both:
        both["cptr_el2"] |= 1 << 12 | 1 << 10  # TSM, TFP: what is to be cleared is set
    found = {
        **both,
        "currentel": LEVELS[el],
        "hcr_el2": 1 << 34 if el is El.VHE else (1 << 64) - 1 & ~(1 << 34),
        "ctr_el0": 0x84448004 & ~(0xF << 16) | 4 << 16,
        "pfr0": 0,
        "pfr1": 1 << 44  # whether it may be touched is not for this to say
        | (1 << 24 if sme else 0)
        | 0xF << 28
        | 0xF << 20
        | 0xF << 40
        | 0xF << 48,
        "isar0": one_field(12, sha2),
        "mmfr0": 5 | 0xF << 24 | 0xF << 32,
        "mmfr3": one_field(0, tcr2) | (0xF0 if tcr2 else 0),
    }
    if el is El.EL1:  # where an access of what is EL2's would trap
        found = {name: value for name, value in found.items() if not name.endswith("_el2")}
    for name in ("gcscr", "tcr2"):
        if not {"gcscr": gcs, "tcr2": tcr2}[name]:
            found = {one: value for one, value in found.items() if not one.startswith(name)}
    return found
