"""The page-table dump, line by line against those of real kernels, and by hand where they show nothing."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from kexecemu.kernel.base.address_space import AddressSpace
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.image.kimage import Segment
from kexecemu.kernel.linear_survey import survey_linear_map
from kexecemu.kernel.memory.linear_map import PAGE_KERNEL, PAGE_KERNEL_RO, PAGE_KERNEL_TAGGED
from kexecemu.kernel.memory.ptdump import ptdump_linear_map, ptdump_lines
from kexecemu.machine.memory.descriptors import (
    AP_EL0,
    ATTR_IDX,
    CONT,
    NG,
    PXN,
    UXN,
    VALID,
    Granule,
    TableFormat,
)
from kexecemu.machine.memory.mmu import PageTables
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

RECORDED = Path(__file__).parents[1] / "data" / "kernel" / "linear-map"
DRAM = PhysRange.of(0x40000000, 1 << 30)
LINEAR_START = 0xFFFF000000000000
MIB, GIB = 1 << 20, 1 << 30


class Recording(NamedTuple):
    """What one real kernel printed, and under which options."""

    config: KernelConfig
    text: PhysRange
    cmdline: str
    crashk_res: PhysRange | None
    dumps: dict[str, str]


def recording(name: str) -> Recording:
    text = (RECORDED / f"{name}.txt").read_text()
    dump = re.compile(r"^@@ (before|after)\n(---\[ Linear Mapping start.*?Mapping end \]---\n)", re.M | re.S)
    area = re.search(r"([0-9a-f]+)-([0-9a-f]+) : Crash kernel", text)
    cmdline = re.search(r"^@@ cmdline (.*)$", text, re.M)
    assert cmdline is not None
    return Recording(
        KernelConfig(
            "6.12" if name.startswith("6.12") else "6.1",
            options={"ZONE_DMA": "n" if name.startswith("nozones") else "y"},
        ),
        PhysRange(0x40200000, 0x405D0000) if name.startswith("6.12") else PhysRange(0x40210000, 0x405B0000),
        cmdline[1],
        PhysRange(int(area[1], 16), int(area[2], 16) + 1) if area else None,
        {match[1]: match[2] for match in dump.finditer(text)},
    )


NAMES = sorted(path.stem for path in RECORDED.glob("*.txt"))
WITH_IMAGE = [name for name in NAMES if recording(name).crashk_res is not None]


def loaded(region: PhysRange) -> list[Segment]:
    """What all recordings loaded, where kexec_file_load puts it."""
    return [
        Segment("kernel", b"", region.start, 0x550000),
        Segment("elfcorehdr", b"", region.end - 0x10000, 0x1000),
        Segment("initrd", b"", region.start + 0x550000, 0x27E000),
        Segment("dtb", b"", region.end - 0x200000, 0x2000),
    ]


def test_there_are_five_recordings_and_four_with_an_image() -> None:
    assert (len(NAMES), len(WITH_IMAGE)) == (5, 4)
    assert all(set(recording(name).dumps) == {"before", "after"} for name in WITH_IMAGE)


@pytest.mark.parametrize("name", NAMES)
def test_the_dump_is_the_real_kernel_s_to_the_last_space(name: str) -> None:
    real = recording(name)
    found = survey_linear_map([DRAM], real.config, real.cmdline, text=real.text, ptdump=True)
    assert found.ptdump == real.dumps["before"]
    assert found.reservation.crashk_res == real.crashk_res


@pytest.mark.parametrize("name", WITH_IMAGE)
def test_the_dump_after_a_load_is_the_real_kernel_s_too(name: str) -> None:
    real = recording(name)
    assert real.crashk_res is not None
    found = survey_linear_map(
        [DRAM], real.config, real.cmdline, text=real.text, loaded=loaded(real.crashk_res), ptdump=True
    )
    assert found.ptdump == real.dumps["after"]


# -- what no recording shows -----------------------------------------------------------------------------------


class Tables:
    """Page tables for addresses from the start of the linear map on."""

    def __init__(self, granule: Granule) -> None:
        self.ram = Ram([PhysRange(0, 64 * MIB)])
        fresh = count(granule.size, granule.size)
        self.tables = PageTables(self.ram, TableFormat(granule), 0, lambda: next(fresh))
        self.space = AddressSpace(0, 0xFFFF800008000000, 0x200000, 0x100000)

    def map(self, phys: int, size: int, attributes: int = PAGE_KERNEL_TAGGED, *, blocks: bool = True) -> None:
        self.tables.map(LINEAR_START + phys, phys, size, attributes, blocks=blocks, contiguous=blocks)

    def dump(self) -> list[str]:
        return ptdump_linear_map(self.tables, self.space).splitlines()[1:-1]


def test_a_folded_level_is_the_pgd_with_64k_pages() -> None:
    """Three levels: the table that a PMD's hole is in covers 4 TiB, and the next one up is the PGD already."""
    tables = Tables(Granule.K64)
    tables.map(0, GIB + 64 * 1024)
    assert tables.dump() == [
        "0xffff000000000000-0xffff000040000000           1G PMD       RW NX SHD AF        BLK UXN    MEM/NORMAL-TAGGED",
        "0xffff000040000000-0xffff000040010000          64K PTE       RW NX SHD AF            UXN    MEM/NORMAL-TAGGED",
        "0xffff000040010000-0xffff000060000000      524224K PTE",
        "0xffff000060000000-0xffff040000000000     4192768M PMD",
        "0xffff040000000000-0xffff800000000000         124T PGD",
    ]


