"""What all tests share: the tiers, and signing.py and its like within reach of every room's tests.

Tests have three tiers. Those without a mark are the usual ones, `slow` takes seconds or measures, `real` is against
a real kernel or a tool from outside. A run of the whole suite without -m is of the usual ones alone; whoever names a
file or a folder gets all that is in it, and `-m real`, `-m slow`, `-m ""` (everything) do what they say.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config: pytest.Config) -> None:
    """Narrow a run of the whole suite to the usual tests; workers of xdist are told by the controller."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    asked = any(word.startswith("-m") for word in config.invocation_params.args)
    if whole and not asked and not hasattr(config, "workerinput"):
        config.option.markexpr = "not slow and not real"
