"""How a real capture kernel is followed to its end, shown by a guest of a few instructions that behaves like one.

It prints what Linux and its init print, and ends in every way there is. What it would write to its disk is put there by
the test, at the moment when it says that it does so.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from image_header import build
from linux.test_printk_ring import BASE as LOG_BASE
from linux.test_printk_ring import FIRST, ring
from machine.system_guest import DAIFSET_I, NOP, OFF, RESET, UDF, WFI, Words, b, br, flat, mov

from kexecemu import Board, Dump, Kernel, KernelConfig, Outcome
from kexecemu.crash.end import End
from kexecemu.formats.image import HEADER_SIZE
from kexecemu.linux import capture as linux
from kexecemu.linux.capture import LinuxCapture, LinuxEnd, LoadDigest, linux_stage, load_digests
from kexecemu.machine.devices.disk import Disk
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.first import through

CODE = 0x40010000
AREAS = [PhysRange.of(0x40100000, 0x5000), PhysRange.of(0x40200000, 0x3000)]
UP = "kdump: Linux 6.1.0-test is up"
COPYING = "copying"
LOOP = b(0)
LOG = PhysRange.of(0x40300000, 0x80000)


def says(*lines: str) -> list[int]:
    """Code that prints lines, with a boundary behind each as any real code has."""
    words = mov(9, 0x09000000)
    for line in lines:
        for byte in f"{line}\r\n".encode():
            words += [*mov(10, byte), 0x39000000 | 9 << 5 | 10]  # strb w10, [x9]
        words.append(b(1))
    return words


def put_log(board: Board, lines: Sequence[str]) -> None:
    """A kernel's log in memory, where it lies by its first words: the MMU is off."""
    board.ram.write(LOG.start, ring(lines).read(LOG_BASE, LOG.size))


def done(size: int) -> str:
    """The last line of an init that has copied a dump."""
    return f"kdump: end: status 0, {size} bytes to /dev/vda"


