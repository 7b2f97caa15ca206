"""`kexecemu purgatory info`: an object as a loader sees it, alone or inside a program."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_RELOC_TYPE_AARCH64
from elftools.elf.relocation import RelocationSection

from kexecemu.data import fixture_path, purgatory_path

OURS = purgatory_path()
NAMES = {kind: name for name, kind in ENUM_RELOC_TYPE_AARCH64.items()}
KEXEC_TOOLS = fixture_path("guests/kexec-tools-purgatory.ro")


def info(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kexecemu", "purgatory", "info", str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("path", "interface"), [(OURS, "kernel"), (KEXEC_TOOLS, "kexec-tools")])
def test_it_says_what_pyelftools_says(path: Path, interface: str) -> None:
    done = info(path, "--json")
    assert done.returncode == 0
    value = json.loads(done.stdout)
    assert value["interface"] == interface
    assert value["links"] is True
    with path.open("rb") as file:
        elf = ELFFile(file)
        allocated = [one for one in elf.iter_sections() if one["sh_flags"] & 2]
        assert [(one["name"], one["size"], one["align"]) for one in value["sections"]] == [
            (one.name, one["sh_size"], one["sh_addralign"]) for one in allocated
        ]
        counts: dict[str, int] = {}
        for section in elf.iter_sections():
            if isinstance(section, RelocationSection) and elf.get_section(section["sh_info"])["sh_flags"] & 2:
                for rela in section.iter_relocations():
                    kind = str(rela["r_info_type"])
                    counts[kind] = counts.get(kind, 0) + 1
    assert value["relocations"] == dict(sorted(counts.items(), key=lambda item: int(item[0])))
    assert value["relocation_names"] == {kind: NAMES[int(kind)] for kind in counts}
    assert value["unsupported_relocations"] == []
    assert set(value["symbols"][interface].values()) == {"ok"}


def test_the_account_for_people_names_sections_and_symbols() -> None:
    done = info(OURS)
    assert done.returncode == 0
    assert ".kexec-purgatory" in done.stdout
    assert "interface     kernel" in done.stdout
    assert "purgatory_sha256_digest     ok" in done.stdout


def test_relocations_are_named(tmp_path: Path) -> None:
    done = info(OURS)
    assert re.search(r"^R_AARCH64_CALL26 +283 +\d+$", done.stdout, re.MULTILINE)
    # The type is the lower half of r_info. A purgatory has no global offset table, and no loader makes one.
    data = bytearray(OURS.read_bytes())
    with OURS.open("rb") as file:
        section = next(one for one in ELFFile(file).iter_sections() if one.name == ".rela.text")
        at = section["sh_offset"] + 8
    data[at : at + 4] = (311).to_bytes(4, "little")
    other = tmp_path / "other.ro"
    other.write_bytes(data)
    done = info(other)
    assert done.returncode == 1
    assert re.search(r"^R_AARCH64_ADR_GOT_PAGE +311 +1 unsupported$", done.stdout, re.MULTILINE)
    found = json.loads(info(other, "--json").stdout)
    assert found["unsupported_relocations"] == [311]
    assert found["relocation_names"]["311"] == "R_AARCH64_ADR_GOT_PAGE"


def test_an_object_that_no_loader_can_use_exits_with_1(tmp_path: Path) -> None:
    data = OURS.read_bytes().replace(b"purgatory_sha_regions\0", b"purgatory_sha_regionz\0")
    other = tmp_path / "other.ro"
    other.write_bytes(data)
    done = info(other)
    assert done.returncode == 1
    assert "none that a loader knows" in done.stdout
    assert "purgatory_sha_regions       missing" in done.stdout


def test_a_program_with_the_object_inside_is_as_good_as_the_object(tmp_path: Path) -> None:
    program = tmp_path / "kexec"
    program.write_bytes(fixture_path("guests/vmlinux").read_bytes() + KEXEC_TOOLS.read_bytes())
    inside, alone = info(program, "--json"), info(KEXEC_TOOLS, "--json")
    assert (inside.returncode, inside.stdout) == (0, alone.stdout)


def test_what_is_no_object_exits_with_2(tmp_path: Path) -> None:
    done = info(fixture_path("guests/vmlinux"))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert info(tmp_path).returncode == 2


def test_the_one_that_ships_has_a_name() -> None:
    done = info(Path("default"), "--json")
    assert (done.returncode, json.loads(done.stdout)["interface"]) == (0, "kernel")
