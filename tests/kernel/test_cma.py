"""cma=: where the area is, and the kernel's words for why there is none."""

from __future__ import annotations

import pytest

from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.early_param import parse_early_param
from kexecemu.kernel.boot.setup_memory import _dma_contiguous_reserve
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange

GIB, MIB = 1 << 30, 1 << 20


def reserve(
    era: str, cmdline: str, *, ram: int = GIB, taken: PhysRange | None = None
) -> tuple[list[str], Memblock]:
    memblock = Memblock()
    memblock.add(PhysRange.of(GIB, ram))
    if taken is not None:
        memblock.reserve(taken)
    lines: list[str] = []
    limit = min(memblock.end_of_dram, 4 * GIB)
    config = KernelConfig(era)
    asked = parse_early_param(config, cmdline).cma
    _dma_contiguous_reserve(memblock, asked, config, limit, lines.append)
    return lines, memblock


def failed(era: str, mib: int) -> str:
    return f"cma: Failed to reserve {mib} MiB{' on node -1' if era == '6.12' else ''}"


ERAS = pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])


@ERAS
@pytest.mark.parametrize("asked", ["64M@0x60100000", "64M@0x60100000-0x64100000"])
def test_a_fixed_place_must_be_aligned(era: str, asked: str) -> None:
    """Debian's three kernels said this."""
    lines, memblock = reserve(era, f"cma={asked}")
    why = "cma: Region at 0x0000000060100000 must be aligned to 0x0000000000200000 bytes"
    assert lines == [why, failed(era, 64)]
    assert memblock.reserved == []


@ERAS
def test_a_fixed_place_is_that_or_none(era: str) -> None:
    lines, memblock = reserve(era, "cma=64M@0x60000000")
    assert memblock.reserved == [PhysRange.of(0x60000000, 64 * MIB)]
    assert lines == [f"cma: Reserved 64 MiB at 0x0000000060000000{' on node -1' if era == '6.12' else ''}"]
    lines, memblock = reserve(era, "cma=64M@0x60000000", taken=PhysRange.of(0x63FFF000, 1))
    assert lines == [failed(era, 64)]


@ERAS
def test_a_fixed_place_beyond_memory_is_refused_in_the_era_s_words(era: str) -> None:
    lines, _ = reserve(era, "cma=64M@0x7e000000")
    if era == "7.3":
        why = "Size (0x0000000004000000) of region at 0x000000007e000000 exceeds limit (0x0000000080000000)"
    else:
        why = "Region at 0x000000007e000000 defined on low/high memory boundary (0x0000000080000000)"
    assert lines == [f"cma: {why}", failed(era, 64)]


@ERAS
def test_more_than_there_is_exceeds_the_limit(era: str) -> None:
    lines, _ = reserve(era, "cma=3G")
    why = "Size (0x00000000c0000000) of region at 0x0000000000000000 exceeds limit (0x0000000080000000)"
    assert lines == [f"cma: {why}", failed(era, 3072)]
    assert "exceeds limit" in reserve(era, "cma=64M@0x50000000-0x53e00000")[0][0]


@ERAS
def test_a_window_is_used_from_above_and_a_size_is_rounded(era: str) -> None:
    lines, memblock = reserve(era, "cma=33M@0x50000000-0x60000000")
    assert memblock.reserved == [PhysRange(0x5DE00000, 0x60000000)]
    assert f"cma: Reserved {33 if era == '7.3' else 34} MiB" in lines[0]


@ERAS
def test_from_7_3_on_a_window_may_lie_above_what_all_devices_reach(era: str) -> None:
    _, memblock = reserve(era, "cma=64M@0x140000000-0x150000000", ram=8 * GIB)
    # What is above 4 GiB is filled from below.
    assert memblock.reserved == ([PhysRange.of(4 * GIB, 64 * MIB)] if era == "7.3" else [])


@ERAS
@pytest.mark.parametrize("asked", ["0", "0@0x60000000"])
def test_no_size_is_no_area_and_no_word(era: str, asked: str) -> None:
    assert reserve(era, f"cma={asked}")[0] == []
