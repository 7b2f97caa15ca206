"""Writing kexec_crash_size where there are two regions: measured on Debian's 6.12.117 with crashkernel=512M,high."""

from __future__ import annotations

from errno import EINVAL

import pytest

from kexecemu.crash.kernel import Kernel
from kexecemu.errors import KexecError
from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.kernel.crash_size import crash_shrink_memory
from kexecemu.kernel.procfs import proc_iomem, sysfs
from kexecemu.machine.board import Board

MIB = 1 << 20
HIGH, LOW = 512 * MIB, 128 * MIB


def boot(board: Board, era: str) -> Kernel:
    low = " crashkernel=128M,low" if era == "6.1" else ""
    return Kernel.boot(board, KernelConfig(era), cmdline=f"crashkernel=512M,high{low}")


def sizes(kernel: Kernel) -> tuple[int, int]:
    regions = kernel.crashk_res, kernel.crashk_low_res
    main, low = (one.size if one is not None else 0 for one in regions)
    return main, low


@pytest.mark.parametrize("era", [era.value for era in Era if era >= Era.V6_5])
@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (HIGH + LOW, (HIGH, LOW)),
        (HIGH + LOW - 1, (HIGH, LOW)),
        (600000000, (600002560 - LOW, LOW)),  # whole pages
        (LOW + 1, (4096, LOW)),
        (LOW, (LOW, 0)),  # the low region is the main one then
        (100000000, (100003840, 0)),
        (1, (4096, 0)),
        (0, (0, 0)),
    ],
)
def test_the_high_region_goes_first_and_then_the_low_one_from_its_end(
    era: str, asked: int, kept: tuple[int, int]
) -> None:
    with Board("6G") as board:
        kernel = boot(board, era)
        before = kernel.crashk_res, kernel.crashk_low_res
        assert sizes(kernel) == (HIGH, LOW) and before[1] is not None
        free = kernel.total_ram_pages
        crash_shrink_memory(kernel, asked)
        kept = tuple(-(-size // 4096) * 4096 for size in kept)
        assert sizes(kernel) == kept
        assert sysfs(kernel)["/sys/kernel/kexec_crash_size"] == f"{sum(kept)}\n"
        assert kernel.total_ram_pages == free + (HIGH + LOW - sum(kept)) // 4096
        main = kernel.crashk_res
        if kept[0] and not kept[1]:
            assert main is not None and main.start == before[1].start
        crash = proc_iomem(kernel).count(" : Crash kernel\n")
        assert crash == sum(1 for size in kept if size)


def test_a_size_that_is_larger_than_both_is_refused() -> None:
    with Board("6G") as board:
        kernel = boot(board, "6.12")
        with pytest.raises(KexecError) as refusal:
            crash_shrink_memory(kernel, HIGH + LOW + 1)
        assert refusal.value.errno == EINVAL


@pytest.mark.parametrize("era", ["6.1", "6.2", "6.4"])
def test_before_6_5_only_the_high_region_counts(era: str) -> None:
    with Board("6G") as board:
        kernel = boot(board, era)
        assert sysfs(kernel)["/sys/kernel/kexec_crash_size"] == f"{HIGH}\n"
        with pytest.raises(KexecError) as refusal:
            crash_shrink_memory(kernel, HIGH + 1)  # not rounded before it is compared
        assert refusal.value.errno == EINVAL
        crash_shrink_memory(kernel, 100 * MIB)
        assert sizes(kernel) == (100 * MIB, LOW)


def test_what_is_given_back_is_ram_inside_of_ram() -> None:
    with Board("6G") as board:
        kernel = boot(board, "6.12")
        region = kernel.crashk_res
        assert region is not None
        crash_shrink_memory(kernel, LOW + 256 * MIB)
        text = proc_iomem(kernel)
        middle = region.start + 256 * MIB
        assert (
            f"  {region.start:08x}-{middle - 1:08x} : Crash kernel\n  {middle:08x}-{region.last:08x} : System RAM\n"
            in text
        )
