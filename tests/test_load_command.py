"""`kexecemu load` for the machines of real kernels and for machines of other shapes."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from image_header import build

from kexecemu.cli import main
from kexecemu.data import fixture_path
from kexecemu.formats.elf import PT_LOAD
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.ranges import PhysRange

DATA = Path(__file__).resolve().parent / "data" / "linux-6.1.192"
GIB = 1 << 30
MIB = 1 << 20


def load(folder: Path, *options: str) -> dict[str, object]:
    command = [
        sys.executable,
        "-m",
        "kexecemu",
        "load",
        "--json",
        "--dump-segments",
        str(folder / "segments"),
        *options,
    ]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def segment(folder: Path, name: str) -> bytes:
    return (folder / "segments" / f"{name}.bin").read_bytes()


def bootargs(dtb: bytes) -> str:
    tree = Fdt(dtb)
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    strings = tree.get_strings(chosen, "bootargs")
    assert strings
    return strings[0]


def test_the_log_has_no_line_of_what_is_not_modelled_and_the_page_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """print_unknown_bootoptions() goes by every __setup() and parameter that a build has."""
    line = "Unknown kernel command line parameters"
    assert main(["load", "--json", "--no-load", "--cmdline", "crashkernel=64M kmode=full"]) == 0
    messages = json.loads(capsys.readouterr().out)["messages"]
    assert "Kernel command line: crashkernel=64M kmode=full" in messages
    assert not any(line in one for one in messages)
    about = (Path(__file__).parents[1] / "docs" / "json.md").read_text().split("`messages`\n", 1)[1]
    assert line in about.split("\n\n", 1)[0]


@pytest.mark.parametrize(
    ("asked", "size", "words"),
    [
        ("256M", 256 << 20, "256 MiB"),
        ("1G", 1 << 30, "1 GiB"),
        ("33333K", 33336 << 10, "33336 KiB"),
        ("1", 4096, "4 KiB"),
    ],
)
def test_a_region_of_any_size_is_told_exactly(
    capsys: pytest.CaptureFixture[str], asked: str, size: int, words: str
) -> None:
    assert main(["load", "--no-load", "--ram", "4G", "--cmdline", f"crashkernel={asked}"]) == 0
    match = re.fullmatch(r"crashkernel  0x(\w+)-0x(\w+)  (.+)\n", capsys.readouterr().out)
    assert match is not None and match[3] == words
    assert int(match[2], 16) - int(match[1], 16) + 1 == size


def test_the_real_machine_gets_the_real_kernels_layout_and_device_tree(tmp_path: Path) -> None:
    # 768 MiB, 2 CPUs, crashkernel=96M: Image 0x50b200 bytes (image_size 0x550000), initrd 0x27d4d1.
    (tmp_path / "main.dtb").write_bytes(gzip.decompress((DATA / "main.dtb.gz").read_bytes()))
    real = gzip.decompress((DATA / "dtb-segment.bin.gz").read_bytes())
    (tmp_path / "Image").write_bytes(build(image_size=0x550000) + bytes(0x50B200 - 64))
    (tmp_path / "initrd").write_bytes(bytes(0x27D4D1))
    value = load(
        tmp_path,
        *("--kernel", str(tmp_path / "Image"), "--initrd", str(tmp_path / "initrd")),
        *(
            "--dtb",
            str(tmp_path / "main.dtb"),
            "--era",
            "6.1",
            "--config",
            "ZONE_DMA=n",
            "--purgatory",
            "none",
        ),
        *("--append", bootargs(real)),
    )
    assert value["crashkernel"] == {"start": 0x6A000000, "end": 0x6FFFFFFF}
    assert [(one["name"], one["mem"], one["memsz"], one["bufsz"]) for one in value["segments"]] == [  # type: ignore[attr-defined, index]
        ("kernel", 0x6A000000, 0x550000, 0x50B200),
        ("elfcorehdr", 0x6FFF0000, 0x1000, 0x1000),
        ("initrd", 0x6A550000, 0x27E000, 0x27D4D1),
        ("dtb", 0x6FE00000, 0x2000, 0x1F6B),
    ]
    assert value["entry"] == 0x6A000000
    assert segment(tmp_path, "dtb").rstrip(b"\0") == real.rstrip(b"\0")
    headers = parse_core_header(segment(tmp_path, "elfcorehdr")).program_headers
    loads = [(one.paddr, one.memsz) for one in headers if one.type == PT_LOAD]
    assert loads[1:] == [(0x40000000, 0x2A000000)]
    assert sum(one.type != PT_LOAD for one in headers) == 2 + 1


MACHINES = {
    "eight CPUs": ([(GIB, 512 * MIB)], 8, "crashkernel=64M", (0x5C000000, 0x5FFFFFFF), None),
    "an offset": ([(GIB, GIB)], 1, "crashkernel=128M@0x50000000", (0x50000000, 0x57FFFFFF), None),
    # 6.1 tries low memory only, and high memory only with ,high.
    "RAM above 4 GiB": (
        [(GIB, 2 * GIB), (0x880000000, 2 * GIB)],
        4,
        "crashkernel=256M",
        (0x8F0000000, 0x8FFFFFFFF),
        None,
    ),
    "high and low": (
        [(GIB, 2 * GIB), (0x880000000, 2 * GIB)],
        4,
        "crashkernel=512M,high crashkernel=64M,low",
        (0x8E0000000, 0x8FFFFFFFF),
        None,
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_without_zones_the_region_is_the_top_of_ram_or_where_it_was_asked_for(
    name: str, tmp_path: Path
) -> None:
    # Without DMA zones before 6.4 all memory is low, and nothing is allocated before the reservation.
    banks, cpus, cmdline, crash, low = MACHINES[name]
    ranges = [PhysRange.of(start, size) for start, size in banks]
    (tmp_path / "dtb").write_bytes(virt_device_tree(ranges, cpus, 0x09000000, cmdline=f"quiet {cmdline}"))
    value = load(tmp_path, "--dtb", str(tmp_path / "dtb"), "--era", "6.1", "--config", "ZONE_DMA=n")
    assert value["crashkernel"] == {"start": crash[0], "end": crash[1]}
    assert value["crashkernel_low"] == low
    headers = parse_core_header(segment(tmp_path, "elfcorehdr")).program_headers
    assert sum(one.type != PT_LOAD for one in headers) == cpus + 1
    covered = sum(one.memsz for one in headers[cpus + 2 :])
    assert covered == sum(size for _, size in banks) - (crash[1] + 1 - crash[0])


def test_with_zones_a_high_region_has_its_low_part_last_in_the_tree(tmp_path: Path) -> None:
    ranges = [PhysRange.of(GIB, 2 * GIB), PhysRange.of(0x880000000, 2 * GIB)]
    (tmp_path / "dtb").write_bytes(
        virt_device_tree(ranges, 2, 0x09000000, cmdline="crashkernel=512M,high crashkernel=64M,low rodata=on")
    )
    value = load(tmp_path, "--dtb", str(tmp_path / "dtb"), "--era", "6.12")
    high, low = value["crashkernel"], value["crashkernel_low"]
    assert isinstance(high, dict)
    assert isinstance(low, dict)
    assert high["start"] >= 0x880000000
    assert low["end"] < 0x100000000
    assert low["end"] + 1 - low["start"] == 64 * MIB
    tree = Fdt(segment(tmp_path, "dtb"))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    cells = tree.get_cells(chosen, "linux,usable-memory-range")
    assert cells is not None
    numbers = [cells[at] << 32 | cells[at + 1] for at in range(0, 8, 2)]
    assert numbers == [high["start"], high["end"] + 1 - high["start"], low["start"], 64 * MIB]


def test_the_command_line_in_the_tree_can_be_replaced(tmp_path: Path) -> None:
    ranges = [PhysRange.of(GIB, 512 * MIB)]
    (tmp_path / "dtb").write_bytes(virt_device_tree(ranges, 1, 0x09000000, cmdline="crashkernel=64M"))
    value = load(tmp_path, "--dtb", str(tmp_path / "dtb"), "--cmdline", "crashkernel=32M@0x50000000")
    assert value["crashkernel"] == {"start": 0x50000000, "end": 0x51FFFFFF}


def test_what_a_load_says_of_the_kernel_is_in_its_json(tmp_path: Path) -> None:
    value = load(
        tmp_path,
        "--ram",
        "512M",
        "--era",
        "7.3",
        "--cmdline",
        "crashkernel=128M crashkernel=32M,cma memtest=1",
    )
    assert value["era"] == "7.3"
    assert [one["end"] + 1 - one["start"] for one in value["crashkernel_cma"]] == [32 * MIB]
    assert " : Crash kernel\n" in value["iomem"] and " : System RAM\n" in value["iomem"]
    assert value["sysfs"]["/sys/kernel/kexec_crash_loaded"] == "1\n"
    assert value["sysfs"]["/sys/kernel/kexec/crash_size"] == f"{128 * MIB}\n"
    assert "crashkernel CMA reserved: 32 MB in 1 ranges" in value["messages"]
    assert value["vmcoreinfo"].startswith("OSRELEASE=")
    assert value["warnings"] == ["memtest= is not modelled: memory that fails a test"]
    assert value["config"]["ZONE_DMA"] == "y"


@pytest.mark.parametrize(
    ("cmdline", "reserved"), [("crashkernel=64M", True), ("quiet", False), ("crashkernel=9T", False)]
)
def test_without_a_load_the_reservation_is_told_whatever_it_is(cmdline: str, reserved: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kexecemu", "load", "--no-load", "--json", "--cmdline", cmdline],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert (value["crashkernel"] is not None) is reserved
    assert (value["segments"], value["entry"], value["digest"]) == ([], None, None)
    assert value["sysfs"]["/sys/kernel/kexec_crash_loaded"] == "0\n"


@pytest.mark.parametrize("syscall", ["kexec_load", "kexec_file_load"])
def test_a_kernel_that_is_cut_off_is_loaded_as_kexec_does_and_said(syscall: str, tmp_path: Path) -> None:
    stub = fixture_path("guests/capture-Image").read_bytes()
    path = tmp_path / "Image"
    path.write_bytes(stub[:5000])
    value = load(tmp_path, "--kernel", str(path), "--syscall", syscall)
    missing = len(stub) - 5000
    assert segment(tmp_path, "kernel")[:5001] == stub[:5000] + b"\0"
    (words,) = value["warnings"]  # type: ignore[misc]
    found = re.fullmatch(
        f"kernel {path}: truncated: at least 0x([0-9a-f]+) bytes are missing at its end", words
    )
    assert found is not None and 0 < int(found[1], 16) <= missing


def test_of_a_gzip_file_that_is_cut_off_what_comes_out_is_loaded(tmp_path: Path) -> None:
    stub = fixture_path("guests/capture-Image").read_bytes()
    path = tmp_path / "Image.gz"
    path.write_bytes(gzip.compress(stub, mtime=0)[:1000])
    value = load(tmp_path, "--kernel", str(path), "--syscall", "kexec_load")
    (kernel,) = (one for one in value["segments"] if one["name"] == "kernel")  # type: ignore[attr-defined]
    assert 64 < kernel["bufsz"] < len(stub)
    assert segment(tmp_path, "kernel")[: kernel["bufsz"]] == stub[: kernel["bufsz"]]
    (words,) = value["warnings"]  # type: ignore[misc]
    assert words.startswith(f"kernel {path}: truncated: ")


@pytest.mark.parametrize("what", ["whole", "not loaded"])
def test_nothing_is_said_of_a_kernel_that_is_whole_or_not_loaded(what: str, tmp_path: Path) -> None:
    stub = fixture_path("guests/capture-Image").read_bytes()
    path = tmp_path / "Image"
    path.write_bytes(stub if what == "whole" else stub[:5000])
    options = ["--no-load"] if what == "not loaded" else []
    command = [sys.executable, "-m", "kexecemu", "load", "--json", "--kernel", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (json.loads(done.stdout)["warnings"], done.stderr) == ([], "")
