"""A timer that expires in the very block that an exception ends is not forgotten, however instructions are counted."""

from __future__ import annotations

import pytest
from machine.system_guest import CNTV_CTL, CNTV_TVAL, DAIFCLR_I, NOP, OFF, PROLOGUE, mov, same, svc

BLOCK = [*[NOP] * 6, svc(1)]


@pytest.mark.parametrize("ticks", range(2, 10))
def test_an_interrupt_that_falls_due_as_an_exception_is_taken_comes_with_its_end(ticks: int) -> None:
    program = [
        PROLOGUE,
        mov(27, 27),  # the virtual timer's number: its handler switches it off
        mov(1, ticks),
        mov(2, 1),
        CNTV_TVAL | 1,
        CNTV_CTL | 2,
        DAIFCLR_I,
        BLOCK * 40,
        OFF,
    ]
    result = same(program, limit=100_000)
    assert "switched off" in result.end
    assert 27 in result.log, "the interrupt was never taken"
