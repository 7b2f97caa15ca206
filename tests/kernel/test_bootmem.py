"""What unflatten_device_tree() takes of memblock: it moves a late reservation."""

from __future__ import annotations

import pytest
from memblock_bench import Recorder

from kexecemu import KernelConfig
from kexecemu.formats.fdt import Fdt, NodeSpec, build
from kexecemu.kernel.boot.bootmem import create_idmap, unflatten_device_tree
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


@pytest.mark.parametrize(("era", "prop"), [("6.1", 96), ("6.12", 104), ("7.3", 112)])
def test_nodes_and_properties_have_the_sizes_of_the_kernel_s_structures(era: str, prop: int) -> None:
    """sizeof(struct device_node) and of struct property, by Debian's BTF; names are behind the nodes."""
    node = 208
    tree = Fdt(build({"uart@10": {"a": b"x", "b": b"yy"}, "named": {"name": b"other\0"}}))

    def aligned(size: int) -> int:
        return -(-size // 8) * 8

    # The root has no name, and gets one of no letters; "name" is before the @.
    root = aligned(node + 1) + prop + 1
    uart = aligned(aligned(root) + node + len("uart@10") + 1) + 2 * prop + prop + len("uart") + 1
    total = aligned(aligned(uart) + node + len("named") + 1) + prop
    memory = Recorder()
    memory.add(RAM)
    unflatten_device_tree(KernelConfig(era), tree, memory)
    assert memory.asked == [(-(-total // 4) * 4 + 4, 8, None)]


@pytest.mark.parametrize(("era", "pages"), [("6.1", 4), ("6.8", 4), ("6.9", 0), ("7.3", 0)])
def test_tables_of_the_identity_map_are_whole_pages_and_the_image_s_own_from_6_9_on(
    era: str, pages: int
) -> None:
    for size, option in ((4096, "ARM64_4K_PAGES"), (65536, "ARM64_64K_PAGES")):
        memory = Recorder()
        memory.add(RAM)
        create_idmap(KernelConfig(era, options={option: "y"}), memory)
        assert memory.asked == [(size, size, None)] * pages
