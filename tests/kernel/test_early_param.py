"""parse_early_param(): what the command line sets before memory is looked at, and what is said of it."""

from __future__ import annotations

import re

import pytest
from kernel_bench import boot

from kexecemu.kernel.base.cmdline import kaslr_disabled
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.early_param import CmaAsked, EarlyParameters, parse_early_param
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.ranges import PhysRange

MIB = 1 << 20
NO_CONFIG = ["cma: Config string not provided", "Malformed early option 'cma'"]


@pytest.mark.parametrize(
    ("cmdline", "found", "said"),
    [
        ("", EarlyParameters(), []),
        ("cma", EarlyParameters(), NO_CONFIG),
        ("cma=", EarlyParameters(cma=CmaAsked(0)), []),
        ("cma=64M", EarlyParameters(cma=CmaAsked(64 * MIB)), []),
        ("cma=64M cma", EarlyParameters(cma=CmaAsked(64 * MIB)), NO_CONFIG),
        ("cma=64M@1G", EarlyParameters(cma=CmaAsked(64 * MIB, 1024 * MIB, 1088 * MIB)), []),
        ("cma=64M@1G-2G cma=32M", EarlyParameters(cma=CmaAsked(32 * MIB, 1024 * MIB, 2048 * MIB)), []),
        ("mem=512M", EarlyParameters(memory_limit=512 * MIB), ["Memory limited to 512MB"]),
        ("mem=4100K", EarlyParameters(memory_limit=4100 << 10), ["Memory limited to 4MB"]),
        (
            "mem=512M mem",
            EarlyParameters(memory_limit=512 * MIB),
            ["Memory limited to 512MB", "Malformed early option 'mem'"],
        ),
        ("mem=", EarlyParameters(memory_limit=0), ["Memory limited to 0MB"]),
        ("mem=256M -- mem=1M cma", EarlyParameters(memory_limit=256 * MIB), ["Memory limited to 256MB"]),
        # In the order of the line, whatever sets what.
        (
            "rodata=x cma mem=1G panic_force_cpu=x",
            EarlyParameters(memory_limit=1024 * MIB),
            [
                "Invalid option string for rodata: 'x'",
                *NO_CONFIG,
                "Memory limited to 1024MB",
                "panic_force_cpu: invalid value 'x'",
                "Malformed early option 'panic_force_cpu'",
            ],
        ),
    ],
)
def test_each_is_taken_by_its_handler_in_the_order_of_the_line(
    cmdline: str, found: EarlyParameters, said: list[str]
) -> None:
    log: list[str] = []
    assert parse_early_param(KernelConfig("7.3"), cmdline, log.append) == found
    assert log == said


def test_a_kernel_without_cma_knows_no_such_parameter() -> None:
    log: list[str] = []
    config = KernelConfig("7.3", options={"CMA": "n"})
    assert parse_early_param(config, "cma cma=64M", log.append).cma is None and log == []


def test_what_is_said_of_them_is_on_the_console_before_the_command_line() -> None:
    with boot("6.12", "cma", ram="256M", options={"CMA_SIZE_MBYTES": "16"}) as kernel:
        lines = [re.sub(r"^\[.{12}\] ", "", line) for line in kernel.board.uart.text.splitlines()]
        at = lines.index(NO_CONFIG[0])
        assert lines[at + 1] == NO_CONFIG[1]
        assert at < lines.index("Kernel command line: cma")
        assert "cma: Reserved 16 MiB at" in kernel.board.uart.text  # as it was built


@pytest.mark.parametrize(
    ("cmdline", "off"),
    [
        ("", False),
        ("nokaslr", True),
        ("quiet nokaslr x", True),
        ("nokaslr=1", False),
        ("xnokaslr", False),
        ("arm64_sw.nokaslr=1", True),
        ("arm64-sw.nokaslr=0x1", True),
        ("arm64_sw.nokaslr=0", False),
        ("nokaslr arm64_sw.nokaslr=0", False),
        ("arm64_sw.nokaslr=0 nokaslr", True),
        ("nokaslr arm64_sw.nokaslr=10", True),  # no hex digit: as if it were not there
        ("nokaslr arm64_sw.nokaslr", True),
        ("-- nokaslr", False),
        ('"a nokaslr b"', True),  # it knows no quotes
        ("kaslr.disabled=1", False),
    ],
)
def test_kaslr_is_off_by_a_word_or_by_what_it_stands_for(cmdline: str, off: bool) -> None:
    assert kaslr_disabled(cmdline, ["arm64_sw.nokaslr"]) is off


@pytest.mark.parametrize(("era", "left"), [("6.4", "kaslr.disabled=1"), ("6.5", "arm64_sw.nokaslr=1")])
def test_the_seed_stays_in_the_tree_where_nobody_reads_it(era: str, left: str) -> None:
    seed = bytes(range(1, 9))
    for word in ("kaslr.disabled=1", "arm64_sw.nokaslr=1"):
        banks = [PhysRange.of(1 << 30, 256 * MIB)]
        place = int.from_bytes(seed, "big")
        dtb = virt_device_tree(banks, 1, 0x9000000, cmdline=word, kaslr_seed=place)
        with boot(era, None, ram=banks, dtb=dtb) as kernel:
            assert (seed in kernel.initial_boot_params) is (word == left)
