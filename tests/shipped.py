"""The scenarios that ship, as parameters of a test: those that need fetched files are marked, and skip without them.

Those whose first kernel is a real one are run by tests/real/test_first_linux.py.
"""

from __future__ import annotations

import pytest

from kexecemu.errors import NotFetched
from kexecemu.scenario.fetched import fetched_initrd, fetched_kernel
from kexecemu.scenario.schema import find_scenario, read_scenario, shipped_scenarios

__all__ = ["every_scenario", "skip_if_not_fetched"]


def needs_fetched(name: str) -> bool:
    """A scenario with a real capture kernel, which no package of ours carries."""
    return read_scenario(find_scenario(name)).load.capture == "linux"


def every_scenario() -> list[object]:
    """Each name once, for pytest.mark.parametrize; the real ones are marked so."""
    return [
        pytest.param(name, marks=pytest.mark.real) if needs_fetched(name) else name
        for name in shipped_scenarios()
        if read_scenario(find_scenario(name)).kernel.linux is None
    ]


def skip_if_not_fetched(name: str) -> None:
    """Skip the test that runs, with the command that fetches what the scenario lacks."""
    if not needs_fetched(name):
        return
    try:
        fetched_initrd(fetched_kernel(None))
    except NotFetched as error:
        pytest.skip(str(error))
