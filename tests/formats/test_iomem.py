"""/proc/iomem: what is read of it, and what is refused with the line that it is about."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from kexecemu.errors import FormatError
from kexecemu.formats.iomem import parse_iomem
from kexecemu.machine.ranges import PhysRange

DATA = Path(__file__).parents[1] / "data" / "efi"
RAM = "40000000-7fffffff : System RAM\n"
KERNEL = "  40200000-40efffff : Kernel code\n  41000000-411fffff : Kernel data\n"


@pytest.mark.parametrize("path", sorted(DATA.glob("*.txt.gz")), ids=lambda path: path.name)
def test_each_real_one_is_read(path: Path) -> None:
    log = gzip.decompress(path.read_bytes()).decode()
    text = re.findall(r"^== iomem\n(.*?)^== ", log, re.M | re.S)[0]
    found = parse_iomem(text)
    assert len(found.system_ram) == text.count(" : System RAM\n")
    assert len(found.crash) == text.count(" : Crash kernel\n")
    assert len(found.nomap) + len(found.reserved) == text.count(" : reserved\n")
    assert any(ram.covers(found.code) and ram.covers(found.data) for ram in found.system_ram)
    assert found.acpi_console == (0x9000000 if path.name.startswith("acpi") else 0)


def test_addresses_are_inclusive_and_the_level_counts() -> None:
    found = parse_iomem(f"04000000-07ffffff : reserved\n{RAM}{KERNEL}  70000000-7fffffff : Crash kernel\n")
    assert found.nomap == (PhysRange(0x4000000, 0x8000000),)
    assert found.reserved == ()
    assert found.crash == (PhysRange(0x70000000, 0x80000000),)
    assert found.code == PhysRange(0x40200000, 0x40F00000)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'no line with "System RAM"'),
        ("hello\n", "line 1 is none of /proc/iomem: 'hello'"),
        (f"{RAM}{KERNEL}oops", "line 4 is none of /proc/iomem"),
        ("00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n", "shows them to root alone"),
        ("40000000-3fffffff : System RAM\n", "line 1 ends before it begins"),
        (RAM, '0 lines with "Kernel code"'),
        (RAM + KERNEL + KERNEL, '2 lines with "Kernel code"'),
        (RAM + KERNEL.replace("40efffff", "41efffff"), "Kernel data begins before Kernel code ends"),
        (RAM + RAM + KERNEL, "lines of System RAM overlap"),
        (RAM + KERNEL + 3 * "  70000000-7fffffff : Crash kernel\n", '3 lines with "Crash kernel"'),
    ],
)
def test_what_is_wrong_with_it_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(FormatError, match=re.escape(words)):
        parse_iomem(text)
