"""NUMA nodes: which memory is whose, as the device tree says it, and what each node's data takes.

Followed: drivers/base/arch_numa.c and drivers/of/of_numa.c, of 6.1 and from mm/numa_memblks.c on (6.12). Sizes of
structures are those of Debian's kernels, by their BTF. Nothing is said of a tree that knows no nodes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations

from kexecemu.errors import InputError
from kexecemu.formats.efi_map import AcpiLog
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.cmdline import parameters
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.fdt_memory import first_cell, pairs
from kexecemu.kernel.memory.memblock import SMP_CACHE_BYTES, Memblock, within_pages
from kexecemu.machine.ranges import PhysRange

__all__ = ["arch_numa_init"]

_MAX_NUMNODES = 16
_LOCAL_DISTANCE = 10

Print = Callable[[str], None]


def _tree_has_nodes(tree: Fdt) -> bool:
    """Whether anything in it says which node it belongs to."""
    return any(tree.getprop(one.offset, "numa-node-id") is not None for one in tree.nodes())


@dataclass
class _Found:
    """numa_nodes_parsed and numa_meminfo."""

    nodes: set[int] = field(default_factory=set)
    blocks: list[tuple[int, PhysRange]] = field(default_factory=list)


def arch_numa_init(
    config: KernelConfig, tree: Fdt, memblock: Memblock, cmdline: str, log: Print, acpi: AcpiLog | None = None
) -> tuple[int, ...]:
    """arch_numa_init(): memory gets its node, each node its data. The nodes that there are, ascending.

    Where nobody says what nodes there are, or what is said is refused, all of the memory is node 0's. acpi is given
    where ACPI describes the machine.
    """
    if not config.enabled("NUMA"):
        return (0,)
    off = any(value.startswith("off") for value in parameters(cmdline, "numa"))
    known = bool(acpi.nodes) if acpi is not None else _tree_has_nodes(tree)
    told = log if known else lambda text: None
    if known and not off:
        nodes = _NumaInit(config, tree, memblock, log, acpi).run()
        if nodes is not None:
            return nodes
    if off:
        told("NUMA: NUMA disabled")
    told(f"NUMA: Faking a node at [mem {memblock.start_of_dram:#018x}-{memblock.end_of_dram - 1:#018x}]")
    return _NumaInit(config, tree, memblock, told).dummy()


class _NumaInit:
    """One numa_init()."""

    def __init__(
        self, config: KernelConfig, tree: Fdt, memblock: Memblock, log: Print, acpi: AcpiLog | None = None
    ) -> None:
        self.config, self.tree, self.memblock, self.log, self.acpi = config, tree, memblock, log, acpi
        self.rules = config.release.rules
        self.found = _Found()
        self.homeless = False  # whether a CPU has no node

    def dummy(self) -> tuple[int, ...]:
        """dummy_numa_init(): one node has all of it, which needs no borders."""
        self._begin()
        self._node_data(0)
        return (0,)

    def _begin(self) -> None:
        if self.rules.clears_hotplug:
            self.memblock.clear_hotplug()
        self.memblock.clear_nodes()
        self.table = self._distances(_MAX_NUMNODES) if self.rules.numa_distances else None

    def _distances(self, nodes: int) -> PhysRange:
        """numa_alloc_distance(), a byte for each pair."""
        size = nodes * nodes
        return PhysRange.of(self.memblock.phys_alloc_range(size, self.config.page_size), size)

    def run(self) -> tuple[int, ...] | None:
        """With what the tree says; None where that is refused."""
        self._begin()
        nodes = self._nodes()
        if nodes is not None and self.homeless and 0 not in self.found.nodes:
            words = "a CPU without a numa-node-id is on node 0, which is not there"
            raise InputError(f"device tree: {words}: a kernel oopses on it")
        if nodes is None and self.table is not None:
            self.memblock.free(self.table)
        return nodes

    def _nodes(self) -> tuple[int, ...] | None:
        if not (self._of_numa_init() if self.acpi is None else self._acpi_numa_init(self.acpi)):
            return None
        early = self.rules.numa_distances
        if early and not self.found.nodes:
            self.log("NUMA: No NUMA configuration found")
            return None
        if not early and not self._cleanup_meminfo():
            return None
        for node, area in self.found.blocks:
            self.memblock.set_node(area, node)
        if not self._covered():
            return None
        nodes = sorted(self.found.nodes)
        for node in nodes:
            self._node_data(node)
        if self.rules.node_cpumasks:
            for _ in range(nodes[-1] + 1):
                self.memblock.phys_alloc_range(SMP_CACHE_BYTES, SMP_CACHE_BYTES)
        return tuple(nodes)

    def _acpi_numa_init(self, acpi: AcpiLog) -> bool:
        """acpi_numa_init(): what SRAT has, of which the log has said that it was taken."""
        self.found.blocks = [(node, area) for node, area in acpi.nodes if node < _MAX_NUMNODES]
        self.found.nodes = {node for node, _ in self.found.blocks}
        if acpi.distances and self.table is None and self.found.nodes:
            self.table = self._distances(max(self.found.nodes) + 1)
        return bool(self.found.nodes)

    def _of_numa_init(self) -> bool:
        self._cpus()
        return self._memory() and self._distance_map()

    def _cpus(self) -> None:
        top = self.tree.path_offset("/cpus")
        for node in self.tree.subnodes(top) if top is not None else ():
            if node.name.partition("@")[0] != "cpu":
                continue
            number = first_cell(self.tree, node.offset, "numa-node-id")
            if number is not None and number >= _MAX_NUMNODES:
                self.log(f"OF: NUMA: Node id {number} exceeds maximum value")
            elif number is not None:
                self.found.nodes.add(number)
                continue
            self.homeless = True

    def _memory(self) -> bool:
        """of_numa_parse_memory_nodes(): from 6.12 on it is the last node that decides whether there are any."""
        last = self.rules.numa_distances
        for node in self.tree.subnodes(0):
            if (self.tree.getprop(node.offset, "device_type") or b"").split(b"\0")[0] != b"memory":
                continue
            if self.tree.getprop(node.offset, "numa-node-id") is None:
                last = self.rules.numa_distances
                continue
            number = first_cell(self.tree, node.offset, "numa-node-id")
            if number is not None and number >= _MAX_NUMNODES:
                self.log(f"OF: NUMA: Node id {number} exceeds maximum value")
                number = None
            areas = pairs(self.tree, node.offset, "reg", whole=False) or []
            if number is None or not areas:
                self.log("OF: NUMA: bad property in memory node")
                return False
            self.found.blocks += [(number, PhysRange.of(*one)) for one in areas if one[1]]
            self.found.nodes.add(number)
            last = True
        return last

    def _distance_map(self) -> bool:
        for node in self.tree.nodes():
            if "numa-distance-map-v1" in (self.tree.get_strings(node.offset, "compatible") or []):
                self.log("OF: NUMA: parsing numa-distance-map-v1")
                return self._matrix(self.tree.getprop(node.offset, "distance-matrix"))
        return True

    def _matrix(self, value: bytes | None) -> bool:
        if value is None:
            self.log("OF: NUMA: No distance-matrix property in distance-map")
            return False
        if not value or len(value) % 4:
            self.log("OF: NUMA: Invalid distance-matrix")
            return False
        cells = [int.from_bytes(value[at : at + 4], "big") for at in range(0, len(value), 4)]
        for one, other, distance in zip(*(cells[first::3] for first in range(3)), strict=False):
            local = distance == _LOCAL_DISTANCE if one == other else distance > _LOCAL_DISTANCE
            if not local:
                self.log(f"OF: NUMA: Invalid distance[node{one} -> node{other}] = {distance}")
                return False
            self.found.nodes.add(one)
            if self.table is None:
                self.table = self._distances(max(self.found.nodes) + 1)
        return True

    def _cleanup_meminfo(self) -> bool:
        """numa_cleanup_meminfo(): what is no memory is no block; blocks of two nodes must not overlap."""
        low, high = self.memblock.start_of_dram, self.memblock.end_of_dram
        blocks = [
            (node, PhysRange(max(area.start, low), min(area.end, high)))
            for node, area in self.found.blocks
            if any(area.overlaps(one) for one in self.memblock.memory)
        ]
        for (node, area), (other, another) in combinations(blocks, 2):
            if node != other and area.overlaps(another):
                mine, others = (f"[mem {one.start:#010x}-{one.last:#010x}]" for one in (area, another))
                self.log(f"node {node} {mine} overlaps with node {other} {others}")
                return False
        self.found.blocks = blocks
        return True

    def _covered(self) -> bool:
        """Whether all memory is some node's."""
        page = self.config.page_size
        lost = [one for one in self.memblock.regions() if self.memblock.node_of(one.start) is None]
        if not lost:
            return True
        if self.rules.numa_distances:
            words = f"invalid memblk node {_MAX_NUMNODES}"
            self.log(f"NUMA: Warning: {words} [mem {lost[0].start:#018x}-{lost[0].last:#018x}]")
        else:
            size = sum(one.size for one in within_pages(lost, page)) >> 20
            self.log(f"NUMA: no nodes coverage for {size}MB of {self.memblock.phys_mem_size >> 20}MB RAM")
        return False

    def _node_data(self, node: int) -> None:
        """setup_node_data(): on the node itself where there is room."""
        memblock = self.memblock
        size = align_up(self.rules.pglist_data_size, SMP_CACHE_BYTES)
        own = [one for one in memblock.regions() if memblock.node_of(one.start) == node]
        if memblock.nodes and not own:
            self.log(f"NUMA: Initmem setup node {node} [<memory-less node>]")
        phys = memblock.phys_alloc_range(size, SMP_CACHE_BYTES, node=node if memblock.nodes else None)
        area = f"[mem {phys:#010x}-{phys + size - 1:#010x}]"
        early = self.rules.numa_distances
        self.log(f"NUMA: NODE_DATA {area}" if early else f"NODE_DATA({node}) allocated {area}")
        where = memblock.node_of(phys)
        if where is not None and where != node:
            self.log(f"{'NUMA: ' if early else '    '}NODE_DATA({node}) on node {where}")
