"""DMA zones, as far as they decide where a crash kernel may lie (arch/arm64/mm/init.c, zone_sizes_init())."""

from collections.abc import Iterator, Sequence

from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.memblock import Memblock, within_pages
from kexecemu.machine.ranges import PhysRange

__all__ = ["MAX_PAGE_ORDER", "PHYS_MASK_LIMIT", "arm64_dma_phys_limit", "max_zone_phys"]
__all__ += ["zone_messages", "zone_movable_start"]

PHYS_MASK_LIMIT = 1 << 48
MAX_PAGE_ORDER = {4096: 10, 16384: 11, 65536: 13}
"""MAX_PAGE_ORDER, by PAGE_SIZE: CONFIG_ARCH_FORCE_MAX_ORDER."""

_U32_MAX = (1 << 32) - 1


def max_zone_phys(config: KernelConfig, limit: int, memblock: Memblock) -> int:
    """max_zone_phys(): one past the last physical address of a zone that reaches as far as `limit`, inclusive.

    Before 6.12 a zone is one of so many address bits, and where RAM begins above them it has more.
    """
    if config.release.rules.zone_dma_limit:
        return min(limit, memblock.end_of_dram - 1) + 1
    zone_mask = (1 << min(limit.bit_length(), 32)) - 1
    if memblock.start_of_dram > _U32_MAX:
        zone_mask = (1 << 64) - 1
    elif memblock.start_of_dram > zone_mask:
        zone_mask = _U32_MAX
    return min(zone_mask, memblock.end_of_dram - 1) + 1


def arm64_dma_phys_limit(
    config: KernelConfig, memblock: Memblock, max_cpu_address: int = (1 << 64) - 1
) -> int:
    """The physical limit of DMA-able memory, and so of low crash memory.

    max_cpu_address is what of_dma_get_max_cpu_address() finds in the device tree's dma-ranges (all ones: no limit).
    Without DMA zones it is PHYS_MASK + 1 (before 6.4 by definition, after by zone_sizes_init()).
    """
    if config.enabled("ZONE_DMA"):
        low = memblock.start_of_dram < _U32_MAX
        return max_zone_phys(config, min(max_cpu_address, _U32_MAX) if low else max_cpu_address, memblock)
    if config.enabled("ZONE_DMA32"):
        return max_zone_phys(config, _U32_MAX, memblock)
    return PHYS_MASK_LIMIT


def zone_movable_start(config: KernelConfig, memblock: Memblock) -> int:
    """find_zone_movable_pfns_for_nodes(): the physical address that ZONE_MOVABLE begins at, 0 for none."""
    if not memblock.movable_node:
        return 0
    starts = [one.start for one in memblock.regions() if any(one.overlaps(area) for area in memblock.hotplug)]
    start = align_up(min(starts, default=0), config.page_size << MAX_PAGE_ORDER[config.page_size])
    return start if start < memblock.end_of_dram else 0


def zone_messages(
    config: KernelConfig, memblock: Memblock, dma_phys_limit: int, nodes: Sequence[int] = (0,)
) -> Iterator[str]:
    """What free_area_init() prints of zones and memory: the boot log between reservation and CMA.

    dma_phys_limit is arm64_dma_phys_limit, a physical address; nodes are NUMA's. Ends in the text are inclusive.
    """
    page = config.page_size
    limits = {
        "DMA": dma_phys_limit if config.enabled("ZONE_DMA") else None,
        "DMA32": max_zone_phys(config, _U32_MAX, memblock) if config.enabled("ZONE_DMA32") else None,
        "Normal": memblock.end_of_dram,
    }
    yield "Zone ranges:"
    start = memblock.start_of_dram
    for name, limit in limits.items():
        if limit is None:
            continue
        end = max(limit // page * page, start)
        yield f"  {name:<8} " + (f"[mem {start:#018x}-{end - 1:#018x}]" if end > start else "empty")
        start = end
    if config.enabled("ZONE_DEVICE"):
        yield f"  {'Device':<8} empty"
    yield "Movable zone start for each node"
    if movable := zone_movable_start(config, memblock):
        yield f"  Node 0: {movable:#018x}"
    yield "Early memory node ranges"
    of_node: dict[int, list[PhysRange]] = {node: [] for node in nodes}
    for area in within_pages(memblock.regions(), page):
        node = memblock.node_of(area.start) or 0
        of_node[node].append(area)
        yield f"  node {node:3}: [mem {area.start:#018x}-{area.last:#018x}]"
    for node, areas in of_node.items():
        span = f"[mem {areas[0].start:#018x}-{areas[-1].last:#018x}]" if areas else "as memoryless"
        yield f"Initmem setup node {node} {span}"
