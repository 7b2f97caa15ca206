"""The board of a setup: the usual one, or what a device tree, UEFI's memory map or /proc/iomem say."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kexecemu.errors import FormatError, InputError, MachineError
from kexecemu.formats.efi_map import EfiMap
from kexecemu.formats.fdt import Fdt
from kexecemu.formats.iomem import Iomem
from kexecemu.kernel.boot.acpi import acpi_of
from kexecemu.kernel.boot.cpus import board_affinities, cpu_count
from kexecemu.kernel.boot.efi_init import efi_parameters, efi_ram, first_cmdline, read_efi_map
from kexecemu.kernel.boot.fdt_memory import memory_ranges
from kexecemu.kernel.boot.fill_memory import GRAIN, fill_memory
from kexecemu.kernel.boot.iomem import iomem_ram, read_iomem
from kexecemu.kernel.boot.tree_board import console_of, gic_node, gic_phys, psci_conduit, timer_ppis, uart_of
from kexecemu.linux.other_board import DiskPlace, check_controller, disk_place, other_devices, with_disk
from kexecemu.machine import virt
from kexecemu.machine.board import Board, parse_size
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.options import Setup

__all__ = ["board_of", "efi_map_of", "filled_tree", "iomem_of", "tree_with_disk"]


@contextmanager
def _about(setup: Setup) -> Iterator[None]:
    """Errors about the device tree, with its name."""
    try:
        yield
    except (FormatError, MachineError) as error:
        words = str(error).removeprefix("device tree: ")
        raise InputError(f"device tree {setup.dtb}: {words}") from error


def board_of(
    setup: Setup,
    dtb: bytes | None,
    efi_map: EfiMap | None,
    iomem: Iomem | None,
    disk: DiskPlace | None = None,
) -> Board:
    """The board; InputError where what is said of it makes none. disk is where a real Linux finds one for its dump."""
    more: dict[str, Any] = {"bbm": setup.bbm, "stuck_cpus": setup.stuck_cpus}
    if dtb is None:
        return Board(setup.value("ram"), setup.value("cpus"), gic=setup.gic, **more)
    with _about(setup):
        tree = Fdt(dtb)
        real, banks = setup.capture == "linux", _banks(tree, efi_map, iomem)
        acpi = acpi_of(tree, setup.cmdline or first_cmdline(tree), efi_map, iomem)
        count = (acpi.cpus if acpi is not None else 0) or cpu_count(tree)
        version, places = gic_phys(tree)
        gic = setup.gic if setup.gic is not None else version if real else None
        cpus = count if setup.cpus is None else setup.cpus
        if acpi is None and cpus > count:
            raise InputError(f"device tree {setup.dtb}: it has {count} CPUs, not {cpus}")
        uart = uart_of(console_of(tree, acpi), banks)
        if setup.gic not in (None, version) and gic_node(tree) is not None:
            raise InputError(f"device tree {setup.dtb}: it has a GICv{version}, not a GICv{setup.gic}")
        if disk is not None:
            check_controller(places or (), [*banks, uart.phys, disk.phys])
            more |= {"virtio_phys": disk.phys, "disk_intid": virt.FIRST_SPI + disk.spi}
            more["absent"] = disk.in_tree or other_devices(tree)
            if ppis := timer_ppis(tree):
                more["timer_ppis"] = ppis
        return Board(
            banks,
            cpus,
            affinities=board_affinities(tree, cpus) if acpi is None else None,
            gic=gic,
            gic_phys=places if gic == version else None,
            uart=uart,
            conduit=psci_conduit(tree) or "hvc",
            **more,
        )


def tree_with_disk(
    setup: Setup, dtb: bytes, efi_map: EfiMap | None, iomem: Iomem | None
) -> tuple[bytes, DiskPlace]:
    """The tree with the disk that a real Linux writes its dump to, and where that is."""
    with _about(setup):
        tree = Fdt(dtb)
        if acpi_of(tree, setup.cmdline or first_cmdline(tree), efi_map, iomem) is not None:
            words = "and only what a kernel said of them is here"
            raise InputError(f"a real capture kernel wants ACPI's tables, {words}")
        place = disk_place(tree, _banks(tree, efi_map, iomem))
        return with_disk(dtb, place), place


def _banks(tree: Fdt, efi_map: EfiMap | None, iomem: Iomem | None) -> Sequence[PhysRange]:
    if iomem is not None:
        return iomem_ram(iomem)
    return efi_ram(efi_map) if efi_map is not None else memory_ranges(tree)


def filled_tree(setup: Setup, dtb: bytes) -> bytes:
    """The tree with RAM in it: its own, or as much as was asked for where firmware is to fill that in."""
    with _about(setup):
        tree = Fdt(dtb)
        elsewhere = setup.efi_map is not None or setup.iomem is not None
        if elsewhere or memory_ranges(tree):
            if setup.ram is not None:
                says = "the tree says how much there is"
                raise InputError(f"give the size of RAM or a device tree, not both: {says}")
            return dtb
        if efi_parameters(tree) is not None:
            words = "UEFI starts this machine, and memory is in its map alone: give that (efi_map), or iomem"
            raise InputError(f"device tree {setup.dtb}: {words}")
        if setup.ram is None:
            fill = "firmware fills it in: give a size of RAM"
            raise InputError(f"device tree {setup.dtb}: no memory in it; {fill}")
        size = parse_size(setup.ram)
        if size % GRAIN:
            raise InputError(f"RAM of {setup.ram!r} is not made of whole pieces of {GRAIN:#x} bytes")
        return fill_memory(dtb, size)


def efi_map_of(setup: Setup) -> EfiMap | None:
    """UEFI's memory map where one is given; InputError without a tree that it goes with."""
    if setup.efi_map is None:
        return None
    if setup.dtb is None:
        raise InputError("efi_map goes with the machine's device tree (dtb), and none is given")
    if setup.iomem is not None:
        raise InputError("give efi_map or iomem, not both: each says what memory there is")
    return read_efi_map(setup.efi_map)


def iomem_of(setup: Setup) -> Iomem | None:
    """/proc/iomem of a running machine where it is given; InputError without a tree that it goes with."""
    if setup.iomem is None:
        return None
    if setup.dtb is None:
        raise InputError("iomem goes with the machine's device tree (dtb), and none is given")
    return read_iomem(setup.iomem)
