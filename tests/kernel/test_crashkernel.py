"""reserve_crashkernel(): where the memory comes from in each era, and what is said when there is none."""

from __future__ import annotations

import pytest

from kexecemu.kernel.base.config import Era
from kexecemu.kernel.memory.crashkernel import CrashReservation, reserve_crashkernel
from kexecemu.kernel.memory.memblock import Memblock
from kexecemu.machine.ranges import PhysRange

MIB, GIB = 1 << 20, 1 << 30
LOW = (PhysRange(GIB, 4 * GIB),)
HIGH = (PhysRange(GIB, 8 * GIB),)  # 3 GiB below the DMA limit, 4 GiB above it
LIMIT = 4 * GIB
NO_ZONES = 1 << 48

from_6_2 = pytest.mark.parametrize("era", [era for era in Era if era >= Era.V6_2])
any_era = pytest.mark.parametrize("era", list(Era))


class Machine:
    """RAM, some of it taken, and what the kernel says about its reservation."""

    def __init__(self, banks: tuple[PhysRange, ...], *taken: PhysRange) -> None:
        self.memblock = Memblock()
        for bank in banks:
            self.memblock.add(bank)
        for area in taken:
            self.memblock.reserve(area)
        self.log: list[str] = []

    def reserve(self, era: Era, cmdline: str, limit: int = LIMIT, page: int = 4096) -> CrashReservation:
        return reserve_crashkernel(era, cmdline, self.memblock, limit, page, self.log.append)


def high(size: int) -> PhysRange:
    """The topmost `size` bytes of 8 GiB."""
    return PhysRange(8 * GIB - size, 8 * GIB)


# -- crashkernel=X ---------------------------------------------------------------------------------------------


@any_era
def test_a_plain_size_is_taken_from_the_top_of_low_memory(era: Era) -> None:
    machine = Machine(HIGH)
    got = machine.reserve(era, "crashkernel=256M")
    assert got == CrashReservation(PhysRange(0xF0000000, 0x100000000))
    assert machine.log == ["crashkernel reserved: 0x00000000f0000000 - 0x0000000100000000 (256 MB)"]
    assert machine.memblock.reserved == [got.crashk_res]


@any_era
def test_the_start_is_aligned_to_2_mib_below_what_is_taken(era: Era) -> None:
    machine = Machine(LOW, PhysRange(0xFFE01000, 0x100000000))
    assert machine.reserve(era, "crashkernel=256M").crashk_res == PhysRange.of(0xEFE00000, 256 * MIB)


@any_era
@pytest.mark.parametrize(("page", "size"), [(4096, 0x8001000), (16384, 0x8004000), (65536, 0x8010000)])
def test_before_the_generic_code_a_size_is_rounded_up_to_whole_pages(era: Era, page: int, size: int) -> None:
    """Linux 6.12 with crashkernel=33333K said 0xbbc00000 - 0xbdc8d400."""
    res = Machine(LOW).reserve(era, "crashkernel=0x8000001", page=page).crashk_res
    assert res is not None and res.start % (2 * MIB) == 0
    assert res.size == (size if era < Era.V6_7 else 0x8000001)


@any_era
@pytest.mark.parametrize("cmdline", ["", "quiet", "crashkernel=0", "crashkernel=0,high", "crashkernel=M"])
def test_nothing_asked_for_reserves_nothing_and_says_nothing(era: Era, cmdline: str) -> None:
    machine = Machine(HIGH)
    assert machine.reserve(era, cmdline) == CrashReservation()
    assert (machine.log, machine.memblock.reserved) == ([], [])


@any_era
def test_an_option_that_cannot_be_read_reserves_nothing_and_warns(era: Era) -> None:
    machine = Machine(HIGH)
    assert machine.reserve(era, "crashkernel=256MB") == CrashReservation()
    assert machine.log == ["crashkernel: unrecognized char: B"]
    assert machine.memblock.reserved == []


@any_era
def test_a_list_of_ranges_is_answered_by_the_size_of_ram(era: Era) -> None:
    machine = Machine(HIGH)
    res = machine.reserve(era, "crashkernel=2G-4G:128M,4G-:256M").crashk_res
    assert res is not None and res.size == 256 * MIB


