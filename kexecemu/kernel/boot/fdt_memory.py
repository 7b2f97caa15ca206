"""RAM as Linux reads it in a device tree: memory nodes, and what /chosen leaves of them.

Followed: early_init_dt_scan_memory() and early_init_dt_check_for_usable_mem_range() of drivers/of/fdt.c.
"""

from collections.abc import Callable, Iterator

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt, join_cells
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.memory.memblock import Memblock, merge, within_pages
from kexecemu.machine.ranges import PhysRange

__all__ = [
    "add_memory",
    "check_for_usable_mem_range",
    "early_init_dt_scan",
    "first_cell",
    "is_available",
    "memory_ranges",
    "pairs",
    "root_cells",
]

_U64 = 1 << 64
_BOARD_PAGE = 4096

Print = Callable[[str], None]


def is_available(tree: Fdt, node: int) -> bool:
    """of_fdt_device_is_available(): no status, or okay."""
    status = tree.getprop(node, "status")
    return status is None or status.split(b"\0")[0] in (b"ok", b"okay")


def first_cell(tree: Fdt, node: int, name: str) -> int | None:
    """be32_to_cpup() of a property, however long that is; None where there is none."""
    value = tree.getprop(node, name)
    return None if value is None or len(value) < 4 else int.from_bytes(value[:4], "big")


def root_cells(tree: Fdt) -> tuple[int, int]:
    """dt_root_addr_cells and dt_root_size_cells: 1 unless the root says something else."""
    address, size = (first_cell(tree, 0, name) for name in ("#address-cells", "#size-cells"))
    return 1 if address is None else address, 1 if size is None else size


def pairs(tree: Fdt, node: int, name: str, *, whole: bool = True) -> list[tuple[int, int]] | None:
    """A property as addresses with sizes, by the root's cells, modulo 2^64; None where there is none.

    One whose length does not fit them is none as well, unless whole is False: then what is too much is ignored.
    """
    value = tree.getprop(node, name)
    address, size = root_cells(tree)
    width = 4 * (address + size)
    if value is None or not width or (whole and len(value) % width):
        return None
    found = []
    for at in range(0, len(value) - width + 1, width):
        number = [int.from_bytes(value[one : one + 4], "big") for one in range(at, at + width, 4)]
        found.append((join_cells(number[:address]) % _U64, join_cells(number[address:]) % _U64))
    return found


def _memory_nodes(tree: Fdt) -> Iterator[int]:
    for node in tree.subnodes(0):
        kind = tree.getprop(node.offset, "device_type")
        if kind is not None and kind.split(b"\0")[0] == b"memory" and is_available(tree, node.offset):
            yield node.offset


def _described(tree: Fdt, node: int, *, whole: bool) -> list[tuple[int, int]]:
    """What a memory node says that there is."""
    usable = pairs(tree, node, "linux,usable-memory", whole=whole)
    found = pairs(tree, node, "reg", whole=whole) if usable is None else usable
    return [pair for pair in found or [] if pair[1]]


def memory_ranges(tree: Fdt) -> list[PhysRange]:
    """The RAM of a board that this tree describes: what its memory nodes say, in whole pages of 4 KiB, joined."""
    found = []
    for node in _memory_nodes(tree):
        for base, size in _described(tree, node, whole=False):
            if base + size > _U64:
                raise InputError(f"device tree: memory at {base:#x} of {size:#x} bytes wraps around")
            found.append(PhysRange.of(base, size))
    return within_pages(merge(found), _BOARD_PAGE)


def early_init_dt_scan(tree: Fdt, config: KernelConfig, log: Print, *, required: bool = True) -> Memblock:
    """early_init_dt_scan_nodes(): memblock with the memory that there is; log gets what the kernel says of it.

    InputError for a tree that leaves the kernel none, where it is required: UEFI describes memory once more.
    """
    memblock = Memblock()
    whole = config.release.rules.ragged_is_none
    for node in _memory_nodes(tree):
        removable = tree.getprop(node, "hotpluggable") is not None
        for base, size in _described(tree, node, whole=whole):
            add_memory(memblock, base, size, config.page_size, log)
            if removable:
                memblock.mark_hotplug(PhysRange.of(base, size))
    check_for_usable_mem_range(tree, config, memblock)
    if required and not memblock.memory:
        raise InputError("device tree: the first kernel finds no memory in it, and does not boot")
    return memblock


def add_memory(memblock: Memblock, base: int, size: int, page: int, log: Print) -> None:
    """early_init_dt_add_memory_arch(): whole pages only, of `size` bytes from the physical address `base`."""
    if size < page - base % page:
        log(f"OF: fdt: Ignoring memory block {base:#x} - {(base + size) % _U64:#x}")
        return
    start, end = align_up(base, page), min(base + size, _U64) // page * page
    if start < end:
        memblock.add(PhysRange(start, end))


def check_for_usable_mem_range(tree: Fdt, config: KernelConfig, memblock: Memblock) -> None:
    """What a kdump kernel may use; the first range is what is kept, the others are added."""
    chosen = tree.path_offset("/chosen")
    if chosen is None:
        return
    rules, name = config.release.rules, "linux,usable-memory-range"
    length, width = len(tree.getprop(chosen, name) or b""), sum(root_cells(tree))
    # Before 7.3 bytes are counted by cells: what is left over may be the beginning of a range.
    whole = rules.ragged_is_none or not width or length % width != 0
    if not whole and length % (4 * width) and length // 4 < rules.usable_ranges * width:
        words = f"{name} ends in the middle of a range"
        raise InputError(f"device tree: {words}: this kernel reads on behind it, and does not boot")
    ranges = (pairs(tree, chosen, name, whole=whole) or [])[: rules.usable_ranges]
    for number, (base, size) in enumerate(ranges):
        area = PhysRange(base, min(base + size, _U64))
        if number:
            if not size:
                return
            memblock.add(area)
        elif size:
            memblock.remove(PhysRange(0, area.start))
            memblock.remove(PhysRange(area.end, _U64))
