"""/reserved-memory: what the device tree keeps for firmware and devices, placed by it or by the kernel.

Followed: drivers/of/of_reserved_mem.c of 6.1, 6.12 and 7.3, and what of it was in drivers/of/fdt.c. What
becomes of a region that has a driver is in reserved_pools.py.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from kexecemu.formats.fdt import Fdt
from kexecemu.formats.fdt_read import Node
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.fdt_memory import first_cell, is_available, pairs, root_cells
from kexecemu.kernel.boot.reserved_pools import Pools, Region, Setup, alloc_size
from kexecemu.kernel.memory.memblock import SMP_CACHE_BYTES, Memblock
from kexecemu.machine.ranges import PhysRange

__all__ = ["ReservedMemory", "heapsort"]

_MAX_REGIONS = 64  # MAX_RESERVED_REGIONS
_U64 = 1 << 64

Print = Callable[[str], None]


def heapsort(
    found: list[Region], key: Callable[[Region], tuple[int, ...]], *, double_pop: bool = False
) -> None:
    """sort() of lib/sort.c: its order of what is equal is no other's; double_pop is how it does it from 6.11 on."""
    top, end, shift = len(found) // 2, len(found), 0
    if not top:
        return

    def swap(one: int, other: int) -> None:
        found[one], found[other] = found[other], found[one]

    while True:
        if top:
            top -= 1 << shift
        elif double_pop and end > 3:
            end -= 1
            swap(0, end)
            shift = int(key(found[1]) <= key(found[2]))
            top = 1 << shift
            end -= 1
            swap(top, end)
        elif not double_pop and end > 1:
            end -= 1
            swap(0, end)
        else:
            break
        _sift(found, key, top, end, strict=double_pop)
    if double_pop:
        end -= 1
        swap(0, end)
        if end == 2 and key(found[0]) > key(found[1]):
            swap(0, 1)


def _sift(
    found: list[Region], key: Callable[[Region], tuple[int, ...]], top: int, end: int, *, strict: bool
) -> None:
    """The element at top down into the heap below end; strict: of equal children the right one is on its way."""
    down = top
    while 2 * down + 2 < end:
        left, right = 2 * down + 1, 2 * down + 2
        one, other = key(found[left]), key(found[right])
        down = left if one > other or (one == other and not strict) else right
    if 2 * down + 2 == end:
        down = 2 * down + 1
    while down != top and key(found[top]) >= key(found[down]):
        down = (down - 1) // 2
    where = down
    while down != top:
        down = (down - 1) // 2
        found[down], found[where] = found[where], found[down]


