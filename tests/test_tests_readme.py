"""The list of rules in tests/README.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (TESTS / "README.md").read_text())))


def test_the_list_is_long_and_says_what_is_not_covered() -> None:
    text = (TESTS / "README.md").read_text()
    assert len(NAMED) > 60
    assert "## Not covered" in text


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str) -> None:
    source = (TESTS / file).read_text()
    assert "def test_" in source
    if name:
        assert f"def {name}(" in source
