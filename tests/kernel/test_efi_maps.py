"""Memory maps that UEFI might give: whatever is in them, only what can be used is mapped, dumped and loaded into."""

from __future__ import annotations

import gzip
import io
import random
import re
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from kernel_bench import IMAGE, INITRD

from kexecemu.formats.efi_map import EfiDescriptor, EfiMap, parse_efi_map
from kexecemu.formats.fdt import Fdt, FdtEditor, cells
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.efi_init import efi_boot, efi_init, efi_ram
from kexecemu.kernel.memory.memblock import Memblock, across_pages, merge
from kexecemu.kernel.model import KernelModel
from kexecemu.kernel.procfs import proc_iomem
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange, subtract

DATA = Path(__file__).parents[1] / "data" / "efi"
DTB = gzip.decompress((DATA / "efi-2G-file-6.12.117.dtb.gz").read_bytes())
MAP = parse_efi_map(gzip.decompress((DATA / "efi-2G-file-6.12.117.txt.gz").read_bytes()).decode())
USABLE = {
    "Loader Code",
    "Loader Data",
    "ACPI Reclaim",
    "Boot Code",
    "Boot Data",
    "Conventional",
    "Persistent",
}
WB, WT, WC, UC, SP, RUN = 1 << 3, 1 << 2, 1 << 1, 1, 1 << 18, 1 << 63
MIB = 1 << 20


def cut(efi_map: EfiMap, area: PhysRange, kind: str, attributes: int) -> EfiMap:
    """The map with another entry in the middle of the one that has these addresses."""
    found: list[EfiDescriptor] = []
    for one in efi_map.descriptors:
        if one.area.covers(area):
            found += [EfiDescriptor(part, one.kind, one.attributes) for part in subtract([one.area], [area])]
            found.append(EfiDescriptor(area, kind, attributes))
        else:
            found.append(one)
    return EfiMap(tuple(found), efi_map.tables)


