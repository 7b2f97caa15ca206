"""The board's device tree, held against the one that QEMU writes for its virt machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from qemu_tree import dump_tree

from kexecemu.formats.fdt import Fdt, reg64
from kexecemu.kernel.boot.firmware import initrd_range
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.ranges import PhysRange

GIB = 1 << 30
UART = 0x9000000
BANK = PhysRange.of(GIB, GIB)

Tree = dict[str, dict[str, bytes]]


def tree_of(blob: bytes) -> Tree:
    """Every node's properties, by the node's path."""
    fdt = Fdt(blob)
    return dict(_walk(fdt, 0, ""))


def _walk(fdt: Fdt, node: int, path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    yield path or "/", {prop.name: bytes(prop.value) for prop in fdt.properties(node)}
    for child in fdt.subnodes(node):
        yield from _walk(fdt, child.offset, f"{path}/{child.name}")


def dump(folder: Path, cpus: int, gic: int = 2) -> Tree:
    """The tree of QEMU's virt with a GIC of that version and so many CPUs; skips where there is no QEMU."""
    blob = dump_tree(folder / "virt.dtb", gic=gic, cpus=cpus, ram="1G")
    return resolved(tree_of(blob.read_bytes()))


@pytest.fixture(scope="module")
def qemu_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """QEMU's own tree, with one CPU."""
    return dump(tmp_path_factory.mktemp("qemu"), 1)


def resolved(tree: Tree) -> Tree:
    """A tree whose references do not depend on how the phandles were numbered."""
    names = {node["phandle"]: path.encode() for path, node in tree.items() if "phandle" in node}
    for node in tree.values():
        for reference in ("clocks", "interrupt-parent"):
            if reference in node:
                value = node[reference]
                node[reference] = b" ".join(names[value[n : n + 4]] for n in range(0, len(value), 4))
    return tree


def full_tree(gic: int = 2) -> Tree:
    return resolved(tree_of(virt_device_tree([BANK], 1, UART, virtio_slots=range(32), rtc=True, gic=gic)))


def test_every_node_is_as_qemu_writes_it(qemu_tree: Tree) -> None:
    ours = full_tree()
    devices = [path for path in ours if path not in ("/", "/chosen", "/cpus/cpu@0", "/intc@8000000")]
    assert len(devices) == 32 + 7
    for path in devices:
        node, theirs = dict(ours[path]), dict(qemu_tree[path])
        assert bool(node.pop("phandle", None)) == bool(theirs.pop("phandle", None)), path
        assert node == theirs, path
    assert ours["/"] == qemu_tree["/"]
    assert ours["/chosen"]["stdout-path"] == qemu_tree["/chosen"]["stdout-path"]


def test_the_interrupt_controller_lacks_only_what_its_missing_frame_needs(qemu_tree: Tree) -> None:
    """QEMU's has a frame for message signalled interrupts below it."""
    gic, theirs = dict(full_tree()["/intc@8000000"]), qemu_tree["/intc@8000000"]
    assert set(theirs) - set(gic) == {"ranges", "#address-cells", "#size-cells"}
    del gic["phandle"]
    assert gic.items() <= theirs.items()


def test_a_board_with_a_gicv3_is_as_qemu_writes_it(tmp_path: Path) -> None:
    """QEMU's has an ITS below it, for message signalled interrupts."""
    ours, theirs = full_tree(3), dump(tmp_path, 20, 3)
    for path in set(ours) - {"/", "/chosen", "/cpus/cpu@0", "/intc@8000000"}:
        for node in (ours[path], theirs[path]):
            node.pop("phandle", None)
        assert ours[path] == theirs[path], path
    gic, their_gic = ours["/intc@8000000"], theirs["/intc@8000000"]
    del gic["phandle"]
    assert set(their_gic) - set(gic) == {"ranges", "#address-cells", "#size-cells", "phandle"}
    assert gic.items() <= their_gic.items()
    many = tree_of(virt_device_tree([BANK], 20, UART, gic=3))
    assert affinities(many) == affinities(theirs)
    assert affinities(many)[-1] == b"\0\0\1\3"


