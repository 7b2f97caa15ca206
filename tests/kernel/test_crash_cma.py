"""crashkernel=X,cma, as Debian's 7.3.4 answered it on Cortex-A57s, and what becomes of it in a load and in a crash."""

from __future__ import annotations

import io

import pytest
from elftools.elf.elffile import ELFFile
from kernel_bench import IMAGE, INITRD

from kexecemu.crash.kernel import Kernel
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.kernel.memory.crashkernel import reserve_crashkernel_cma
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.kernel.procfs import sysfs
from kexecemu.machine.board import Board
from kexecemu.machine.cpu.blockcount import INSTRUCTIONS_PER_SECOND
from kexecemu.machine.ranges import PhysRange


def said(board: Board) -> list[str]:
    lines = (line.partition("] ")[2] for line in board.uart.text.splitlines())
    return [line for line in lines if line.startswith(("cma: ", "crashkernel"))]


def boot(board: Board, cmdline: str, era: str = "7.3", **options: str) -> Kernel:
    config = KernelConfig(era, options={"CMA_SIZE_MBYTES": "64", **options})
    return Kernel.boot(board, config, cmdline=cmdline)


@pytest.mark.parametrize(
    ("ram", "cmdline", "lines"),
    [
        (
            "512M",
            "crashkernel=160M crashkernel=32M,cma",
            [
                "cma: Reserved 64 MiB at 0x000000005be00000",
                "crashkernel reserved: 0x0000000051e00000 - 0x000000005be00000 (160 MB)",
                "cma: Reserved 32 MiB at 0x000000004fe00000",
                "crashkernel CMA reserved: 32 MB in 1 ranges",
            ],
        ),
        (
            "6G",
            "crashkernel=256M crashkernel=1G,cma",
            [
                "cma: Reserved 64 MiB at 0x00000000fc000000",
                "crashkernel reserved: 0x00000000ec000000 - 0x00000000fc000000 (256 MB)",
                "cma: Reserved 1024 MiB at 0x0000000100000000",
                "crashkernel CMA reserved: 1024 MB in 1 ranges",
            ],
        ),
        (
            "5G",
            "crashkernel=128M crashkernel=3G,cma",
            [
                "cma: Reserved 64 MiB at 0x00000000fc000000",
                "crashkernel reserved: 0x00000000f4000000 - 0x00000000fc000000 (128 MB)",
                "cma: Failed to reserve 3072 MiB",
                "cma: Reserved 1536 MiB at 0x0000000100000000",
                "cma: Reserved 1536 MiB at 0x0000000094000000",
                "crashkernel CMA reserved: 3072 MB in 2 ranges",
            ],
        ),
    ],
)
def test_the_areas_are_where_a_real_kernel_had_them(ram: str, cmdline: str, lines: list[str]) -> None:
    with Board(ram, 2) as board:
        boot(board, cmdline)
        assert said(board) == lines


def test_what_cannot_be_had_in_one_piece_is_had_in_halves_four_at_most() -> None:
    with Board("512M", 2) as board:
        kernel = boot(board, "crashkernel=128M crashkernel=1G,cma")
        assert said(board)[2:6] == [
            *(f"cma: Failed to reserve {mib} MiB" for mib in (1024, 512, 256)),
            "cma: Reserved 128 MiB at 0x000000004be00000",
        ]
        assert len(kernel.crashk_cma_ranges) == 4
        assert said(board)[-1].startswith("crashkernel CMA reservation failed: 1024 MB requested, 2")
        assert said(board)[-1].endswith(" MB reserved in 4 ranges")


@pytest.mark.parametrize("era", [era.value for era in Era if era < Era.V7_3])
def test_before_7_3_the_option_is_skipped_and_before_6_17_it_is_what_decides(era: str) -> None:
    with Board("512M") as board:
        kernel = boot(board, "crashkernel=128M crashkernel=32M,cma", era)
        assert kernel.crashk_cma_ranges == ()
        if Era(era) < Era.V6_17:
            assert kernel.crashk_res is None
            assert said(board)[-1] == "crashkernel: unrecognized char: ,"
        else:
            assert kernel.crashk_res is not None


