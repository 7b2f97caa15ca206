"""The linear map of the first kernel: by blocks or by base pages, and what crashkernel= did to that.

Followed: map_mem() in arch/arm64/mm/mmu.c before and after commit 04a2a7af3d97. The decision is a plain value
(`plan_linear_map`), the map itself is page tables in guest RAM (`build_linear_map`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kexecemu.errors import InputError
from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.cmdline import get_option, parameter, parameters, strtobool
from kexecemu.kernel.base.config import KernelConfig, Protection
from kexecemu.kernel.memory.memblock import Memblock, across_pages, within_pages
from kexecemu.machine.memory.descriptors import (
    AF,
    AP_RO,
    ATTR_IDX,
    DBM,
    ENTRY_SIZE,
    PXN,
    SH_INNER,
    UXN,
    TableFormat,
)
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown

__all__ = ["MAIR_VALUE", "PAGE_KERNEL", "PAGE_KERNEL_RO", "PAGE_KERNEL_ROX", "PROT_DEVICE"]
__all__ += ["LinearMapPlan", "MapPiece"]
__all__ += ["MapTarget", "build_linear_map", "can_set_direct_map", "defer_reserve_crashkernel"]
__all__ += ["plan_linear_map", "rodata_full", "rodata_message", "rodata_words"]

Print = Callable[[str], None]

_TABLES_LIMIT = 512 << 20

# What rodata= says of rodata_full: before rodata_noalias, and with it.
_RODATA: tuple[Mapping[str, bool], Mapping[str, bool]] = (
    {"on": False, "off": False, "full": True},
    {"on": True, "off": False, "noalias": False},
)

# Memory types as arm64 Linux numbers them in MAIR_EL1: normal, normal tagged, normal non-cacheable, nGnRnE, nGnRE.
# Without MTE the tagged type is plain normal memory.
MAIR_VALUE = 0x04_00_44_FF_FF
_MT_NORMAL, _MT_NORMAL_TAGGED, _MT_DEVICE_NGNRNE = 0, 1, 3

_PROT = AF | SH_INNER | UXN | PXN
# DBM is PTE_WRITE in the kernel's tables: writable and, without AP_RO, also written by hardware's leave.
PAGE_KERNEL = _PROT | DBM | ATTR_IDX(_MT_NORMAL)
PAGE_KERNEL_TAGGED = _PROT | DBM | ATTR_IDX(_MT_NORMAL_TAGGED)
PAGE_KERNEL_RO = _PROT | AP_RO | ATTR_IDX(_MT_NORMAL)
PAGE_KERNEL_ROX = (_PROT & ~PXN) | AP_RO | ATTR_IDX(_MT_NORMAL)
PROT_DEVICE = _PROT | DBM | ATTR_IDX(_MT_DEVICE_NGNRNE)


def _rodata(config: KernelConfig, cmdline: str) -> str | None:
    """The last rodata= that this kernel knows."""
    words = _RODATA[config.release.rules.rodata_noalias]
    return next((asked for asked in reversed(parameters(cmdline, "rodata")) if asked in words), None)


def rodata_full(config: KernelConfig, cmdline: str) -> bool:
    """rodata_full: CONFIG_RODATA_FULL_DEFAULT_ENABLED, while there is one, or the last rodata= that is known.

    That is on, off or full; from 6.18 on noalias, off or on, of which the last is what full was.
    """
    noalias, asked = config.release.rules.rodata_noalias, _rodata(config, cmdline)
    if asked is not None:
        return _RODATA[noalias][asked]
    return noalias or config.enabled("RODATA_FULL_DEFAULT_ENABLED")


def rodata_words(config: KernelConfig, cmdline: str) -> str:
    """What decides about rodata_full, as this kernel writes it."""
    asked, noalias = _rodata(config, cmdline), config.release.rules.rodata_noalias
    if asked is not None:
        return f"rodata={asked}"
    if not rodata_full(config, cmdline):
        return "CONFIG_RODATA_FULL_DEFAULT_ENABLED=n"
    return f"rodata={'on' if noalias else 'full'} by default"


def rodata_enabled(config: KernelConfig, cmdline: str) -> bool:
    """rodata_enabled: the last rodata= that is known is not off."""
    return _rodata(config, cmdline) != "off"


def data_alias(config: KernelConfig, cmdline: str) -> str:
    """What the linear map's alias of the kernel's data and bss is in the end: the era's word, unless rodata=off."""
    return config.release.rules.data_alias if rodata_enabled(config, cmdline) else "writable"


def rodata_message(config: KernelConfig, asked: str | None) -> str | None:
    """set_debug_rodata(): what the kernel says of a word that it does not know, and of none, which is a null for it."""
    if asked in _RODATA[config.release.rules.rodata_noalias]:
        return None
    return f"Invalid option string for rodata: '{'(null)' if asked is None else asked}'"


