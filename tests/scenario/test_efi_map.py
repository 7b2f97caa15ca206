"""A machine that UEFI starts, by the two files that its owner has: on the command line and in a scenario."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from kexecemu.cli import main
from kexecemu.formats.fdt import FdtEditor
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.ranges import PhysRange

DATA = Path(__file__).parents[1] / "data" / "efi" / "efi-2G-file-6.12.117"
CONFIG = ("--config", "CMA_SIZE_MBYTES=0", "--config", "RODATA_FULL_DEFAULT_ENABLED=n")


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """The tree and the log."""
    for end in ("dtb", "txt"):
        (tmp_path / end).write_bytes(gzip.decompress(DATA.with_name(f"{DATA.name}.{end}.gz").read_bytes()))
    return str(tmp_path / "dtb"), str(tmp_path / "txt")


def test_load_puts_the_region_where_the_real_kernel_did(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    dtb, log = files
    assert main(["load", "--json", "--dtb", dtb, "--efi-map", log, "--era", "6.12", *CONFIG]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["crashkernel"] == {"start": 0xA8A00000, "end": 0xB89FFFFF}
    assert value["warnings"] == []
    assert "04000000-07ffffff : reserved\n" in value["iomem"]
    assert "efi: Processing EFI memory map:" in value["messages"]


def test_a_scenario_crashes_and_its_dump_is_true(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(
        'schema = 1\nname = "UEFI"\nseed = 1\n[machine]\ndtb = "dtb"\nefi_map = "txt"\n[kernel]\nera = "6.12"\n'
        '[expect]\noutcome = "captured"\n'
    )
    assert main(["run", str(scenario), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["outcome"], value["dump"]) == ("captured", "true")


def test_a_tree_without_its_map_is_warned_of(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["load", "--json", "--dtb", files[0]]) == 0
    (words,) = json.loads(capsys.readouterr().out)["warnings"]
    assert words.startswith("UEFI starts this machine: its memory map is not known")


def test_a_map_with_fewer_lines_than_the_tree_says_is_warned_of(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dtb, log = files
    lines = Path(log).read_text().splitlines()
    less = [line for line in lines if "Conventional" not in line or "0x000048000000" in line]
    (tmp_path / "less").write_text("\n".join(less))
    assert main(["load", "--json", "--no-load", "--dtb", dtb, "--efi-map", str(tmp_path / "less")]) == 0
    (words,) = json.loads(capsys.readouterr().out)["warnings"]
    assert re.fullmatch(
        r"the EFI memory map has \d+ lines, and the device tree says 33: lines are missing.*", words
    )


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no tree", r"efi_map goes with the machine's device tree \(dtb\), and none is given"),
        ("no file", "No such file or directory"),
        ("no map", "no line of an EFI memory map"),
        ("no loader", "no Loader Code, and so no place of the first kernel"),
        ("no data", "no Loader Data of 2 MiB, and so no place of the device tree"),
        ("small", "the map has 0x[0-9a-f]+ bytes for the first kernel at"),
        ("other tree", "the device tree is of no boot by EFI"),
        ("no memory", "UEFI starts this machine, and memory is in its map alone"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    what: str, words: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dtb, log = files
    text, options = Path(log).read_text(), ["--dtb", dtb, "--efi-map", log]
    if what == "no tree":
        options = options[2:]
    elif what == "no file":
        options[3] = str(tmp_path / "none")
    elif what == "no map":
        Path(log).write_text("hello\n")
    elif what == "no loader":
        Path(log).write_text(text.replace("Loader Code", "Boot Code  "))
    elif what == "no data":
        Path(log).write_text(text.replace("Loader Data", "Boot Data  "))
    elif what == "small":
        rest = re.sub(r"^.*0x0000bbfa0000.*Loader Code.*\n", "", text, flags=re.M)
        Path(log).write_text(rest.replace("0x0000bba00000-0x0000bbe8ffff", "0x0000bba00000-0x0000bba2ffff"))
    elif what == "other tree":
        Path(dtb).write_bytes(virt_device_tree([PhysRange.of(1 << 30, 1 << 30)], 1, 0x9000000))
    elif what == "no memory":
        tree = FdtEditor(Path(dtb).read_bytes())
        node = tree.path_offset("/memory@40000000")
        assert node is not None
        tree.delprop(node, "device_type")
        Path(dtb).write_bytes(tree.to_bytes())
        options = options[:2]
    assert main(["load", *options]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1
