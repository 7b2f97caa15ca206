"""compare-linux: the model reserves, places and writes down what Debian's kernels and kexec-tools do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.real.conftest import Command

pytestmark = pytest.mark.real

# (kernel, RAM, CPUs, command line): each has found a difference once, or shows another way of reserving.
BOARDS = [
    ("kernel", "512M", 2, "crashkernel=192M"),
    ("kernel", "6G", 1, "crashkernel=256M,high crashkernel=64M,low"),
    ("kernel", "768M", 1, "crashkernel=128M@0x50000000 nokaslr"),
    ("kernel-trixie", "6G", 1, "crashkernel=256M,high"),
    ("kernel-6.18", "1004M", 2, "crashkernel=192M"),
    # Twelve tables of its linear map, which the real image spares by its size, are on the other side of 2 MiB here.
    ("kernel-trixie", "2000M", 2, "crashkernel=160M cma=64M"),
]


@pytest.mark.parametrize(("kernel", "ram", "cpus", "cmdline"), BOARDS)
def test_the_model_does_what_the_real_kernel_does(
    command: Callable[..., Command],
    fetched: Callable[[str], Path],
    kernel: str,
    ram: str,
    cpus: int,
    cmdline: str,
) -> None:
    for name in (kernel, "busybox", "kexec-tools"):
        fetched(name)
    options = ["--kernel", f"fetched:{kernel}", "--ram", ram, "--cpus", cpus, "--cmdline", cmdline, "--json"]
    done = command("compare-linux", *map(str, options))
    rows = done.json["rows"]
    assert [row for row in rows if row["result"] == "different"] == []
    assert done.status == 0
    groups = {row["group"] for row in rows}
    assert groups == {
        "crashkernel",
        "/proc/iomem",
        "segments",
        "device tree",
        "elfcorehdr",
        "purgatory",
        "protection",
        "messages",
        "vmcoreinfo",
    }
    # Not by comparing nothing: every segment's three numbers, and a tree of some size.
    assert sum(row["group"] == "segments" for row in rows) == 2 + 3 * 5
    assert sum(row["group"] == "device tree" and row["result"] == "equal" for row in rows) > 60
    protected = {row["real"] for row in rows if row["group"] == "protection"}
    assert protected == ({"not mapped"} if kernel == "kernel" else {"mapped"})


@pytest.mark.parametrize(
    ("ram", "cmdline", "said"),
    [
        ("6001M", "crashkernel=3500M arm64_sw.nokaslr=1", "cannot allocate crashkernel"),
        ("512M", "cma mem", ""),
    ],
)
def test_a_real_kernel_that_reserves_nothing_is_compared_by_what_there_is(
    command: Callable[..., Command], fetched: Callable[[str], Path], ram: str, cmdline: str, said: str
) -> None:
    for name in ("kernel-trixie", "busybox", "kexec-tools"):
        fetched(name)
    done = command(
        "compare-linux", "--kernel", "fetched:kernel-trixie", "--ram", ram, "--cmdline", cmdline, "--json"
    )
    assert done.status == 0
    assert "nothing is loaded" in done.stderr and said in done.stderr
    assert done.json["counts"]["equal"] > 80
    assert {row["group"] for row in done.json["rows"]} == {
        "crashkernel",
        "/proc/iomem",
        "messages",
        "vmcoreinfo",
    }
    early = [row["real"] for row in done.json["rows"] if row["name"] == "early parameters"]
    bare = "cma mem" in cmdline
    assert early == (["Malformed early option 'cma'", "Malformed early option 'mem'"] if bare else [])


def test_a_model_with_other_options_differs_and_the_status_says_so(
    command: Callable[..., Command], debian_kernel: Path, fetched: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("busybox", "kexec-tools"):
        fetched(name)
    # No configuration beside it: the model has no CMA area then, and reserves where that would be.
    copy = tmp_path / "vmlinuz"
    copy.write_bytes(debian_kernel.read_bytes())
    done = command("compare-linux", "--kernel", copy)
    assert done.status == 1
    assert "no config-" in done.stderr
    assert "! crashk_res" in done.stdout
