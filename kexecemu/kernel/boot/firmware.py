"""What a boot loader does before the kernel runs: put the kernel image and the device tree into RAM.

Places are those that QEMU's arm boot loader chooses, so that addresses can be compared with real runs: the kernel
2 MiB above the start of RAM, the device tree 128 MiB above it (or at half of a small RAM), behind an initrd that the
device tree names.
"""

from dataclasses import dataclass

from kexecemu.errors import FormatError, InputError
from kexecemu.formats.fdt import Fdt, FdtEditor, join_cells
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.cmdline import to_bytes
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["MAX_FDT_SIZE", "BootPlaces", "choose_places", "chosen_node", "console_phys"]
__all__ += ["gic_version", "initrd_range", "reg_ranges", "set_bootargs"]

_KERNEL_OFFSET = 2 << 20
_INITRD_OFFSET = 128 << 20
_DTB_ALIGN = 2 << 20
MAX_FDT_SIZE = 2 << 20


@shown()
@dataclass(frozen=True)
class BootPlaces:
    """Physical addresses at which the boot loader puts _text of the kernel image and the device tree."""

    kernel_phys: int
    dtb_phys: int


def choose_places(ram: Ram, kernel_size: int, dtb: Fdt) -> BootPlaces:
    """Where things go in the first bank; InputError when it is too small for a kernel of kernel_size bytes.

    And for a device tree that no kernel boots with (fixmap_remap_fdt()).
    """
    if dtb.totalsize > MAX_FDT_SIZE:
        size = f"the device tree has {dtb.totalsize:#x} bytes, and a kernel takes {MAX_FDT_SIZE:#x} at most"
        raise InputError(f"{size}: the first kernel does not boot")
    bank = ram.banks[0]
    kernel = PhysRange.of(bank.start + _KERNEL_OFFSET, kernel_size)
    initrd = initrd_range(dtb)
    if initrd is not None:
        dtb_phys = align_up(initrd.end, _DTB_ALIGN)
    else:
        dtb_phys = align_up(bank.start + min(bank.size // 2, _INITRD_OFFSET), _DTB_ALIGN)
    tree = PhysRange.of(dtb_phys, dtb.totalsize)
    if not bank.covers(kernel) or not bank.covers(tree) or kernel.overlaps(tree):
        raise InputError(
            f"RAM of {bank.size:#x} bytes at {bank.start:#x} is too small to boot the first kernel"
        )
    return BootPlaces(kernel.start, dtb_phys)


def set_bootargs(dtb: bytes, cmdline: str) -> bytes:
    """The device tree with /chosen/bootargs set, as a boot loader leaves it."""
    bootargs = to_bytes(cmdline) + b"\0"
    editor = FdtEditor(dtb, len(dtb) + len(bootargs) + 256)
    editor.setprop(chosen_node(editor), "bootargs", bootargs)
    editor.pack()
    return bytes(editor.data)


def chosen_node(tree: FdtEditor) -> int:
    """The offset of /chosen, which is made where there is none."""
    found = tree.path_offset("/chosen")
    return tree.add_subnode(0, "chosen") if found is None else found


def reg_ranges(dtb: Fdt, node: int, parent: int) -> list[PhysRange]:
    """The reg property of a node as physical ranges, by its parent's #address-cells and #size-cells."""
    cells = dtb.get_cells(node, "reg") or []
    address_cells, size_cells = dtb.address_cells(parent), dtb.size_cells(parent)
    width = address_cells + size_cells
    if not width or address_cells > 2 or size_cells > 2 or len(cells) % width:
        raise FormatError(f"device tree: reg of node {dtb.name(node) or '/'} does not fit its parent's cells")
    ranges = []
    for at in range(0, len(cells), width):
        start = join_cells(cells[at : at + address_cells])
        size = join_cells(cells[at + address_cells : at + width])
        if start + size > 1 << 64:
            raise FormatError(f"device tree: reg of node {dtb.name(node)} wraps around")
        ranges.append(PhysRange.of(start, size))
    return ranges


def initrd_range(dtb: Fdt) -> PhysRange | None:
    """The first kernel's own initrd as /chosen names it: exact physical bytes, None if there is none."""
    chosen = dtb.path_offset("/chosen")
    if chosen is None:
        return None
    start_cells = dtb.get_cells(chosen, "linux,initrd-start")
    end_cells = dtb.get_cells(chosen, "linux,initrd-end")
    if not start_cells or not end_cells:
        return None
    start, end = join_cells(start_cells[:2]), join_cells(end_cells[:2])
    return PhysRange(start, end) if start < end else None


def gic_version(dtb: Fdt) -> int:
    """The architecture of the board's interrupt controller, a child of the root: 3 for a GICv3, else 2."""
    kinds = (dtb.get_strings(node.offset, "compatible") or [] for node in dtb.subnodes(0))
    return 3 if any("arm,gic-v3" in kind for kind in kinds) else 2


def console_phys(dtb: Fdt) -> int:
    """Physical address of the PL011 that /chosen/stdout-path names, else of the first one; 0 without any."""
    chosen = dtb.path_offset("/chosen")
    path = dtb.get_strings(chosen, "stdout-path") if chosen is not None else None
    wanted = dtb.path_offset(path[0].split(":", 1)[0]) if path else None
    for node in (wanted, *(one.offset for one in dtb.subnodes(0))):
        if node is not None and "arm,pl011" in (dtb.get_strings(node, "compatible") or []):
            ranges = reg_ranges(dtb, node, 0)
            return ranges[0].start if ranges else 0
    return 0
