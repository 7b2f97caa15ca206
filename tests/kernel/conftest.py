"""Put the bench beside these tests within their reach, and let no test fail for the host's speed."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A booted kernel is made in some of the examples, on a machine that others may be using.
settings.register_profile("kernel", deadline=None)
settings.load_profile("kernel")
