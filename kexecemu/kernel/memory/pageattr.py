"""Changes of the linear map's attributes after it was built (arch/arm64/mm/pageattr.c, and who uses it in mmu.c)."""

from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.linear_map import PAGE_KERNEL_RO, LinearMapPlan, data_alias
from kexecemu.machine.memory.descriptors import AP_RO, ATTR_IDX, DBM, NG, VALID
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.ranges import PhysRange

__all__ = ["invalid_bits", "mark_linear_data_alias", "update_range_prot"]


def update_range_prot(
    tables: PageTables, space: AddressSpace, area: PhysRange, set_bits: int, clear_bits: int, *, splits: bool
) -> None:
    """update_range_prot(): change the linear map of a physical area, blocks as blocks; they are split at its ends.

    splits is the map's LinearMapPlan.splits: without it no block is split, and none changed. Raises MachineError where
    it cannot be changed; the caller must invalidate the TLB afterwards.
    """
    virt = space.linear_virt(area.start)
    if splits:
        tables.split(virt)
        tables.split(virt + area.size)
    tables.update(virt, area.size, set_bits, clear_bits, blocks=splits)


def invalid_bits(config: KernelConfig) -> tuple[int, int]:
    """What set_memory_valid(..., 0) sets in a leaf, and what it clears."""
    return NG if config.release.rules.marks_invalid else 0, VALID


def mark_linear_data_alias(
    tables: PageTables, space: AddressSpace, config: KernelConfig, cmdline: str, plan: LinearMapPlan
) -> None:
    """mark_rodata_ro()'s last step: the linear map's alias of the kernel's data and bss, if the era does that.

    It was mapped apart, so that nothing is split. The caller must invalidate the TLB afterwards.
    """
    how = data_alias(config, cmdline)
    if plan.data is None or how == "writable":
        return
    set_bits, clear_bits = invalid_bits(config)
    if how == "read-only":
        set_bits, clear_bits = AP_RO | PAGE_KERNEL_RO & ATTR_IDX(7), DBM | ATTR_IDX(7)
    tables.update(space.linear_virt(plan.data.start), plan.data.size, set_bits, clear_bits, blocks=True)
