"""What a boot loader does before the kernel runs: put the kernel image and the device tree into RAM.

Places are those that QEMU's arm boot loader chooses, so that addresses can be compared with real runs: the kernel
2 MiB above the start of RAM, the device tree 128 MiB above it (or at half of a small RAM), behind an initrd that the
device tree names. What the tree reserves is left alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt, FdtEditor, join_cells
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.cmdline import to_bytes
from kexecemu.kernel.boot.fdt_memory import is_available, pairs
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.shown import shown

__all__ = ["MAX_FDT_SIZE", "BootPlaces", "bootargs_of", "choose_places", "chosen_node", "initrd_range"]
__all__ += ["set_bootargs"]

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
    """Where things go; InputError where a kernel of kernel_size bytes and the tree have no room.

    And for a device tree that no kernel boots with (fixmap_remap_fdt()). As QEMU's loader where nothing else is there;
    where the tree reserves that memory, at the next free place: a board's own firmware knows of it.
    """
    if dtb.totalsize > MAX_FDT_SIZE:
        size = f"the device tree has {dtb.totalsize:#x} bytes, and a kernel takes {MAX_FDT_SIZE:#x} at most"
        raise InputError(f"{size}: the first kernel does not boot")
    bank, initrd = ram.banks[0], initrd_range(dtb)
    free = subtract(list(ram.banks), _reserved(dtb))
    usual = bank.start + _KERNEL_OFFSET
    kernel_phys = _free_place(free, usual, kernel_size)
    if kernel_phys != align_up(usual, _DTB_ALIGN) and initrd is not None:
        kernel_phys = _free_place(subtract(free, [initrd]), usual, kernel_size)
    if kernel_phys is not None:
        kernel = PhysRange.of(kernel_phys, kernel_size)
        free = subtract(free, [kernel] if initrd is None else [kernel, initrd])
        wanted = bank.start + min(bank.size // 2, _INITRD_OFFSET)
        if initrd is not None and any(one.covers(initrd) for one in ram.banks):
            wanted = initrd.end
        dtb_phys = _free_place(free, align_up(wanted, _DTB_ALIGN), dtb.totalsize)
        if dtb_phys is not None:
            return BootPlaces(kernel_phys, dtb_phys)
    reserved = ", less what the tree reserves," if len(free) != len(ram.banks) else ""
    size = f"RAM of {bank.size:#x} bytes at {bank.start:#x}{reserved}"
    raise InputError(f"{size} is too small to boot the first kernel")


def _reserved(dtb: Fdt) -> list[PhysRange]:
    """Memory that the tree reserves at fixed places."""
    areas = [PhysRange.of(one.phys, one.size) for one in dtb.mem_reservations()]
    parent = dtb.path_offset("/reserved-memory")
    for node in dtb.subnodes(parent) if parent is not None else ():
        if is_available(dtb, node.offset):
            found = pairs(dtb, node.offset, "reg", whole=False) or []
            areas += [PhysRange.of(base, size) for base, size in found if base + size <= 1 << 64]
    return areas


def _free_place(free: Sequence[PhysRange], wanted: int, size: int) -> int | None:
    """A multiple of 2 MiB with so much room: the first one from `wanted` on, else the first one of all; or None."""
    for least in (wanted, 0):
        for area in free:
            start = align_up(max(area.start, least), _DTB_ALIGN)
            if start + size <= area.end:
                return start
    return None


def set_bootargs(dtb: bytes, cmdline: str) -> bytes:
    """The device tree with /chosen/bootargs set, as a boot loader leaves it."""
    bootargs = to_bytes(cmdline) + b"\0"
    editor = FdtEditor(dtb, len(dtb) + len(bootargs) + 256)
    editor.setprop(chosen_node(editor), "bootargs", bootargs)
    editor.pack()
    return editor.to_bytes()


def bootargs_of(tree: Fdt) -> bytes:
    """The command line in /chosen, without its end; b"" where there is none."""
    chosen = tree.path_offset("/chosen")
    given = tree.getprop(chosen, "bootargs") if chosen is not None else None
    return (given or b"").split(b"\0", 1)[0]


def chosen_node(tree: FdtEditor) -> int:
    """The offset of /chosen, which is made where there is none."""
    found = tree.path_offset("/chosen")
    return tree.add_subnode(0, "chosen") if found is None else found


def initrd_range(dtb: Fdt) -> PhysRange | None:
    """The first kernel's own initrd as /chosen names it: exact physical bytes, None if there is none."""
    chosen = dtb.path_offset("/chosen")
    if chosen is None:
        return None
    start_cells = dtb.get_cells(chosen, "linux,initrd-start")
    end_cells = dtb.get_cells(chosen, "linux,initrd-end")
    if not start_cells or not end_cells:
        return None
    start, end = join_cells(start_cells[-2:]), join_cells(end_cells[-2:])  # as of_read_number() has them
    return PhysRange(start, end) if start < end else None
