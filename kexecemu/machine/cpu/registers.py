"""A CPU's registers: general, stack pointers, PSTATE and system registers, with SP banked as it should be."""

from collections.abc import Sequence

from unicorn import arm64_const as uc64

from kexecemu.errors import InputError, MachineError
from kexecemu.machine import virt
from kexecemu.machine.cpu.engine import CpuEngine
from kexecemu.machine.cpu.exceptions import ExceptionKind, Pstate
from kexecemu.machine.cpu.sysregs import SYSREGS, TRANSLATION
from kexecemu.machine.cpu.work import ACCESS, charge
from kexecemu.machine.memory.descriptors import Granule, TableFormat
from kexecemu.machine.memory.mmio import MmioDevice
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.memory.walk import TableReader, Walk

__all__ = ["Registers"]

MASK64 = (1 << 64) - 1
TCR_TG0 = {0: Granule.K4, 1: Granule.K64, 2: Granule.K16}
TCR_TG1 = {1: Granule.K16, 2: Granule.K4, 3: Granule.K64}

# Unicorn numbers x29 and x30 apart from the others.
X_REGISTERS = tuple(getattr(uc64, f"UC_ARM64_REG_X{number}") for number in range(31))

_SP_BANKS = {"SP_EL0": uc64.UC_ARM64_REG_SP_EL0, "SP_EL1": uc64.UC_ARM64_REG_SP_EL1}

BRANCH_TO_SELF, WFE, WFI = 0x14000000, 0xD503205F, 0xD503207F
_BACK_BY_ONE = 0x17FFFFFF  # b .-4
# Of the vectors, in each of the four groups.
_OFFSETS: dict[ExceptionKind, int] = {"sync": 0, "irq": 0x80, "fiq": 0x100, "serror": 0x180}


