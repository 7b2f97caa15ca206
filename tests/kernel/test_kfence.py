"""KFENCE's pool: memory that is taken before the linear map, and so moves the crash region; Debian's 6.12 and 7.3."""

from __future__ import annotations

import pytest
from kernel_bench import GIB, MIB, boot
from test_linear_map import set_up

from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.ranges import PhysRange

# As Debian configures its kernels.
DEBIAN = {"CMA_SIZE_MBYTES": "64", "ZONE_DEVICE": "y", "KFENCE": "y", "KFENCE_SAMPLE_INTERVAL": "0"}
BLOCKS = {"6.18": "rodata=noalias", "7.3": "rodata=noalias"}
FAILED = "failed to allocate kfence pool"


def crash_region(era: str, cmdline: str, **options: str) -> PhysRange:
    with boot(era, f"crashkernel=192M {cmdline}", cpus=2, options={**DEBIAN, **options}) as kernel:
        assert kernel.crashk_res is not None
        return kernel.crashk_res


@pytest.mark.parametrize(
    ("era", "cmdline", "start"),
    [
        ("6.12", "", 0x6EC00000),
        ("6.12", "kfence.sample_interval=100", 0x6EA00000),
        ("7.3", "", 0x6FC00000),
        ("7.3", "kfence.sample_interval=100", 0x6FA00000),
    ],
)
def test_the_crash_region_is_where_debian_s_kernels_have_it(era: str, cmdline: str, start: int) -> None:
    assert crash_region(era, cmdline) == PhysRange.of(start, 192 * MIB)


def test_a_kernel_without_kfence_takes_no_notice_of_the_parameter() -> None:
    asked = "kfence.sample_interval=100"
    assert crash_region("6.1", asked, KFENCE="n") == crash_region("6.1", "", KFENCE="n")


@pytest.mark.parametrize("era", ["6.1", "6.4", "6.12", "6.18", "7.3"])
@pytest.mark.parametrize(
    ("value", "pool"),
    [
        ("1", True),
        ("0x10", True),
        ("010", True),
        ("-1", True),  # an int, and not 0
        ("5,6", True),
        ("1K", True),
        ("4294967297", True),
        ("0", False),
        ("-0", False),
        ("0K", False),
        ("4294967296", False),  # 32 bits of it
        ("", False),  # no number: what the kernel was built with
        ("K", False),
        ("-", False),
        ("x", False),
        ("0 kfence.sample_interval=1", True),
        ("1 kfence.sample_interval=0", False),
        ("1 kfence.sample_interval=x", True),
    ],
)
def test_the_interval_is_a_number_as_get_option_reads_it(era: str, value: str, pool: bool) -> None:
    """A late pool, in a kernel that has KFENCE, is base pages all over: that tells the two apart."""
    cmdline = f"{BLOCKS.get(era, 'rodata=on')} kfence.sample_interval={value}"
    booted = set_up(KernelConfig(era, protection="none", options=DEBIAN), cmdline)
    assert any("BLK" in line for line in booted.ptdump() if "RW" in line) is pool


@pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])
@pytest.mark.parametrize(
    ("options", "page", "objects"),
    [
        ({}, 4096, 255),
        ({"KFENCE_NUM_OBJECTS": "1"}, 4096, 1),
        ({"KFENCE_NUM_OBJECTS": "256"}, 4096, 256),
        ({"KFENCE_NUM_OBJECTS": "65535"}, 4096, 65535),
        ({"ARM64_16K_PAGES": "y"}, 16384, 255),
        ({"ARM64_64K_PAGES": "y", "KFENCE_NUM_OBJECTS": "63"}, 65536, 63),
    ],
)
def test_the_pool_has_two_pages_for_each_object_and_two_more(
    era: str, options: dict[str, str], page: int, objects: int
) -> None:
    config = KernelConfig(era, options={"KFENCE": "y", **options}, protection="none")
    booted = set_up(config, "")
    pool = PhysRange(2 * GIB - (objects + 1) * 2 * page, 2 * GIB)
    pieces = [piece for piece in booted.arch.plan.pieces if piece.area == pool]
    assert [(one.blocks, one.contiguous) for one in pieces] == [(False, False)]
    # It stays taken: neither the tables nor anything else is in it.
    assert any(area.covers(pool) for area in booted.arch.memblock.reserved)
    assert not any(pool.start <= table < pool.end for table in booted.tables.tables)


@pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])
def test_a_pool_that_finds_no_room_is_said_and_the_map_is_base_pages(era: str) -> None:
    options = {"KFENCE": "y", "KFENCE_NUM_OBJECTS": "65535"}
    with boot(era, BLOCKS.get(era, "rodata=on"), ram="256M", options=options) as kernel:
        assert FAILED in kernel.board.uart.text
        assert "base pages" in kernel.arch.plan.reason
    with small_pool(era) as kernel:
        assert FAILED not in kernel.board.uart.text
        assert kernel.arch.plan.reason == "blocks"


def small_pool(era: str) -> KernelModel:
    return boot(era, BLOCKS.get(era, "rodata=on"), ram="256M", options={"KFENCE": "y"})


def test_before_6_4_kfence_needs_base_pages_all_over_and_no_early_pool() -> None:
    config = KernelConfig("6.2", protection="none", options={"KFENCE": "y"})
    booted = set_up(config, "rodata=on kfence.sample_interval=100")
    assert booted.arch.plan.reason == "a late KFENCE needs base pages"
    assert not any(one.area.size == 2 * MIB for one in booted.arch.plan.pieces)