class ReservedMemory:
    """reserved_mem[] of a kernel that boots.

    scan() reserves what has a reg and finds places for what has only a size; scan_late() is what
    unflatten_device_tree() does about it from 6.12 on. log gets the kernel's words.
    """

    def __init__(
        self, config: KernelConfig, tree: Fdt, memblock: Memblock, *, cma_asked: bool, log: Print
    ) -> None:
        """cma_asked: the command line has cma=."""
        self.regions: list[Region] = []
        self._pools = Pools(config, tree, cma_asked=cma_asked, log=log)
        self._tree, self._memblock = tree, memblock
        self._rules, self._print = config.release.rules, log
        self._parent = tree.path_offset("/reserved-memory")
        self._room = _MAX_REGIONS

    @property
    def default_cma(self) -> PhysRange | None:
        """The tree's choice for the default CMA area, physical, if it became one."""
        return self._pools.default_cma

    def _log(self, text: str) -> None:
        self._print(f"OF: reserved mem: {text}")

    def _has(self, node: Node, name: str) -> bool:
        return self._tree.getprop(node.offset, name) is not None

    def _available(self) -> Iterator[Node]:
        if self._parent is not None:
            for node in self._tree.subnodes(self._parent):
                if is_available(self._tree, node.offset):
                    yield node

    def _root_is_right(self) -> bool:
        """__reserved_mem_check_root(): the cells are the root's, and there are ranges."""
        assert self._parent is not None
        names = ("#address-cells", "#size-cells")
        given = tuple(first_cell(self._tree, self._parent, name) for name in names)
        right = given == root_cells(self._tree) and self._tree.getprop(self._parent, "ranges") is not None
        if not right:
            where = "OF: reserved mem" if self._rules.reserved_mem_late else "OF: fdt"
            self._print(f"{where}: Reserved memory: unsupported node format, ignoring")
        return right

    # -- the first pass ------------------------------------------------------------------------------------------

    def scan(self, memreserve: Callable[[], None]) -> None:
        """early_init_fdt_scan_reserved_mem(); memreserve reserves what is in the blob's own list."""
        if self._rules.memreserve_first:
            memreserve()
        self._scan_nodes()
        if not self._rules.memreserve_first:
            memreserve()
        if not self._rules.reserved_mem_late:
            self._init_all()

    def _scan_nodes(self) -> None:
        if self._parent is None:
            return
        if not self._root_is_right():
            self._room = 0 if self._rules.reserves_first_reg else _MAX_REGIONS
            return
        dynamic, count = list[Node](), 0
        for node in self._available():
            known = self._reserve_reg(node)
            count += known is True
            if known is None and self._has(node, "size"):
                if not self._rules.reserved_mem_late:
                    self._save(node)
                elif len(dynamic) < _MAX_REGIONS:
                    dynamic.append(node)
                else:
                    self._log(f"too many defined dynamic regions, skip '{node.name}'")
        if not self._rules.reserved_mem_late:
            return
        for node in dynamic:
            area = self._alloc_size(node)
            if area is not None:
                self._init_saved(node, *area)
                count += 1
        self._room = count

    def _reserve_reg(self, node: Node) -> bool | None:
        """__reserved_mem_reserve_reg(): whether that went well; None where there is no reg."""
        rules = self._rules
        said = "OF: reserved mem" if rules.reserved_mem_late else "OF: fdt"
        regs = pairs(self._tree, node.offset, "reg")
        if rules.reserves_first_reg:
            if not regs:
                return None
            if len(regs) > 1:
                words = f"has {len(regs)} <base size> entries, only the first is used"
                self._print(f"{said}: Reserved memory: node '{node.name}' {words}")
            if self._pools.validate(node) is Setup.FAILED:
                return False
        elif not self._has(node, "reg"):
            return None
        elif regs is None:
            self._print(f"{said}: {_bad_reg(node)}")
            return False
        nomap = self._has(node, "no-map")
        for number, (base, size) in enumerate(regs or []):
            if number and rules.reserves_first_reg:
                break
            if not size or not self._reserve(PhysRange(base, min(base + size, _U64)), nomap):
                what = f"base {base:#018x}, size {size >> 20} MiB"
                words = f"failed to reserve memory for node '{node.name}': {what}"
                self._print(f"{said}: Reserved memory: {words}")
            if not number and not rules.reserved_mem_late:
                self._save(node, base, size)
        return True

    def _reserve(self, area: PhysRange, nomap: bool) -> bool:
        """early_init_dt_reserve_memory(): what is reserved already cannot be no-map."""
        memblock = self._memblock
        if not nomap:
            memblock.reserve(area)
        elif any(one.overlaps(area) for one in memblock.memory) and memblock.is_region_reserved(area):
            return False
        else:
            memblock.mark_nomap(area)
        return True

    def _save(self, node: Node, base: int = 0, size: int = 0) -> None:
        """fdt_reserved_mem_save_node(): an element of the array, if there is room: from 6.12 on there always is."""
        if len(self.regions) < self._room:
            self.regions.append(Region(node, base, size))
        else:
            self._log("not enough space for all defined regions.")

    def scan_late(self) -> None:
        """fdt_scan_reserved_mem_reg_nodes(), later fdt_scan_reserved_mem_late(): the array, and what has a reg."""
        rules = self._rules
        if self._parent is None:
            if rules.reserved_mem_late:
                self._log("Reserved memory: No reserved-memory node in the DT")
            return
        if not rules.reserved_mem_late:
            return
        if self._room:
            self._memblock.phys_alloc_range(self._room * rules.reserved_mem_size, SMP_CACHE_BYTES)
        if not self._root_is_right():
            return
        for node in self._available():
            regs = pairs(self._tree, node.offset, "reg")
            if regs is None and self._has(node, "reg") and not rules.reserves_first_reg:
                self._log(_bad_reg(node))
            if not regs or (rules.reserves_first_reg and self._pools.validate(node) is Setup.FAILED):
                continue
            if len(regs) > 1 and not rules.reserves_first_reg:
                function = "fdt_scan_reserved_mem_reg_nodes()"
                self._log(f"{function} ignores {len(regs) - 1} regions in node '{node.name}'")
            if regs[0][1]:
                self._init_saved(node, *regs[0])
        self._check_for_overlap()

    # -- what is done with an element ----------------------------------------------------------------------------

    def _init_all(self) -> None:
        """fdt_init_reserved_mem(), before 6.12: in the order of addresses, those without one first."""
        self._check_for_overlap()
        for one in self.regions:
            if not one.size:
                area = self._alloc_size(one.node)
                if area is None:
                    continue
                one.base, one.size = area
            self._init_node(one)

    def _init_saved(self, node: Node, base: int, size: int) -> None:
        self._save(node, base, size)
        good = self._init_node(self.regions[-1])
        if not good and self._rules.reserves_first_reg:
            self.regions.pop()  # its element is used for the next one

    def _init_node(self, one: Region) -> bool:
        """fdt_init_reserved_mem_node(): the driver has its say; a region that it does not want is given back."""
        nomap = self._has(one.node, "no-map")
        area = PhysRange(one.base, min(one.base + one.size, _U64))
        if not self._pools.setup(one, self._memblock):
            self._log(f"node {one.node.name} compatible matching fail")
            if nomap:
                self._memblock.clear_nomap(area)
            else:
                self._memblock.free(area)
            return False
        if self._rules.tells_reserved_mem:
            reusable = "reusable" if self._has(one.node, "reusable") else "non-reusable"
            how = f"{'nomap' if nomap else 'map'} {reusable}"
            last = (one.base + one.size - 1) % _U64
            self._log(f"{one.base:#018x}..{last:#018x} ({one.size >> 10} KiB) {how} {one.node.name}")
        return True

    def _alloc_size(self, node: Node) -> tuple[int, int] | None:
        return alloc_size(self._pools, node, self._memblock, self.regions, self._print)

    def _check_for_overlap(self) -> None:
        """__rmem_check_for_overlap(): sorts them, and says which neighbours overlap."""
        newest = self._rules.reserves_first_reg
        by_node = self._rules.reserved_mem_sorted_by_node and not newest
        key = (lambda one: (*one.key, one.node.offset)) if by_node else (lambda one: one.key)
        heapsort(self.regions, key, double_pop=newest)
        for this, following in pairwise(self.regions):
            if this.base + this.size > following.base:
                one, other = (
                    f"{each.node.name} ({each.base:#018x}--{(each.base + each.size) % _U64:#018x})"
                    for each in (this, following)
                )
                self._log(f"OVERLAP DETECTED!\n{one} overlaps with {other}")


def _bad_reg(node: Node) -> str:
    return f"Reserved memory: invalid reg property in '{node.name}', skipping node."
