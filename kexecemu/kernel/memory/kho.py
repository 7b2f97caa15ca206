"""Kexec handover: the scratch areas that the next kernel is loaded into, and does its early allocations in.

Followed: kernel/liveupdate/kexec_handover.c (kernel/kexec_handover.c at first). They are reserved when all the rest has
been, so crash memory does not move for them. What is handed over is no part of this.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.cmdline import memparse, strtobool
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.cma import buddy_block, cma_min_alignment
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["KhoEarly", "KhoScratch", "kho_parameter", "reserve_scratch"]

_ENTRY = struct.Struct("<QQ")  # struct kho_scratch: addr, size
_AREAS = 3  # one for each node with memory, of which there is one, and two
_ANYWHERE = (1 << 64) - 1
_U32 = 1 << 32

Print = Callable[[str], None]


@shown()
@dataclass(frozen=True)
class KhoEarly:
    """What kho= and kho_scratch= ask for; sizes in bytes, in force where scale is 0 (percent of what is given out)."""

    enable: bool = False
    scale: int = 200
    lowmem: int = 0
    anywhere: int = 0
    pernode: int = 0


@shown()
@dataclass(frozen=True)
class KhoScratch:
    """The areas in the order of the array, which is at array_phys; fdt_phys is the page that tells what is kept."""

    areas: tuple[PhysRange, ...]
    array_phys: int
    fdt_phys: int

    @property
    def array(self) -> bytes:
        """kho_scratch[]: what the next kernel is given."""
        return b"".join(_ENTRY.pack(area.start, area.size) for area in self.areas)


def _scratch_size(text: str, given: KhoEarly, log: Print) -> KhoEarly | None:
    """kho_parse_scratch_size(): N%, or three sizes with commas between; None for what it cannot read."""
    if text.endswith("%"):
        digits = text[:-1]
        if len(text) > 11 or not re.fullmatch(r"\+?[0-9]+", digits) or int(digits) >= _U32:
            return None
        scale = int(digits)
        log(f"KHO: scratch scale is {scale - _U32 if scale >= _U32 // 2 else scale}%")
        return replace(given, scale=scale)
    sizes, rest = [], "," + text
    for _ in range(3):
        if rest[:1] != ",":
            return None
        size, left = memparse(rest[1:])
        if left == rest[1:]:
            return None
        sizes.append(size)
        rest = left
    if rest or not sum(sizes) % (1 << 64):
        return None
    low, anywhere, node = (size >> 20 for size in sizes)
    log(f"KHO: scratch areas: lowmem: {low}MiB global: {anywhere}MiB pernode: {node}MiB")
    return replace(given, scale=0, lowmem=sizes[0], anywhere=sizes[1], pernode=sizes[2])


def kho_parameter(name: str, value: str, found: KhoEarly, log: Print) -> KhoEarly | None:
    """kho= or kho_scratch= after what is found by then; None for what is malformed. log gets the kernel's words."""
    if name == "kho_scratch":
        return _scratch_size(value, found, log)
    enable = strtobool(value)
    return None if enable is None else replace(found, enable=enable)


def _sizes(memblock: Memblock, early: KhoEarly, low_limit: int) -> tuple[int, int]:
    """scratch_size_update(): for low memory, and anywhere."""
    if not early.scale:
        return early.lowmem, early.anywhere
    low, whole = (memblock.kern_size(limit) * early.scale // 100 for limit in (low_limit, _ANYWHERE))
    return low, whole - low


def _size_node(memblock: Memblock, early: KhoEarly) -> int:
    """scratch_size_node(): asked when the other areas have been given out too."""
    return memblock.kern_size(_ANYWHERE) * early.scale // 100 if early.scale else early.pernode


def reserve_scratch(
    config: KernelConfig, memblock: Memblock, dma_phys_limit: int, early: KhoEarly, log: Print
) -> KhoScratch | None:
    """kho_reserve_scratch(): an area in low memory, one anywhere, and one of the node, or none of them.

    dma_phys_limit is arm64_dma_phys_limit. log gets the kernel's words for want of room.
    """
    if not early.enable:
        return None
    by_buddy, page = config.release.rules.kho_aligns_by_buddy, config.page_size
    align = buddy_block(page) if by_buddy else cma_min_alignment(config)
    low_limit = dma_phys_limit - 1  # ARCH_LOW_ADDRESS_LIMIT, though it is taken for an end
    low, anywhere = _sizes(memblock, early, low_limit)
    array_phys = memblock.phys_alloc_range(_AREAS * _ENTRY.size, page)
    areas = list[PhysRange]()
    for name, wanted, limit in (("lowmem", low, low_limit), ("global", anywhere, 0), ("nid 0", None, 0)):
        size = align_up(_size_node(memblock, early) if wanted is None else wanted, align)
        base = memblock.phys_alloc_range(size, align, 0, limit) if array_phys else 0
        if not base:
            log("KHO: Failed to reserve " + (f"{name} scratch buffer" if array_phys else "scratch array"))
            for area in areas:
                memblock.free(area)
            memblock.free(PhysRange.of(array_phys, _AREAS * _ENTRY.size))
            log("KHO: Failed to reserve scratch area, disabling kexec handover")
            return None
        areas.append(PhysRange.of(base, size))
    return KhoScratch(tuple(areas), array_phys, memblock.phys_alloc_range(page, page))
