# SPDX-License-Identifier: GPL-2.0-or-later
"""A mutant's two objects: all options, and the core. Each source is compiled once, and what was built is kept."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from kexecemu.guests.purgatory import CORE, chosen_options, purgatory_target
from kexecemu.guests.toolchain import BuildError, Target, Toolchain
from tests.mutation.mutants import ROOT, Mutant

TARGETS = {
    "purgatory.ro": purgatory_target(chosen_options(), "purgatory.ro"),
    "core.ro": purgatory_target((), "core.ro", "core"),
}
_INCLUDE = re.compile(r'^\s*#\s*include "([^"]+)"', re.M)


def users_of(source: str) -> set[str]:
    """Sources that are compiled, among them those that include this one, by whatever way."""
    texts = {path.name: path.read_text() for path in (ROOT / "purgatory").glob("*.[cSh]")}
    users = {source}
    while more := {name for name, text in texts.items() if users & set(_INCLUDE.findall(text))} - users:
        users |= more
    return {f"purgatory/{name}" for name in users}


@dataclass(frozen=True)
class Objects:
    """Bytes of purgatory.ro and of core.ro."""

    full: bytes
    core: bytes

    @property
    def name(self) -> str:
        return hashlib.sha256(self.full + self.core).hexdigest()[:32]


class Builder:
    """A checkout of its own, in which one line at a time is another. Not for two threads."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.folder, self.kept = folder, kept
        shutil.copytree(
            ROOT / "purgatory", folder / "purgatory", ignore=shutil.ignore_patterns("linux", "__py*")
        )
        self.tools = Toolchain("zig", folder, folder / "cache")
        self.good: dict[str, Path] = {}  # objects of the original, by target and source
        sources = b"".join(p.read_bytes() for p in sorted((folder / "purgatory").glob("*.[cSh]")))
        self.sources = hashlib.sha256(sources).hexdigest()
        for name, target in TARGETS.items():
            for source in target.sources:
                self.good[f"{name}/{source}"] = folder / "good" / name / f"{source}.o"
                self.tools.compile(target, source, self.good[f"{name}/{source}"])
        self.original = Objects(*(self._build(name, set()) for name in TARGETS))

    def _build(self, name: str, changed: set[str]) -> bytes:
        target: Target = TARGETS[name]
        inputs = []
        for source in target.sources:
            inputs.append(self.good[f"{name}/{source}"])
            if source in changed:
                inputs[-1] = self.folder / "changed" / name / f"{source}.o"
                self.tools.compile(target, source, inputs[-1])
        for link in target.links:
            self.tools.link(
                link, [self.folder / one for one in link.inputs] or inputs, self.folder / link.output
            )
        return (self.folder / name).read_bytes()

    def build(self, mutant: Mutant) -> Objects | None:
        """Both objects, or None if a compiler refuses it."""
        key = hashlib.sha256(
            f"{self.sources} {mutant.path} {mutant.number} {mutant.new}".encode()
        ).hexdigest()
        kept = [self.kept / f"{key[:32]}.{name}" for name in TARGETS]
        if not kept[-1].is_file():
            made = self._mutated(mutant)
            self.kept.mkdir(parents=True, exist_ok=True)
            for path, data in zip(kept, (made.full, made.core) if made else (b"", b""), strict=True):
                path.write_bytes(data)
        full, core = (path.read_bytes() for path in kept)
        return Objects(full, core) if full else None

    def _mutated(self, mutant: Mutant) -> Objects | None:
        source = self.folder / mutant.path
        before = source.read_text()
        lines = before.splitlines()
        lines[mutant.number - 1] = mutant.new
        source.write_text("\n".join(lines) + "\n")
        changed = users_of(source.name)
        in_core = changed & {f"purgatory/{name}" for name in CORE}
        try:
            return Objects(
                self._build("purgatory.ro", changed),
                self._build("core.ro", changed) if in_core else self.original.core,
            )
        except BuildError:
            return None
        finally:
            source.write_text(before)
