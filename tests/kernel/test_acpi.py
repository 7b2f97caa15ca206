"""Machines that ACPI describes: when that is, and what the boot log's lines about its tables are taken for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kexecemu.cli import main
from kexecemu.data import fixture_path
from kexecemu.formats.efi_map import EfiMap, parse_efi_map
from kexecemu.formats.fdt import FdtEditor
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.acpi import dt_is_stub, uses_acpi
from kexecemu.kernel.boot.efi_init import efi_ram, read_efi_map
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.model import KernelModel
from kexecemu.kernel.procfs import proc_iomem
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange

DATA = Path(__file__).parents[1] / "data" / "efi"
STUB = gzip.decompress((DATA / "acpi-2G-6.12.118.dtb.gz").read_bytes())
LOG = gzip.decompress((DATA / "acpi-2G-6.12.118.txt.gz").read_bytes()).decode()
FULL = virt_device_tree([PhysRange.of(1 << 30, 1 << 30)], 1, 0x9000000)
TABLES = EfiMap((), {"ACPI 2.0": 0xBC430018})
GIB = 1 << 30


@pytest.mark.parametrize(
    ("tree", "cmdline", "efi_map", "acpi"),
    [
        (STUB, "", TABLES, True),
        (STUB, "", None, False),
        (STUB, "", EfiMap((), {"SMBIOS": 1}), False),
        (STUB, "acpi=off", TABLES, False),
        (STUB, "acpi=off acpi=force", TABLES, False),
        (FULL, "", TABLES, False),
        (FULL, "acpi=on", TABLES, True),
        (FULL, "acpi=force", TABLES, True),
        (FULL, "acpi=nospcr", TABLES, False),
    ],
)
def test_acpi_is_used_where_the_tree_is_empty_or_the_command_line_wants_it(
    tree: bytes, cmdline: str, efi_map: EfiMap | None, acpi: bool
) -> None:
    assert uses_acpi(FdtEditor(tree), cmdline, efi_map) is acpi


def test_xen_s_node_leaves_a_tree_empty_and_no_other() -> None:
    for compatible, empty in ((b"xen,xen-4.17\0xen,xen\0", True), (b"kvm\0", False)):
        tree = FdtEditor(STUB, len(STUB) + 256)
        tree.setprop(tree.add_subnode(0, "hypervisor"), "compatible", compatible)
        assert dt_is_stub(tree) is empty


def test_what_a_log_says_of_acpi_is_read() -> None:
    log = LOG + "\n".join(
        (
            "rcu: \tRCU restricting CPUs from NR_CPUS=512 to nr_cpu_ids=96.",
            "DMI: QEMU QEMU Virtual Machine, BIOS 0.0.0 02/06/2015",
            "ACPI: SRAT: Node 1 PXM 1 [mem 0xa0000000-0x13fffffff]",
            "ACPI: SLIT 0x00000000BC43E718 000030 (v01 BOCHS  BXPC     00000001 BXPC 00000001)",
        )
    )
    found = parse_efi_map(log).acpi
    assert (found.cpus, found.console, found.distances) == (96, 0x9000000, True)
    assert found.machine == "QEMU QEMU Virtual Machine, BIOS 0.0.0 02/06/2015"
    assert found.nodes == ((1, PhysRange(0xA0000000, 0x140000000)),)


def boot(log: str, cmdline: str = "crashkernel=256M", era: str = "6.12") -> KernelModel:
    found = read_efi_map(log.encode())
    return KernelModel.boot(
        Board(efi_ram(found), 2), KernelConfig(era), cmdline=cmdline, dtb=STUB, efi_map=found
    )


@pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])
def test_memory_is_split_where_the_affinity_table_says(era: str) -> None:
    """Nobody has the flash of QEMU's board, so that its own machines have a single node: without it there are two."""
    halves = ((0, "0x40000000-0x7fffffff"), (1, "0x80000000-0xbfffffff"))
    nodes = "".join(f"ACPI: SRAT: Node {node} PXM {node} [mem {half}]\n" for node, half in halves)
    log = "\n".join(line for line in LOG.splitlines() if "0x000004000000" not in line)
    with boot(f"{log}\n{nodes}", era=era) as kernel:
        assert kernel.arch.nodes == (0, 1)
        assert "40000000-7fffffff : System RAM\n" in proc_iomem(kernel)
        assert kernel.not_modelled()[-1].startswith("NUMA: in guest memory")
    with boot(f"{log}\n{nodes}", "crashkernel=256M numa=off", era) as kernel:
        assert kernel.arch.nodes == (0,)
    with boot(LOG + nodes, era=era) as kernel:
        assert kernel.arch.nodes == (0,)
        words = "no nodes coverage for 64MB of 2112MB RAM" if era != "6.1" else "invalid memblk node 16"
        assert words in kernel.board.uart.text


def test_without_a_line_about_the_console_there_is_none_and_that_is_said() -> None:
    log = "\n".join(line for line in LOG.splitlines() if "SPCR: console" not in line)
    with boot(log) as kernel:
        assert kernel.console_phys == 0
        assert "ARMH0011" not in proc_iomem(kernel)
        words, iort, cma = kernel.not_modelled()
        assert words.startswith("ACPI: the log has no line about a PL011 in SPCR")
        assert iort.startswith("ACPI: what IORT says")
        assert cma.startswith("the log has a CMA area of 64 MiB") and cma.endswith("CMA_SIZE_MBYTES=64)")
    with boot("\n".join(line for line in LOG.splitlines() if "IORT" not in line)) as kernel:
        assert kernel.not_modelled() == [cma]
    with boot(LOG, "crashkernel=256M cma=64M") as kernel:
        assert kernel.not_modelled() == [iort]
    with boot(LOG) as kernel:
        assert (
            "09000000-09000fff : ARMH0011:00\n  09000000-09000fff : ARMH0011:00 ARMH0011:00\n"
            in proc_iomem(kernel)
        )


def files(folder: Path, log: str) -> list[str]:
    (folder / "fdt").write_bytes(STUB)
    (folder / "dmesg").write_text(log)
    return ["--dtb", str(folder / "fdt"), "--efi-map", str(folder / "dmesg"), "--era", "6.12"]


def test_the_cpus_are_those_of_the_log_or_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = LOG + "rcu: \tRCU restricting CPUs from NR_CPUS=512 to nr_cpu_ids=3.\n"
    for more, cpus in (((), 3), (("--cpus", "5"), 5)):
        assert main(["load", "--json", *files(tmp_path, log), *more]) == 0
        sysfs = json.loads(capsys.readouterr().out)["sysfs"]
        assert sum(name.endswith("/crash_notes") for name in sysfs) == cpus


def test_a_real_linux_as_capture_kernel_would_find_no_tables_and_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "initrd").write_bytes(b"x")
    image = str(fixture_path("guests/capture-Image"))
    linux = ["--capture", "linux", "--kernel", image, "--initrd", str(tmp_path / "initrd")]
    assert main(["crash", *files(tmp_path, LOG), *linux]) == 2
    said = capsys.readouterr().err
    assert "a real capture kernel wants ACPI's tables" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "outcome"), [([], "captured"), (["--write", "initrd+0x100=ff"], "detected")]
)
def test_the_stub_finds_memory_in_the_map_of_uefi(
    more: list[str], outcome: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["crash", "--json", *files(tmp_path, LOG), *more])
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == outcome
