"""Put what several rooms' tests share (signing.py) within their reach: pytest imports test modules by path alone."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
