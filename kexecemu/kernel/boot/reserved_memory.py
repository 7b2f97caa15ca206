"""/reserved-memory: what the device tree keeps for firmware and devices, placed by it or by the kernel.

Followed: drivers/of/of_reserved_mem.c and early_init_dt_reserve_memory() of drivers/of/fdt.c; rmem_cma_setup() of
kernel/dma/contiguous.c for what of it becomes the default CMA area.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kexecemu.formats.fdt import Fdt, join_cells
from kexecemu.formats.fdt_read import Node
from kexecemu.kernel.base.config import Era
from kexecemu.kernel.boot.fdt_memory import is_available
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["ReservedMem", "fdt_scan_reserved_mem", "save_reg_nodes"]

_MAX_REGIONS = 64  # MAX_RESERVED_REGIONS
_ALIGN = 64  # SMP_CACHE_BYTES

Print = Callable[[str], None]


@shown()
@dataclass(frozen=True)
class ReservedMem:
    """One region that has a node of its own: physical, and whether it is the tree's choice for the default CMA area."""

    name: str
    area: PhysRange
    nomap: bool = False
    reusable: bool = False
    default_cma: bool = False

    @property
    def line(self) -> str:
        """As fdt_init_reserved_mem_node() tells it; the last byte is given."""
        start, last = f"{self.area.start:#018x}", f"{self.area.last:#018x}"
        how = f"{'nomap' if self.nomap else 'map'} {'reusable' if self.reusable else 'non-reusable'}"
        return f"OF: reserved mem: {start}..{last} ({self.area.size >> 10} KiB) {how} {self.name}"


def fdt_scan_reserved_mem(
    era: Era, tree: Fdt, memblock: Memblock, cma_align: int, log: Print
) -> list[ReservedMem]:
    """Reserve what has a reg, then find places for what has only a size; gives the latter, and log the words for it.

    cma_align is CMA_MIN_ALIGNMENT_BYTES.
    """
    parent = tree.path_offset("/reserved-memory")
    if parent is None:
        return []
    if not _root_is_right(tree, parent):
        log("OF: reserved mem: Reserved memory: unsupported node format, ignoring")
        return []
    dynamic: list[Node] = []
    for node in _available(tree, parent):
        if tree.getprop(node.offset, "reg") is not None:
            _reserve_reg(era, tree, node, memblock, log)
        elif tree.getprop(node.offset, "size") is not None and len(dynamic) < _MAX_REGIONS:
            dynamic.append(node)
    if era.rules.memreserve_first:
        dynamic = _sorted_when_all_are_equal(dynamic)
    found = []
    for node in dynamic:
        one = _alloc_size(tree, node, memblock, cma_align, log)
        if one is not None:
            found.append(one)
            _tell(era, tree, node, one, log)
    return found


def _sorted_when_all_are_equal(nodes: list[Node]) -> list[Node]:
    """__rmem_check_for_overlap() sorts them while none has an address: what lib/sort.c's heapsort makes of that."""
    found = list(nodes)
    parts, end = len(found) // 2, len(found)
    while True:
        if parts:
            parts -= 1
        else:
            end -= 1
            if end <= 0:
                return found
            found[0], found[end] = found[end], found[0]
        down = parts
        while 2 * down + 2 < end:
            down = 2 * down + 1
        if 2 * down + 2 == end:
            down = 2 * down + 1
        while down not in (parts, 0):  # each is as large as its parent: it stays where it is
            down = (down - 1) // 2
            if down == parts:
                break


def _tell(era: Era, tree: Fdt, node: Node, one: ReservedMem, log: Print) -> None:
    """fdt_init_reserved_mem_node(), with rmem_cma_setup() and rmem_dma_setup() before it."""
    if _is_pool(tree, node.offset):
        kind = "CMA" if one.reusable and not one.nomap else "DMA"
        log(
            f"Reserved memory: created {kind} memory pool at {one.area.start:#018x}, size {one.area.size >> 20} MiB"
        )
        log(f"OF: reserved mem: initialized node {one.name}, compatible id shared-dma-pool")
    if era.rules.tells_reserved_mem:
        log(one.line)


def _is_pool(tree: Fdt, node: int) -> bool:
    return "shared-dma-pool" in (tree.get_strings(node, "compatible") or [])


def save_reg_nodes(era: Era, tree: Fdt, dynamic: Sequence[ReservedMem], log: Print) -> list[ReservedMem]:
    """fdt_scan_reserved_mem_reg_nodes(): those with a reg are told, and join the others."""
    parent = tree.path_offset("/reserved-memory")
    if parent is None:
        if era.rules.tells_reserved_mem:
            log("OF: reserved mem: Reserved memory: No reserved-memory node in the DT")
        return []
    if not _root_is_right(tree, parent):
        return []
    found = []
    for node in _available(tree, parent):
        regs = _pairs(tree, node.offset, "reg")
        if regs is None and tree.getprop(node.offset, "reg") is not None and era.rules.tells_reserved_mem:
            log(f"OF: reserved mem: {_bad_reg(node)}")
        if regs and regs[0].size:
            one = ReservedMem(node.name, regs[0], *_flags(tree, node.offset))
            found.append(one)
            _tell(era, tree, node, one, log)
    return [*dynamic, *found]


