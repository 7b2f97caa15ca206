"""From the boot loader to an idle kernel: the order of setup_arch() in arch/arm64/kernel/setup.c.

setup_machine_fdt, arm64_memblock_init, (early reservation before 6.4), paging_init, bootmem_init with the memory map
and the CMA area, then the (late) reservation. Everything that is allocated on the way is allocated from memblock in
the kernel's order, because that decides where a late crashkernel reservation comes to lie.
"""

from dataclasses import dataclass

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.address_space import AddressSpace, align_up
from kexecemu.kernel.base.cmdline import memparse, parameter
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.firmware import initrd_range, memory_ranges, reg_ranges
from kexecemu.kernel.memory.crashkernel import CrashReservation, Print, reserve_crashkernel
from kexecemu.kernel.memory.linear_map import (
    LinearMapPlan,
    MapTarget,
    build_linear_map,
    defer_reserve_crashkernel,
    plan_linear_map,
)
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.memory.sparsemem import MemoryMap, alloc_memory_map
from kexecemu.kernel.memory.zones import arm64_dma_phys_limit, zone_messages
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["TOO_SMALL", "ArchSetup", "TextLayout", "alloc_table", "arm64_memblock_init", "setup_memory"]
__all__ += ["text_alias"]

TOO_SMALL = "RAM is too small for the page tables of its own linear map"

# CMA_MIN_ALIGNMENT_BYTES by PAGE_SIZE: a pageblock, which is a huge page where the buddy allocator has blocks of that
# size. Debian's 6.1 has its 64 MiB at 5b600000 on a board of 512 MiB.
_CMA_ALIGN = {4096: 2 << 20, 16384: 32 << 20, 65536: 512 << 20}


@shown()
@dataclass(frozen=True)
class TextLayout:
    """Physical addresses inside the kernel image that memory setup looks at."""

    text: int  # _text
    stext: int  # _stext
    init_begin: int  # __init_begin
    end: int  # _end


@shown()
@dataclass(frozen=True)
class ArchSetup:
    """What setup_arch() has decided and built."""

    memblock: Memblock
    reservation: CrashReservation
    plan: LinearMapPlan
    dma_phys_limit: int
    memory_map: MemoryMap


def text_alias(config: KernelConfig, layout: TextLayout) -> PhysRange:
    """The physical range that gets a read-only alias in the linear map."""
    begins_at_text = config.release.rules.text_alias_starts_at_text
    return PhysRange(layout.text if begins_at_text else layout.stext, layout.init_begin)


def alloc_table(memblock: Memblock, page: int) -> int:
    """A page for a table of the linear map, physical; InputError where there is none."""
    phys = memblock.phys_alloc_range(page, page)
    if not phys:
        raise InputError(TOO_SMALL)
    return phys


def arm64_memblock_init(
    dtb: Fdt, dtb_phys: int, cmdline: str, space: AddressSpace, layout: TextLayout, config: KernelConfig
) -> Memblock:
    """RAM from the memory nodes, and what is taken before any allocation: kernel, initrd, device tree, reservations."""
    memblock = Memblock()
    page = config.page_size
    for area in memory_ranges(dtb):
        start, end = -(-area.start // page) * page, area.end // page * page
        if start < end:
            memblock.add(PhysRange(start, end))
    memblock.reserve(PhysRange.of(dtb_phys, dtb.totalsize))
    top = 1 << 64
    memblock.remove(PhysRange(space.memstart + space.linear_region_size, top))
    memblock.remove(PhysRange(0, space.memstart))
    limit = memparse(parameter(cmdline, "mem") or "")[0] // page * page
    if limit:
        _cap_memory(memblock, limit)
        memblock.add(PhysRange(layout.text, layout.end))
    initrd = initrd_range(dtb)
    if initrd is not None and initrd.start >= memblock.start_of_dram:
        # mem= must not make it inaccessible, so it is added back.
        pages = PhysRange(initrd.start // page * page, -(-initrd.end // page) * page)
        memblock.add(pages)
        memblock.clear_nomap(pages)
        memblock.reserve(pages)
    memblock.reserve(PhysRange(text_alias(config, layout).start, layout.end))
    for entry in dtb.mem_reservations():
        memblock.reserve(PhysRange.of(entry.phys, entry.size))
    _scan_reserved_memory(dtb, memblock)
    return memblock


def _cap_memory(memblock: Memblock, limit: int) -> None:
    """memblock_mem_limit_remove_map(): keep the first `limit` bytes of RAM."""
    left = limit
    for area in list(memblock.memory):
        keep = min(left, area.size)
        memblock.remove(PhysRange(area.start + keep, area.end))
        left -= keep


def _scan_reserved_memory(dtb: Fdt, memblock: Memblock) -> None:
    """early_init_fdt_scan_reserved_mem(): /reserved-memory nodes with a reg; no-map ones stay out of the linear map."""
    parent = dtb.path_offset("/reserved-memory")
    if parent is None:
        return
    for node in dtb.subnodes(parent):
        if dtb.getprop(node.offset, "reg") is None:
            continue  # dynamic placement (size only) is not modelled
        for area in reg_ranges(dtb, node.offset, parent):
            if dtb.getprop(node.offset, "no-map") is not None:
                memblock.mark_nomap(area)
            memblock.reserve(area)


def setup_memory(
    memblock: Memblock,
    cmdline: str,
    config: KernelConfig,
    space: AddressSpace,
    layout: TextLayout,
    tables: MapTarget,
    log: Print,
) -> ArchSetup:
    """The rest of setup_arch() that concerns memory: reservation, linear map, memory map, in the era's order.

    `tables` is swapper_pg_dir, or CountedTables where only the numbers matter; either takes its pages from
    `memblock`, because that decides where a late reservation comes to lie. log gets the kernel's messages.
    """

    def reserve() -> CrashReservation:
        limit = arm64_dma_phys_limit(config, memblock)
        return reserve_crashkernel(config.release, cmdline, memblock, limit, config.page_size, log)

    deferred = defer_reserve_crashkernel(config)
    reservation = CrashReservation() if deferred else reserve()
    text = text_alias(config, layout)
    plan = plan_linear_map(config, cmdline, memblock, text, reservation.crashk_res)
    build_linear_map(tables, space, plan)
    memory_map = alloc_memory_map(memblock, config.page_size)
    dma_limit = arm64_dma_phys_limit(config, memblock)
    for line in zone_messages(config, memblock, dma_limit):
        log(line)
    _dma_contiguous_reserve(memblock, cmdline, config, dma_limit, log)
    if deferred:
        reservation = reserve()
    return ArchSetup(memblock, reservation, plan, dma_limit, memory_map)


def _dma_contiguous_reserve(
    memblock: Memblock, cmdline: str, config: KernelConfig, dma_limit: int, log: Print
) -> None:
    """dma_contiguous_reserve(): cma=SIZE[@START[-END]] or what the kernel was built with, below the DMA limit."""
    size, start, end = config.number("CMA_SIZE_MBYTES") << 20, 0, 0
    asked = parameter(cmdline, "cma")
    if asked is not None:
        size, rest = memparse(asked)
        if rest[:1] == "@":
            start, rest = memparse(rest[1:])
            end = memparse(rest[1:])[0] if rest[:1] == "-" else start + size
    align = _CMA_ALIGN[config.page_size]
    size = align_up(size, align)
    if not size:
        return
    area = memblock.phys_alloc_range(size, align, start, min(end or dma_limit, dma_limit))
    mib = f"{size >> 20} MiB"
    log(f"cma: Reserved {mib} at {area:#018x}" if area else f"cma: Failed to reserve {mib}")
