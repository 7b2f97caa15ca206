"""Types and style: mypy --strict over the package, ruff over everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_passes_mypy_strict() -> None:
    pytest.importorskip("mypy")
    run("mypy", "kexecemu")


def test_everything_passes_ruff() -> None:
    pytest.importorskip("ruff")
    run("ruff", "check", "--config", ".ci/ruff.toml", ".")
    run("ruff", "format", "--check", "--config", ".ci/ruff.toml", ".")
