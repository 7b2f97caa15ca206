"""What unflatten_device_tree() takes of memblock: it moves a late reservation."""

from __future__ import annotations

import pytest

from kexecemu import KernelConfig
from kexecemu.formats.fdt import Fdt, NodeSpec, build
from kexecemu.kernel.boot.bootmem import unflatten_device_tree
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange

RAM = PhysRange.of(1 << 30, 1 << 20)


def taken(aliases: NodeSpec | None) -> int:
    root: NodeSpec = {"uart@0": {}, "mmc": {}}
    tree = Fdt(build(root if aliases is None else {**root, "aliases": aliases}))
    memblock = Memblock()
    memblock.add(RAM)
    unflatten_device_tree(KernelConfig("6.12"), tree, memblock)
    return RAM.size - sum(area.size for area in memblock.free_ranges())


@pytest.mark.parametrize(
    ("name", "value", "size"),
    [
        ("serial0", "/uart@0", 40 + len("serial") + 1),  # sizeof(struct alias_prop), and the stem
        ("mmc12", "/mmc", 40 + len("mmc") + 1),
        ("serial", "/uart@0", 0),  # no number
        ("name", "/uart@0", 0),
        ("phandle", "/mmc", 0),
    ],
)
def test_an_alias_with_a_number_takes_what_its_stem_needs(name: str, value: str, size: int) -> None:
    # As long, and of no node.
    nowhere = taken({name: "/" + "x" * (len(value) - 1)})
    assert taken({name: value}) - nowhere == size


def test_a_tree_without_aliases_takes_what_its_nodes_need() -> None:
    assert 0 < taken(None) < taken({"x": "/x"})