def _debug_pagealloc_enabled(config: KernelConfig, cmdline: str) -> bool:
    """debug_pagealloc_enabled(): CONFIG_DEBUG_PAGEALLOC_ENABLE_DEFAULT, overridden by debug_pagealloc=."""
    enabled = config.enabled("DEBUG_PAGEALLOC_ENABLE_DEFAULT")
    for asked in parameters(cmdline, "debug_pagealloc"):
        value = strtobool(asked)
        enabled = enabled if value is None else value
    return enabled


def _kfence_early_init(config: KernelConfig, cmdline: str) -> bool:
    """kfence_early_init: KFENCE's pool is set up at boot."""
    interval: int | None = config.number("KFENCE_SAMPLE_INTERVAL")
    for asked in parameters(cmdline, "kfence.sample_interval"):
        value = get_option(asked)
        interval = interval if value is None else value
    return config.release.rules.kfence_early_pool and bool(interval)


def _late_kfence(config: KernelConfig, cmdline: str) -> bool:
    """arm64_kfence_can_set_direct_map(): a pool set up at boot gets pages of its own, a late one needs them all."""
    return config.enabled("KFENCE") and not _kfence_early_init(config, cmdline)


def _kfence_pool(
    config: KernelConfig, cmdline: str, memblock: Memblock, log: Print
) -> tuple[PhysRange | None, str]:
    """arm64_kfence_alloc_pool(): KFENCE_POOL_SIZE of memory, None for none; and the command line as it holds then.

    A pool that there is no room for is not tried again at boot, as if the interval were 0.
    """
    if not config.enabled("KFENCE") or not _kfence_early_init(config, cmdline):
        return None, cmdline
    size = (config.number("KFENCE_NUM_OBJECTS") + 1) * 2 * config.page_size
    phys = memblock.phys_alloc_range(size, config.page_size)
    if phys:
        return PhysRange.of(phys, size), cmdline
    log("failed to allocate kfence pool")
    return None, f"{cmdline} kfence.sample_interval=0"


def can_set_direct_map(config: KernelConfig, cmdline: str) -> bool:
    """can_set_direct_map(): the linear map's permissions may change page by page, so it must be base pages."""
    asked = (rodata_full, _debug_pagealloc_enabled, _late_kfence)
    return any(ask(config, cmdline) for ask in asked)


def splits_live(config: KernelConfig, bbm: int) -> bool:
    """system_supports_bbml3(): blocks may be split while the map is in use, on CPUs of this level of FEAT_BBM.

    A kernel that knows what to do with level 2 does it on CPUs of a list, that raise no abort meanwhile: those of that
    level here are taken for such. The protection bbml2 is for any kernel and any CPU.
    """
    return config.way is Protection.BBML2 or bbm in config.release.rules.splits_live


def force_pte_mapping(config: KernelConfig, cmdline: str, bbm: int) -> bool:
    """Whether map_mem() must use base pages: can_set_direct_map(), but for a CPU that can split blocks live.

    That is what a166563e7ec3 made of it; debug_pagealloc changes pages where no lock may be taken to split.
    """
    if splits_live(config, bbm):
        return _debug_pagealloc_enabled(config, cmdline)
    return can_set_direct_map(config, cmdline)


def _why_base_pages(config: KernelConfig, cmdline: str, splits: bool) -> str:
    """What asks for them, in a clause, and the word that would have blocks where there is one."""
    causes = ["debug_pagealloc"] if _debug_pagealloc_enabled(config, cmdline) else []
    if not splits and _late_kfence(config, cmdline):
        causes.append("a late KFENCE")
    if not splits and rodata_full(config, cmdline):
        blocks = "noalias" if config.release.rules.rodata_noalias else "on"
        word = rodata_words(config, cmdline)
        if not causes:
            return f"{word} needs base pages, rodata={blocks} would not"
        causes.append(word)
    return f"{' and '.join(causes)} {'need' if len(causes) > 1 else 'needs'} base pages"


def pre_series_map(config: KernelConfig, bbm: int) -> bool:
    """map_mem() treats the crashkernel region specially: before 6.4, or for a protection that changes single pages."""
    return config.way in (Protection.PTE, Protection.READONLY) and not splits_live(config, bbm)


def defer_reserve_crashkernel(config: KernelConfig) -> bool:
    """Whether the reservation waits for the DMA zones (always since 504cae453f82)."""
    return config.has_dma_zones if config.release.rules.early_reservation else True


@shown()
@dataclass(frozen=True)
class MapPiece:
    """A physical range of the linear map with one attribute set and one policy for large mappings."""

    area: PhysRange
    attributes: int
    blocks: bool
    contiguous: bool


@shown()
@dataclass(frozen=True)
class LinearMapPlan:
    """What map_mem() will map, in its order, in one clause why, and whether blocks of it may be split later on.

    data is the physical range of the kernel's data and bss where its alias is mapped apart.
    """

    pieces: tuple[MapPiece, ...]
    reason: str
    splits: bool = False
    data: PhysRange | None = None


