"""The memory map of UEFI as a kernel prints it: what is read, and what is refused with the line that it is about."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kexecemu.errors import FormatError
from kexecemu.formats.efi_map import DESCRIPTOR_SIZE, parse_efi_map
from kexecemu.machine.ranges import PhysRange

DATA = Path(__file__).parents[1] / "data" / "efi"
LINE = "efi:   0x000040000000-0x000043ffffff [Conventional|   |  |  |  |  |  |  |  |  |  |   |WB|  |  |  ]"
RUNTIME = "efi:   0x000044000000-0x00004401ffff [Runtime Code|RUN|  |  |  |  |  |  |  |  |  |   |WB|  |  |  ]"


@pytest.mark.parametrize("path", sorted(DATA.glob("*.txt.gz")), ids=lambda path: path.name)
def test_each_line_of_a_real_kernel_is_written_as_it_was_read(path: Path) -> None:
    log = gzip.decompress(path.read_bytes()).decode()
    lines = [line for line in log.splitlines() if line.startswith("efi:   0x")]
    if lines:
        assert [f"efi: {one.line()}" for one in parse_efi_map(log).descriptors] == lines


@pytest.mark.parametrize(
    "before",
    ["", "[    0.000000] ", "<6>[    0.000000] ", "[    0.000000] [T0] ", "Nov 30 12:00:00 host kernel: "],
)
def test_a_line_may_come_from_dmesg_or_from_a_journal(before: str) -> None:
    found = parse_efi_map(f"{before}{LINE}\n{before}{RUNTIME}  \n")
    assert [one.area for one in found.descriptors] == [
        PhysRange(0x40000000, 0x44000000),
        PhysRange(0x44000000, 0x44020000),
    ]
    assert [one.kind for one in found.descriptors] == ["Conventional", "Runtime Code"]
    assert found.descriptors[1].has("RUN") and not found.descriptors[0].has("RUN", "UC")


def test_only_the_first_boot_of_a_log_counts() -> None:
    log = f"efi: Processing EFI memory map:\n{LINE}\nefi: Processing EFI memory map:\n{RUNTIME}\n"
    assert len(parse_efi_map(log).descriptors) == 1


def test_entries_of_the_attributes_table_are_counted_and_are_no_memory() -> None:
    log = f"{LINE}\nefi: memattr:  0x0000bc440000-0x0000bc44ffff [Runtime Code|RUN|  |  ]\n"
    found = parse_efi_map(log)
    assert (len(found.descriptors), found.memattr) == (1, 1)


def test_tables_and_the_size_of_the_initrd_are_read() -> None:
    tables = "efi: SMBIOS 3.0=0xbfed0000 MEMATTR=0xbdd84018 INITRD=0xbbf9ff18 "
    found = parse_efi_map(f"efi: EFI v2.7 by EDK II\n{tables}\n{LINE}\nFreeing initrd memory: 2284K\n")
    assert found.tables == {"SMBIOS 3.0": 0xBFED0000, "MEMATTR": 0xBDD84018, "INITRD": 0xBBF9FF18}
    assert found.banner == "EFI v2.7 by EDK II"
    assert found.initrd_size == 2284 << 10


def test_a_journal_s_lines_about_other_things_are_read_as_well() -> None:
    before = "Nov 30 12:00:00 host kernel: "
    lines = (LINE, "Freeing initrd memory: 2284K", "ACPI: SPCR: console: pl011,mmio,0x9000000,9600")
    found = parse_efi_map("\n".join(before + line for line in lines))
    assert (found.initrd_size, found.acpi.console) == (2284 << 10, 0x9000000)


def test_unknown_types_and_attributes_keep_their_numbers() -> None:
    line = "efi:   0x000040000000-0x000043ffffff [type=2147483649|attr=0x0100000000000008]"
    one = parse_efi_map(line).descriptors[0]
    assert (one.kind, one.attributes, f"efi: {one.line()}") == ("type=2147483649", 1 << 56 | 8, line)
    assert one.pack()[:4] == (2147483649).to_bytes(4, "little")
    assert len(one.pack()) == DESCRIPTOR_SIZE


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "no line of an EFI memory map"),
        ("hello\nworld", "no line of an EFI memory map"),
        (LINE.replace("Conventional", "Conventionel"), "line 1: 'Conventionel' is no type"),
        (LINE.replace("|WB|", "|WX|"), "line 1: 'WX' is no attribute"),
        (f"{LINE}\n{LINE[:40]}", "line 2 is none of an EFI memory map"),
        (LINE.replace("43ffffff", "43fffffe"), "are no pages"),
        (LINE.replace("43ffffff", "3fffffff"), "are no pages"),
        (LINE.replace("0x000043ffffff", "0xffffffffffffffffffff"), "are no pages"),
    ],
)
def test_a_bad_line_is_named(log: str, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse_efi_map(log)
