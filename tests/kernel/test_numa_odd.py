"""NUMA nodes of trees that say odd things: what of_numa.c says of each, and what memblock is asked for."""

from __future__ import annotations

import pytest
from memblock_bench import Asked, Recorder

from kexecemu import KernelConfig
from kexecemu.formats.efi_map import AcpiLog
from kexecemu.formats.fdt import Fdt, NodeSpec, build, cells
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.boot.numa import arch_numa_init
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange

GIB = 1 << 30
EARLY, LATER, NEWEST = "6.1", "6.12", "7.3"
ALL = (EARLY, LATER, NEWEST)
# sizeof(pg_data_t) by SIZE(pglist_data) of Debian's kernels, in whole cache lines.
NODE_DATA = {EARLY: 11392, LATER: 14144, NEWEST: 14400}
FAKE = "NUMA: Faking a node at [mem 0x0000000040000000-0x00000000bfffffff]"


def reg(*areas: tuple[int, int]) -> bytes:
    return b"".join(number.to_bytes(8, "big") for area in areas for number in area)


def gib(at: int, *node: int, **more: object) -> NodeSpec:
    """A memory node of the GiB at so many, of a node if one is given."""
    number: NodeSpec = {"numa-node-id": cells(node[0])} if node else {}
    return {"device_type": ["memory"], "reg": reg((at * GIB, GIB)), **number, **more}  # type: ignore[dict-item]


def cpu(*node: int) -> NodeSpec:
    return {"device_type": ["cpu"], "numa-node-id": cells(node[0])} if node else {"device_type": ["cpu"]}


def distances(*matrix: int, value: bytes | None = None) -> NodeSpec:
    return {"compatible": ["numa-distance-map-v1"], "distance-matrix": value or cells(*matrix)}


TWO: NodeSpec = {"memory@1": gib(1, 0), "memory@2": gib(2, 1)}
CPUS: NodeSpec = {"cpu@0": cpu(0), "cpu@1": cpu(1)}


def init(
    era: str,
    nodes: NodeSpec,
    cpus: NodeSpec | None = None,
    *,
    cmdline: str = "",
    acpi: AcpiLog | None = None,
    options: dict[str, str] | None = None,
) -> tuple[tuple[int, ...], list[str], Recorder]:
    """The nodes, what is said but where the nodes' data lies, and memblock; of 2 GiB from 1 GiB on."""
    memory, said = Recorder(), list[str]()
    memory.add(PhysRange(GIB, 3 * GIB))
    root: NodeSpec = {"#address-cells": cells(2), "#size-cells": cells(2), **nodes}
    tree = Fdt(build({**root, "cpus": CPUS if cpus is None else cpus}))
    found = arch_numa_init(KernelConfig(era, options=options or {}), tree, memory, cmdline, said.append, acpi)
    return found, [line for line in said if "NODE_DATA" not in line], memory


def asked(era: str, nodes: tuple[int, ...], table: int | None, masks: int) -> list[Asked]:
    """The table of distances, each node's data, and masks of CPUs."""
    before: list[Asked] = [] if table is None else [(table, 4096, None)]
    return [*before, *((NODE_DATA[era], 64, node) for node in nodes), *[(64, 64, None)] * masks]


@pytest.mark.parametrize("era", ALL)
def test_each_node_s_data_and_the_masks_of_cpus_are_asked_for_in_the_kernel_s_order(era: str) -> None:
    """Before 6.12 there are distances of all 16 nodes, from 6.12 on masks of as many as the highest number says."""
    early = era == EARLY
    found, said, memory = init(era, TWO)
    assert (found, said) == ((0, 1), [])
    assert memory.asked == asked(era, (0, 1), 256 if early else None, 0 if early else 2)
    found, _, memory = init(era, {"memory@1": gib(1, 8), "memory@2": gib(2, 1)}, {"cpu@0": cpu(8)})
    assert found == (1, 8)
    assert memory.asked == asked(era, (1, 8), 256 if early else None, 0 if early else 9)
    # Data lies on its own node where that has room.
    assert [memory.node_of(one.start) for one in memory.reserved if one.size >= NODE_DATA[era]] == [8, 1]