def _bad_reg(node: Node) -> str:
    return f"Reserved memory: invalid reg property in '{node.name}', skipping node."


def _root_is_right(tree: Fdt, parent: int) -> bool:
    """__reserved_mem_check_root(): the cells are the root's, and there are ranges."""
    cells = ("#address-cells", "#size-cells")
    same = (tree.address_cells(parent), tree.size_cells(parent)) == (
        tree.address_cells(0),
        tree.size_cells(0),
    )
    given = all(tree.get_u32(parent, name) is not None for name in cells)
    return same and given and tree.getprop(parent, "ranges") is not None


def _available(tree: Fdt, parent: int) -> Iterator[Node]:
    return (node for node in tree.subnodes(parent) if is_available(tree, node.offset))


def _flags(tree: Fdt, node: int) -> tuple[bool, bool, bool]:
    """no-map, reusable, and whether it is to be the default CMA area."""
    nomap = tree.getprop(node, "no-map") is not None
    reusable = tree.getprop(node, "reusable") is not None
    default = (
        _is_pool(tree, node)
        and reusable
        and not nomap
        and tree.getprop(node, "linux,cma-default") is not None
    )
    return nomap, reusable, default


def _pairs(tree: Fdt, node: int, name: str) -> list[PhysRange] | None:
    """Addresses with sizes, by the root's cells; None where the property's length does not fit them."""
    cells = tree.get_cells(node, name)
    width = tree.address_cells(0) + tree.size_cells(0)
    if cells is None or not width or len(cells) % width:
        return None
    found = []
    for at in range(0, len(cells), width):
        start = join_cells(cells[at : at + tree.address_cells(0)])
        size = join_cells(cells[at + tree.address_cells(0) : at + width])
        found.append(PhysRange.of(start % (1 << 64), size % (1 << 64)))
    return found


def _reserve_reg(era: Era, tree: Fdt, node: Node, memblock: Memblock, log: Print) -> None:
    """__reserved_mem_reserve_reg(), and early_init_dt_reserve_memory() for each of its regions."""
    said = "OF: reserved mem" if era.rules.tells_reserved_mem else "OF: fdt"
    regs = _pairs(tree, node.offset, "reg")
    if regs is None:
        log(f"{said}: {_bad_reg(node)}")
        return
    nomap = tree.getprop(node.offset, "no-map") is not None
    for area in regs:
        taken = any(one.overlaps(area) for one in memblock.reserved)
        if not area.size or (nomap and taken and any(one.overlaps(area) for one in memblock.memory)):
            base, size = f"{area.start:#018x}", area.size >> 20
            log(
                f"{said}: Reserved memory: failed to reserve memory for node '{node.name}': "
                f"base {base}, size {size} MiB"
            )
        elif nomap:
            memblock.mark_nomap(area)
        else:
            memblock.reserve(area)


def _alloc_size(tree: Fdt, node: Node, memblock: Memblock, cma_align: int, log: Print) -> ReservedMem | None:
    """__reserved_mem_alloc_size(): the highest place that fits, in the first of alloc-ranges that has one."""
    size_cells, align_cells = (tree.get_cells(node.offset, name) for name in ("size", "alignment"))
    for name, cells, width in (
        ("size", size_cells, tree.size_cells(0)),
        ("alignment", align_cells, tree.address_cells(0)),
    ):
        if (cells is None and name == "size") or (cells is not None and len(cells) != width):
            log(f"OF: reserved mem: invalid {name} property in '{node.name}' node.")
            return None
    size = join_cells(size_cells or [])
    align = join_cells(align_cells or []) or _ALIGN
    nomap, reusable, default = _flags(tree, node.offset)
    if reusable and not nomap and _is_pool(tree, node.offset):
        align = max(align, cma_align)
    ranges: list[PhysRange] | None = [PhysRange(0, 1 << 64)]
    if tree.getprop(node.offset, "alloc-ranges") is not None:
        ranges = _pairs(tree, node.offset, "alloc-ranges")
        if ranges is None:
            log(f"OF: reserved mem: invalid alloc-ranges property in '{node.name}', skipping node.")
            return None
    places = (memblock.phys_alloc_range(size, align, one.start, one.end) for one in ranges or [])
    base = next((place for place in places if place), 0) if size else 0
    if not base:
        log(f"OF: reserved mem: failed to allocate memory for node '{node.name}': size {size >> 20} MiB")
        return None
    area = PhysRange.of(base, size)
    if nomap:
        memblock.mark_nomap(area)
    return ReservedMem(node.name, area, nomap, reusable, default)
