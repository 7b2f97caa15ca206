"""From the boot loader to an idle kernel: the order of setup_arch() in arch/arm64/kernel/setup.c.

setup_machine_fdt, arm64_memblock_init, (early reservation before 6.4), paging_init, bootmem_init with the memory map
and the CMA area, then the (late) reservation. Everything that is allocated on the way is allocated from memblock in
the kernel's order, because that decides where a late crashkernel reservation comes to lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kexecemu.errors import InputError
from kexecemu.formats.efi_map import AcpiLog
from kexecemu.formats.fdt import Fdt
from kexecemu.formats.fdt_blob import MemReserve
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.cmdline import parameter
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.bootmem import create_idmap, unflatten_device_tree
from kexecemu.kernel.boot.early_param import CmaAsked, EarlyParameters
from kexecemu.kernel.boot.firmware import initrd_range
from kexecemu.kernel.boot.late_memblock import nr_kernel_pages
from kexecemu.kernel.boot.numa import arch_numa_init
from kexecemu.kernel.boot.of_dma import PHYS_ADDR_MAX, dma_max_cpu_address
from kexecemu.kernel.boot.reserved_memory import ReservedMemory
from kexecemu.kernel.memory.cma import cma_declare_contiguous
from kexecemu.kernel.memory.crashkernel import (
    CrashReservation,
    Print,
    reserve_crashkernel,
    reserve_crashkernel_cma,
    told_reservation,
)
from kexecemu.kernel.memory.linear_map import (
    LinearMapPlan,
    MapTarget,
    build_linear_map,
    defer_reserve_crashkernel,
    plan_linear_map,
)
from kexecemu.kernel.memory.memblock import Memblock, within_pages
from kexecemu.kernel.memory.sparsemem import SparseMemory, sparse_init
from kexecemu.kernel.memory.zones import arm64_dma_phys_limit, zone_messages
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = [
    "IMAGE_MARKS",
    "TOO_SMALL",
    "ArchSetup",
    "TextLayout",
    "alloc_table",
    "arm64_memblock_init",
    "setup_memory",
]
__all__ += ["text_alias"]

IMAGE_MARKS = ("_text", "_stext", "__init_begin", "_end", "__init_end", "__bss_stop")
"""The symbols behind TextLayout's fields."""
_FAR_INITRD = "initrd not fully accessible via the linear mapping -- please check your bootloader ..."
TOO_SMALL = "RAM is too small for the page tables of its own linear map"