@pytest.mark.parametrize("era", ALL)
def test_distances_are_asked_for_once_of_as_many_nodes_as_there_are_then(era: str) -> None:
    matrix = distances(0, 0, 10, 0, 1, 20, 1, 1, 10)
    found, said, memory = init(era, {**TWO, "distance-map": matrix})
    assert (found, said) == ((0, 1), ["OF: NUMA: parsing numa-distance-map-v1"])
    early = era == EARLY
    assert memory.asked == asked(era, (0, 1), 256 if early else 4, 0 if early else 2)
    # A node that nobody but the matrix has is one, and gets its data elsewhere.
    found, said, memory = init(era, {**TWO, "distance-map": distances(0, 2, 11, 2, 0, 255)})
    assert found == (0, 1, 2)
    assert said[1:] == ["NUMA: Initmem setup node 2 [<memory-less node>]"]
    assert memory.asked == asked(era, (0, 1, 2), 256 if early else 4, 0 if early else 3)


BAD = "OF: NUMA: bad property in memory node"
MAP = "OF: NUMA: parsing numa-distance-map-v1"
# What a tree has besides, and what is said before it is given up.
REFUSED: dict[str, tuple[NodeSpec, list[str]]] = {
    "a number too high": (
        {"memory@2": gib(2, 16)},
        ["OF: NUMA: Node id 16 exceeds maximum value", BAD],
    ),
    "no reg": ({"memory@2": {"device_type": ["memory"], "numa-node-id": cells(1)}}, [BAD]),
    "a number that is none": ({"memory@2": gib(2, **{"numa-node-id": b"\0\0"})}, [BAD]),
    "no matrix": (
        {"memory@2": gib(2, 1), "map": {"compatible": ["numa-distance-map-v1"]}},
        [MAP, "OF: NUMA: No distance-matrix property in distance-map"],
    ),
    "an empty matrix": (
        {"memory@2": gib(2, 1), "map": {"compatible": ["numa-distance-map-v1"], "distance-matrix": b""}},
        [MAP, "OF: NUMA: Invalid distance-matrix"],
    ),
    "half a cell": (
        {"memory@2": gib(2, 1), "map": distances(value=cells(0, 0, 10) + b"\0\0")},
        [MAP, "OF: NUMA: Invalid distance-matrix"],
    ),
    "far from itself": (
        {"memory@2": gib(2, 1), "map": distances(0, 1, 20, 1, 1, 11)},
        [MAP, "OF: NUMA: Invalid distance[node1 -> node1] = 11"],
    ),
    "as near as itself": (
        {"memory@2": gib(2, 1), "map": distances(0, 1, 10)},
        [MAP, "OF: NUMA: Invalid distance[node0 -> node1] = 10"],
    ),
}


@pytest.mark.parametrize("era", ALL)
@pytest.mark.parametrize("what", REFUSED)
def test_a_tree_that_is_refused_leaves_one_node_and_no_table(era: str, what: str) -> None:
    more, words = REFUSED[what]
    found, said, memory = init(era, {"memory@1": gib(1, 0), **more})
    assert (found, said) == ((0,), [*words, FAKE])
    assert memory.nodes == []
    table = 256 if era == EARLY else 0
    assert sum(one.size for one in memory.reserved) <= NODE_DATA[era] + table


@pytest.mark.parametrize("era", ALL)
def test_what_is_not_refused_for_being_odd(era: str) -> None:
    # The highest number; an area of no bytes; a matrix with a cell too many, of which that is not read.
    for nodes in (
        {"memory@1": gib(1, 0), "memory@2": gib(2, 15)},
        {"memory@1": gib(1, 0, reg=reg((GIB, GIB), (7 * GIB, 0))), "memory@2": gib(2, 1)},
        {**TWO, "map": distances(0, 1, 11, 3)},
        {**TWO, "map": distances(0, 1, 11, 1, 1)},
        {**TWO, "other": {"compatible": ["numa-distance-map-v2"]}},
        {**TWO, "memory@3": {**gib(1, 7), "device_type": ["memories"]}},
    ):
        found, said, _ = init(era, nodes, {"cpu@0": cpu(0)})
        assert found in ((0, 15), (0, 1)) and FAKE not in said, nodes


