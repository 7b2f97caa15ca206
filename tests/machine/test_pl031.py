"""The real time clock: its registers against QEMU's, its alarm against the counter."""

from __future__ import annotations

import datetime

import pytest
from qtest import Qtest

from kexecemu.machine.devices.pl031 import DEFAULT_START, Pl031

BASE = 0x09010000
DR, MR, LR, CR, IMSC, RIS, MIS, ICR = range(0, 0x20, 4)


class Clock:
    """A clock with its time and its line in the test's hands."""

    def __init__(self, start: int = DEFAULT_START) -> None:
        self.seconds = 0
        self.levels: list[bool] = []
        self.rtc = Pl031(now=lambda: self.seconds, start=start, irq=self.levels.append)

    def at(self, seconds: int) -> None:
        self.seconds = seconds
        self.rtc.poll()


def test_the_clock_counts_seconds_from_new_year_2023():
    clock = Clock()
    new_year = datetime.datetime(2023, 1, 1, tzinfo=datetime.UTC)
    assert clock.rtc.read(DR, 4) == new_year.timestamp()
    clock.seconds = 86400
    assert clock.rtc.read(DR, 4) == (new_year + datetime.timedelta(days=1)).timestamp()


def test_every_register_reads_as_qemu_s_does_after_reset_and_after_ones_were_written():
    with Qtest("-rtc", "base=2023-01-01T00:00:00,clock=vm") as qemu:
        rtc = Clock().rtc
        registers = [*range(0, 0x20, 4), *range(0xFE0, 0x1000, 4)]
        assert [rtc.read(each, 4) for each in registers] == [qemu.read(BASE + each) for each in registers]
        # The load register only from here on: the time is another then.
        for register, value in ((MR, 0xFFFFFFFF), (CR, 0), (IMSC, 1), (RIS, 1), (MIS, 1), (LR, 0x12345678)):
            rtc.write(register, 4, value)
            qemu.write(BASE + register, value)
            assert [rtc.read(each, 4) for each in registers] == [qemu.read(BASE + each) for each in registers]


def test_a_match_with_the_present_second_raises_at_once_as_in_qemu():
    with Qtest("-rtc", "base=2023-01-01T00:00:00,clock=vm") as qemu:
        rtc = Clock().rtc
        for register, value in (
            (IMSC, 1),
            (MR, DEFAULT_START),
            (ICR, 1),
            (LR, 77),
            (MR, 77),
            (IMSC, 0),
            (ICR, 1),
        ):
            rtc.write(register, 4, value)
            qemu.write(BASE + register, value)
            assert [rtc.read(each, 4) for each in (RIS, MIS)] == [
                qemu.read(BASE + each) for each in (RIS, MIS)
            ]


def test_setting_the_time_moves_the_counter_and_it_counts_on():
    clock = Clock()
    clock.seconds = 10
    clock.rtc.write(LR, 4, 1000)
    assert clock.rtc.read(DR, 4) == 1000
    clock.seconds = 15
    assert clock.rtc.read(DR, 4) == 1005
    assert clock.rtc.read(LR, 4) == 1000


def test_the_counter_wraps_around_after_32_bits():
    clock = Clock(start=(1 << 32) - 2)
    clock.seconds = 3
    assert clock.rtc.read(DR, 4) == 1


@pytest.mark.parametrize("match", [DEFAULT_START + 5, 5])
def test_the_alarm_rises_in_the_second_of_the_match_even_behind_a_wrap(match):
    clock = Clock(start=DEFAULT_START if match > 5 else (1 << 32))
    clock.rtc.write(MR, 4, match)
    clock.rtc.write(IMSC, 4, 1)
    assert clock.rtc.alarm_at == 5
    clock.at(4)
    assert clock.levels == []
    clock.at(5)
    assert clock.levels == [True]
    assert clock.rtc.read(DR, 4) == match
    clock.rtc.write(ICR, 4, 0)
    assert clock.levels == [True]
    clock.rtc.write(ICR, 4, 1)
    assert clock.levels == [True, False]
    clock.at(100)
    assert clock.levels == [True, False], "once a match"


def test_a_masked_alarm_is_raw_and_shows_when_it_is_unmasked():
    clock = Clock()
    clock.rtc.write(MR, 4, DEFAULT_START + 1)
    clock.seconds = 2
    assert (clock.rtc.read(RIS, 4), clock.rtc.read(MIS, 4), clock.levels) == (1, 0, [])
    clock.rtc.write(IMSC, 4, 1)
    assert (clock.rtc.read(MIS, 4), clock.levels) == (1, [True])


def test_a_clock_that_was_set_has_its_alarm_when_the_new_time_meets_the_match():
    clock = Clock()
    clock.rtc.write(MR, 4, DEFAULT_START + 100)
    clock.rtc.write(LR, 4, DEFAULT_START + 90)
    assert clock.rtc.alarm_at == 10


def test_no_alarm_is_due_before_one_was_asked_for():
    clock = Clock()
    clock.at(1 << 33)
    assert clock.rtc.alarm_at is None
    assert clock.rtc.read(RIS, 4) == 0