class Registers:
    """Register access of one CPU. The engine behind it is made on first use: each costs memory and time."""

    def __init__(self, index: int, ram: Ram, devices: Sequence[MmioDevice]) -> None:
        self.index = index
        self.ram = ram
        self.mpidr = 1 << 31 | virt.affinity(index)  # bit 31 is RES1
        self._devices = tuple(devices)
        self._created: CpuEngine | None = None

    @property
    def _engine(self) -> CpuEngine:
        if self._created is None:
            if self.ram.closed:
                raise InputError("the board is closed: its CPUs are gone")
            self._created = CpuEngine(self.ram, self._devices)
            self._created.on_access = self._on_access
        return self._created

    @property
    def work(self) -> int:
        """What the host has done for this CPU beside running its instructions, in instructions: see work.py."""
        return int(self._engine.counter.state.work) if self._created is not None else 0

    def charge(self, cost: int) -> None:
        """More of that; a run that has a budget ends for it at the next block."""
        charge(self._engine.counter.state, cost)

    def _on_access(self) -> None:
        self.charge(ACCESS)

    def close(self) -> None:
        """Let go of the engine; its registers are lost, and a later use starts a new one."""
        if self._created is not None:
            self._created.close()
            self._created = None

    def x(self, number: int) -> int:
        """General register x0 to x30."""
        return self._engine.get(X_REGISTERS[number])

    def set_x(self, number: int, value: int) -> None:
        """Set general register x0 to x30; bits above 63 are dropped."""
        self._engine.put(X_REGISTERS[number], value & MASK64)

    @property
    def pc(self) -> int:
        """The program counter: virtual once the MMU is on. Set it only while the CPU does not run."""
        return self._engine.get(uc64.UC_ARM64_REG_PC)

    @pc.setter
    def pc(self, virt: int) -> None:
        self._engine.put(uc64.UC_ARM64_REG_PC, virt & MASK64)

    @property
    def sp(self) -> int:
        """The stack pointer that PSTATE selects."""
        return self._engine.get(uc64.UC_ARM64_REG_SP)

    @sp.setter
    def sp(self, virt: int) -> None:
        self._engine.put(uc64.UC_ARM64_REG_SP, virt & MASK64)

    @property
    def pstate(self) -> int:
        """PSTATE in the layout of SPSR_EL1: NZCV 31:28, DAIF 9:6, exception level 3:2, SPSel 0."""
        return self._engine.get(uc64.UC_ARM64_REG_PSTATE) & 0xFFFFFFFF

    @pstate.setter
    def pstate(self, value: int) -> None:
        if value & Pstate.EL_MASK not in (0, 1 << 2):
            raise MachineError(f"PSTATE {value:#x} is neither EL0 nor EL1")
        before, after = self._sp_bank(self.pstate), self._sp_bank(value)
        engine = self._engine
        # The engine keeps the selected stack pointer in one place and the banked ones in others, and swaps
        # them only in its own exception entry and return.
        if before != after:
            engine.put(before, self.sp)
            incoming = engine.get(after)
        engine.put(uc64.UC_ARM64_REG_PSTATE, value)
        if before != after:
            engine.put(uc64.UC_ARM64_REG_SP, incoming)
        # Writing PSTATE alone leaves what the engine derived from the old one; any system register write
        # renews it.
        engine.write_sysreg("SPSR_EL1", engine.read_sysreg("SPSR_EL1"))

    @staticmethod
    def _sp_bank(pstate: int) -> int:
        return _SP_BANKS["SP_EL1" if pstate & Pstate.EL_MASK and pstate & Pstate.SP_ELX else "SP_EL0"]

    def sysreg(self, name: str) -> int:
        """A system register by its architectural name, for example "TTBR1_EL1", or SP_EL0 and SP_EL1.

        Raises MachineError for a name that is not in kexecemu.machine.cpu.sysregs.
        """
        bank = _SP_BANKS.get(name)
        if bank is None:
            return self._engine.read_sysreg(name)
        return self.sp if bank == self._sp_bank(self.pstate) else self._engine.get(bank)

    def set_sysreg(self, name: str, value: int) -> None:
        """Set a system register by its architectural name; what decides translation also drops the TLB.

        Raises MachineError for a name that is not in kexecemu.machine.cpu.sysregs.
        """
        value &= MASK64
        bank = _SP_BANKS.get(name)
        if bank is None:
            self._engine.write_sysreg(name, value)
            if name in TRANSLATION:
                self._engine.flush_tlb()
        elif bank == self._sp_bank(self.pstate):
            self.sp = value
        else:
            self._engine.put(bank, value)

    def registers(self) -> dict[str, int]:
        """All state that can be compared: x0 to x30, sp, pc, pstate, vector and system registers."""
        state = {f"x{number}": self.x(number) for number in range(31)}
        state |= {"sp": self.sp, "pc": self.pc, "pstate": self.pstate, "SP_EL1": self.sysreg("SP_EL1")}
        state |= {f"v{n}": int(self._engine.uc.reg_read(uc64.UC_ARM64_REG_Q0 + n)) for n in range(32)}
        state |= {name: self.sysreg(name) for name in SYSREGS}
        return state

    def flush_tlb(self) -> None:
        """Forget all cached translations, as TLBI VMALLE1 does; the host calls it where a kernel would."""
        self._engine.flush_tlb()

    def walk(self, virt: int) -> Walk | None:
        """Walk the page tables that the system registers point to, in RAM, as the MMU would without a TLB.

        None when the MMU is off, or when TCR_EL1 describes no table that covers virt.
        """
        if not self.sysreg("SCTLR_EL1") & 1:
            return None
        tcr = self.sysreg("TCR_EL1")
        upper = virt >> 55 & 1
        if tcr >> (38 if upper else 37) & 1:  # TBI1, TBI0: the top byte is a tag
            virt = virt | 0xFF << 56 if upper else virt & (1 << 56) - 1
        granule = TCR_TG1.get(tcr >> 30 & 3) if upper else TCR_TG0.get(tcr >> 14 & 3)
        va_bits = 64 - (tcr >> 16 & 63 if upper else tcr & 63)
        disabled = tcr >> (23 if upper else 7) & 1  # EPD1, EPD0
        if granule is None or disabled or not 25 <= va_bits <= 48:
            return None
        if virt >> va_bits != (MASK64 >> va_bits if upper else 0):
            return None
        root_phys = self.sysreg("TTBR1_EL1" if upper else "TTBR0_EL1") & 0xFFFFFFFFFFFE
        return TableReader(self.ram, TableFormat(granule, va_bits), root_phys).walk(virt)

    def translate(self, virt: int) -> int | None:
        """The physical address that virt has now by the tables in RAM; virt itself while the MMU is off."""
        if not self.sysreg("SCTLR_EL1") & 1:
            return virt
        walk = self.walk(virt)
        return None if walk is None else walk.phys

    def word_at(self, virt: int) -> int | None:
        """The instruction at a virtual address; None where nothing can be fetched, as from a misaligned one."""
        phys = None if virt & 3 else self.code_phys(virt)
        return None if phys is None else self.ram.read_u32(phys)

    def code_phys(self, virt: int) -> int | None:
        """Where code at a virtual address is, in physical memory; None where nothing can be fetched."""
        phys = self.translate(virt)
        return phys if phys is not None and phys in self.ram else None

    def enter_exception(self, kind: ExceptionKind, esr: int = 0, far: int | None = None) -> None:
        """Take an exception to EL1 from where PC is, as the architecture does.

        far of None leaves FAR_EL1 alone; esr is written for a synchronous exception and an SError only. NZCV and
        PAN are kept as they were.
        """
        pstate, pc = self.pstate, self.pc
        # Same level with SP_EL0, same level, lower level in AArch64 (an AArch32 EL0 does not exist here).
        group = 0x400 if not pstate & Pstate.EL_MASK else 0x200 if pstate & Pstate.SP_ELX else 0
        # PSTATE first: setting it switches to SP_EL1.
        self.pstate = Pstate.EL1H | Pstate.DAIF | pstate & (Pstate.NZCV | Pstate.PAN)
        if kind in ("sync", "serror"):
            self.set_sysreg("ESR_EL1", esr)
        if far is not None:
            self.set_sysreg("FAR_EL1", far)
        self.set_sysreg("ELR_EL1", pc)
        self.set_sysreg("SPSR_EL1", pstate)
        self.pc = self.sysreg("VBAR_EL1") + group + _OFFSETS[kind] & (1 << 64) - 1

    def spins(self) -> bool:
        """It stands in an endless loop with interrupts masked: nothing but a reset ends that.

        The loop is a branch to itself, or a WFE and a branch back to it.
        """
        if not self.pstate & Pstate.I:
            return False
        pc, word = self.pc, self.word_at(self.pc)
        if word == WFE:
            return self.word_at(pc + 4) == _BACK_BY_ONE
        return word == BRANCH_TO_SELF or (word == _BACK_BY_ONE and self.word_at(pc - 4) == WFE)