def plan_linear_map(
    config: KernelConfig,
    cmdline: str,
    memblock: Memblock,
    text: PhysRange,
    crashk_res: PhysRange | None,
    bbm: int = 0,
    data: PhysRange | None = None,
    log: Print = lambda said: None,
) -> LinearMapPlan:
    """Decide the linear map's pieces as map_mem() does.

    text is the physical range that gets the read-only alias, data that of the kernel's data and bss; crashk_res the
    crash region if it is reserved already (it is not when the reservation is deferred); bbm the CPUs' level of
    FEAT_BBM. KFENCE's pool is allocated; log gets what the kernel says where it is not to be had.
    """
    pool, cmdline = _kfence_pool(config, cmdline, memblock, log)
    pages_only, splits = force_pte_mapping(config, cmdline, bbm), splits_live(config, bbm)
    reason = _why_base_pages(config, cmdline, splits) if pages_only else "blocks"
    special = None
    if pre_series_map(config, bbm) and parameter(cmdline, "crashkernel") is not None:
        if defer_reserve_crashkernel(config):
            pages_only = True
            reason = (
                "crashkernel= is reserved too late to be mapped apart, so all RAM is mapped by base pages"
            )
        elif crashk_res is not None:
            special = crashk_res
            reason = "blocks, and base pages for the crash region alone"
    elif (
        splits
        and not pages_only
        and (config.way is not Protection.NONE or can_set_direct_map(config, cmdline))
    ):
        reason = f"blocks that can be split live (FEAT_BBM level {bbm or 2})"
    if config.release.rules.data_alias == "writable":
        data = None
    apart = text, data, special, pool
    return LinearMapPlan(_pieces(config, memblock, not pages_only, *apart), reason, splits, data)


def _pieces(
    config: KernelConfig,
    memblock: Memblock,
    blocks: bool,
    text: PhysRange,
    data: PhysRange | None,
    special: PhysRange | None,
    pool: PhysRange | None,
) -> tuple[MapPiece, ...]:
    """The pieces in map_mem()'s order, which decides where tables come to lie."""
    how, pages = {"blocks": blocks, "contiguous": blocks}, {"blocks": False, "contiguous": False}
    of_pool = [MapPiece(pool, PAGE_KERNEL_TAGGED, **pages)] if pool is not None else []
    first, last = [], [MapPiece(special, PAGE_KERNEL, **pages)] if special is not None else []
    if config.release.rules.data_alias == "writable":
        # The alias is mapped writable first and made read-only by mark_linear_text_alias_ro(), which keeps the sizes.
        # Its flags are NO_CONT_MAPPINGS and nothing else: it may have blocks where all other RAM is base pages.
        last = [MapPiece(text, PAGE_KERNEL_RO, blocks=True, contiguous=False), *last, *of_pool]
    else:
        first = [*of_pool, MapPiece(text, PAGE_KERNEL_RO, **how)]
        first += [MapPiece(data, PAGE_KERNEL_TAGGED, **how)] if data is not None else []
    apart = [piece.area for piece in (*first, *last)]
    # __create_pgd_mapping() maps every page that a region has a byte in, unless its caller sees to that.
    whole = within_pages if config.release.rules.maps_whole_pages else across_pages
    mapped = whole(subtract(memblock.mappable(), apart), config.page_size)
    banks = [MapPiece(area, PAGE_KERNEL_TAGGED, **how) for area in mapped]
    return (*first, *banks, *last)


class MapTarget(Protocol):
    """What a plan is mapped into: PageTables in guest RAM, or CountedTables, which only reckon (linear_price)."""

    @property
    def fmt(self) -> TableFormat:
        """The granule and the size of the address space."""

    def map(
        self, virt: int, phys: int, size: int, attributes: int, *, blocks: bool, contiguous: bool
    ) -> None:
        """As PageTables.map()."""


def build_linear_map(tables: MapTarget, space: AddressSpace, plan: LinearMapPlan) -> None:
    """Write the planned map into the page tables that the emulated MMU walks.

    Raises InputError for a map by base pages that is too large to be built entry by entry (512 MiB of tables).
    """
    paged = sum(piece.area.size for piece in plan.pieces if not piece.blocks)
    in_ram = isinstance(tables, PageTables)
    if in_ram and paged // tables.fmt.granule.size * ENTRY_SIZE > _TABLES_LIMIT:
        raise InputError(
            f"a linear map of {round(paged / (1 << 30))} GiB by base pages is more than is built here "
            f"({plan.reason}); kexecemu linear-map reckons it"
        )
    for one in plan.pieces:
        virt, phys, size = space.linear_virt(one.area.start), one.area.start, one.area.size
        tables.map(virt, phys, size, one.attributes, blocks=one.blocks, contiguous=one.contiguous)
