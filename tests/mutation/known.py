# SPDX-License-Identifier: GPL-2.0-or-later
"""What earlier runs found out, and how a run's counts are told."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ENDS = ("killed", "lives", "equivalent", "same", "twin", "invalid")


@dataclass
class Known:
    """One line of JSON for each that was killed: its name, its source, and the test that killed it."""

    path: Path
    killers: dict[str, str] = field(default_factory=dict)  # by the mutant's name
    by_source: dict[str, Counter[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> None:
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                self._note(row["objects"], row["source"], row["killer"])

    def _note(self, name: str, source: str, killer: str) -> None:
        self.killers[name] = killer
        self.by_source.setdefault(source, Counter())[killer] += 1

    def add(self, name: str, source: str, killer: str) -> None:
        with self.lock:
            self._note(name, source, killer)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"objects": name, "source": source, "killer": killer}) + "\n")

    def likely(self, source: str, most: int) -> list[str]:
        """Tests that killed most of the same source's."""
        with self.lock:
            return [name for name, _ in self.by_source.get(source, Counter()).most_common(most)]


def share_of(counts: Counter[str]) -> float:
    """Of those that matter: what is killed."""
    return counts["killed"] / max(counts["killed"] + counts["lives"], 1)


def told(counts: Counter[str]) -> str:
    text = ", ".join(f"{counts[name]} {name}" for name in ENDS if counts[name])
    return f"{text or 'none'} - {share_of(counts):.1%} of {counts['killed'] + counts['lives']} killed"
