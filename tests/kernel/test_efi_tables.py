"""What UEFI and the stub leave: where kernel, tree and initrd are by the map's types, and the tables in memory."""

from __future__ import annotations

import re
import struct

import pytest
from test_efi_maps import DTB, MAP

from kexecemu.errors import InputError
from kexecemu.formats.efi_map import EfiDescriptor, EfiMap
from kexecemu.formats.fdt import Fdt, FdtEditor
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.efi_init import (
    efi_boot,
    efi_init,
    efi_parameters,
    efi_ram,
    read_efi_map,
    write_tables,
)
from kexecemu.kernel.boot.firmware import BootPlaces
from kexecemu.kernel.boot.setup_memory import TextLayout
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
WB, WC, UC, RUN = 1 << 3, 1 << 1, 1, 1 << 63
TREE = Fdt(DTB)
KERNEL = (0x50000000, 16 * MIB + 64 * KIB)
FDT = (0x60000000, 2 * MIB)


def entry(kind: str, start: int, size: int, attributes: int = WB) -> EfiDescriptor:
    return EfiDescriptor(PhysRange.of(start, size), kind, attributes)


def made(
    code: list[tuple[int, int]] | None = None, data: list[tuple[int, int]] | None = None, **more: object
) -> EfiMap:
    """A map with these of Loader Code and of Loader Data."""
    descriptors = [entry("Loader Code", *one) for one in ([KERNEL] if code is None else code)]
    descriptors += [entry("Loader Data", *one) for one in ([FDT] if data is None else data)]
    return EfiMap((*descriptors, entry("Conventional", GIB, MIB)), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "kernel"),
    [
        # The firmware's has room for its alignment: 64 KiB more than the image.
        ([(0x50000000, 16 * MIB + 64 * KIB)], (0x50000000, 16 * MIB)),
        ([(0x50001000, 16 * MIB + 64 * KIB)], (0x50010000, 16 * MIB)),
        ([(0x5000F000, 16 * MIB + 64 * KIB)], (0x50010000, 16 * MIB)),
        ([(0x50000000, MIB), (0x58000000, 16 * MIB + 64 * KIB)], (0x58000000, 16 * MIB)),
        # The stub has moved it: exactly as large, and aligned.
        ([(0x50000000, 16 * MIB + 64 * KIB), (0x70000000, 16 * MIB)], (0x70000000, 16 * MIB)),
        ([(0x50000000, 16 * MIB), (0x70000000, 16 * MIB)], (0x70000000, 16 * MIB)),
        ([(0x50000000, 16 * MIB + 64 * KIB), (0x70001000, 16 * MIB)], (0x50000000, 16 * MIB)),
        ([(0x50000000, 16 * MIB + 64 * KIB), (0x70000000, 15 * MIB)], (0x50000000, 16 * MIB)),
        ([(0x50001000, 4 * KIB)], (0x50010000, 0)),
    ],
)
def test_the_kernel_is_where_firmware_loaded_it_or_where_the_stub_has_moved_it(
    code: list[tuple[int, int]], kernel: tuple[int, int]
) -> None:
    assert efi_boot(TREE, made(code)).kernel == PhysRange.of(*kernel)


@pytest.mark.parametrize(
    ("data", "more", "dtb", "initrd"),
    [
        ([FDT], {}, 0x60000000, None),
        ([FDT, (0x61000000, 3 * MIB)], {}, 0x60000000, (0x61000000, 3 * MIB)),
        ([(0x61000000, 3 * MIB), FDT], {}, 0x60000000, (0x61000000, 3 * MIB)),
        ([FDT, (0x61000000, 256 * KIB)], {}, 0x60000000, (0x61000000, 256 * KIB)),
        ([FDT, (0x61000000, 252 * KIB)], {}, 0x60000000, None),
        # The tree is below an initrd that it touches.
        ([(0x60000000, 5 * MIB), (0x70000000, 4 * MIB)], {}, 0x60000000, (0x60200000, 3 * MIB)),
        # Of a log with tables it is one of them, and as long as what is freed of it.
        ([FDT, (0x61000000, 3 * MIB)], {"tables": {"INITRD": 1}}, 0x60000000, (0x61000000, 3 * MIB)),
        ([FDT, (0x61000000, 3 * MIB)], {"tables": {"SMBIOS": 1}}, 0x60000000, None),
        ([FDT, (0x61000000, 3 * MIB)], {"initrd_size": MIB}, 0x60000000, (0x61000000, MIB)),
        ([FDT, (0x61000000, 3 * MIB)], {"initrd_size": 3 * MIB}, 0x60000000, (0x61000000, 3 * MIB)),
        ([FDT, (0x61000000, 3 * MIB)], {"initrd_size": 4 * MIB}, 0x60000000, (0x61000000, 3 * MIB)),
    ],
)
def test_tree_and_initrd_are_what_the_stub_has_allocated_last(
    data: list[tuple[int, int]], more: dict[str, object], dtb: int, initrd: tuple[int, int] | None
) -> None:
    found = efi_boot(TREE, made(data=data, **more))  # type: ignore[arg-type]
    assert (found.dtb_phys, found.initrd) == (dtb, None if initrd is None else PhysRange.of(*initrd))


