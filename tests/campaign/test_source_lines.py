"""Source lines by binutils' addr2line, and names by the nearest symbol."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest
from elftools.elf.elffile import ELFFile

from kexecemu.campaign.source_lines import SymbolMap, source_line
from kexecemu.data import fixture_path

FILES = ["guests/vmlinux", "guests/capture.elf"]


def code(path: Path) -> list[int]:
    """Virtual addresses of instructions of an ELF file's functions."""
    with path.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        functions = [one for one in table.iter_symbols() if one["st_info"]["type"] == "STT_FUNC"]
        return sorted(
            {
                virt
                for one in functions
                for virt in range(one["st_value"], one["st_value"] + one["st_size"], 4)
            }
        )


def by_addr2line(path: Path, addresses: list[int]) -> list[str]:
    tool = shutil.which("aarch64-linux-gnu-addr2line") or shutil.which("addr2line")
    if tool is None:
        pytest.skip("no addr2line")
    words = [f"{one:#x}" for one in addresses]
    out = subprocess.run([tool, "-e", str(path), *words], capture_output=True, text=True, check=True).stdout
    lines = [one.split(" (")[0] for one in out.splitlines()]
    return [
        "" if "?" in one else f"{Path(one.rsplit(':', 1)[0]).name}:{one.rsplit(':', 1)[1]}" for one in lines
    ]


@pytest.mark.parametrize("name", FILES)
def test_an_instruction_s_line_is_the_one_that_addr2line_says(name: str) -> None:
    path = fixture_path(name)
    addresses = Random(name).sample(code(path), 400)
    found = [source_line(path, one) for one in addresses]
    assert found == by_addr2line(path, addresses)
    assert sum(bool(one) for one in found) > 300


def test_an_address_outside_of_all_code_has_no_line() -> None:
    path = fixture_path("guests/vmlinux")
    assert (
        source_line(path, 0)
        == source_line(path, (1 << 64) - 4)
        == source_line(path, code(path)[-1] + 0x100000)
        == ""
    )


def test_a_file_without_dwarf_has_no_lines() -> None:
    assert source_line(fixture_path("guests/vmcopy"), 0x400000) == ""


def test_a_name_is_that_of_the_nearest_symbol_below_that_reaches_so_far() -> None:
    names = SymbolMap([(0x1000, 0x10, "sized"), (0x2000, 0, "open"), (0x3000, 4, "last")])
    assert names.name(0x1000) == "sized"
    assert names.name(0x100F) == "sized+0xf"
    assert names.name(0x1010) == "" and names.name(0xFFF) == ""
    assert names.name(0x2FFF) == "open+0xfff"
    assert names.name(0x3003) == "last+0x3" and names.name(0x3004) == ""


def test_an_empty_map_knows_no_name() -> None:
    assert SymbolMap([]).name(0x1000) == ""