@pytest.mark.parametrize("era", ALL)
def test_the_last_memory_node_decides_from_6_12_on(era: str) -> None:
    """of_numa_parse_memory_nodes() gives what the last one has said: -EINVAL where that has no number."""
    found, said, _ = init(era, {"memory@1": gib(1, 0), "memory@2": gib(2)})
    lost = "NUMA: Warning: invalid memblk node 16 [mem 0x0000000080000000-0x00000000bfffffff]"
    assert (found, said) == ((0,), [lost, FAKE] if era == EARLY else [FAKE])
    found, said, _ = init(era, {"memory@1": gib(1), "memory@2": gib(2, 0)})
    lost = lost.replace("80000000", "40000000").replace("bfffffff", "7fffffff")
    later = "NUMA: no nodes coverage for 1024MB of 2048MB RAM"
    assert (found, said) == ((0,), [lost if era == EARLY else later, FAKE])
    # No memory has a number, a CPU has one.
    found, said, _ = init(era, {"memory@1": gib(1), "memory@2": gib(2)})
    lost = lost.replace("7fffffff", "bfffffff")
    assert (found, said) == ((0,), [lost, FAKE] if era == EARLY else [FAKE])
    found, said, _ = init(era, {"memory@1": gib(1), "memory@2": gib(2), "l2": cpu(3)}, {"cpu@0": cpu()})
    none = ["NUMA: No NUMA configuration found"] if era == EARLY else []
    assert (found, said) == ((0,), [*none, FAKE])


@pytest.mark.parametrize("era", ALL)
def test_areas_of_two_nodes_that_overlap_are_refused_from_6_12_on(era: str) -> None:
    nodes: NodeSpec = {"memory@1": gib(1, 0, reg=reg((GIB, GIB + 4096))), "memory@2": gib(2, 1)}
    found, said, memory = init(era, nodes)
    words = "node 0 [mem 0x40000000-0x80000fff] overlaps with node 1 [mem 0x80000000-0xbfffffff]"
    assert (found, said) == (((0, 1), []) if era == EARLY else ((0,), [words, FAKE]))
    if era == EARLY:
        assert memory.node_of(2 * GIB - 1) == 0 and memory.node_of(2 * GIB) == 1
    # Of one node they may, and what is no memory may be anybody's.
    for areas in (
        {"memory@1": gib(1, 0, reg=reg((GIB, GIB + 4096))), "memory@2": gib(2, 0)},
        {**TWO, "memory@8": gib(8, 0), "memory@9": gib(8, 1)},
        {
            "memory@1": gib(0, 0, reg=reg((0, 2 * GIB))),
            "memory@2": gib(2, 1, reg=reg((2 * GIB, 8 * GIB))),
        },
    ):
        found, said, _ = init(era, areas, {"cpu@0": cpu(0)})
        assert found in ((0,), (0, 1)) and said == [], areas


@pytest.mark.parametrize("era", ALL)
def test_a_cpu_s_number_is_a_node_of_its_own_and_one_too_high_is_none(era: str) -> None:
    found, said, _ = init(
        era, TWO, {"cpu@0": cpu(0), "cpu@1": cpu(15), "cpu-map": cpu(9), "l2-cache": cpu(8)}
    )
    assert (found, said) == ((0, 1, 15), ["NUMA: Initmem setup node 15 [<memory-less node>]"])
    found, said, _ = init(era, TWO, {"cpu@0": cpu(16), "cpu@1": cpu(0)})
    assert (found, said) == ((0, 1), ["OF: NUMA: Node id 16 exceeds maximum value"])


