"""The scenarios that ship, as parameters of a test: those that need fetched files are marked, and skip without them.

Those whose first kernel is a real one are run by tests/real/test_first_linux.py.
"""

from __future__ import annotations

import pytest

from kexecemu.data import shipped_scenarios
from kexecemu.errors import NotFetched
from kexecemu.linux.fetched import fetched_initrd, fetched_kernel
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.schema import Scenario

__all__ = ["every_scenario", "skip_if_not_fetched"]


def needs_fetched(name: str) -> bool:
    """A scenario with a real capture kernel, which no package of ours carries."""
    return read_scenario(find_scenario(name)).load.capture == "linux"


def every_scenario() -> list[object]:
    """Each name once, for pytest.mark.parametrize; the real ones are marked so."""
    return [
        pytest.param(name, marks=pytest.mark.real) if needs_fetched(name) else name
        for name in shipped_scenarios()
        if _is_one_of_the_model(read_scenario(find_scenario(name)))
    ]


def _is_one_of_the_model(scenario: Scenario) -> bool:
    """A matrix is several, and run by tests/scenario/test_matrix.py."""
    return scenario.kernel.linux is None and scenario.matrix is None


def skip_if_not_fetched(name: str) -> None:
    """Skip the test that runs, with the command that fetches what the scenario lacks."""
    if not needs_fetched(name):
        return
    try:
        fetched_initrd(fetched_kernel(None))
    except NotFetched as error:
        pytest.skip(str(error))
