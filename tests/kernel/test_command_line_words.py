"""Words of the command line as parse_args() makes them, as Debian's kernels answered them on Cortex-A57s."""

from __future__ import annotations

import pytest

from kexecemu.crash.kernel import Kernel
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.machine.board import Board


@pytest.mark.parametrize(
    ("era", "ram", "cpus", "cmdline", "cma", "start"),
    [
        ("6.18", "5200M", 4, "crashkernel=160M cma=64M@4G-5G", "Reserved 64 MiB at 0x0000000100000000", None),
        (
            "7.3",
            "1900M",
            2,
            "crashkernel=160M cma=100M@0x50000000 cma=40M",
            "Reserved 40 MiB at 0x0000000053c00000",
            0xAC800000,
        ),
        (
            "6.18",
            "2700M",
            3,
            "crashkernel=200M cma=100M@0-1G cma=33M",
            "Failed to reserve 33 MiB",
            0xD9200000,
        ),
        ("6.1", "1700M", 2, "crashkernel=192M -- nr_cpus=1 cma=128M", "Reserved 64 MiB", None),
        ("6.18", "1200M", 2, 'crashkernel=160M rodata="noalias" mem="1100M"', "Reserved 64 MiB", None),
    ],
)
def test_cma_and_the_crash_region_are_where_a_real_kernel_had_them(
    era: str, ram: str, cpus: int, cmdline: str, cma: str, start: int | None
) -> None:
    with Board(ram, cpus) as board:
        config = KernelConfig(era, options={"CMA_SIZE_MBYTES": "64"})
        kernel = Kernel.boot(board, config, cmdline=cmdline)
        assert f"cma: {cma}" in board.uart.text
        assert kernel.crashk_res is not None
        assert start is None or kernel.crashk_res.start == start
        assert "clipping" not in board.uart.text
        if "mem=" in cmdline:
            assert "Memory limited to 1100MB" in board.uart.text


def test_a_dash_in_a_name_is_an_underscore() -> None:
    with Board("256M", 5) as board:
        Kernel.boot(board, KernelConfig("6.1"), cmdline="crashkernel=32M nr-cpus=2")
        assert "Number of cores (5) exceeds configured maximum of 2 - clipping" in board.uart.text
