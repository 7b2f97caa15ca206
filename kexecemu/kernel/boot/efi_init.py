"""Memory as UEFI describes it: what a kernel that was booted by it has in place of the tree's memory nodes.

Followed: efi_init(), reserve_regions() and efi_get_fdt_params() of drivers/firmware/efi, and what memblock is asked for
by efi_config_parse_tables(). Where firmware and the kernel's EFI stub have put things is read from the map's types, by
how drivers/firmware/efi/libstub allocates.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kexecemu.arguments import contents
from kexecemu.errors import FormatError, InputError
from kexecemu.formats.efi_map import DESCRIPTOR_SIZE, EFI_PAGE, EfiDescriptor, EfiMap, parse_efi_map
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.address_space import align_up
from kexecemu.kernel.base.cmdline import parameters
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.fdt_memory import (
    add_memory,
    check_for_usable_mem_range,
    early_init_dt_scan,
)
from kexecemu.kernel.boot.firmware import BootPlaces, bootargs_of
from kexecemu.kernel.boot.setup_memory import TextLayout
from kexecemu.kernel.memory.memblock import Memblock, merge, within_pages
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange
from kexecemu.shown import shown

__all__ = ["EfiBoot", "efi_boot", "efi_init", "efi_parameters", "efi_ram", "first_cmdline"]
__all__ += ["first_memory", "read_efi_map", "write_tables"]

_PARAMETERS = (
    ("linux,uefi-system-table", "System Table         ", 8),
    ("linux,uefi-mmap-start", "MemMap Address       ", 8),
    ("linux,uefi-mmap-size", "MemMap Size          ", 8),
    ("linux,uefi-mmap-desc-size", "MemMap Desc. Size    ", 8),
    ("linux,uefi-mmap-desc-ver", "MemMap Desc. Version ", 8),
    ("linux,uefi-secure-boot", "Secure Boot Enabled  ", 4),
)
_USABLE = (
    "Loader Code",
    "Loader Data",
    "ACPI Reclaim",
    "Boot Code",
    "Boot Data",
    "Conventional",
    "Persistent",
)
_ALLOC_ALIGN = 64 << 10  # EFI_ALLOC_ALIGN, and SEGMENT_ALIGN of the image
_FDT_ROOM = 2 << 20  # MAX_FDT_SIZE, which the stub allocates for the tree
_MEMRESERVE_SIZE = 16  # struct linux_efi_memreserve, of which the stub makes one without entries
_MEMATTR_HEAD = 16
_SIGNATURE, _REVISION = 0x5453595320494249, 2 << 16 | 70
_WRITE_BACK, _RUNTIME = 1 << 3, 1 << 63
_MOST_MAP = 1 << 20
_SYSTEM_TABLE = struct.Struct("<QIIII96x")
# Of 6.1's image 73 % are text and read-only data and 6.12's 81 %; behind them comes what is freed after the boot.
_TEXT_SHARE, _INIT_SHARE = 0.78, 0.88

Print = Callable[[str], None]


@shown()
@dataclass(frozen=True)
class EfiBoot:
    """A boot by UEFI: the map, and the numbers in /chosen that lead to it, by their properties' names.

    kernel is where the first kernel's image lies and initrd where its initrd does, dtb_phys its device tree: physical.
    """

    map: EfiMap
    parameters: dict[str, int]
    kernel: PhysRange
    initrd: PhysRange | None
    dtb_phys: int

    @property
    def mmap(self) -> PhysRange:
        """Where the memory map itself lies, physical."""
        names = "linux,uefi-mmap-start", "linux,uefi-mmap-size"
        return PhysRange.of(*(self.parameters[name] for name in names))

    @property
    def layout(self) -> TextLayout:
        """The parts of the first kernel's image, of which only the ends are known, and the others nearly."""
        text, size = self.kernel.start, self.kernel.size
        begin, end = (
            text + int(size * share) // _ALLOC_ALIGN * _ALLOC_ALIGN for share in (_TEXT_SHARE, _INIT_SHARE)
        )
        return TextLayout(text, text + _ALLOC_ALIGN, begin, self.kernel.end, end, self.kernel.end)

    def places(self, kernel_size: int, tree_size: int) -> BootPlaces:
        """Where the stub has put kernel and tree; InputError where a kernel of this size does not fit."""
        if kernel_size > self.kernel.size:
            words = f"the map has {self.kernel.size:#x} bytes for the first kernel at {self.kernel.start:#x}"
            raise InputError(f"EFI memory map: {words}, and the model's has {kernel_size:#x}")
        if tree_size > _FDT_ROOM:
            size = f"the device tree has {tree_size:#x} bytes, and a kernel takes {_FDT_ROOM:#x} at most"
            raise InputError(f"{size}: the first kernel does not boot")
        return BootPlaces(self.kernel.start, self.dtb_phys)


