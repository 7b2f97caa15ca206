"""Put what several rooms' tests share (signing.py) within their reach: pytest imports test modules by path alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


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
