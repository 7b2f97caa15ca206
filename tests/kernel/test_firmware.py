"""What a boot loader reads of a tree, and where it puts kernel and tree, at the edges of what there is."""

from __future__ import annotations

import re

import pytest

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt, FdtEditor, NodeSpec, build, cells
from kexecemu.kernel.boot.firmware import (
    MAX_FDT_SIZE,
    BootPlaces,
    bootargs_of,
    choose_places,
    initrd_range,
    set_bootargs,
)
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

MIB, GIB = 1 << 20, 1 << 30


def tree(chosen: NodeSpec | None = None, **more: NodeSpec) -> Fdt:
    root: NodeSpec = {"#address-cells": cells(2), "#size-cells": cells(2), **more}
    return Fdt(build(root if chosen is None else {**root, "chosen": chosen}))


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (cells(0x50000000), cells(0x50001000), (0x50000000, 0x50001000)),
        (cells(1, 0), cells(1, 0x1000), (1 << 32, (1 << 32) + 0x1000)),
        # of_read_number(): of more cells the low 64 bits.
        (cells(7, 1, 0), cells(9, 1, 0x1000), (1 << 32, (1 << 32) + 0x1000)),
        (cells(0x50000000), cells(0, 0x50001000), (0x50000000, 0x50001000)),
        (cells(0x50000000), cells(0x50000000), None),
        (cells(0x50001000), cells(0x50000000), None),
        (cells(0x50000000), None, None),
        (None, cells(0x50000000), None),
        (b"", cells(0x50000000), None),
        (cells(0), b"", None),
    ],
)
def test_an_initrd_is_from_start_to_end_whatever_cells_they_have(
    start: bytes | None, end: bytes | None, found: tuple[int, int] | None
) -> None:
    chosen: dict[str, NodeSpec | bytes] = {}
    for name, value in (("linux,initrd-start", start), ("linux,initrd-end", end)):
        if value is not None:
            chosen[name] = value
    assert initrd_range(tree(chosen)) == (None if found is None else PhysRange(*found))
    assert initrd_range(tree()) is None


def test_a_command_line_ends_at_its_first_nul_and_may_be_set_where_none_is() -> None:
    assert bootargs_of(tree()) == b"" == bootargs_of(tree({}))
    assert bootargs_of(tree({"bootargs": b"a b\0c\0"})) == b"a b"
    for before in (tree(), tree({}), tree({"bootargs": ["much longer than the other"]})):
        found = Fdt(
            set_bootargs(before.to_bytes() if isinstance(before, FdtEditor) else bytes(before.data), "quiet")
        )
        assert bootargs_of(found) == b"quiet"


def places(size: int, found: Fdt, *banks: tuple[int, int], kernel: int = 4 * MIB) -> BootPlaces:
    ram = Ram([PhysRange.of(GIB, size), *(PhysRange.of(*one) for one in banks)])
    try:
        return choose_places(ram, kernel, found)
    finally:
        ram.close()


def reserved(*areas: tuple[int, int], status: str = "okay") -> NodeSpec:
    nodes: dict[str, NodeSpec] = {
        f"r@{start:x}": {"reg": cells(start >> 32, start & 0xFFFFFFFF, 0, size), "status": [status]}
        for start, size in areas
    }
    return {"#address-cells": cells(2), "#size-cells": cells(2), "ranges": b"", **nodes}


@pytest.mark.parametrize(
    ("size", "more", "kernel", "dtb"),
    [
        (GIB, {}, 2, 128),
        (256 * MIB, {}, 2, 128),
        (254 * MIB, {}, 2, 128),  # half of it, at a multiple of 2 MiB
        (64 * MIB, {}, 2, 32),
        (8 * MIB, {}, 2, 6),  # behind the kernel, which half of it is within
        (GIB, {"reserved-memory": reserved((GIB + 3 * MIB, 4096))}, 4, 128),
        (GIB, {"reserved-memory": reserved((GIB + 3 * MIB, 4096), status="disabled")}, 2, 128),
        (GIB, {"reserved-memory": reserved((GIB + 128 * MIB, MIB))}, 2, 130),
        # No room from there on: the first place of all.
        (64 * MIB, {"reserved-memory": reserved((GIB + 4 * MIB, 60 * MIB))}, None, None),
        (64 * MIB, {"reserved-memory": reserved((GIB + 8 * MIB, 56 * MIB))}, 2, 0),
    ],
)
def test_kernel_and_tree_are_where_qemu_s_loader_has_them_or_at_the_next_free_place(
    size: int, more: dict[str, NodeSpec], kernel: int | None, dtb: int | None
) -> None:
    found = tree(**more)
    if kernel is None or dtb is None:
        words = f"RAM of {size:#x} bytes at 0x40000000"
        with pytest.raises(InputError, match=f"^{re.escape(words)}.* is too small to boot the first kernel$"):
            places(size, found)
        return
    assert places(size, found) == BootPlaces(GIB + kernel * MIB, GIB + dtb * MIB)


@pytest.mark.parametrize(
    ("initrd", "dtb"),
    [
        ((GIB + 128 * MIB, GIB + 130 * MIB), GIB + 130 * MIB),
        ((GIB + 128 * MIB, GIB + 130 * MIB + 1), GIB + 132 * MIB),
        ((GIB + 300 * MIB, GIB + 301 * MIB), GIB + 302 * MIB),
        ((8 * GIB, 8 * GIB + MIB), GIB + 128 * MIB),  # not in RAM
    ],
)
def test_a_tree_is_behind_an_initrd_that_lies_in_ram(initrd: tuple[int, int], dtb: int) -> None:
    start, end = (cells(one >> 32, one & 0xFFFFFFFF) for one in initrd)
    found = tree({"linux,initrd-start": start, "linux,initrd-end": end})
    assert places(GIB, found) == BootPlaces(GIB + 2 * MIB, dtb)


def test_an_initrd_in_the_kernel_s_place_keeps_it_where_that_was_free_and_else_not() -> None:
    """As QEMU's loader does not look where an initrd is, unless other memory is taken, too."""
    start, end = cells(GIB + 2 * MIB), cells(GIB + 3 * MIB)
    chosen: NodeSpec = {"linux,initrd-start": start, "linux,initrd-end": end}
    assert places(GIB, tree(chosen)).kernel_phys == GIB + 2 * MIB
    start, end = cells(GIB + 6 * MIB), cells(GIB + 7 * MIB)
    chosen = {"linux,initrd-start": start, "linux,initrd-end": end}
    taken = {"reserved-memory": reserved((GIB + 2 * MIB, MIB))}
    assert places(GIB, tree(chosen, **taken)).kernel_phys == GIB + 8 * MIB


def test_a_tree_of_2_mib_boots_and_a_larger_one_does_not() -> None:
    def padded(size: int) -> Fdt:
        editor = FdtEditor(build({}), size + 4096)
        editor.setprop(0, "pad", bytes(size))
        editor.pack()
        return Fdt(editor.to_bytes())

    over = padded(0).totalsize
    assert over % 4 == 0  # by the length of its name: so that it may be exactly as large
    for size in range(MAX_FDT_SIZE - over - 8, MAX_FDT_SIZE - over + 8, 4):
        found = padded(size)
        if found.totalsize <= MAX_FDT_SIZE:
            assert places(GIB, found).dtb_phys == GIB + 128 * MIB
            continue
        words = f"the device tree has {found.totalsize:#x} bytes, and a kernel takes 0x200000 at most"
        with pytest.raises(InputError, match=f"^{words}: the first kernel does not boot$"):
            places(GIB, found)
