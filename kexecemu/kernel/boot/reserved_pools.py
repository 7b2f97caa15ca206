"""A region of /reserved-memory: the place that the kernel finds for it, and what its driver says of it.

Followed: __reserved_mem_alloc_size() of drivers/of/of_reserved_mem.c, rmem_cma_setup() of kernel/dma/contiguous.c,
rmem_dma_setup() of kernel/dma/coherent.c. Debian's kernels have no other driver for such a region at boot.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from kexecemu.formats.fdt import Fdt
from kexecemu.formats.fdt_read import Node
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.fdt_memory import pairs, root_cells
from kexecemu.kernel.memory.cma import cma_min_alignment
from kexecemu.kernel.memory.memblock import SMP_CACHE_BYTES, Memblock
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["Pools", "Region", "Setup", "alloc_size"]

_U64 = 1 << 64
_ANYWHERE = (0, 0)

Print = Callable[[str], None]


@shown()
@dataclass
class Region:
    """struct reserved_mem: a node, and its region, physical; no size before it has a place."""

    node: Node
    base: int
    size: int

    @property
    def key(self) -> tuple[int, int]:
        """What __rmem_cmp() looks at first."""
        return self.base, self.size


class Setup(Enum):
    """What a region's driver said of it: all is well, it has none, or it is not to be."""

    DONE = auto()
    NOBODY = auto()
    FAILED = auto()


class Pools:
    """The drivers of a shared-dma-pool, in a kernel that boots."""

    def __init__(self, config: KernelConfig, tree: Fdt, *, cma_asked: bool, log: Print) -> None:
        """cma_asked: the command line has cma=; log gets the kernel's words."""
        self.default_cma: PhysRange | None = None
        self.tree, self.rules = tree, config.release.rules
        self.cma_align = cma_min_alignment(config) if config.enabled("CMA") else 0
        """CMA_MIN_ALIGNMENT_BYTES; 0 without CMA, and so without its driver."""
        self._cma_asked, self._log = cma_asked, log

    def has(self, node: Node, name: str) -> bool:
        """Whether a node has a property of that name."""
        return self.tree.getprop(node.offset, name) is not None

    def is_pool(self, node: Node) -> bool:
        """of_flat_dt_is_compatible() with what both drivers are for."""
        return "shared-dma-pool" in (self.tree.get_strings(node.offset, "compatible") or [])

    def is_cma(self, node: Node) -> bool:
        """Whether it could be a CMA area, by its properties."""
        return self.is_pool(node) and self.has(node, "reusable") and not self.has(node, "no-map")

    def validate(self, node: Node) -> Setup:
        """fdt_validate_reserved_mem_node(), of 7.3: a CMA area's driver looks at it before there is a region."""
        if not self.cma_align or not self.is_cma(node):
            return Setup.NOBODY
        if self._cma_asked and self.has(node, "linux,cma-default"):
            self._log('Skipping dt linux,cma-default node in favor for "cma=" kernel param.')
            return Setup.FAILED
        return Setup.DONE

    def setup(self, one: Region, memblock: Memblock) -> bool:
        """__reserved_mem_init_node(): the driver for CMA areas has the first say, then the one for DMA pools.

        False for a region that is not to be.
        """
        if not self.is_pool(one.node):
            return True
        found = self._setup_cma(one, memblock) if self.cma_align else Setup.NOBODY
        if found is not Setup.DONE and not (found is Setup.FAILED and self.rules.reserves_first_reg):
            found = self._setup_dma(one)
        if found is Setup.DONE:
            self._log(f"OF: reserved mem: initialized node {one.node.name}, compatible id shared-dma-pool")
        return found is not Setup.FAILED

    def _setup_cma(self, one: Region, memblock: Memblock) -> Setup:
        default = self.has(one.node, "linux,cma-default")
        if self.rules.reserves_first_reg:
            valid = self.validate(one.node)
            if valid is not Setup.DONE:
                return valid
        elif self._cma_asked and default:
            words = f"bypass {one.node.name} node, using cmdline CMA params instead"
            self._log(f"Reserved memory: {words}")
            return Setup.FAILED
        elif not self.is_cma(one.node):
            return Setup.FAILED
        if (one.base | one.size) % self.cma_align:
            self._log("Reserved memory: incorrect alignment of CMA region")
            return Setup.FAILED
        if not memblock.is_region_reserved(PhysRange.of(one.base, one.size)):
            self._log("Reserved memory: unable to setup CMA region")
            return Setup.FAILED
        if default:
            self.default_cma = PhysRange.of(one.base, one.size)
        where = f"{one.base:#018x}, size {one.size >> 20} MiB"
        self._log(f"Reserved memory: created CMA memory pool at {where}")
        return Setup.DONE

    def _setup_dma(self, one: Region) -> Setup:
        if self.has(one.node, "reusable"):
            return Setup.NOBODY if self.rules.reserves_first_reg else Setup.FAILED
        size = f"{one.size >> 10} KiB" if self.rules.reserves_first_reg else f"{one.size >> 20} MiB"
        self._log(f"Reserved memory: created DMA memory pool at {one.base:#018x}, size {size}")
        return Setup.DONE


def alloc_size(
    pools: Pools, node: Node, memblock: Memblock, others: Sequence[Region], log: Print
) -> tuple[int, int] | None:
    """__reserved_mem_alloc_size(): a place, physical, and how many bytes; None where there is none, which log gets.

    It is the highest that fits, in the first of alloc-ranges that has one; others are regions that lie somewhere
    already, and in whose neighbourhood it is put from 6.5 on.
    """
    tree, rules = pools.tree, pools.rules
    address, size = root_cells(tree)
    numbers = {}
    for name, width in (("size", size), ("alignment", address)):
        value = tree.getprop(node.offset, name)
        if value is not None and len(value) != 4 * width:
            log(f"OF: reserved mem: invalid {name} property in '{node.name}' node.")
            return None
        if value is None and name == "size":
            return None
        numbers[name] = int.from_bytes(value or b"", "big") % _U64
    align = numbers["alignment"]
    if rules.reserves_first_reg and pools.validate(node) is Setup.FAILED:
        return None
    if pools.cma_align and pools.is_cma(node):
        align = max(align, pools.cma_align)
    given = pairs(tree, node.offset, "alloc-ranges")
    if given is None and pools.has(node, "alloc-ranges") and not rules.reserves_first_reg:
        log(f"OF: reserved mem: invalid alloc-ranges property in '{node.name}', skipping node.")
        return None
    wanted = numbers["size"]
    base = 0
    for start, length in [_ANYWHERE] if given is None else given:
        bottom_up = (
            given is not None and rules.reserved_mem_sorted_by_node and _next_to(start, length, others)
        )
        alloc = memblock.phys_alloc_range_bottom_up if bottom_up else memblock.phys_alloc_range
        base = alloc(wanted, align or SMP_CACHE_BYTES, start, (start + length) % _U64)
        if base:
            break
    if not base:
        words = f"failed to allocate memory for node '{node.name}': size {wanted >> 20} MiB"
        log(f"OF: reserved mem: {words}")
        return None
    if pools.has(node, "no-map"):
        memblock.mark_nomap(PhysRange.of(base, wanted))
    return base, wanted


def _next_to(start: int, length: int, others: Sequence[Region]) -> bool:
    """__reserved_mem_alloc_in_range(): from below, where a range begins at another region and does not end at one."""
    end = (start + length) % _U64
    placed = [one for one in others if one.size]
    below = any(one.base <= start <= one.base + one.size for one in placed)
    return below and not any(one.base <= end <= one.base + one.size for one in placed)