@any_era
def test_without_dma_zones_all_memory_is_low(era: Era) -> None:
    assert Machine(HIGH).reserve(era, "crashkernel=256M", NO_ZONES).crashk_res == high(256 * MIB)


def test_before_6_2_there_is_no_fallback_to_high_memory() -> None:
    machine = Machine(HIGH)
    assert machine.reserve(Era.V6_1, "crashkernel=3500M") == CrashReservation()
    assert machine.log == ["cannot allocate crashkernel (size:0xdac00000)"]
    assert machine.memblock.reserved == []


@from_6_2
def test_from_6_2_on_it_falls_back_to_high_memory_and_adds_the_default_low_part(era: Era) -> None:
    machine = Machine(HIGH)
    got = machine.reserve(era, "crashkernel=3500M")
    assert got == CrashReservation(high(3500 * MIB), PhysRange.of(LIMIT - 128 * MIB, 128 * MIB))
    assert machine.log == [
        "crashkernel low memory reserved: 0xf8000000 - 0x100000000 (128 MB)",
        "crashkernel reserved: 0x0000000125400000 - 0x0000000200000000 (3500 MB)",
    ]


def test_the_fallback_gives_its_high_memory_back_when_the_low_part_fails() -> None:
    taken = PhysRange(GIB, 4 * GIB - 64 * MIB)
    machine = Machine(HIGH, taken)
    assert machine.reserve(Era.V6_12, "crashkernel=256M") == CrashReservation()
    assert machine.log == ["cannot allocate crashkernel low memory (size:0x8000000)."]
    assert machine.memblock.reserved == [taken]


@pytest.mark.parametrize("limit", [LIMIT, NO_ZONES])
def test_the_generic_code_says_so_when_nothing_is_left_to_try(limit: int) -> None:
    """Without zones low and high end at the same address; 6.11 and later do not go round for ever there."""
    machine = Machine(LOW, PhysRange(GIB + 256 * MIB, 4 * GIB))
    assert machine.reserve(Era.V6_12, "crashkernel=512M", limit) == CrashReservation()
    assert machine.log == ["cannot allocate crashkernel (size:0x20000000)"]


def test_as_much_as_all_of_ram_is_tried_in_vain_before_and_not_even_tried_by_the_generic_code() -> None:
    kernel = PhysRange.of(GIB, 2 * MIB)
    old, new = Machine(LOW, kernel), Machine(LOW, kernel)
    assert old.reserve(Era.V6_1, "crashkernel=3G") == new.reserve(Era.V6_12, "crashkernel=3G")
    assert old.log == ["cannot allocate crashkernel (size:0xc0000000)"]
    assert new.log == []


# -- crashkernel=X@offset --------------------------------------------------------------------------------------


@any_era
def test_an_offset_is_where_it_goes_whatever_the_zones(era: Era) -> None:
    assert Machine(HIGH).reserve(era, "crashkernel=256M@0x50000000").crashk_res == PhysRange.of(
        0x50000000, 256 * MIB
    )
    assert Machine(HIGH).reserve(era, "crashkernel=256M@5G").crashk_res == PhysRange.of(5 * GIB, 256 * MIB)


@any_era
@pytest.mark.parametrize("offset", ["0x50000000", "0x50100000", "16G"])
def test_an_offset_that_is_taken_misaligned_or_no_ram_is_refused(era: Era, offset: str) -> None:
    taken = PhysRange.of(0x50010000, 0x1000)
    machine = Machine(HIGH, taken)
    assert machine.reserve(era, f"crashkernel=16M@{offset}") == CrashReservation()
    words = "crashkernel reservation failed - memory is in use."
    if era < Era.V6_5:
        words = "cannot allocate crashkernel (size:0x1000000)"
    assert machine.log == [words]
    assert machine.memblock.reserved == [taken]


# -- crashkernel=X,high and crashkernel=Y,low ------------------------------------------------------------------