def read_efi_map(log: EfiMap | bytes | str | Path) -> EfiMap:
    """The map in a boot log, given as bytes or by its path; InputError that names the path."""
    if isinstance(log, EfiMap):
        return log
    try:
        return parse_efi_map(contents(log, "EFI memory map").decode("utf-8", "replace"))
    except FormatError as error:
        where = "" if isinstance(log, bytes) else f" {log}"
        raise InputError(f"EFI memory map{where}: {error}") from error


def efi_ram(efi_map: EfiMap) -> list[PhysRange]:
    """The RAM of a board with this map, whoever uses it: all that can be cached."""
    return merge([one.area for one in efi_map.descriptors if one.has("WB")])


def efi_parameters(tree: Fdt) -> dict[str, int] | None:
    """efi_get_fdt_params(): the numbers in /chosen, by their properties' names; None where one is not there."""
    chosen = tree.path_offset("/chosen")
    values = {name: tree.getprop(chosen, name) if chosen is not None else None for name, _, _ in _PARAMETERS}
    found = {name: int.from_bytes(value[:8], "big") for name, value in values.items() if value is not None}
    return found if len(found) == len(_PARAMETERS) else None


def efi_boot(tree: Fdt, efi_map: EfiMap) -> EfiBoot:
    """What UEFI and the stub have left; InputError for a tree that they have not been at."""
    found = efi_parameters(tree)
    if found is None:
        missing = "its /chosen has no linux,uefi-* that lead to one"
        raise InputError(f"an EFI memory map is given, and the device tree is of no boot by EFI: {missing}")
    kernel = _kernel(efi_map)
    dtb_phys, initrd = _loader_data(efi_map)
    return EfiBoot(efi_map, found, kernel, initrd, dtb_phys)


def _loads(efi_map: EfiMap, kind: str) -> list[EfiDescriptor]:
    return sorted(
        (one for one in efi_map.of(kind) if one.has("WB")), key=lambda one: (-one.area.size, one.area)
    )


def _kernel(efi_map: EfiMap) -> PhysRange:
    """Where the kernel runs: where the firmware loaded it, or where the stub moved it to (efi_kaslr_relocate_kernel()).

    The firmware's is the largest of Loader Code, and has room for its alignment; the stub's has exactly the image.
    """
    found = [one.area for one in _loads(efi_map, "Loader Code")]
    if not found:
        raise InputError("EFI memory map: no Loader Code, and so no place of the first kernel")
    loaded = found[0]
    for moved in found[1:]:
        if moved.size in (loaded.size - _ALLOC_ALIGN, loaded.size) and not moved.start % _ALLOC_ALIGN:
            return moved
    start = align_up(loaded.start, _ALLOC_ALIGN)
    return PhysRange(start, max(start, loaded.start + (loaded.size - _ALLOC_ALIGN) + (start - loaded.start)))


def _loader_data(efi_map: EfiMap) -> tuple[int, PhysRange | None]:
    """Where the tree is, and the initrd: what the stub allocates last, and the largest there is besides.

    Firmware gives the highest that is free, so that the tree is below an initrd that it touches.
    """
    found = [one.area for one in _loads(efi_map, "Loader Data") if one.area.size >= _FDT_ROOM]
    if not found:
        raise InputError("EFI memory map: no Loader Data of 2 MiB, and so no place of the device tree")
    exact = [area for area in found if area.size == _FDT_ROOM]
    fdt = exact[0] if exact else found[0]
    others = [area for area in _loads_areas(efi_map) if area != fdt and area.size >= 4 * _ALLOC_ALIGN]
    rest = PhysRange(fdt.start + _FDT_ROOM, fdt.end)
    initrd = rest if rest.size else others[0] if others else None
    if "INITRD" not in efi_map.tables and efi_map.tables:
        initrd = None
    if initrd is not None and 0 < efi_map.initrd_size <= initrd.size:
        initrd = PhysRange.of(initrd.start, efi_map.initrd_size)
    return fdt.start, initrd


def _loads_areas(efi_map: EfiMap) -> list[PhysRange]:
    return [one.area for one in _loads(efi_map, "Loader Data")]