@pytest.mark.parametrize(
    ("cmdline", "last"),
    [
        ("crashkernel=32M,cma", "cma: Reserved 64 MiB"),  # not without a plain one
        ("crashkernel=128M crashkernel=x,cma", "crashkernel reserved"),  # what is wrong was said before
        ("crashkernel=128M crashkernel=0,cma", "crashkernel reserved"),
        ("crashkernel=1G crashkernel=32M,cma", "cma: Reserved 64 MiB"),
    ],
)
def test_what_asks_for_nothing_gets_nothing(cmdline: str, last: str) -> None:
    with Board("512M") as board:
        assert boot(board, cmdline).crashk_cma_ranges == ()
        assert said(board)[-1].startswith(last)


@pytest.mark.parametrize(
    ("value", "char", "mib"),
    [
        ("64M@zz,cma", "@", 64),  # as Debian's 7.3.4 has it
        ("64M@0x50000000,cma", "@", 64),
        ("64MB,cma", "B", 64),
        ("64M,high,cma", ",", 64),
        ("32M-:64M,cma", "-", 32),
        ("64M,cma,cma", ",", 64),
    ],
)
def test_what_is_wrong_behind_the_size_is_said_first_and_no_matter(value: str, char: str, mib: int) -> None:
    for line in (f"crashkernel=128M crashkernel={value}", f"crashkernel={value} crashkernel=128M"):
        with Board("1G", 2) as board:
            kernel = boot(board, line)
            words, reserved, area, last = said(board)[-4:]
            assert words == f"crashkernel: unrecognized char: {char}"
            assert reserved.startswith("crashkernel reserved: ") and kernel.crashk_res is not None
            assert area.startswith(f"cma: Reserved {mib} MiB at ")
            assert last == f"crashkernel CMA reserved: {mib} MB in 1 ranges"
            assert [one.size for one in kernel.crashk_cma_ranges] == [mib << 20]


@pytest.mark.parametrize("line", ["crashkernel=x", "crashkernel=128MB", "crashkernel=4G", "crashkernel=0"])
def test_areas_are_read_but_not_reserved_where_a_plain_option_is_of_no_use(line: str) -> None:
    with Board("512M") as board:
        assert boot(board, f"{line} crashkernel=64M@z,cma").crashk_cma_ranges == ()
        assert said(board)[-1] == "crashkernel: unrecognized char: @"
        assert sum("char: @" in one for one in said(board)) == 1


@pytest.mark.parametrize("line", ["crashkernel=x,high", "crashkernel=128M,high crashkernel=x,low"])
def test_areas_are_not_read_where_the_others_cannot_be(line: str) -> None:
    with Board("512M") as board:
        assert boot(board, f"{line} crashkernel=64M@z,cma").crashk_cma_ranges == ()
        assert not any("char: @" in one for one in said(board))


@pytest.mark.parametrize("era", [era.value for era in Era if era < Era.V7_3])
def test_before_7_3_what_is_wrong_with_it_is_not_read_and_before_6_17_it_is_a_plain_option(era: str) -> None:
    with Board("512M") as board:
        kernel = boot(board, "crashkernel=128M crashkernel=64M@zz,cma", era)
        assert not any("unrecognized" in one for one in said(board))
        assert kernel.crashk_res is not None and kernel.crashk_cma_ranges == ()
        assert kernel.crashk_res.size == (64 if Era(era) < Era.V6_17 else 128) << 20


def test_a_kernel_without_cma_says_so() -> None:
    with Board("512M") as board:
        assert boot(board, "crashkernel=128M crashkernel=32M,cma", CMA="n").crashk_cma_ranges == ()
        assert said(board)[-1] == "crashkernel CMA reservation not supported"


def test_the_areas_are_in_sysfs_in_the_tree_and_not_in_the_dump() -> None:
    with Board("5G", 2) as board:
        kernel = boot(board, "crashkernel=128M crashkernel=3G,cma")
        text = "100000000-15fffffff\n94000000-f3ffffff\n"
        files = sysfs(kernel)
        assert (
            files["/sys/kernel/kexec/crash_cma_ranges"] == text == files["/sys/kernel/kexec_crash_cma_ranges"]
        )
        image = kernel.kexec_file_load(IMAGE, INITRD, "quiet")
        assert image is not None
        core, dtb = image.segment("elfcorehdr"), image.segment("dtb")
        assert core is not None and dtb is not None
        tree = Fdt(bytes(dtb.buf))
        chosen = tree.path_offset("/chosen")
        assert chosen is not None
        assert tree.get_cells(chosen, "linux,usable-memory-range") == [
            *(0, 0xF4000000, 0, 0x8000000),
            *(1, 0, 0, 0x60000000),
            *(0, 0x94000000, 0, 0x60000000),
        ]
        loads = [
            (one.header.p_paddr, one.header.p_memsz)
            for one in ELFFile(io.BytesIO(bytes(core.buf))).iter_segments()
            if one.header.p_type == "PT_LOAD"
        ]
        assert loads[1:] == [(0x40000000, 0x54000000), (0xFC000000, 0x4000000), (0x160000000, 0x20000000)]