@pytest.mark.parametrize("era", ALL)
@pytest.mark.parametrize("cmdline", ["numa=off", "numa=offline numa=on", "numa=fake=2", "numa", "numa=noff"])
def test_nodes_are_off_where_the_word_begins_so(era: str, cmdline: str) -> None:
    found, said, memory = init(era, TWO, cmdline=cmdline)
    off = cmdline.startswith("numa=off")
    assert (found, said) == (((0,), ["NUMA: NUMA disabled", FAKE]) if off else ((0, 1), []))
    assert bool(memory.nodes) is not off


@pytest.mark.parametrize("era", ALL)
def test_of_a_tree_without_nodes_nothing_is_said_and_one_node_gets_its_data(era: str) -> None:
    plain: NodeSpec = {"memory@1": gib(1), "memory@2": gib(2)}
    for cmdline in ("", "numa=off"):
        found, said, memory = init(era, plain, {"cpu@0": cpu()}, cmdline=cmdline)
        assert (found, said) == ((0,), [])
        assert memory.asked == [*asked(era, (), 256 if era == EARLY else None, 0), (NODE_DATA[era], 64, None)]
    found, said, memory = init(era, TWO, options={"NUMA": "n"})
    assert (found, said, memory.asked) == ((0,), [], [])


@pytest.mark.parametrize("era", ALL)
def test_acpi_s_nodes_are_those_of_its_memory_whatever_the_tree_says(era: str) -> None:
    halves = ((1, PhysRange(GIB, 2 * GIB)), (3, PhysRange(2 * GIB, 3 * GIB)))
    for slit, table in ((True, 16), (False, None)):
        acpi = AcpiLog(nodes=(*halves, (16, PhysRange(8 * GIB, 9 * GIB))), distances=slit)
        found, said, memory = init(era, TWO, acpi=acpi)
        assert (found, said) == ((1, 3), [])
        early = era == EARLY
        assert memory.asked == asked(era, (1, 3), 256 if early else table, 0 if early else 4)
    for acpi in (AcpiLog(), AcpiLog(nodes=((16, PhysRange(GIB, 3 * GIB)),), distances=True)):
        found, said, memory = init(era, TWO, acpi=acpi)
        assert (found, said) == ((0,), [FAKE] if acpi.nodes else [])
        assert memory.asked[-1] == (NODE_DATA[era], 64, None)


@pytest.mark.parametrize("era", ALL)
def test_where_the_data_of_a_node_lies_is_said_and_when_it_is_another_s(era: str) -> None:
    memory, said = Memblock(), list[str]()
    memory.add(PhysRange(GIB, 3 * GIB))
    memory.reserve(PhysRange(2 * GIB, 3 * GIB))  # node 1 has no room
    tree = Fdt(build({"#address-cells": cells(2), "#size-cells": cells(2), **TWO, "cpus": CPUS}))
    arch_numa_init(KernelConfig(era), tree, memory, "", said.append)
    size = NODE_DATA[era]
    top = 2 * GIB - (4096 if era == EARLY else 0)  # below the table, which has a page of its own
    first = top - size & -64
    second = first - size & -64
    areas = [f"[mem {phys:#010x}-{phys + size - 1:#010x}]" for phys in (first, second)]
    if era == EARLY:
        expected = [
            f"NUMA: NODE_DATA {areas[0]}",
            f"NUMA: NODE_DATA {areas[1]}",
            "NUMA: NODE_DATA(1) on node 0",
        ]
    else:
        expected = [
            f"NODE_DATA(0) allocated {areas[0]}",
            f"NODE_DATA(1) allocated {areas[1]}",
            "    NODE_DATA(1) on node 0",
        ]
    assert said == expected


@pytest.mark.parametrize("era", ALL)
def test_hotpluggable_memory_is_forgotten_as_nodes_are_looked_for(era: str) -> None:
    memory = Memblock()
    memory.add(PhysRange(GIB, 3 * GIB))
    memory.mark_hotplug(PhysRange(2 * GIB, 3 * GIB))
    tree = Fdt(build({"#address-cells": cells(2), "#size-cells": cells(2), **TWO, "cpus": CPUS}))
    arch_numa_init(KernelConfig(era), tree, memory, "", list[str]().append)
    assert bool(memory.hotplug) is not Era.given(era).rules.clears_hotplug
