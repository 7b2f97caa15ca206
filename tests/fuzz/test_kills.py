"""A sample of what kills.py and interrupts.py try for hours: campaigns that are killed, commands that are stopped."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz import interrupts
from fuzz.kills import attack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="asks /proc for processes"),
]


def test_killed_campaigns_have_the_table_of_one_that_was_not(tmp_path: Path) -> None:
    cases = attack(14, 20261129, [300, 5000], [1, 2], tmp_path)
    assert sum(case.kills.total() for case in cases) >= 7
    assert [wrong for case in cases for wrong in case.wrong] == []


@pytest.mark.parametrize("name", ["run", "crash", "load", "replay", "verify-image", "purgatory build"])
def test_ctrl_c_ends_a_command_in_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    tried = interrupts.attack(interrupts.COMMANDS[name], 4, random.Random(name), tmp_path)
    assert tried.count and tried.wrong == []