@pytest.mark.parametrize("cma", ["", " crashkernel=32M,cma"])
def test_the_crash_waits_ten_seconds_for_dma_into_the_areas(cma: str) -> None:
    with Board("512M") as board:
        kernel = boot(board, f"crashkernel=128M{cma}")
        kernel.kexec_file_load(IMAGE, INITRD, "quiet")
        assert kernel.panic().outcome == "captured"
        assert board.idle == (10 * INSTRUCTIONS_PER_SECOND if cma else 0)
        waits = [one for one in board.timeline if one.kind == "crash_cma_clear_pending_dma"]
        assert [one.facts["seconds"] for one in waits] == ([10] if cma else [])
        # The other CPUs have been stopped by then, and the registers saved: only "Bye!" comes after it.
        lines = board.uart.text.splitlines()
        stamps = [next(one[1:13] for one in lines if one.endswith(end)) for end in ("kernel...", "] Bye!")]
        assert [float(one) >= 10 for one in stamps] == [False, bool(cma)]


def test_a_reboot_waits_for_no_dma() -> None:
    with Board("512M") as board:
        kernel = boot(board, "crashkernel=128M crashkernel=32M,cma")
        kernel.kexec_file_load(IMAGE, INITRD, "quiet")
        kernel.kexec_file_load(IMAGE, INITRD, "quiet", flags=0)
        kernel.reboot_by_kexec()
        assert board.idle == 0


@pytest.mark.parametrize(
    ("holes", "asked", "found", "last"),
    [
        ([64], 64, [64], "reserved: 64 MB in 1 ranges"),
        ([32, 32], 64, [32, 32], "reserved: 64 MB in 2 ranges"),
        ([40, 20, 20], 64, [32, 16, 16], "reserved: 64 MB in 3 ranges"),
        ([16] * 4, 64, [16] * 4, "reserved: 64 MB in 4 ranges"),
        ([16] * 5, 96, [12] * 4, "reservation failed: 96 MB requested, 48 MB reserved in 4 ranges"),
        ([8] * 6, 64, [8] * 4, "reservation failed: 64 MB requested, 32 MB reserved in 4 ranges"),
        ([], 64, [], "reservation failed: 64 MB requested, 0 MB reserved in 0 ranges"),
        # As much again as is wanted, so that more is reserved than was asked for.
        ([40, 40], 50, [26, 26], "reserved: 50 MB in 2 ranges"),
    ],
)
def test_areas_half_as_large_are_tried_until_there_are_as_many_bytes_or_four(
    holes: list[int], asked: int, found: list[int], last: str
) -> None:
    memory, at = Memblock(), 1 << 30
    memory.add(PhysRange.of(1 << 30, 1 << 30))
    memory.reserve(PhysRange.of(1 << 30, 1 << 30))
    for size in holes:
        memory.free(PhysRange.of(at, size << 20))
        at += (size + 2) << 20
    lines = list[str]()
    cmdline = f"crashkernel=128M crashkernel={asked}M,cma"
    areas = reserve_crashkernel_cma(KernelConfig("7.3"), cmdline, memory, lines.append)
    assert [one.size >> 20 for one in areas] == found
    assert lines[-1] == f"crashkernel CMA {last}"
    assert reserve_crashkernel_cma(KernelConfig("7.3"), "crashkernel=128M", memory, lines.append) == ()
    none = KernelConfig("7.3", options={"CMA": "n"})
    assert reserve_crashkernel_cma(none, cmdline, memory, lines.append) == ()
    assert lines[-1] == "crashkernel CMA reservation not supported"
