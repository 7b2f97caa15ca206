"""The device tree: what the stub finds in one, and how it bears a broken one."""

from __future__ import annotations

import random
import struct

import pytest
from stub_bench import DONE, NO_DUMP, RAM, REAL_DTB, TRAPPED, VIOLATED, X0_NO_DTB, run
from stub_crash import cells, core, fdt, tree


@pytest.mark.parametrize(
    "change",
    [
        {4: 0x00200001},  # totalsize above 2 MiB
        {4: 39},
        {8: 0x00100000},  # structure block behind the end
        {8: 0x3A},  # not a multiple of 4
        {36: 0xFFFFFFFC},
        {12: 0xFFFFFFFF},
        {32: 0xFFFFFFFF},
        {20: 16},  # version
        {24: 18},  # last compatible version
    ],
    ids=str,
)
def test_an_impossible_device_tree_header_is_refused(change: dict[int, int]) -> None:
    dtb = bytearray(REAL_DTB)
    for offset, value in change.items():
        struct.pack_into(">I", dtb, offset, value)
    result = run(dtb=bytes(dtb), memory=core())
    assert (result.end, result.record.state) == ("stopped", VIOLATED)
    assert result.record.violations == X0_NO_DTB


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"linux,elfcorehdr": b"-"}, "no linux,elfcorehdr: not started after a crash"),
        ({"linux,elfcorehdr": bytes(8)}, "no linux,elfcorehdr: not started after a crash"),
        (
            {"linux,usable-memory-range": b"-"},
            "no linux,usable-memory-range: all of the dump would be overwritten",
        ),
        (
            {"linux,usable-memory-range": cells(0x50000000, 0x6000000)},
            "linux,usable-memory-range does not hold this kernel",
        ),
    ],
    ids=["no elfcorehdr", "short elfcorehdr", "no range", "wrong range"],
)
def test_what_chosen_lacks_costs_the_dump(chosen: dict[str, bytes], says: str) -> None:
    result = run(dtb=fdt(tree(chosen=chosen)), memory=core())
    assert f"capture: {says}" in result.lines
    assert (result.end, result.record.state) == ("off", NO_DUMP)


def test_both_usable_ranges_are_kept() -> None:
    ranges = cells(0x6A000000, 0x6000000, 0x48000000, 0x8000000)
    result = run(dtb=fdt(tree(chosen={"linux,usable-memory-range": ranges})), memory=core())
    assert result.record.usable == (0x6A000000, 0x6000000, 0x48000000, 0x8000000)
    assert "capture: linux,usable-memory-range 0x48000000-0x4fffffff" in result.lines


@pytest.mark.parametrize(
    "stdout",
    [
        b"-",
        b"serial0:115200n8\0",
        b"/serial@9000000:115200\0",
        b"/serial\0",
        b"/nowhere\0",
        b"no-such-alias\0",
    ],
)
def test_the_console_is_found(stdout: bytes) -> None:
    result = run(dtb=fdt(tree(chosen={"stdout-path": stdout})), memory=core())
    assert result.lines[-2] == "capture: done"


@pytest.mark.parametrize(
    "uart",
    [
        {"compatible": b"ns16550a\0"},
        {"reg": cells(RAM + 0x1000, 0x1000)},  # RAM is no device
        {"reg": cells(0x7777000000, 0x1000)},  # nothing answers there
        {"reg": b"-"},
    ],
    ids=["another kind", "in RAM", "nothing there", "no reg"],
)
def test_without_a_console_the_dump_is_checked_in_silence(uart: dict[str, bytes]) -> None:
    result = run(dtb=fdt(tree(uart=uart)), memory=core())
    assert (result.console, result.end, result.record.state) == ("", "off", DONE)
    assert not result.wild


def test_without_psci_it_stops() -> None:
    result = run(dtb=fdt(tree(psci=None)), memory=core())
    assert (result.end, result.record.state) == ("stopped", DONE)


def test_control_characters_in_bootargs_do_not_reach_the_terminal() -> None:
    result = run(dtb=fdt(tree(chosen={"bootargs": b"a\x1b[2J\xff\0"})), memory=core())
    assert "capture: bootargs a?[2J?" in result.lines


@pytest.mark.parametrize("seed", range(40))
def test_garbage_in_the_device_tree_always_ends(seed: int) -> None:
    generator = random.Random(seed)
    dtb = bytearray(REAL_DTB)
    for _ in range(1 + seed % 8):
        dtb[generator.randrange(len(dtb))] = generator.randrange(256)
    result = run(dtb=bytes(dtb), memory=core())
    assert result.end in ("off", "stopped")
    assert result.record.state in (VIOLATED, NO_DUMP, DONE, TRAPPED)
    assert not result.unaligned
    # Reads leave RAM only where the tree itself says that there is RAM, and then the CPU is trapped.
    assert not result.wild or result.record.state == TRAPPED
