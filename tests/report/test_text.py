"""The account of a run for people: a real kernel's log is folded, and never what matters in it."""

from __future__ import annotations

import pytest

from kexecemu.report.text import _folded

BOOT = [f"[    0.{number:06}] device {number} is there" for number in range(40)]
INIT = ["kdump: Linux 6.1.0 is up", "kdump: end: status 0, 4096 bytes to /dev/vda"]
OFF = ["[    7.000001] virtio_blk: gone", "[    7.000002] reboot: Power down"]
PANIC = [
    "[    1.000000] Kernel panic - not syncing: Attempted to kill init!",
    *(f"[    1.0001{number:02}]  function_{number}+0x10" for number in range(20)),
    "[    1.000200] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---",
]


def test_of_a_boot_its_first_lines_its_init_and_its_end_are_left() -> None:
    assert _folded([*BOOT, *INIT, *OFF]) == [
        *BOOT[:2],
        "... 38 lines of the kernel's log, which -v shows as they are printed",
        *INIT,
        *OFF,
    ]


def test_a_panic_is_shown_whole() -> None:
    assert _folded([*BOOT, *PANIC])[3:] == PANIC


@pytest.mark.parametrize(
    "line",
    [
        "[    0.5] Unable to handle kernel paging request at virtual address ffff000012345678",
        "[    0.5] Internal error: synchronous external abort: 0000000096000010 [#1] SMP",
        "[    0.5] BUG: Bad page state in process swapper",
    ],
)
def test_from_the_first_trouble_on_nothing_is_folded(line: str) -> None:
    assert _folded([*BOOT, line, *BOOT])[3:] == [line, *BOOT]


def test_a_few_lines_are_not_worth_folding() -> None:
    lines = [*BOOT[:2], *INIT[:1], *BOOT[2:5], *INIT[1:], *OFF]
    assert _folded(lines) == lines


def test_what_programs_print_is_never_folded() -> None:
    lines = [*BOOT[:2], *(f"program: line {number}" for number in range(100)), *OFF]
    assert _folded(lines) == lines


def test_nothing_stays_nothing() -> None:
    assert _folded([]) == []
