"""A real Linux as capture kernel on a board that is none of QEMU's: what it finds there besides what is emulated.

It is given a disk for its dump, one more device of the tree, as virtio-mmio. The registers of all others read as zero.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from kexecemu.errors import FormatError, InputError
from kexecemu.formats.fdt import Fdt, FdtEditor, cells
from kexecemu.kernel.boot.fdt_memory import is_available
from kexecemu.kernel.boot.of_address import device_areas, with_parents
from kexecemu.kernel.boot.tree_board import gic_node
from kexecemu.kernel.memory.memblock import merge
from kexecemu.linux.capture import DUMP_SLOT
from kexecemu.machine import virt
from kexecemu.machine.cpu.blockcount import TICKS_PER_SECOND
from kexecemu.machine.devices.uart import PrintingUart, Uart
from kexecemu.machine.memory.mmio import AbsentDevice
from kexecemu.machine.ranges import PhysRange, subtract

__all__ = ["DiskPlace", "board_parameters", "check_controller", "disk_place", "other_devices", "with_disk"]

_CNTACR, _CNTFRQ = 0x40, 0x10  # of a memory-mapped timer, and of a frame of it
_CNTACR_ALL = 0x3F
_TIMER_FRAMES = 8
_EDGE = 1
_PAGE = 4096
_LOWEST = 0x1000000  # 0 is no place that a driver expects
_TOP = 1 << 32  # what one cell can name
_STEP = 0x10000
_FIRST_SPI = virt.VIRTIO_SPI - virt.FIRST_SPI
_USUAL_SPI = _FIRST_SPI + DUMP_SLOT
_8250_WIDTHS = {0: "mmio", 1: "mmio16", 2: "mmio32"}  # by reg-shift


class DiskPlace(NamedTuple):
    """Where a board's virtio transports are (physical); the last is the disk's, with this SPI, or the tree has it."""

    phys: PhysRange
    spi: int
    in_tree: bool


def _devices(tree: Fdt) -> Iterator[tuple[int, PhysRange]]:
    for path in with_parents(tree):
        for area in device_areas(tree, path):
            yield path[-1], area


def other_devices(tree: Fdt) -> list[AbsentDevice]:
    """What there is of a tree's devices: registers of zeros, and a timer's that say that it may be used."""
    words = dict[int, int]()
    for path in with_parents(tree):
        area = next(device_areas(tree, path), None)
        if area is None:
            continue
        if "arm,armv7-timer-mem" in (tree.get_strings(path[-1], "compatible") or []):
            # Without a frame that it may use Linux leaves the CPUs' timers alone as well, and time stands still.
            words |= {area.start + _CNTACR + 4 * frame: _CNTACR_ALL for frame in range(_TIMER_FRAMES)}
        elif tree.getprop(path[-1], "frame-number") is not None:
            words[area.start + _CNTFRQ] = TICKS_PER_SECOND
    return [AbsentDevice(area, words=words) for area in _pages(tree)]


def _pages(tree: Fdt) -> list[PhysRange]:
    """The pages in which a tree's devices have registers, merged."""
    areas = (area for _, area in _devices(tree))
    return merge([PhysRange(area.start // _PAGE * _PAGE, -(-area.end // _PAGE) * _PAGE) for area in areas])


def _has_usual(tree: Fdt) -> bool:
    """Whether it has QEMU's last transport, and that is to be used, with the interrupt that it has there."""
    usual = virt.virtio_slot(DUMP_SLOT).start
    return any(
        area.start == usual
        and "virtio,mmio" in (tree.get_strings(node, "compatible") or [])
        and is_available(tree, node)
        and _interrupts(tree, node)[:2] == [0, _USUAL_SPI]
        for node, area in _devices(tree)
    )


def disk_place(tree: Fdt, banks: Sequence[PhysRange]) -> DiskPlace:
    """The place of the transport: QEMU's where the tree names that one, else one that nothing of the tree has.

    The same goes for its interrupt. InputError where there is no such place.
    """
    if _has_usual(tree):
        return DiskPlace(virt.VIRTIO, _USUAL_SPI, in_tree=True)
    top = virt.PHYS_LIMIT if tree.address_cells(0) > 1 else _TOP
    free = subtract([PhysRange(_LOWEST, top)], [*_pages(tree), *banks])
    starts = (-(-max(gap.start, low) // _STEP) * _STEP for low in (virt.VIRTIO.start, 0) for gap in free)
    places = (PhysRange.of(start, virt.VIRTIO.size) for start in starts)
    place = next((one for one in places if any(gap.covers(one) for gap in free)), None)
    spi = _free_spi([_interrupts(tree, node.offset) for node in tree.nodes()])
    if place is None or spi is None:
        what = "place" if place is None else "interrupt"
        raise InputError(
            f"device tree: it leaves no {what} for the disk that a real Linux writes its dump to"
        )
    return DiskPlace(place, spi, in_tree=False)


def _free_spi(interrupts: list[list[int]]) -> int | None:
    """One of the SPIs, those of QEMU's transports first, that is in no cell; else in none that says it is an SPI."""
    any_cell = {cell for one in interrupts for cell in one}
    spis = {number for one in interrupts for kind, number in pairwise(one) if kind == 0}
    order = (*range(_USUAL_SPI, _FIRST_SPI - 1, -1), *range(_USUAL_SPI + 1, virt.SPIS))
    free = [spi for spi in order if spi not in spis]
    return next((spi for spi in free if spi not in any_cell), next(iter(free), None))


def board_parameters(uart: Uart) -> str:
    """What a command line has on such a board: this UART prints from the start, whatever drivers a kernel has for it.

    And CPUs do not sleep so deep that another timer than their own has to wake them.
    """
    earlycon = "earlycon"
    if isinstance(uart, PrintingUart) and uart.kind.startswith("8250") and uart.shift in _8250_WIDTHS:
        earlycon += f"=uart8250,{_8250_WIDTHS[uart.shift]},{uart.base_phys:#x}"
    return f"{earlycon} cpuidle.off=1"


def check_controller(places: Sequence[PhysRange], taken: Sequence[PhysRange]) -> None:
    """InputError for an interrupt controller that lies where something else is, or no CPU reaches it."""
    for place in places:
        if place.end > virt.PHYS_LIMIT or any(place.overlaps(one) for one in taken if one.size):
            raise InputError(
                f"device tree: the interrupt controller at {place} is in RAM, on a device or out of reach"
            )


def _interrupts(tree: Fdt, node: int) -> list[int]:
    """Every cell that may be the number of a node's interrupt, whatever its parent."""
    try:
        names = ("interrupts", "interrupts-extended")
        return [cell for name in names for cell in tree.get_cells(node, name) or []]
    except FormatError:
        return []


def with_disk(dtb: bytes, place: DiskPlace) -> bytes:
    """The tree with a node for the disk. InputError where its interrupt controller is none that is emulated."""
    tree = Fdt(dtb)
    gic = gic_node(tree)
    phandle = None if gic is None else tree.get_u32(gic, "phandle")
    width = None if gic is None else tree.get_u32(gic, "#interrupt-cells")
    if phandle is None or width is None or not 3 <= width <= 4:
        words = "no interrupt controller that is emulated, and the disk of a real Linux's dump needs one"
        raise InputError(f"device tree: {words}")
    if place.in_tree:
        return dtb
    at = place.phys.start + DUMP_SLOT * virt.VIRTIO_SLOT_SIZE
    reg = at.to_bytes(4 * tree.address_cells(0), "big")
    reg += virt.VIRTIO_SLOT_SIZE.to_bytes(4 * tree.size_cells(0), "big")
    editor = FdtEditor(dtb, len(dtb) + 512)
    node = editor.add_subnode(0, f"virtio_mmio@{at:x}")
    editor.setprop(node, "dma-coherent", b"")
    editor.setprop(node, "interrupt-parent", cells(phandle))
    editor.setprop(node, "interrupts", cells(0, place.spi, _EDGE, *[0] * (width - 3)))
    editor.setprop(node, "reg", reg)
    editor.setprop(node, "compatible", b"virtio,mmio\0")
    editor.pack()
    return editor.to_bytes()