def first_memory(tree: Fdt, config: KernelConfig, efi: EfiBoot | None) -> Memblock:
    """The memory that a kernel finds before it looks what is taken of it, without a word."""
    memblock = early_init_dt_scan(tree, config, lambda text: None, required=efi is None)
    if efi is not None:
        efi_init(memblock, tree, efi, config, first_cmdline(tree), lambda text: None)
    return memblock


def first_cmdline(tree: Fdt) -> str:
    """The command line in /chosen, "" without one."""
    return bootargs_of(tree).decode("utf-8", "backslashreplace")


def efi_init(
    memblock: Memblock, tree: Fdt, efi: EfiBoot, config: KernelConfig, cmdline: str, log: Print
) -> None:
    """efi_init(): the map in place of what memblock had, and what UEFI's tables take; log gets the kernel's words."""
    asked = {word for value in parameters(cmdline, "efi") for word in value.split(",")}
    debug, efi_map = "debug" in asked, efi.map
    if debug:
        log("efi: Getting UEFI parameters from /chosen in DT:")
        for name, words, size in _PARAMETERS:
            log(f"efi:   {words}: {efi.parameters[name]:#0{2 * size + 2}x}")
    if efi_map.banner:
        log(f"efi: {efi_map.banner}")
    if efi_map.tables:
        log("efi: " + " ".join(f"{name}={phys:#x}" for name, phys in efi_map.tables.items()) + " ")
    _reserve_tables(memblock, efi_map)
    if debug:
        log("efi: Processing EFI memory map:")
    memblock.remove(PhysRange(0, 1 << 64))
    for one in efi_map.descriptors:
        if debug:
            log(f"efi: {one.line()}")
        _add(memblock, one, config.page_size, "nosoftreserve" not in asked, log)
    check_for_usable_mem_range(tree, config, memblock)
    if not memblock.memory:
        raise InputError("EFI memory map: the first kernel finds no memory in it, and does not boot")
    memblock.reserve(_pages(efi.mmap, config.page_size))


def _pages(area: PhysRange, page: int) -> PhysRange:
    return PhysRange(area.start // page * page, align_up(area.end, page))


def _reserve_tables(memblock: Memblock, efi_map: EfiMap) -> None:
    """efi_memattr_init(), and the list of what an earlier kernel has given to devices, which is empty at first."""
    if phys := efi_map.tables.get("MEMATTR"):
        memblock.reserve(PhysRange.of(phys, _MEMATTR_HEAD + efi_map.memattr * DESCRIPTOR_SIZE))
    if phys := efi_map.tables.get("MEMRESERVE"):
        memblock.reserve(PhysRange.of(phys, _MEMRESERVE_SIZE))


def _add(memblock: Memblock, one: EfiDescriptor, page: int, soft_reserve: bool, log: Print) -> None:
    """What reserve_regions() does with one descriptor: only what can be cached is used, other memory is no-map."""
    if not one.has("WB", "WT", "WC") or (soft_reserve and one.has("SP")):
        return
    area = _pages(one.area, page)  # memrange_efi_to_native()
    add_memory(memblock, area.start, area.size, page, log)
    if one.kind not in _USABLE or not one.has("WB"):
        memblock.mark_nomap(area)
    if one.kind == "ACPI Reclaim":
        memblock.reserve(area)


def write_tables(ram: Ram, parameters: Mapping[str, int], efi_map: EfiMap | None) -> None:
    """The map and a system table without configuration tables, where a capture kernel will look for them.

    parameters are those in /chosen. Where the map is not known it has RAM and what is nobody's. Firmware that is not
    there cannot be called: nothing of it has a virtual address.
    """
    if efi_map is None:
        ranges = within_pages(list(ram.banks), EFI_PAGE)
        found = [EfiDescriptor(area, "Conventional", _WRITE_BACK) for area in ranges]
        efi_map = EfiMap((*found, EfiDescriptor(PhysRange.of(ranges[0].start, EFI_PAGE), "MMIO", _RUNTIME)))
    size = parameters["linux,uefi-mmap-size"]
    table = _SYSTEM_TABLE.pack(_SIGNATURE, _REVISION, _SYSTEM_TABLE.size, 0, 0)
    for phys, content in (
        (parameters["linux,uefi-system-table"], table),
        (parameters["linux,uefi-mmap-start"], efi_map.pack()[:size].ljust(min(size, _MOST_MAP), b"\0")),
    ):
        area = PhysRange.of(phys, len(content))
        if any(bank.covers(area) for bank in ram.banks):
            ram.write(phys, content)
