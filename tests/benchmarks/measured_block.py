# SPDX-License-Identifier: GPL-2.0-or-later
"""Put what a benchmark has measured into docs/figures.md, below the mark with its name."""

from __future__ import annotations

import re
from pathlib import Path

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures.md"


def replace_block(name: str, text: str, page: Path = FIGURES) -> None:
    """Replace what stands between `<!-- measured: NAME -->` and the next `<!-- end -->`.

    SystemExit when the mark is not there exactly once.
    """
    pattern = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end -->\n)", re.DOTALL)
    old = page.read_text(encoding="utf-8")
    new, count = pattern.subn(lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}", old)
    if count != 1:
        raise SystemExit(f"{page}: the mark 'measured: {name}' is there {count} times")
    page.write_text(new, encoding="utf-8")