@shown()
@dataclass(frozen=True)
class TextLayout:
    """Physical addresses inside the kernel image that memory setup looks at."""

    text: int  # _text
    stext: int  # _stext
    init_begin: int  # __init_begin
    end: int  # _end
    init_end: int = 0  # __init_end
    bss_stop: int = 0  # __bss_stop; the same where it is not known what is data

    def data(self, page: int) -> PhysRange | None:
        """The kernel's data and bss in whole pages of this size; None where they are not known."""
        area = PhysRange(self.init_end, -(-self.bss_stop // page) * page)
        return area if area.size else None


@shown()
@dataclass(frozen=True)
class ArchSetup:
    """What setup_arch() has decided and built.

    system_ram is what request_standard_resources() finds: whole pages, region by region. nodes are NUMA's.
    """

    memblock: Memblock
    reservation: CrashReservation
    plan: LinearMapPlan
    dma_phys_limit: int
    sparse: SparseMemory
    nr_kernel_pages: int
    system_ram: tuple[PhysRange, ...]
    cma_area: PhysRange | None = None
    nodes: tuple[int, ...] = (0,)


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
    memblock: Memblock,
    dtb: Fdt,
    dtb_phys: int,
    cmdline: str,
    early: EarlyParameters,
    space: AddressSpace,
    layout: TextLayout,
    config: KernelConfig,
    log: Print,
    initrd: PhysRange | None = None,
) -> ReservedMemory:
    """What of the memory in memblock is left out, and what is taken before any allocation: kernel, initrd, tree.

    And the reservations. early is what the command line was parsed to. Gives the regions of /reserved-memory; log gets
    the kernel's messages. initrd is where its own is, exact physical bytes, if the tree does not say it.
    """
    page = config.page_size
    memblock.movable_node = parameter(cmdline, "movable_node") is not None
    memblock.reserve(PhysRange.of(dtb_phys, dtb.totalsize))
    top = 1 << 64
    memblock.remove(PhysRange(space.memstart + space.linear_region_size, top))
    memblock.remove(PhysRange(0, space.memstart))
    if early.memory_limit:
        _cap_memory(memblock, early.memory_limit)
        memblock.add(PhysRange(layout.text, layout.end))
    initrd = initrd or initrd_range(dtb)
    pages = PhysRange(0, 0)
    if initrd is not None:
        pages = PhysRange(initrd.start // page * page, -(-initrd.end // page) * page)
        start = memblock.start_of_dram
        if not PhysRange.of(start, space.linear_region_size).covers(pages):
            log(_FAR_INITRD)
            pages = PhysRange(0, 0)
    if pages.size:
        # mem= must not make it inaccessible, so it is added back.
        memblock.add(pages)
        memblock.clear_nomap(pages)
        memblock.reserve(pages)
    memblock.reserve(PhysRange(text_alias(config, layout).start, layout.end))
    reserved = ReservedMemory(config, dtb, memblock, cma_asked=early.cma is not None, log=log)
    reserved.scan(lambda: _reserve_all(memblock, dtb.mem_reservations()))
    return reserved


def _reserve_all(memblock: Memblock, entries: Sequence[MemReserve]) -> None:
    for entry in entries:
        memblock.reserve(PhysRange.of(entry.phys, entry.size))


def _cap_memory(memblock: Memblock, limit: int) -> None:
    """memblock_mem_limit_remove_map(): keep the first `limit` bytes of RAM."""
    left = limit
    for area in list(memblock.memory):
        keep = min(left, area.size)
        memblock.remove(PhysRange(area.start + keep, area.end))
        left -= keep


def setup_memory(
    memblock: Memblock,
    cmdline: str,
    early: EarlyParameters,
    config: KernelConfig,
    space: AddressSpace,
    layout: TextLayout,
    tables: MapTarget,
    tree: Fdt,
    reserved: ReservedMemory,
    log: Print,
    bbm: int = 0,
    acpi: AcpiLog | None = None,
    reserved_as: CrashReservation | None = None,
) -> ArchSetup:
    """The rest of setup_arch() that concerns memory: reservation, linear map, memory map, in the era's order.

    `tables` is swapper_pg_dir, or CountedTables where only the numbers matter; either takes its pages from
    `memblock`, because that decides where a late reservation comes to lie. tree is the device tree as it is then,
    reserved what arm64_memblock_init() gave; log gets the kernel's messages. bbm is the CPUs' level of FEAT_BBM, acpi
    what there is in ACPI, None where the tree describes the machine. reserved_as is the reservation where it is known.
    """

    # ACPI's way, IORT, is not known.
    reach = PHYS_ADDR_MAX if acpi is not None else dma_max_cpu_address(tree, config.release)

    def reserve() -> CrashReservation:
        if reserved_as is not None:
            return told_reservation(reserved_as, log)
        limit = arm64_dma_phys_limit(config, memblock, reach)
        found = reserve_crashkernel(config.release, cmdline, memblock, limit, config.page_size, log)
        return replace(found, cma=reserve_crashkernel_cma(config, cmdline, memblock, log))

    deferred = defer_reserve_crashkernel(config)
    reservation = CrashReservation() if deferred else reserve()
    text, data = text_alias(config, layout), layout.data(config.page_size)
    plan = plan_linear_map(config, cmdline, memblock, text, reservation.crashk_res, bbm, data, log)
    build_linear_map(tables, space, plan)
    create_idmap(config, memblock)
    if acpi is None:
        reserved.scan_late()
        unflatten_device_tree(config, tree, memblock)
    nodes = arch_numa_init(config, tree, memblock, cmdline, log, acpi)
    dma_limit = arm64_dma_phys_limit(config, memblock, reach)

    before = config.release.rules.reserves_before_memmap

    def free_area_init() -> tuple[SparseMemory, int]:
        pages = nr_kernel_pages(memblock, config.page_size)
        sparse = sparse_init(memblock, space, config)
        if not before:  # the zones come after the map of their pages
            pages = nr_kernel_pages(memblock, config.page_size)
        for line in zone_messages(config, memblock, dma_limit, nodes):
            log(line)
        return sparse, pages

    made = None if before else free_area_init()
    cma_area = reserved.default_cma
    if config.enabled("CMA") and cma_area is None:
        cma_area = _dma_contiguous_reserve(memblock, early.cma, config, dma_limit, log)
    if cma_area is not None and len(nodes) > 1 and config.release.rules.cma_for_each_node:
        for node in nodes:
            cma_declare_contiguous(config, memblock, cma_area.size, log, node=node)
    if deferred:
        reservation = reserve()
    sparse, pages = made or free_area_init()
    system_ram = tuple(within_pages(memblock.mappable(), config.page_size))
    return ArchSetup(memblock, reservation, plan, dma_limit, sparse, pages, system_ram, cma_area, nodes)


def _dma_contiguous_reserve(
    memblock: Memblock, asked: CmaAsked | None, config: KernelConfig, dma_limit: int, log: Print
) -> PhysRange | None:
    """dma_contiguous_reserve(): what cma= asks for, or what the kernel was built with, below the DMA limit."""
    wanted = CmaAsked(config.number("CMA_SIZE_MBYTES") << 20) if asked is None else asked
    if not wanted.size:
        return None
    limit = wanted.end or dma_limit
    if not config.release.rules.cma_limit_is_asked:
        limit = min(limit, dma_limit)
    fixed = wanted.end == wanted.start + wanted.size
    return cma_declare_contiguous(
        config, memblock, wanted.size, log, start=wanted.start, limit=limit, fixed=fixed
    )
