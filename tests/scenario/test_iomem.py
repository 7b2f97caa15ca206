"""A machine by its tree and its /proc/iomem: what ran there once is put where it was, whatever started it."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from kexecemu import Board, Kernel, KernelConfig
from kexecemu.cli import main
from kexecemu.errors import InputError
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.boot.efi_init import first_cmdline

DATA = Path(__file__).parents[1] / "data" / "efi"
RECORDS = [
    path
    for path in sorted(DATA.glob("*.txt.gz"))
    if re.match("iomem|acpi|efi-8G|efi-2G-6.1.0|dt-numa-(6|7|off-6.12)", path.name)
]
_TOP = re.compile(r"^(\w+-\w+ : (?:System RAM|reserved)|\s*\w+-\w+ : Crash kernel)$", re.M)


def files(folder: Path, path: Path) -> tuple[list[str], str]:
    """Options for a record's machine, and its /proc/iomem."""
    name = path.name.removesuffix(".txt.gz")
    text = gzip.decompress(path.read_bytes()).decode()
    iomem = re.findall(r"^== iomem\n(.*?)^== ", text, re.M | re.S)[0]
    (folder / "fdt").write_bytes(gzip.decompress((DATA / f"{name}.dtb.gz").read_bytes()))
    (folder / "iomem").write_text(iomem)
    era = ".".join(name.rpartition("-")[2].split(".")[:2])
    cpus = re.findall(r"-smp (\d+)", text)[0]
    options = ["--dtb", str(folder / "fdt"), "--iomem", str(folder / "iomem"), "--era", era, "--cpus", cpus]
    return options, iomem


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name.removesuffix(".txt.gz"))
@pytest.mark.parametrize("syscall", ["kexec_file_load", "kexec_load"])
def test_memory_and_the_crash_region_are_where_they_were(
    path: Path, syscall: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, iomem = files(tmp_path, path)
    assert main(["load", "--json", "--syscall", syscall, *options]) == 0
    value = json.loads(capsys.readouterr().out)
    assert _TOP.findall(value["iomem"]) == _TOP.findall(iomem)
    region = value["crashkernel"]
    assert all(region["start"] <= one["mem"] <= region["end"] for one in value["segments"])
    assert all("NUMA" in words for words in value["warnings"])


def test_another_command_line_is_looked_for_anew_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, _ = files(tmp_path, DATA / "efi-2G-6.12.118.txt.gz")
    same = first_cmdline(Fdt((tmp_path / "fdt").read_bytes()))
    for cmdline, size in ((same, 256 << 20), ("crashkernel=128M", 128 << 20)):
        assert main(["load", "--json", *options, "--cmdline", cmdline]) == 0
        value = json.loads(capsys.readouterr().out)
        assert value["crashkernel"]["end"] + 1 - value["crashkernel"]["start"] == size
        assert any("with another command line" in words for words in value["warnings"]) is (cmdline != same)


def test_the_dump_of_such_a_machine_is_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, _ = files(tmp_path, DATA / "efi-8G-high-6.12.118.txt.gz")
    assert main(["crash", "--json", *options]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["outcome"], value["dump"]) == ("captured", "true")
    assert value["crashkernel_low"] == {"start": 0xF4000000, "end": 0xFBFFFFFF}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no tree", "iomem goes with the machine's device tree (dtb), and none is given"),
        ("both", "give efi_map or iomem, not both"),
        ("no file", "No such file or directory"),
        ("zeros", "all addresses are 0: /proc/iomem shows them to root alone"),
        ("no place", "nothing that is reserved has a place for the device tree"),
        ("small", "is smaller than the model's"),
        ("outside", "is not inside of the one that it is below"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    what: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, iomem = files(tmp_path, DATA / "efi-2G-6.12.118.txt.gz")
    if what == "no tree":
        options = options[2:]
    elif what == "both":
        options += ["--efi-map", options[3]]
    elif what == "no file":
        options[3] = str(tmp_path / "none")
    changed = {
        "zeros": re.sub(r"[0-9a-f]+-[0-9a-f]+ :", "00000000-00000000 :", iomem),
        "no place": re.sub(r"^  .* : reserved\n", "", iomem, flags=re.M),
        "small": re.sub(r"(\w+)-\w+ : Kernel code\n.*\n.*Kernel data", _small, iomem),
        "outside": re.sub(r"b6800000-b80affff", "06800000-080affff", iomem),
    }
    (tmp_path / "iomem").write_text(changed.get(what, iomem))
    assert main(["load", *options]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def _small(match: re.Match[str]) -> str:
    start = int(match[1], 16)
    pages = [f"{start + at:08x}-{start + at + 0xFFFF:08x}" for at in (0, 0x10000)]
    return f"{pages[0]} : Kernel code\n  {pages[1]} : Kernel data"


@pytest.mark.parametrize("key", ["efi_map", "iomem"])
def test_a_board_with_less_ram_is_refused(key: str, tmp_path: Path) -> None:
    name = DATA / "efi-2G-6.12.118.txt.gz"
    _, iomem = files(tmp_path, name)
    given = iomem.encode() if key == "iomem" else gzip.decompress(name.read_bytes())
    with pytest.raises(InputError, match="the board has no RAM at"):
        Kernel.boot(Board("1G", 2), KernelConfig("6.12"), dtb=tmp_path / "fdt", **{key: given})