def test_with_16k_pages_all_four_levels_have_their_names() -> None:
    tables = Tables(Granule.K16)
    tables.map(0, GIB + 32 * MIB + 16 * 1024)
    assert tables.dump() == [
        "0xffff000000000000-0xffff000040000000           1G PMD       RW NX SHD AF    CON BLK UXN    MEM/NORMAL-TAGGED",
        "0xffff000040000000-0xffff000042000000          32M PMD       RW NX SHD AF        BLK UXN    MEM/NORMAL-TAGGED",
        "0xffff000042000000-0xffff000042004000          16K PTE       RW NX SHD AF            UXN    MEM/NORMAL-TAGGED",
        "0xffff000042004000-0xffff000044000000       32752K PTE",
        "0xffff000044000000-0xffff001000000000       64448M PMD",
        "0xffff001000000000-0xffff800000000000      131008G PUD",
    ]


def test_a_map_of_nothing_is_one_hole() -> None:
    assert Tables(Granule.K4).dump() == ["0xffff000000000000-0xffff800000000000         128T PGD"]


def test_a_gigabyte_block_is_a_pud() -> None:
    tables = Tables(Granule.K4)
    tables.map(0, 3 * GIB)
    first = tables.dump()[0]
    assert first.startswith(
        "0xffff000000000000-0xffff0000c0000000           3G PUD       RW NX SHD AF        BLK"
    )


def test_equal_pages_are_one_line_across_tables_and_a_hole_between_them_is_a_line() -> None:
    tables = Tables(Granule.K4)
    tables.map(0, 5 * MIB, blocks=False)
    tables.map(5 * MIB + 0x1000, 3 * MIB - 0x1000, blocks=False)
    assert [line.split()[1:3] for line in tables.dump()[:3]] == [
        ["5M", "PTE"],
        ["4K", "PTE"],
        ["3068K", "PTE"],
    ]


def test_equal_attributes_at_two_levels_are_two_lines() -> None:
    tables = Tables(Granule.K4)
    tables.map(0, 2 * MIB + 0x1000)
    assert [line.split()[1:3] for line in tables.dump()[:2]] == [["2M", "PMD"], ["4K", "PTE"]]


def test_software_bits_do_not_end_a_line_and_addresses_do_not_matter() -> None:
    """PTE_WRITE, PTE_DIRTY and the like are not among the columns, and so not in the kernel's mask."""
    tables = Tables(Granule.K4)
    tables.map(0, 0x4000, PAGE_KERNEL | 1 << 55, blocks=False)
    tables.map(0x4000, 0x4000, PAGE_KERNEL, blocks=False)
    assert tables.dump()[0].split()[1:3] == ["32K", "PTE"]


@pytest.mark.parametrize(
    ("set_bits", "clear_bits", "columns"),
    [
        (0, 0, "PTE       RW NX SHD AF            UXN    MEM/NORMAL"),
        (0, VALID, "PTE F     RW NX SHD AF            UXN    MEM/NORMAL"),
        (AP_EL0 | NG, PXN, "PTE   USR RW x  SHD AF NG         UXN    MEM/NORMAL"),
        (1 << 50, UXN, "PTE       RW NX SHD AF                GP MEM/NORMAL"),
        (CONT, 1 << 10, "PTE       RW NX SHD       CON     UXN    MEM/NORMAL"),
        (0, 1 << 8, "PTE       RW NX     AF            UXN    MEM/NORMAL"),  # outer shareable is not SHD
        (ATTR_IDX(1), 0, "PTE       RW NX SHD AF            UXN    MEM/NORMAL-TAGGED"),
        (ATTR_IDX(2), 0, "PTE       RW NX SHD AF            UXN    MEM/NORMAL-NC"),
        (ATTR_IDX(3), 0, "PTE       RW NX SHD AF            UXN    DEVICE/nGnRnE"),
        (ATTR_IDX(4), 0, "PTE       RW NX SHD AF            UXN    DEVICE/nGnRE"),
        (ATTR_IDX(5), 0, "PTE       RW NX SHD AF            UXN   "),  # no name: no word
    ],
)
def test_each_attribute_has_its_column(set_bits: int, clear_bits: int, columns: str) -> None:
    tables = Tables(Granule.K4)
    tables.map(0, 0x1000, blocks=False)
    tables.tables.update(LINEAR_START, 0x1000, PAGE_KERNEL & ~(1 << 51), ATTR_IDX(7))
    tables.tables.update(LINEAR_START, 0x1000, set_bits, clear_bits)
    assert tables.dump()[0] == f"0xffff000000000000-0xffff000000001000           4K {columns}"


def test_a_part_of_the_tables_can_be_dumped_alone() -> None:
    tables = Tables(Granule.K4)
    tables.map(0, 2 * MIB, PAGE_KERNEL_RO)
    one = 512 * GIB  # what an entry of the root covers
    assert [line.split()[1:3] for line in ptdump_lines(tables.tables, LINEAR_START, LINEAR_START + one)] == [
        ["2M", "PMD"],
        ["1022M", "PMD"],
        ["511G", "PUD"],
    ]
    assert list(ptdump_lines(tables.tables, LINEAR_START, LINEAR_START)) == []
