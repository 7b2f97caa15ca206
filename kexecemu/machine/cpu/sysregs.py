"""System registers by their architectural names, as the (op0, op1, CRn, CRm, op2) of an MRS instruction."""

__all__ = ["SYSREGS", "TRANSLATION"]

SYSREGS: dict[str, tuple[int, int, int, int, int]] = {
    "SCTLR_EL1": (3, 0, 1, 0, 0),
    "ACTLR_EL1": (3, 0, 1, 0, 1),
    "CPACR_EL1": (3, 0, 1, 0, 2),
    "TTBR0_EL1": (3, 0, 2, 0, 0),
    "TTBR1_EL1": (3, 0, 2, 0, 1),
    "TCR_EL1": (3, 0, 2, 0, 2),
    "SPSR_EL1": (3, 0, 4, 0, 0),
    "ELR_EL1": (3, 0, 4, 0, 1),
    "SP_EL0": (3, 0, 4, 1, 0),
    "AFSR0_EL1": (3, 0, 5, 1, 0),
    "AFSR1_EL1": (3, 0, 5, 1, 1),
    "ESR_EL1": (3, 0, 5, 2, 0),
    "FAR_EL1": (3, 0, 6, 0, 0),
    "PAR_EL1": (3, 0, 7, 4, 0),
    "MAIR_EL1": (3, 0, 10, 2, 0),
    "AMAIR_EL1": (3, 0, 10, 3, 0),
    "VBAR_EL1": (3, 0, 12, 0, 0),
    "CONTEXTIDR_EL1": (3, 0, 13, 0, 1),
    "TPIDR_EL1": (3, 0, 13, 0, 4),
    "TPIDR_EL0": (3, 3, 13, 0, 2),
    "TPIDRRO_EL0": (3, 3, 13, 0, 3),
    "CNTKCTL_EL1": (3, 0, 14, 1, 0),
    "CSSELR_EL1": (3, 2, 0, 0, 0),
    "MDSCR_EL1": (2, 0, 0, 2, 2),
    # Read-only for the guest. At EL1 it reads what a hypervisor put into VPIDR_EL2 and VMPIDR_EL2.
    "MIDR_EL1": (3, 0, 0, 0, 0),
    "MPIDR_EL1": (3, 0, 0, 0, 5),
    "ID_AA64PFR0_EL1": (3, 0, 0, 4, 0),
    "ID_AA64ISAR0_EL1": (3, 0, 0, 6, 0),
    "ID_AA64MMFR0_EL1": (3, 0, 0, 7, 0),
    "ID_AA64MMFR1_EL1": (3, 0, 0, 7, 1),
    "CTR_EL0": (3, 3, 0, 0, 1),
    # What firmware sets up before a kernel runs.
    "VPIDR_EL2": (3, 4, 0, 0, 0),
    "VMPIDR_EL2": (3, 4, 0, 0, 5),
    "HCR_EL2": (3, 4, 1, 1, 0),
    "SCR_EL3": (3, 6, 1, 1, 0),
}
"""Every system register that Cpu.sysreg() and Cpu.set_sysreg() know."""

TRANSLATION = frozenset(
    ("SCTLR_EL1", "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "CONTEXTIDR_EL1", "HCR_EL2", "SCR_EL3")
)
"""Registers that decide how addresses translate: the engine's TLB is dropped when the host writes one."""
