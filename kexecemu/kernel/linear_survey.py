"""The first kernel's linear map for a machine that need not run: what it would be, what it costs, what it prints.

The boot is followed as far as the linear map and the crashkernel reservation go, by the very functions that a booted
kernel uses: the boot loader's places, arm64_memblock_init(), setup_memory(). No CPU is needed, so no engine is loaded.
Up to a few GiB the tables are built in guest RAM and read back; above that they are reckoned, which comes to the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kexecemu.errors import InputError, KexecError, MachineError
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.address_space import AddressSpace, memstart_addr
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.base.vmlinux import Vmlinux, guest_vmlinux
from kexecemu.kernel.boot import firmware
from kexecemu.kernel.boot.early_param import parse_early_param
from kexecemu.kernel.boot.fdt_memory import early_init_dt_scan
from kexecemu.kernel.boot.setup_memory import (
    IMAGE_MARKS,
    TOO_SMALL,
    ArchSetup,
    TextLayout,
    alloc_table,
    arm64_memblock_init,
    setup_memory,
    text_alias,
)
from kexecemu.kernel.boot.unmodelled import not_modelled
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.image.protection import protect_crashkres
from kexecemu.kernel.load.kexec_core import alloc_crash_control_pages, sanity_check_segment_list
from kexecemu.kernel.memory.crashkernel import CrashReservation, tells_of_reservation, why_nothing
from kexecemu.kernel.memory.linear_price import CountedTables, LinearMapPrice, measure_linear_map
from kexecemu.kernel.memory.pageattr import mark_linear_data_alias
from kexecemu.kernel.memory.paging import granule_of
from kexecemu.kernel.memory.ptdump import ptdump_linear_map
from kexecemu.machine import virt
from kexecemu.machine.memory.descriptors import TableFormat
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["BUILT_UP_TO", "LinearMapSurvey", "LoadPrice", "survey_linear_map"]

BUILT_UP_TO = 4 << 30
"""Bytes of RAM up to which the tables are built in any case."""


@shown()
@dataclass(frozen=True)
class LoadPrice:
    """What protecting a loaded image adds: tables that split blocks need, and entries that are written."""

    table_pages: int
    entries: int


@shown()
@dataclass(frozen=True)
class LinearMapSurvey:
    """The linear map of one machine as one kernel would build it.

    text is the physical range of the read-only alias; messages what the kernel would print about rodata= and its
    reservation; method "built" if the tables were in guest RAM, "formula" if they were reckoned. load and ptdump are
    there if they were asked for. data is the physical range of the kernel's data and bss, whose alias is the era's
    data_alias. warnings are what is not modelled of what was asked for.
    """

    config: KernelConfig
    cmdline: str
    text: PhysRange
    reason: str
    reservation: CrashReservation
    messages: tuple[str, ...]
    price: LinearMapPrice
    method: str
    load: LoadPrice | None = None
    ptdump: str | None = None
    data: PhysRange | None = None
    warnings: tuple[str, ...] = ()


def survey_linear_map(
    banks: Sequence[PhysRange],
    config: KernelConfig,
    cmdline: str,
    *,
    text: PhysRange | None = None,
    loaded: Sequence[Segment] | None = None,
    ptdump: bool = False,
    build: bool | None = None,
    bbm: int = 0,
) -> LinearMapSurvey:
    """Work out the linear map of a board with this RAM (physical banks) under this command line.

    text is the physical range that gets the read-only alias (default: that of the kernel that ships, where a boot
    loader puts it). It is then taken for the whole kernel image: what lies behind it is not known. loaded segments
    are protected as after a load, which does not change the price. build says whether to build the tables or to
    reckon; by default they are built up to BUILT_UP_TO bytes of RAM, and wherever loaded or ptdump needs them. bbm is
    the CPUs' level of FEAT_BBM.
    Raises InputError for a machine that cannot boot, a text outside RAM, segments that a kernel would not take, a
    protection that this map cannot express, and a map that is too large to be built.
    """
    if text is not None:
        _check_text(banks, text, config.page_size)
    if build is None:
        build = ptdump or loaded is not None or sum(bank.size for bank in banks) <= BUILT_UP_TO
    # Reckoning needs no RAM but for the boot loader, and that looks no further than the start of the first bank.
    first = banks[0]
    backed = banks if build else [PhysRange.of(first.start, min(first.size, BUILT_UP_TO))]
    try:
        ram = Ram(backed)
    except MachineError as error:
        raise InputError(str(error)) from error
    try:
        return _survey(ram, banks, config, cmdline, text, loaded, ptdump, build, bbm)
    finally:
        ram.close()


def _survey(
    ram: Ram,
    banks: Sequence[PhysRange],
    config: KernelConfig,
    cmdline: str,
    text: PhysRange | None,
    loaded: Sequence[Segment] | None,
    ptdump: bool,
    build: bool,
    bbm: int,
) -> LinearMapSurvey:
    dtb = Fdt(firmware.set_bootargs(virt_device_tree(banks, 1, virt.UART.start), cmdline))
    vmlinux = guest_vmlinux(config)
    layout, dtb_phys = _layout(vmlinux, ram, dtb, text)
    page = config.page_size
    memstart = memstart_addr(banks[0].start, page)
    size = layout.end - layout.text
    space = AddressSpace.of(config, memstart, vmlinux.virt("_text"), layout.text, size)
    said: list[str] = []
    memblock = early_init_dt_scan(dtb, config, said.append)
    early = parse_early_param(config, cmdline, said.append)
    messages = [line for line in said if not line.startswith("OF: ")]
    reserved = arm64_memblock_init(
        memblock, dtb, dtb_phys, cmdline, early, space, layout, config, said.append
    )
    fmt = TableFormat(granule_of(page), space.vabits_actual)

    def alloc_tables(count: int) -> None:
        if memblock.phys_alloc_pages(count, page) < count:
            raise InputError(TOO_SMALL)

    # The root is static in the kernel image. Nothing of the image is in RAM here, so its first page of text will do.
    tables = PageTables(ram, fmt, layout.stext, lambda: alloc_table(memblock, page))
    counted = CountedTables(fmt, alloc_tables)
    target = tables if build else counted
    arch = setup_memory(
        memblock, cmdline, early, config, space, layout, target, dtb, reserved, said.append, bbm
    )
    if build:
        mark_linear_data_alias(tables, space, config, cmdline, arch.plan)
    price = measure_linear_map(tables, space) if build else counted.price
    # Of what the kernel would say only what decides about the map is of interest here.
    reserved_as = [line for line in said if tells_of_reservation(line)]
    load = None if loaded is None else _protect(loaded, config, arch, tables, space, cmdline, reserved_as)
    told = (*messages, *reserved_as)
    found = config, cmdline, text_alias(config, layout), arch.plan.reason, arch.reservation, told, price
    dump = ptdump_linear_map(tables, space) if ptdump else None
    how, warnings = "built" if build else "formula", tuple(not_modelled(config, cmdline, dtb))
    return LinearMapSurvey(*found, how, load, dump, arch.plan.data, warnings)


def _check_text(banks: Sequence[PhysRange], text: PhysRange, page: int) -> None:
    if not text.size or text.start % page or text.end % page:
        raise InputError(
            f"kernel text {text.start:#x}-{text.end:#x} is not made of whole pages of {page:#x} bytes"
        )
    if not any(bank.covers(text) for bank in banks):
        raise InputError(f"kernel text {text} is outside RAM ({', '.join(str(bank) for bank in banks)})")


def _layout(vmlinux: Vmlinux, ram: Ram, dtb: Fdt, text: PhysRange | None) -> tuple[TextLayout, int]:
    """Where the kernel image's parts are, and the device tree: physical addresses."""
    if text is not None:
        places = firmware.choose_places(ram, 0, dtb)
        return TextLayout(text.start, text.start, text.end, text.end), places.dtb_phys
    places = firmware.choose_places(ram, vmlinux.size, dtb)
    offset = places.kernel_phys - vmlinux.virt("_text")
    return TextLayout(*(vmlinux.virt(name) + offset for name in IMAGE_MARKS)), places.dtb_phys