def core(pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """An ELF core of arm64 with these loads: (physical address, bytes)."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 4, 183, 1, 0, 64, 0, 0, 64, 56, len(pieces), 0, 0, 0)
    offset, body = 0x1000, b""
    for phys, data in pieces:
        size = len(data)
        head += struct.pack("<IIQQQQQQ", 1, 7, offset + len(body), phys, phys, size, size, 0)
        body += data
    return head.ljust(offset, b"\0") + body


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> list[Disk]:
    """The disks that runs are given, as they are made."""
    made: list[Disk] = []

    def disk(size: int) -> Disk:
        made.append(Disk(size))
        return made[-1]

    monkeypatch.setattr(linux, "Disk", disk)
    return made


@pytest.fixture
def board() -> Iterator[Board]:
    """4 MiB, with something to dump."""
    with Board("4M") as made:
        chance = random.Random(1)
        for area in AREAS:
            made.ram.write(area.start, chance.randbytes(area.size))
        yield made


def start(board: Board, *program: Words) -> None:
    code = flat(*program)
    board.ram.write(CODE, struct.pack(f"<{len(code)}I", *code))
    board.boot_cpu.reset(CODE)


def run(board: Board, *program: Words, budget: int = 1_000_000) -> LinuxCapture:
    start(board, *program)
    return through(linux_stage(board, areas=AREAS, budget=budget))


def dump(board: Board, disks: list[Disk], data: bytes) -> LinuxCapture:
    """A run that comes up, has `data` on its disk, says that it is done and switches off."""

    def write(said: bytes) -> None:
        if COPYING.encode() in board.uart.output and not disks[0].read(0, 4).strip(b"\0"):
            disks[0].write(0, data)

    board.uart.listeners.append(write)
    return run(board, says(UP, COPYING, done(len(data))), OFF)


def test_a_kernel_that_dies_without_a_word_is_found_out_by_its_log(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's 6.1 in 100 MiB: its console comes up later than it runs out of memory."""
    monkeypatch.setattr(linux, "_LOOK", 10_000)
    log = [
        FIRST,
        "Kernel panic - not syncing: deadlock",
        "---[ end Kernel panic - not syncing: deadlock ]---",
    ]
    put_log(board, log)
    start(board, LOOP)
    ended = through(linux_stage(board, areas=AREAS, image=LOG, budget=1_000_000))
    assert (ended.end, ended.panic, ended.instructions) == (LinuxEnd.PANIC, "deadlock", 10_000)
    assert ended.unshown.splitlines() == [f"[    0.00{number}000] {line}" for number, line in enumerate(log)]
    assert "its console has not shown the end of its log: [    0.002000] ---[ end" in ended.where


def test_a_silent_panic_that_ends_in_a_reset_is_a_panic(board: Board) -> None:
    """With panic=1 its end is not printed."""
    put_log(board, [FIRST, "Kernel panic - not syncing: deadlock"])
    start(board, RESET)
    ended = through(linux_stage(board, areas=AREAS, image=LOG, budget=1_000_000))
    assert (ended.end, ended.panic) == (LinuxEnd.PANIC, "deadlock")


def test_of_a_log_that_was_shown_in_part_the_rest_is_told(board: Board) -> None:
    put_log(board, [FIRST, "second", "third\nof two lines", "last"])
    start(board, says(f"[    0.000000] {FIRST}", "[    0.001000][    T0] second"), OFF)
    ended = through(linux_stage(board, areas=AREAS, image=LOG, budget=1_000_000))
    assert ended.end is LinuxEnd.OFF
    assert ended.unshown == "[    0.002000] third\n[    0.002000] of two lines\n[    0.003000] last\n"


def test_without_a_log_a_silent_kernel_has_its_whole_budget(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "_LOOK", 10_000)
    start(board, LOOP)
    ended = through(linux_stage(board, areas=AREAS, image=LOG, budget=100_000))
    assert (ended.end, ended.unshown) == (LinuxEnd.BUDGET, "")
    assert 100_000 <= ended.instructions < 100_100


def memory(board: Board) -> list[tuple[int, bytes]]:
    return [(area.start, board.ram.read(area.start, area.size)) for area in AREAS]


# -- the dump --------------------------------------------------------------------------------------------------


def test_a_dump_of_all_memory_is_found_true(board: Board, disks: list[Disk], tmp_path: Path) -> None:
    data = core(memory(board))
    run = dump(board, disks, data)
    assert (run.end, run.release, run.wrong_loads, run.true_dump) == (LinuxEnd.DONE, "6.1.0-test", [], True)
    digests = [hashlib.sha256(piece).hexdigest() for _, piece in memory(board)]
    assert run.read == run.crashed == [LoadDigest(*pair) for pair in zip(AREAS, digests, strict=True)]
    assert run.vmcore is not None
    assert run.vmcore.write(tmp_path / "vmcore") == len(data)
    assert (tmp_path / "vmcore").read_bytes() == data


@pytest.mark.parametrize("at", [0, 0x2FFF])
def test_one_wrong_byte_is_found_in_the_load_that_it_is_in(at: int, board: Board, disks: list[Disk]) -> None:
    pieces = memory(board)
    phys, data = pieces[1]
    pieces[1] = (phys, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
    run = dump(board, disks, core(pieces))
    assert run.end is LinuxEnd.DONE
    assert [load.phys for load in run.wrong_loads] == [AREAS[1]]
    assert not run.true_dump


def test_memory_is_taken_as_it_was_before_the_first_instruction(board: Board, disks: list[Disk]) -> None:
    before = memory(board)
    board.uart.listeners.append(lambda said: board.ram.write_dma(AREAS[0].start, b"later"))
    assert dump(board, disks, core(before)).true_dump
    assert board.ram.read(AREAS[0].start, 5) == b"later"


def test_a_load_that_is_missing_makes_no_true_dump(board: Board, disks: list[Disk]) -> None:
    run = dump(board, disks, core(memory(board)[:1]))
    assert (run.end, run.wrong_loads, run.true_dump) == (LinuxEnd.DONE, [], False)


def test_a_load_of_the_right_bytes_in_the_wrong_place_is_wrong(board: Board, disks: list[Disk]) -> None:
    (first, (phys, data)) = memory(board)
    run = dump(board, disks, core([first, (phys + 0x1000, data)]))
    assert [load.phys.start for load in run.wrong_loads] == [phys + 0x1000]
    assert not run.true_dump


@pytest.mark.parametrize("data", [b"no core at all".ljust(4096, b"\0"), core([])[:60], b""])
def test_what_is_no_core_is_no_true_dump_whatever_init_says(
    data: bytes, board: Board, disks: list[Disk]
) -> None:
    run = dump(board, disks, data)
    assert (run.end, run.read, run.true_dump) == (LinuxEnd.DONE, [], False)


def test_a_dump_that_is_said_to_be_larger_than_its_disk_is_none(board: Board) -> None:
    ended = run(board, says(done(1 << 40)), OFF)
    assert (ended.end, ended.read, ended.true_dump) == (LinuxEnd.DONE, [], False)


def test_areas_that_are_no_ram_leave_nothing_to_compare_with(board: Board) -> None:
    start(board, says(UP), OFF)
    ended = through(linux_stage(board, areas=[PhysRange.of(0x90000000, 0x1000)], budget=1_000_000))
    assert (ended.end, ended.crashed) == (LinuxEnd.OFF, [])


# -- the ends --------------------------------------------------------------------------------------------------

PANIC = "[    1.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004"
PANIC_END = f"[    1.3] ---[ end {PANIC.split('] ')[1]} ]---"
HEADERS_READ = "kdump: end: headers read, nothing copied"
NO_VMCORE = "kdump: end: no /proc/vmcore, this kernel was not started by a crash"

# name: (program, end, words about it)
ENDS: dict[str, tuple[list[Words], LinuxEnd, str]] = {
    "off": ([says(UP), OFF], LinuxEnd.OFF, "switched off"),
    "off in silence": ([OFF], LinuxEnd.OFF, "it has printed nothing"),
    "reset": ([says(UP), RESET], LinuxEnd.OFF, "reset"),
    "no dump": ([says(UP, NO_VMCORE), OFF], LinuxEnd.NO_DUMP, "switched off"),
    "headers read": ([says(UP, HEADERS_READ), OFF], LinuxEnd.HEADERS, "switched off"),
    "failed copy": (
        [says(UP, "kdump: end: status 1, 4096 bytes to /dev/vda"), OFF],
        LinuxEnd.OFF,
        "status 1",
    ),
    "halted, by firmware that cannot switch it off": (
        [
            says(UP, HEADERS_READ, "[   17.0] reboot: Power off not available: System halted instead"),
            DAIFSET_I,
            LOOP,
        ],
        LinuxEnd.HEADERS,
        "stuck in an endless loop",
    ),
    "waiting, as firmware did not switch it off": (
        [says(UP, HEADERS_READ), NOP, b(-1)],
        LinuxEnd.HEADERS,
        "used up the budget",
    ),
    "lost after its last word": ([says(UP, HEADERS_READ), UDF], LinuxEnd.LOST, "lost: "),
    "stuck before its init has said how it ends": ([says(UP), DAIFSET_I, LOOP], LinuxEnd.STUCK, UP),
    "panic": ([says(PANIC, PANIC_END), LOOP], LinuxEnd.PANIC, "Attempted to kill init"),
    "panic that resets": (
        [says(PANIC, "[    1.3] Rebooting in 1 seconds.."), RESET],
        LinuxEnd.PANIC,
        "reset",
    ),
    "another kernel's panic, and a reboot": (
        [says(UP, PANIC, "[    2.0] reboot: Restarting system"), RESET],
        LinuxEnd.OFF,
        "reset",
    ),
    "idle for good": ([says("[    0.5] waits"), DAIFSET_I, WFI, b(-1)], LinuxEnd.STUCK, "idle for good"),
    "a loop of one branch": (
        [says("[    0.5] loops"), DAIFSET_I, LOOP],
        LinuxEnd.STUCK,
        "stuck in an endless loop",
    ),
    "a longer loop": ([says("[    0.5] runs"), NOP, b(-1)], LinuxEnd.BUDGET, "used up"),
    "no vectors": ([says("[    0.5] falls"), mov(1, 0x90000000), br(1)], LinuxEnd.LOST, "lost: "),
    "undefined": ([says("[    0.5] falls"), UDF], LinuxEnd.LOST, "lost: "),
}


@pytest.mark.parametrize("stamp", ["[    1.500000] ", "[   85.082145][    T1] ", "[12345.678901][  C3] "])
def test_what_init_says_through_the_kernels_log_is_heard(stamp: str, board: Board) -> None:
    """Where a kernel has no driver for the console, and an early one prints."""
    lines = [
        f"{stamp}kdump: {words}" for words in ("Linux 6.12-log is up", "end: headers read, nothing copied")
    ]
    ended = run(board, says(*lines), OFF, budget=5_000_000)
    assert (ended.release, ended.end, ended.last_word) == (
        "6.12-log",
        LinuxEnd.HEADERS,
        "headers read, nothing copied",
    )


@pytest.mark.parametrize(
    "line", ["[    1.5] bash: kdump: end: status 0", "a kdump: end: status 0", "[ x] kdump: end"]
)
def test_what_somebody_else_says_of_it_is_not(line: str, board: Board) -> None:
    assert run(board, says(line), OFF).end is LinuxEnd.OFF


def test_where_the_console_is_mute_the_disks_last_sector_has_the_last_word(
    board: Board, disks: list[Disk]
) -> None:
    data = core(memory(board))

    def write(said: bytes) -> None:
        last = f"{UP}\n{done(len(data))}\n".encode()
        disks[0].write(0, data)
        disks[0].write(disks[0].size - 512, last.ljust(512, b"\0"))

    board.uart.listeners.append(write)
    mute = run(board, says("x"), OFF)
    assert (mute.end, mute.release, mute.true_dump) == (LinuxEnd.DONE, "6.1.0-test", True)


def test_what_the_console_has_told_is_believed_before_the_disk(board: Board, disks: list[Disk]) -> None:
    def write(said: bytes) -> None:
        disks[0].write(disks[0].size - 512, f"{done(4096)}\n".encode().ljust(512, b"\0"))

    board.uart.listeners.append(write)
    assert run(board, says(UP, NO_VMCORE), OFF).end is LinuxEnd.NO_DUMP


@pytest.mark.parametrize("name", ENDS)
def test_every_end_is_told_apart_and_says_where_it_stood(name: str, board: Board) -> None:
    program, kind, words = ENDS[name]
    start(board, *program)
    last = [line.strip() for line in _printed(program)][-1:]
    # Long enough for a look at where it stands.
    ended = through(linux_stage(board, areas=AREAS, budget=25_000_000))
    assert ended.end is kind
    assert ended.where.startswith("cpu0 at pc 0x")
    assert words in ended.where
    if kind is LinuxEnd.STUCK:
        assert int(ended.where.split()[3].rstrip(","), 16) in range(CODE, CODE + 4 * len(flat(*program)))
    for line in last:
        assert ended.where.endswith(f"the last line on the console: {line}")
    assert (ended.vmcore, ended.read) == (None, [])


def test_a_run_is_the_same_each_time_and_progress_grows() -> None:
    seen: list[list[int]] = []
    ends = set()
    for _ in range(2):
        told: list[int] = []
        with Board("4M") as board:
            start(board, says(UP), NOP, b(-1))
            ended = through(linux_stage(board, areas=[], budget=70_000_000, progress=told.append))
            ends.add((ended.where, ended.console, ended.instructions))
        seen.append(told)
    assert len(ends) == 1
    assert seen[0] == seen[1] == sorted(seen[0])
    assert len(seen[0]) >= 3


def test_what_the_console_heard_before_is_not_the_capture_kernels(board: Board) -> None:
    board.uart.transmit(f"{PANIC}\r\n{PANIC_END}\r\n{done(5)}\r\n".encode())
    ended = run(board, says("its own"), OFF)
    assert (ended.end, ended.console) == (LinuxEnd.OFF, "its own\n")


def test_digests_are_of_the_bytes_that_are_there(board: Board) -> None:
    (load,) = load_digests(board.ram, [PhysRange.of(0x40100010, 100)])
    assert load.sha256 == hashlib.sha256(board.ram.read(0x40100010, 100)).hexdigest()


# -- in the account of a crash -----------------------------------------------------------------------------------


@pytest.fixture
def crashed() -> Callable[..., End]:
    """A whole crash whose capture kernel is a program of ours behind an Image's header."""

    def crash(*program: Words) -> End:
        code = flat(*program)
        image = build(text_offset=0, image_size=0x100000, code0=b(HEADER_SIZE // 4))
        image += struct.pack(f"<{len(code)}I", *code)
        kernel = Kernel.boot(Board("64M"), KernelConfig("6.4", purgatory=True), cmdline="crashkernel=16M")
        kernel.kexec_file_load(image, b"070701", "console=ttyAMA0")
        return kernel.panic(linux=True)

    return crash


@pytest.mark.parametrize(
    ("name", "outcome", "words"),
    [
        ("off", Outcome.HUNG, "Linux 6.1.0-test powers off without a word of the dump"),
        ("no dump", Outcome.HUNG, "Linux 6.1.0-test finds no dump, and powers off"),
        (
            "headers read",
            Outcome.CAPTURED,
            "Linux 6.1.0-test reads the dump's headers, and powers off without",
        ),
        ("failed copy", Outcome.HUNG, "Linux 6.1.0-test powers off: status 1, 4096 bytes to /dev/vda"),
        ("panic", Outcome.TRAPPED, "the capture kernel panics: Attempted to kill init!"),
        ("idle for good", Outcome.HUNG, "the capture kernel gets nowhere"),
        ("a loop of one branch", Outcome.HUNG, "the capture kernel gets nowhere"),
        ("undefined", Outcome.TRAPPED, "the capture kernel is ended by an exception"),
    ],
)
def test_the_account_says_how_it_ended_and_where(
    name: str, outcome: Outcome, words: str, crashed: Callable[..., End]
) -> None:
    program, kind, where = ENDS[name]
    end = crashed(*program)
    assert (end.outcome, end.vmcore, end.dump) == (outcome, None, Dump.NONE)
    assert "budget" not in end.reason
    assert end.capture is not None and end.capture.linux is not None
    assert end.capture.linux.end is kind
    assert (end.capture.fault is not None) is (kind is LinuxEnd.LOST)
    (event,) = end.timeline.of("captured")
    assert event.text.startswith(words)
    assert where in event.text and "None" not in event.text
    assert event.text.endswith(f"{_printed(program)[-1]})")


def test_a_dump_that_is_not_what_memory_held_is_silent_corruption(crashed: Callable[..., End]) -> None:
    end = crashed(says(UP, done(4096)), OFF)
    assert (end.outcome, end.dump) == (Outcome.SILENT, Dump.WRONG)
    assert end.reason == "the dump is not what memory held at the crash, and nobody noticed"
    assert "is not what memory held" in end.timeline.of("captured")[0].text


def _printed(program: Sequence[Words]) -> list[str]:
    """The lines that a program prints, read from its code: a byte is what is moved to w10."""
    data = bytes(word >> 5 & 0xFF for word in flat(*program) if word & 0xFFE0001F == 0xD280000A)
    return data.decode().splitlines()
