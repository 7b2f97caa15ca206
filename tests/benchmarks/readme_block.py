# SPDX-License-Identifier: GPL-2.0-or-later
"""Put what a benchmark has measured into README, below the mark with the benchmark's name."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def replace_block(name: str, text: str, readme: Path = README) -> None:
    """Replace what stands between `<!-- measured: NAME -->` and the next `<!-- end -->`.

    SystemExit when the mark is not there exactly once.
    """
    pattern = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end -->\n)", re.DOTALL)
    old = readme.read_text(encoding="utf-8")
    new, count = pattern.subn(lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}", old)
    if count != 1:
        raise SystemExit(f"{readme}: the mark 'measured: {name}' is there {count} times")
    readme.write_text(new, encoding="utf-8")
