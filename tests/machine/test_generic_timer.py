"""The timers of one CPU against a slow model that looks at every tick, after the Arm ARM's own words (D11.2.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexecemu.machine.cpu.generic_timer import PHYSICAL, VIRTUAL, GenericTimer

TVAL, CTL, CVAL = 0, 1, 2
ENABLE, IMASK, ISTATUS = 1, 2, 4


class Bench:
    """A timer, a count to set, and the levels of its lines."""

    def __init__(self) -> None:
        self.now = 1000
        self.physical = self.virtual = False
        self.timer = GenericTimer(lambda: self.now, self._physical, self._virtual)

    def _physical(self, level: bool) -> None:
        self.physical = level

    def _virtual(self, level: bool) -> None:
        self.virtual = level


def test_a_timer_that_is_on_raises_its_line_from_its_comparator_on():
    bench = Bench()
    bench.timer.write(VIRTUAL, CVAL, 1010)
    bench.timer.write(VIRTUAL, CTL, ENABLE)
    levels = {}
    for bench.now in range(1008, 1013):
        bench.timer.update()
        levels[bench.now] = bench.virtual
    assert levels == {1008: False, 1009: False, 1010: True, 1011: True, 1012: True}
    assert not bench.physical


def test_the_two_timers_have_registers_and_lines_of_their_own():
    bench = Bench()
    bench.timer.write(PHYSICAL, CVAL, 5)
    bench.timer.write(PHYSICAL, CTL, ENABLE)
    assert (bench.physical, bench.virtual) == (True, False)
    assert bench.timer.read(VIRTUAL, CVAL) == 0
    assert bench.timer.read(PHYSICAL, CVAL) == 5


def test_a_timer_value_is_a_signed_distance_from_now():
    bench = Bench()
    for written, comparator in (
        (10, 1010),
        (0xFFFFFFFF, 999),
        (0x80000000, 1000 - (1 << 31) & (1 << 64) - 1),
    ):
        bench.timer.write(VIRTUAL, TVAL, written)
        assert bench.timer.read(VIRTUAL, CVAL) == comparator


def test_upper_bits_of_a_timer_value_are_ignored():
    bench = Bench()
    bench.timer.write(VIRTUAL, TVAL, 0xDEAD00000007)
    assert bench.timer.read(VIRTUAL, CVAL) == 1007


def test_a_timer_value_runs_down_with_the_count_and_below_zero():
    bench = Bench()
    bench.timer.write(VIRTUAL, TVAL, 3)
    values = []
    for bench.now in range(1000, 1006):
        values.append(bench.timer.read(VIRTUAL, TVAL))
    assert values == [3, 2, 1, 0, 0xFFFFFFFF, 0xFFFFFFFE]


def test_a_comparator_beyond_32_bits_is_kept_whole():
    bench = Bench()
    bench.timer.write(VIRTUAL, CVAL, 0x123456789ABCDEF0)
    bench.timer.write(VIRTUAL, CTL, ENABLE)
    assert bench.timer.read(VIRTUAL, CVAL) == 0x123456789ABCDEF0
    assert bench.timer.expiry() == 0x123456789ABCDEF0


def test_the_mask_holds_the_line_back_but_not_the_status():
    bench = Bench()
    bench.timer.write(VIRTUAL, CVAL, 1000)
    bench.timer.write(VIRTUAL, CTL, ENABLE | IMASK)
    assert bench.timer.read(VIRTUAL, CTL) == ENABLE | IMASK | ISTATUS
    assert not bench.virtual
    bench.timer.write(VIRTUAL, CTL, ENABLE)
    assert bench.virtual


def test_the_status_cannot_be_written():
    bench = Bench()
    bench.timer.write(VIRTUAL, CVAL, 1 << 40)
    bench.timer.write(VIRTUAL, CTL, 0xFF)
    assert bench.timer.read(VIRTUAL, CTL) == ENABLE | IMASK


@pytest.mark.parametrize("register,value", [(CTL, 0), (CTL, ENABLE | IMASK), (CVAL, 2000), (TVAL, 1)])
def test_the_line_falls_at_once_when_its_reason_goes(register, value):
    bench = Bench()
    bench.timer.write(PHYSICAL, CVAL, 900)
    bench.timer.write(PHYSICAL, CTL, ENABLE)
    assert bench.physical
    bench.timer.write(PHYSICAL, register, value)
    assert not bench.physical


def test_a_reset_switches_both_off():
    bench = Bench()
    for crm in (PHYSICAL, VIRTUAL):
        bench.timer.write(crm, CVAL, 7)
        bench.timer.write(crm, CTL, ENABLE)
    bench.timer.reset()
    assert not bench.physical and not bench.virtual
    assert bench.timer.expiry() is None
    assert [bench.timer.read(crm, register) for crm in (PHYSICAL, VIRTUAL) for register in (CTL, CVAL)] == [
        0
    ] * 4


WRITES = st.tuples(
    st.sampled_from((PHYSICAL, VIRTUAL)),
    st.one_of(
        st.tuples(st.just(TVAL), st.one_of(st.integers(0, 40), st.integers(0xFFFFFFF0, 0xFFFFFFFF))),
        st.tuples(st.just(CTL), st.integers(0, 7)),
        st.tuples(st.just(CVAL), st.integers(990, 1100)),
    ),
)


@given(st.lists(st.tuples(st.integers(0, 30), WRITES), max_size=20))
def test_no_line_goes_up_before_the_expiry_that_is_told_and_one_does_then(steps):
    bench = Bench()
    for delay, (crm, (register, value)) in steps:
        bench.timer.write(crm, register, value)
        told = bench.timer.expiry()
        before = (bench.physical, bench.virtual)
        for count in range(bench.now, bench.now + delay + 1):
            bench.now = count
            bench.timer.update()
            risen = [
                now and not was for now, was in zip((bench.physical, bench.virtual), before, strict=True)
            ]
            assert any(risen) is (told is not None and bench.now >= told)