def test_what_leads_nowhere_is_refused() -> None:
    for bad, words in (
        (made(code=[]), "EFI memory map: no Loader Code, and so no place of the first kernel"),
        (
            made(data=[(0x60000000, 2 * MIB - 4096)]),
            "EFI memory map: no Loader Data of 2 MiB, and so no place of the device tree",
        ),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
            efi_boot(TREE, bad)
    # What cannot be cached is no place of either.
    uncached = EfiMap((entry("Loader Code", *KERNEL, UC), entry("Loader Data", *FDT)))
    with pytest.raises(InputError, match="no Loader Code"):
        efi_boot(TREE, uncached)
    for name in efi_parameters(TREE) or {}:
        editor = FdtEditor(DTB)
        chosen = editor.path_offset("/chosen")
        assert chosen is not None
        editor.delprop(chosen, name)
        assert efi_parameters(editor) is None
        with pytest.raises(InputError, match="is of no boot by EFI: its /chosen has no linux,uefi-"):
            efi_boot(editor, MAP)


def test_kernel_and_tree_must_fit_where_they_were() -> None:
    found = efi_boot(TREE, made())
    places = BootPlaces(0x50000000, 0x60000000)
    assert found.places(16 * MIB, 2 * MIB) == places
    size = re.escape(
        "the map has 0x1000000 bytes for the first kernel at 0x50000000, and the model's has 0x1000001"
    )
    with pytest.raises(InputError, match=f"^EFI memory map: {size}$"):
        found.places(16 * MIB + 1, 0)
    with pytest.raises(
        InputError, match=r"^the device tree has 0x200001 bytes, and a kernel takes 0x200000 at most"
    ):
        found.places(MIB, 2 * MIB + 1)


def test_of_the_kernel_s_parts_the_ends_are_known_and_the_others_nearly() -> None:
    start, size = 0x50000000, 16 * MIB
    text, init = (start + int(size * share) // 65536 * 65536 for share in (0.78, 0.88))
    end = start + size
    assert efi_boot(TREE, made()).layout == TextLayout(start, start + 65536, text, end, init, end)
    assert efi_boot(TREE, MAP).mmap.start == (efi_parameters(TREE) or {})["linux,uefi-mmap-start"]


def test_ram_is_all_that_can_be_cached_whoever_uses_it() -> None:
    found = EfiMap(
        (
            entry("Conventional", GIB, MIB),
            entry("Runtime Data", GIB + MIB, MIB, WB | RUN),
            entry("Conventional", 2 * GIB, MIB, WC),
            entry("MMIO", 3 * GIB, MIB, UC | RUN),
        )
    )
    assert efi_ram(found) == [PhysRange.of(GIB, 2 * MIB)]


def test_the_log_tells_parameters_banner_tables_and_map_in_the_kernel_s_order() -> None:
    numbers = efi_parameters(TREE) or {}
    loud = made(banner="EFI v2.7 by Acme", tables={"ACPI 2.0": 0x7000, "MEMATTR": 0x8000}, memattr=3)
    said: list[str] = []
    memory = Memblock()
    efi_init(memory, TREE, efi_boot(TREE, loud), KernelConfig("6.12"), "efi=debug", said.append)
    assert said == [
        "efi: Getting UEFI parameters from /chosen in DT:",
        f"efi:   System Table         : {numbers['linux,uefi-system-table']:#018x}",
        f"efi:   MemMap Address       : {numbers['linux,uefi-mmap-start']:#018x}",
        f"efi:   MemMap Size          : {numbers['linux,uefi-mmap-size']:#018x}",
        f"efi:   MemMap Desc. Size    : {numbers['linux,uefi-mmap-desc-size']:#018x}",
        f"efi:   MemMap Desc. Version : {numbers['linux,uefi-mmap-desc-ver']:#018x}",
        f"efi:   Secure Boot Enabled  : {numbers['linux,uefi-secure-boot']:#010x}",
        "efi: EFI v2.7 by Acme",
        "efi: ACPI 2.0=0x7000 MEMATTR=0x8000 ",
        "efi: Processing EFI memory map:",
        *(f"efi: {one.line()}" for one in loud.descriptors),
    ]
    # A table of memory attributes has 16 bytes and an entry of 48 each; the map's own pages are taken as well.
    assert PhysRange.of(0x8000, 16 + 3 * 48) in memory.reserved
    start, size = numbers["linux,uefi-mmap-start"], numbers["linux,uefi-mmap-size"]
    pages = PhysRange(start // 4096 * 4096, -(-(start + size) // 4096) * 4096)
    assert pages in memory.reserved and len(memory.reserved) == 2
    said.clear()
    efi_init(Memblock(), TREE, efi_boot(TREE, made()), KernelConfig("6.12"), "efi", said.append)
    assert said == []


def test_a_map_without_memory_boots_no_kernel() -> None:
    empty = EfiMap((entry("Loader Code", *KERNEL, WB), entry("Loader Data", *FDT, WB)))
    boot = efi_boot(TREE, empty)
    none = type(boot)(EfiMap((entry("MMIO", GIB, MIB, UC),)), boot.parameters, boot.kernel, None, 0)
    words = "EFI memory map: the first kernel finds no memory in it, and does not boot"
    with pytest.raises(InputError, match=f"^{words}$"):
        efi_init(Memblock(), TREE, none, KernelConfig("6.12"), "", list[str]().append)


def parameters(table: int, start: int, size: int) -> dict[str, int]:
    return {"linux,uefi-system-table": table, "linux,uefi-mmap-start": start, "linux,uefi-mmap-size": size}


def test_a_system_table_without_any_table_and_the_map_are_where_the_tree_says() -> None:
    """efi_system_table_t of UEFI 2.10: "IBI SYST", 2.70 here, its size; all behind it is zero."""
    ram = Ram([PhysRange.of(GIB, 4 * MIB), PhysRange.of(2 * GIB, MIB)])
    try:
        write_tables(ram, parameters(GIB, GIB + MIB, 144), None)
        table = ram.read(GIB, 120)
        assert table[:8] == b"IBI SYST" and struct.unpack_from("<II", table, 8) == (2 << 16 | 70, 120)
        assert not any(table[16:])
        entries = list(struct.iter_unpack("<IIQQQQQ", ram.read(GIB + MIB, 144)))
        # Both banks, cached; and one page that nobody has, as if at run time.
        assert [(one[0], one[2], one[4], one[5]) for one in entries] == [
            (7, GIB, 1024, WB),
            (7, 2 * GIB, 256, WB),
            (11, GIB, 1, RUN),
        ]
        # What is known is written as it is, as far as there is room, and zeros behind it.
        ram.write(GIB + MIB, b"\xff" * 4097)
        write_tables(ram, parameters(GIB, GIB + MIB, 4096), made())
        content = made().pack()
        assert ram.read(GIB + MIB, 4097) == content.ljust(4096, b"\0") + b"\xff"
        ram.fill(GIB + MIB, MIB)
        write_tables(ram, parameters(GIB, GIB + MIB, 50), made())
        assert ram.read(GIB + MIB, 64) == content[:50] + bytes(14)
        # Where no RAM is nothing is written, nor more than a map could have.
        write_tables(ram, parameters(3 * GIB, 2 * GIB + MIB - 64, 144), made())
        ram.write(GIB + 2 * MIB, b"\xff" * (MIB + 1))
        write_tables(ram, parameters(GIB, GIB + 2 * MIB, 1 << 60), made())
        assert ram.read(GIB + 2 * MIB, MIB + 1) == content.ljust(MIB, b"\0") + b"\xff"
    finally:
        ram.close()


def test_what_is_wrong_with_a_log_is_said_with_its_name_where_it_has_one(tmp_path: object) -> None:
    assert read_efi_map(MAP) is MAP
    words = "no line of an EFI memory map: a kernel prints it where its command line has efi=debug"
    with pytest.raises(InputError, match=f"^EFI memory map: {words}$"):
        read_efi_map(b"\xff")
    path = f"{tmp_path}/dmesg"
    with open(path, "wb") as file:
        file.write(b"hello\n")
    with pytest.raises(InputError, match=f"^EFI memory map {path}: {words}$"):
        read_efi_map(path)