def affinities(tree: Tree) -> list[bytes]:
    """Of the CPUs. QEMU numbers the nodes otherwise."""
    return sorted(node["reg"] for path, node in tree.items() if path.startswith("/cpus/cpu@"))


def test_the_cpus_are_those_of_qemu(tmp_path: Path) -> None:
    """QEMU's have phandles in addition, for its map of clusters; and with a single CPU no way to start one."""
    ours, theirs = tree_of(virt_device_tree([BANK], 8, UART)), dump(tmp_path, 8)
    for path in ["/cpus", *(f"/cpus/cpu@{index}" for index in range(8))]:
        assert ours[path] == {name: value for name, value in theirs[path].items() if name != "phandle"}


def test_seeds_have_the_shape_that_qemu_gives_them(qemu_tree: Tree) -> None:
    blob = virt_device_tree([BANK], 1, UART, kaslr_seed=0x0123456789ABCDEF, rng_seed=bytes(range(32)))
    chosen = tree_of(blob)["/chosen"]
    assert chosen["kaslr-seed"] == bytes.fromhex("0123456789abcdef")
    assert chosen["rng-seed"] == bytes(range(32))
    for seed in ("kaslr-seed", "rng-seed"):
        assert len(chosen[seed]) == len(qemu_tree["/chosen"][seed])
    for value in (0, (1 << 64) - 1):  # the first and the last that there are
        chosen = tree_of(virt_device_tree([BANK], 1, UART, kaslr_seed=value))["/chosen"]
        assert chosen["kaslr-seed"] == value.to_bytes(8, "big")


def test_the_virtio_transports_stand_in_the_order_of_their_addresses_as_in_qemu(qemu_tree: Tree) -> None:
    """The kernel numbers its disks in the order in which it meets them."""
    blob = virt_device_tree([BANK], 1, UART, virtio_slots=(31, 2, 30))
    ours = [path for path in tree_of(blob) if path.startswith("/virtio_mmio")]
    assert ours == ["/virtio_mmio@a000400", "/virtio_mmio@a003c00", "/virtio_mmio@a003e00"]
    assert ours == [path for path in qemu_tree if path in ours]
    # Numbers that a set would give in another order, and one that is named twice.
    blob = virt_device_tree([BANK], 1, UART, virtio_slots=(8, 1, 16, 1))
    ours = [path for path in tree_of(blob) if path.startswith("/virtio_mmio")]
    assert ours == ["/virtio_mmio@a000200", "/virtio_mmio@a001000", "/virtio_mmio@a002000"]


def test_an_initrd_is_named_by_its_first_byte_and_the_one_behind_its_last() -> None:
    initrd = PhysRange(0x1_4800_0000, 0x1_4812_3457)
    blob = virt_device_tree([BANK], 1, UART, initrd=initrd)
    chosen = tree_of(blob)["/chosen"]
    assert chosen["linux,initrd-start"] == reg64(0x1_4800_0000)
    assert chosen["linux,initrd-end"] == reg64(0x1_4812_3457)
    assert initrd_range(Fdt(blob)) == initrd


def test_without_the_new_arguments_the_tree_is_the_one_that_recorded_results_rest_on() -> None:
    one = virt_device_tree([BANK], 1, UART)
    many = virt_device_tree(
        [PhysRange.of(GIB, 1 << 28), PhysRange.of(1 << 32, GIB)], 18, UART, cmdline="crashkernel=1G"
    )
    digests = [hashlib.sha256(blob).hexdigest() for blob in (one, many)]
    assert digests == [
        "63c50f3848c9a1b0aaf14bbc4ae25288b3ece8e9db0583dfd7a1bef93717e657",
        "bc9dfb80cc59fd5ca02e429e93582e9bf9a115069899014d973193ef7d76d847",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"virtio_slots": (32,)},
        {"virtio_slots": (-1,)},
        {"kaslr_seed": 1 << 64},
        {"kaslr_seed": -1},
        {"gic": 4},
    ],
)
def test_what_the_board_cannot_have_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        virt_device_tree([BANK], 1, UART, **wrong)  # type: ignore[arg-type]