def any_map(seed: int) -> EfiMap:
    """Up to twelve holes of any kind in what is free."""
    chance, made = random.Random(seed), MAP
    kinds = [
        "Reserved",
        "Runtime Data",
        "Unusable",
        "ACPI Mem NVS",
        "ACPI Reclaim",
        "Persistent",
        "type=4096",
        "MMIO",
    ]
    for _ in range(chance.randrange(1, 13)):
        free = chance.choice([one for one in made.of("Conventional") if one.area.size > 64 << 10]).area
        start = free.start + chance.randrange(free.size // 4096) * 4096
        end = min(free.end, start + chance.choice([1, 3, 16, 700, 5000]) * 4096)
        made = cut(
            made,
            PhysRange(start, end),
            chance.choice(kinds),
            chance.choice([WB, WB | RUN, WT, WC, UC, 0, WB | SP]),
        )
    return made


def loads(core: bytes) -> list[PhysRange]:
    headers = [
        one.header for one in ELFFile(io.BytesIO(core)).iter_segments() if one.header.p_type == "PT_LOAD"
    ]
    return [PhysRange.of(one.p_paddr, one.p_memsz) for one in headers[1:]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("era", ["6.1", "7.3"])
def test_what_cannot_be_used_is_in_no_header_and_no_segment(era: str, seed: int) -> None:
    made = any_map(seed)
    usable = merge(
        [
            one.area
            for one in made.descriptors
            if one.kind in USABLE and one.attributes & WB and not one.attributes & SP
        ]
    )
    board = Board(efi_ram(made), 1)
    with KernelModel.boot(
        board, KernelConfig(era), cmdline="crashkernel=128M", dtb=DTB, efi_map=made
    ) as kernel:
        crash = kernel.crashk_res
        assert crash is not None and any(area.covers(crash) for area in usable)
        ram = [
            PhysRange(int(start, 16), int(last, 16) + 1)
            for start, last in re.findall(r"^(\w+)-(\w+) : System RAM$", proc_iomem(kernel), re.M)
        ]
        assert ram == usable
        for load in (kernel.kexec_file_load, kernel.kexec_tools_load):
            image = load(IMAGE, INITRD, "console=ttyAMA0")
            assert image is not None
            core = image.segment("elfcorehdr")
            assert core is not None
            assert merge(loads(bytes(core.buf))) == subtract(usable, [crash])
            assert all(crash.covers(PhysRange.of(one.mem, one.memsz)) for one in image.segments)


def memory(
    made: EfiMap, page: str = "ARM64_4K_PAGES", cmdline: str = "", tree: bytes = DTB
) -> tuple[Memblock, list[str]]:
    """memblock after efi_init()."""
    said: list[str] = []
    memblock, found = Memblock(), Fdt(tree)
    memblock.add(PhysRange.of(1 << 40, MIB))  # from a memory node
    config = KernelConfig("6.12", options={page: "y"})
    efi_init(memblock, found, efi_boot(found, made), config, cmdline, said.append)
    return memblock, said


@pytest.mark.parametrize(
    ("kind", "attributes", "is_memory", "is_nomap", "is_reserved"),
    [
        ("Conventional", WB, True, False, False),
        ("Persistent", WB, True, False, False),
        ("Conventional", WT, True, True, False),
        ("Conventional", WC, True, True, False),
        ("Conventional", UC, False, False, False),
        ("Conventional", 0, False, False, False),
        ("Conventional", WB | SP, False, False, False),
        ("Runtime Code", WB | RUN, True, True, False),
        ("Reserved", WB, True, True, False),
        ("Reserved", UC, False, False, False),
        ("Unusable", WB, True, True, False),
        ("ACPI Mem NVS", WB, True, True, False),
        ("ACPI Reclaim", WB, True, False, True),
        ("ACPI Reclaim", WT, True, True, True),
        ("ACPI Reclaim", UC, False, False, False),
        ("MMIO", UC | RUN, False, False, False),
        ("MMIO", WC | RUN, True, True, False),
        ("Unaccepted", WB, True, True, False),
        ("type=1879048192", WB, True, True, False),
    ],
)
def test_each_kind_of_memory_is_what_reserve_regions_makes_of_it(
    kind: str, attributes: int, is_memory: bool, is_nomap: bool, is_reserved: bool
) -> None:
    area = PhysRange.of(0x50000000, MIB)
    memblock, _ = memory(cut(MAP, area, kind, attributes))
    assert any(one.covers(area) for one in memblock.memory) is is_memory
    assert any(one.covers(area) for one in memblock.nomap) is is_nomap
    assert memblock.is_region_reserved(area) is is_reserved
    assert not any(one.overlaps(PhysRange.of(1 << 40, MIB)) for one in memblock.memory)


def test_soft_reserved_memory_is_ordinary_where_the_command_line_says_so() -> None:
    area = PhysRange.of(0x50000000, MIB)
    made = cut(MAP, area, "Conventional", WB | SP)
    for cmdline, there in (("", False), ("efi=nosoftreserve", True), ("efi=debug,nosoftreserve", True)):
        assert any(one.covers(area) for one in memory(made, cmdline=cmdline)[0].memory) is there


def test_larger_pages_are_taken_whole() -> None:
    """memrange_efi_to_native(): a page that has a byte of firmware's is not mapped."""
    area = PhysRange.of(0x50001000, 0x2000)
    memblock, _ = memory(cut(MAP, area, "Runtime Data", WB | RUN), "ARM64_64K_PAGES")
    assert any(one.covers(PhysRange.of(0x50000000, 0x10000)) for one in memblock.nomap)
    assert across_pages(memblock.nomap, 65536) == memblock.nomap


def test_the_log_has_the_map_only_where_it_is_asked_for() -> None:
    quiet, loud = (memory(MAP, cmdline=cmdline)[1] for cmdline in ("efi=runtime", "efi=debug"))
    lines = [f"efi: {one.line()}" for one in MAP.descriptors]
    assert not set(lines) & set(quiet)
    assert [line for line in loud if line in lines] == lines


def test_a_kdump_kernel_has_of_the_map_what_it_may_use() -> None:
    tree = FdtEditor(DTB, len(DTB) + 256)
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    tree.setprop(chosen, "linux,usable-memory-range", cells(0, 0x50000000, 0, 0x8000000))
    memblock, _ = memory(MAP, tree=tree.to_bytes())
    assert memblock.memory == [PhysRange.of(0x50000000, 0x8000000)]


def test_tables_and_the_map_itself_are_reserved() -> None:
    memblock, _ = memory(MAP)
    for phys in (MAP.tables["MEMATTR"], MAP.tables["MEMRESERVE"], 0xBBF80040):
        assert memblock.is_region_reserved(PhysRange.of(phys, 16))
    assert not memblock.is_region_reserved(PhysRange.of(MAP.tables["INITRD"] - 16, 16))
