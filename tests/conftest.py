"""What all tests share: the tiers, and signing.py and its like within reach of every room's tests.

Tests have three tiers. Those without a mark are the usual ones, `slow` takes seconds or measures, `real` is against
a real kernel or a tool from outside. A run of the whole suite without -m is of the usual ones alone; whoever names a
file or a folder gets all that is in it, and `-m real`, `-m slow`, `-m ""` (everything) do what they say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config: pytest.Config) -> None:
    """Narrow a run of the whole suite to the usual tests."""
    if hasattr(config, "workerinput"):  # a worker of xdist, which does not see how pytest was called
        usual = config.workerinput["kexecemu_usual"]
    else:
        whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        usual = whole and not any(word.startswith("-m") for word in config.invocation_params.args)
    config.stash[_USUAL] = usual
    if usual:
        config.option.markexpr = "not slow and not real"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist what it cannot see."""
    node.workerinput["kexecemu_usual"] = node.config.stash[_USUAL]


_USUAL = pytest.StashKey[bool]()


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Run pytest in the test's own folder with our plugin alone, whether or not kexecemu is installed."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "300")
    # pytest asks these whether it runs on CI, and then writes more; only the tests that say so want that.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)

    def run(*arguments: str) -> pytest.RunResult:
        # In a process of its own: what is loaded when is a part of what is tested.
        return pytester.runpytest_subprocess(
            "-p", "kexecemu.pytest_plugin", "-p", "no:cacheprovider", *arguments
        )

    return run
