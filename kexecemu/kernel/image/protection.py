"""The ways of protecting a loaded crash image from stray writes, as edits of the page tables in guest RAM.

pte       arch_kexec_protect_crashkres() of arm64 before 6.4: set_memory_valid(segment, 0), segments only
readonly  what x86 and s390 do, on arm64's tables: the whole crash region read-only, but the control pages
bbml2     pte, where blocks may be split live whatever kernel and CPU: only those that a segment begins or ends in are;
          from 6.18 on that is what pte is on CPUs with FEAT_BBM
"""

from kexecemu.errors import BusError, InputError, MachineError
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import KernelConfig, Protection
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.memory.pageattr import invalid_bits, update_range_prot
from kexecemu.machine.memory.descriptors import AP_RO, DBM
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.ranges import PhysRange, subtract

__all__ = ["protect_crashkres", "protected_areas", "unprotect_crashkres"]


def _areas(way: Protection, image: Kimage, crashk_res: PhysRange) -> list[PhysRange]:
    """The physical ranges that this way of protecting covers."""
    if way is Protection.READONLY:
        return subtract([crashk_res], image.control_pages)
    return [segment.area for segment in image.segments]


def _bits(config: KernelConfig) -> tuple[int, int]:
    """What is set, and what is cleared, in a leaf that is protected: set_memory_valid(), or set_memory_ro()."""
    if config.way is Protection.READONLY:
        return AP_RO, DBM
    return invalid_bits(config)


def protect_crashkres(
    config: KernelConfig,
    tables: PageTables,
    space: AddressSpace,
    image: Kimage,
    crashk_res: PhysRange,
    *,
    splits: bool,
) -> None:
    """arch_kexec_protect_crashkres(): take access away; the caller must invalidate the TLB afterwards.

    splits is the map's LinearMapPlan.splits. Raises InputError where the linear map cannot express it.
    """
    if config.way is Protection.NONE:
        return
    set_bits, clear_bits = _bits(config)
    for area in _areas(config.way, image, crashk_res):
        try:
            update_range_prot(tables, space, area, set_bits, clear_bits, splits=splits)
        except MachineError as error:
            raise InputError(
                f"protection is impossible here: the linear map of {area} is not base pages ({error}); "
                "boot with rodata=full, or with crashkernel= known before the map is built"
            ) from error


def unprotect_crashkres(
    config: KernelConfig,
    tables: PageTables,
    space: AddressSpace,
    image: Kimage,
    crashk_res: PhysRange,
    *,
    splits: bool,
) -> None:
    """arch_kexec_unprotect_crashkres(): give access back before a reload or an unload. What was split stays split."""
    if config.way is Protection.NONE:
        return
    clear_bits, set_bits = _bits(config)
    for area in _areas(config.way, image, crashk_res):
        update_range_prot(tables, space, area, set_bits, clear_bits, splits=splits)


def protected_areas(
    way: Protection, tables: PageTables, space: AddressSpace, image: Kimage, crashk_res: PhysRange
) -> list[PhysRange]:
    """What the tables keep stores through the linear map out of, of what this way of protecting covers: physical."""
    if way is Protection.NONE:
        return []
    return [found for area in _areas(way, image, crashk_res) for found in _not_writable(tables, space, area)]


def _not_writable(tables: PageTables, space: AddressSpace, area: PhysRange) -> list[PhysRange]:
    virt = space.linear_virt(area.start)
    found: list[PhysRange] = []
    try:
        for leaf in tables.leaves(virt, virt + area.size):
            if leaf.valid and not leaf.descriptor & AP_RO:
                continue
            start = max(leaf.virt - virt + area.start, area.start)
            end = min(leaf.virt + leaf.size - virt + area.start, area.end)
            if found and found[-1].end == start:
                start = found.pop().start
            found.append(PhysRange(start, end))
    except BusError:
        return [area]  # the tables have been stamped on: no walk gets through, and no store
    return found
