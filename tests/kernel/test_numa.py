"""NUMA nodes by the device tree, on trees that are edited by hand."""

from __future__ import annotations

import pytest

from kexecemu import InputError, KernelConfig
from kexecemu.formats.fdt import Fdt, NodeSpec, build, cells
from kexecemu.kernel.boot.numa import arch_numa_init
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange

GIB = 1 << 30
ERAS = pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])


def nodes_of(era: str, memory: list[int | None], cpus: list[int | None]) -> tuple[tuple[int, ...], list[str]]:
    """The nodes of a machine whose GiBs and CPUs are on these, and what is said."""

    def on(number: int | None) -> NodeSpec:
        return {} if number is None else {"numa-node-id": cells(number)}

    root: NodeSpec = {"#address-cells": cells(2), "#size-cells": cells(2)}
    for at, number in enumerate(memory, 1):
        reg = cells(0, at * GIB, 0, GIB)
        root[f"memory@{at * GIB:x}"] = {"device_type": ["memory"], "reg": reg, **on(number)}
    counts: NodeSpec = {"#address-cells": cells(1), "#size-cells": cells(0)}
    units = {
        f"cpu@{at}": {"device_type": ["cpu"], "reg": cells(at), **on(one)} for at, one in enumerate(cpus)
    }
    memblock, said = Memblock(), list[str]()
    memblock.add(PhysRange.of(GIB, len(memory) * GIB))
    tree = Fdt(build({**root, "cpus": {**counts, **units}}))
    return arch_numa_init(KernelConfig(era), tree, memblock, "", said.append, None), said


@ERAS
def test_each_node_has_its_memory(era: str) -> None:
    nodes, said = nodes_of(era, [0, 1], [0, 1])
    assert nodes == (0, 1)
    assert sum("NODE_DATA" in line for line in said) == 2


@ERAS
def test_a_kernel_oopses_where_a_cpu_is_on_a_node_0_that_is_not_there(era: str) -> None:
    """As real 6.1.192, 6.12.118 and 7.3.4 do."""
    with pytest.raises(InputError, match="a CPU without a numa-node-id is on node 0"):
        nodes_of(era, [1, 2], [None])
    with pytest.raises(InputError, match="a CPU without a numa-node-id is on node 0"):
        nodes_of(era, [1, 2], [1, None])
    assert nodes_of(era, [1, 2], [1, 2])[0] == (1, 2)
    assert nodes_of(era, [0, 1], [None, None])[0] == (0, 1)


@ERAS
def test_without_numbers_there_is_one_node(era: str) -> None:
    assert nodes_of(era, [None, None], [None])[0] == (0,)
