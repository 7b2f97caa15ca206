"""Ctrl-C while a guest runs: heard in straight code and in a device's, and never swallowed between them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from kexecemu.interrupt import on_ctrl_c, raise_in

ENDLESS = 0x14000000  # b .
READ_FOR_EVER = (0xB9401822, 0x17FFFFFF)  # ldr w2, [x1, #0x18]; b .-4


@pytest.fixture
def pressed_soon() -> Iterator[None]:
    """Ctrl-C's handler for a signal that comes 30 ms after each time that the timer is set."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are delivered to the main thread alone")
    before = signal.signal(signal.SIGALRM, on_ctrl_c)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("program", ["straight code", "a device's code"])
def test_ctrl_c_ends_a_run_whatever_the_guest_does(guest, a64, capsys, pressed_soon, program):
    words = (
        [ENDLESS] if program == "straight code" else [*a64.mov(1, guest.board.uart.base_phys), *READ_FOR_EVER]
    )
    for _ in range(20):
        guest.start(words)
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        with pytest.raises(KeyboardInterrupt):
            guest.cpu.run(limit=2_000_000_000)
    assert capsys.readouterr().err == ""


def test_a_guest_runs_on_where_it_was_after_ctrl_c(guest, a64, pressed_soon):
    guest.start([*a64.mov(1, guest.board.uart.base_phys), *READ_FOR_EVER])
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    with pytest.raises(KeyboardInterrupt):
        guest.cpu.run()
    stop = guest.cpu.run(limit=1000)
    assert stop.kind.name == "DEADLINE" and guest.cpu.x(1) == guest.board.uart.base_phys


@pytest.mark.parametrize("program", ["straight code", "a device's code"])
def test_any_signal_ends_a_run_by_its_own_exception_and_says_nothing(guest, a64, capsys, program):
    """SIGTERM of a service manager or of timeout(1), whose handler raises SystemExit."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are delivered to the main thread alone")
    words = (
        [ENDLESS] if program == "straight code" else [*a64.mov(1, guest.board.uart.base_phys), *READ_FOR_EVER]
    )
    before = signal.signal(signal.SIGALRM, lambda number, frame: raise_in(frame, SystemExit(143)))
    try:
        for _ in range(10):
            guest.start(words)
            signal.setitimer(signal.ITIMER_REAL, 0.03)
            with pytest.raises(SystemExit) as left:
                guest.cpu.run(limit=2_000_000_000)
            assert left.value.code == 143
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert capsys.readouterr().err == ""