def _protect(
    loaded: Sequence[Segment],
    config: KernelConfig,
    arch: ArchSetup,
    tables: PageTables,
    space: AddressSpace,
    cmdline: str,
    messages: Sequence[str],
) -> LoadPrice:
    """Protect the segments as a load does at its end; InputError for an image that a kernel would have refused."""
    crashk_res = arch.reservation.crashk_res
    if crashk_res is None:
        words = why_nothing(config.release, cmdline, arch.memblock.phys_mem_size, messages)
        raise InputError(f"nothing can be loaded: no crashkernel memory is reserved: {words}")
    image = Kimage(control_page=crashk_res.start, segments=list(loaded))
    page = config.page_size
    try:
        sanity_check_segment_list(image, crashk_res, arch.memblock.phys_mem_size // page, page)
        for what in ("control_code_buffer", "vmcoreinfo copy buffer"):
            alloc_crash_control_pages(image, crashk_res, page, what)
    except KexecError as error:
        raise InputError(f"these segments cannot have been loaded: {error.reason}") from error
    pages_before, entries_before = len(tables.tables), tables.entries_written
    protect_crashkres(config, tables, space, image, crashk_res, splits=arch.plan.splits)
    return LoadPrice(len(tables.tables) - pages_before, tables.entries_written - entries_before)
