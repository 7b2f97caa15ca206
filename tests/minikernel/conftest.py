# SPDX-License-Identifier: GPL-2.0-or-later
"""The bare minikernel of minikernel_guest.py as fixtures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# With --import-mode=importlib nothing puts this folder on the path, and its helpers import each other.
sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from minikernel_guest import Guest


@pytest.fixture
def guest() -> Guest:
    """A minikernel that has booted on one CPU."""
    from minikernel_guest import Guest

    guest = Guest()
    assert guest.boot() == "idle"
    return guest


@pytest.fixture
def start_guest() -> Callable[..., Guest]:
    """Guest's constructor, for tests that want another number of CPUs or look at the boot itself."""

    from minikernel_guest import Guest

    def start(**options: Any) -> Guest:
        return Guest(**options)

    return start
