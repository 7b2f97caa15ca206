"""What firmware does to a device tree that leaves the size of RAM to it: the memory node gets its banks."""

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt, FdtEditor
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.boot.fdt_memory import is_available, pairs, root_cells
from kexecemu.kernel.boot.of_address import bus_windows, device_areas, is_memory, with_parents
from kexecemu.kernel.memory.memblock import merge
from kexecemu.machine import virt
from kexecemu.machine.ranges import PhysRange, subtract

__all__ = ["GRAIN", "fill_memory"]

GRAIN = 2 << 20
"""RAM is filled in in whole pieces of so many bytes."""
_USUAL = (virt.RAM_BASE, 0x80000000, 0, 1 << 32)  # where boards have it that say nothing of it
_MOST = 2 << 30  # of a bank: what one cell can say
_ALL = 1 << 30  # a window as large is no room for devices alone
_SCATTERED = 64 << 20  # a smaller hole between devices is none that a board has RAM in


def fill_memory(dtb: bytes, size: int) -> bytes:
    """The tree with so many bytes of RAM, in as many banks as its devices leave room for; FormatError as Fdt's.

    RAM begins where the memory node's name or an empty entry of it says, else where reserved memory is, else where most
    boards have it. InputError for a size that does not fit.
    """
    tree = Fdt(dtb)
    nodes = (one.offset for one in tree.subnodes(0) if is_memory(tree, one.offset))
    node = next((one for one in nodes if is_available(tree, one)), None)
    address_cells, size_cells = root_cells(tree)
    if address_cells not in (1, 2) or size_cells not in (1, 2):
        raise InputError("device tree: its root has other cells than firmware writes memory with")
    base, top = _base(tree, node), min(virt.PHYS_LIMIT, 1 << 32 * address_cells)
    if base >= top:
        raise InputError(f"device tree: RAM at {base:#x} is beyond {top:#x}")
    free = subtract([PhysRange(base, top)], _devices(tree, base))
    banks, left = list[PhysRange](), size
    for area in free:
        start, end = align_up(area.start, GRAIN), area.end // GRAIN * GRAIN
        if end - start < min(_SCATTERED, left) or not left:
            continue
        end = min(end, start + left)
        left -= end - start
        banks += [PhysRange(one, min(one + _MOST, end)) for one in range(start, end, _MOST)]
    if left:
        raise InputError(
            f"device tree: RAM of {size:#x} bytes does not fit among its devices: {size - left:#x} do"
        )
    reg = b"".join(
        bank.start.to_bytes(4 * address_cells, "big") + bank.size.to_bytes(4 * size_cells, "big")
        for bank in banks
    )
    editor = FdtEditor(dtb, len(dtb) + len(reg) + 256)
    at = editor.add_subnode(0, f"memory@{base:x}") if node is None else node
    editor.setprop(at, "device_type", b"memory\0")
    editor.setprop(at, "reg", reg)
    editor.pack()
    return editor.to_bytes()


def _base(tree: Fdt, node: int | None) -> int:
    if node is not None:
        found = pairs(tree, node, "reg", whole=False)
        if found:
            return found[0][0]
        unit = tree.name(node).partition("@")[2]
        try:
            return int(unit.replace(",", ""), 16) if unit else _guess(tree)
        except ValueError:
            pass
    return _guess(tree)


def _guess(tree: Fdt) -> int:
    """The highest usual place that no reserved memory lies below."""
    reserved = tree.path_offset("/reserved-memory")
    nodes = tree.subnodes(reserved) if reserved is not None else ()
    fixed = [pair[0] for one in nodes for pair in pairs(tree, one.offset, "reg", whole=False) or []]
    fixed += [one.phys for one in tree.mem_reservations()]
    bases = [base for base in _USUAL if base <= min(fixed, default=_USUAL[0])]
    return max(bases) if fixed else bases[0]


def _devices(tree: Fdt, base: int) -> list[PhysRange]:
    """Where devices have registers, or a bus has room for them: whole grains, merged."""
    areas = list[PhysRange]()
    for path in with_parents(tree):
        areas += device_areas(tree, path)
        # A bus that has all there is, RAM and devices, says nothing.
        areas += (
            one
            for one in bus_windows(tree, path)
            if one.size < _ALL and base not in range(one.start, one.end)
        )
    whole = [PhysRange(one.start // GRAIN * GRAIN, align_up(one.end, GRAIN)) for one in areas]
    return merge(whole)
