"""Put the bench beside these tests within their reach: pytest imports test modules by path alone."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
