"""Runs that several tests look at, each made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from shipped import skip_if_not_fetched

from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import Result, crash, run_scenario
from kexecemu.scenario.setup import Setup
from kexecemu.stray.fault import Fault

Run = Callable[[str], Result]
Crash = Callable[..., Result]


@cache
def _shipped(name: str) -> Result:
    skip_if_not_fetched(name)
    path = find_scenario(name)
    return run_scenario(read_scenario(path), path.parent)


@pytest.fixture(scope="session")
def run() -> Run:
    """A scenario that ships, by name."""
    return _shipped


@pytest.fixture(scope="session")
def crashed() -> Crash:
    """A crash of one's own: faults, and what Setup takes."""

    def make(*faults: Fault, name: str = "a crash of a test", **setup: object) -> Result:
        return crash(name, Setup(**setup), list(faults))  # type: ignore[arg-type]

    return make