@any_era
def test_a_high_reservation_is_at_the_top_of_ram_with_the_low_part_that_was_asked_for(era: Era) -> None:
    machine = Machine(HIGH)
    got = machine.reserve(era, "crashkernel=1G,high crashkernel=64M,low")
    assert got == CrashReservation(high(GIB), PhysRange(LIMIT - 64 * MIB, LIMIT))
    assert machine.log == [
        "crashkernel low memory reserved: 0xfc000000 - 0x100000000 (64 MB)",
        "crashkernel reserved: 0x00000001c0000000 - 0x0000000200000000 (1024 MB)",
    ]


def test_before_6_2_no_low_option_means_no_low_memory() -> None:
    assert Machine(HIGH).reserve(Era.V6_1, "crashkernel=1G,high") == CrashReservation(high(GIB))


@from_6_2
def test_from_6_2_on_there_are_128_mib_of_low_memory_unless_zero_is_asked_for(era: Era) -> None:
    low = PhysRange(LIMIT - 128 * MIB, LIMIT)
    assert Machine(HIGH).reserve(era, "crashkernel=1G,high") == CrashReservation(high(GIB), low)
    none = Machine(HIGH).reserve(era, "crashkernel=1G,high crashkernel=0,low")
    assert none == CrashReservation(high(GIB))


@any_era
def test_high_on_a_machine_without_high_memory_is_low_and_needs_no_low_part(era: Era) -> None:
    machine = Machine(LOW)
    got = machine.reserve(era, "crashkernel=256M,high crashkernel=64M,low")
    assert got == CrashReservation(PhysRange(0xF0000000, 0x100000000))
    assert len(machine.log) == 1


@any_era
def test_high_falls_back_to_low_memory_when_high_memory_is_taken(era: Era) -> None:
    machine = Machine(HIGH, PhysRange(4 * GIB, 8 * GIB))
    assert machine.reserve(era, "crashkernel=256M,high").crashk_res == PhysRange(0xF0000000, 0x100000000)


def test_the_generic_code_does_not_let_a_high_reservation_straddle_the_limit() -> None:
    """6.1 searches [0, end) in one go, the generic code above the limit first and below it next."""
    taken = PhysRange(4 * GIB + 256 * MIB, 8 * GIB)
    old = Machine(HIGH, taken).reserve(Era.V6_1, "crashkernel=512M,high").crashk_res
    new = Machine(HIGH, taken).reserve(Era.V6_12, "crashkernel=512M,high").crashk_res
    assert old == PhysRange(4 * GIB - 256 * MIB, 4 * GIB + 256 * MIB)
    assert new == PhysRange(4 * GIB - 512 * MIB, 4 * GIB)


@any_era
def test_a_low_part_that_does_not_fit_takes_the_high_part_with_it(era: Era) -> None:
    taken = PhysRange.of(GIB, 2 * MIB)
    machine = Machine(HIGH, taken)
    assert machine.reserve(era, "crashkernel=1G,high crashkernel=3G,low") == CrashReservation()
    assert machine.log == ["cannot allocate crashkernel low memory (size:0xc0000000)."]
    assert machine.memblock.reserved == [taken]


@any_era
def test_a_low_part_that_cannot_be_read_refuses_the_whole(era: Era) -> None:
    machine = Machine(HIGH)
    assert machine.reserve(era, "crashkernel=1G,high crashkernel=x,low") == CrashReservation()
    assert machine.log == ["crashkernel: memory value expected"]


@any_era
def test_a_plain_option_wins_over_high_and_low(era: Era) -> None:
    got = Machine(HIGH).reserve(era, "crashkernel=1G,high crashkernel=256M crashkernel=64M,low")
    assert got == CrashReservation(PhysRange(0xF0000000, 0x100000000))


@any_era
def test_low_alone_reserves_nothing(era: Era) -> None:
    assert Machine(HIGH).reserve(era, "crashkernel=64M,low") == CrashReservation()


@any_era
def test_nothing_is_ever_reserved_across_a_hole_between_banks(era: Era) -> None:
    banks = (PhysRange(GIB, GIB + 128 * MIB), PhysRange(GIB + 192 * MIB, GIB + 320 * MIB))
    assert Machine(banks).reserve(era, "crashkernel=192M") == CrashReservation()
    assert Machine(banks).reserve(era, "crashkernel=128M").crashk_res == banks[1]
