"""What the shell offers when a word is completed: names that kexecemu knows. Files are the shell's own business.

Nothing here is loaded before it is asked for, so that the start of every other command is not slowed down.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "captures",
    "configs",
    "eras",
    "fetch_targets",
    "fetched",
    "lists",
    "models",
    "outcomes",
    "protections",
    "purgatories",
    "scenarios",
    "syscalls",
]


def _begin(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def scenarios(incomplete: str) -> list[str]:
    """The scenarios that ship."""
    from kexecemu.data import shipped_scenarios

    return _begin(shipped_scenarios(), incomplete)


def eras(incomplete: str) -> list[str]:
    """The releases that stand for eras."""
    from kexecemu.kernel.config import Era

    return _begin([era.value for era in Era], incomplete)


def protections(incomplete: str) -> list[str]:
    """The ways to protect a loaded image."""
    from kexecemu.kernel.config import Protection

    return _begin([way.value for way in Protection], incomplete)


def configs(incomplete: str) -> list[str]:
    """Kconfig options with each of their values, whole: a shell that parts words at the sign has no second chance."""
    from kexecemu.kernel.config import option_rows

    words = []
    for row in option_rows():
        values = {"y or n": ["y", "n"], "a number": [row.default]}.get(row.values, row.values.split(", "))
        words += [f"{row.name}={value}" for value in values]
    return _begin(words, incomplete)


def outcomes(incomplete: str) -> list[str]:
    """The outcomes of a crash."""
    from kexecemu.crash.outcome import Outcome

    return _begin([outcome.value for outcome in Outcome], incomplete)


def models(incomplete: str) -> list[str]:
    """The fault models."""
    from kexecemu.stray.models import MODELS

    return _begin(MODELS, incomplete)


def lists(incomplete: str) -> list[str]:
    """What can be listed."""
    from kexecemu.commands.list import LISTS

    return _begin(LISTS, incomplete)


def fetched(incomplete: str) -> list[str]:
    """Kernels from outside, by name; a path is the shell's to complete."""
    from kexecemu.linux.fetched import FETCHED, fetchable_kernels

    return _begin([f"{FETCHED}{name}" for name in fetchable_kernels()], incomplete)


def fetch_targets(incomplete: str) -> list[str]:
    """What there is to fetch."""
    from kexecemu.fetch.targets import TARGETS

    return _begin(TARGETS, incomplete)


def purgatories(incomplete: str) -> list[str]:
    """The words that are no path."""
    return _begin(["default", "none"], incomplete)


def syscalls(incomplete: str) -> list[str]:
    """The system calls that load."""
    return _begin(["kexec_file_load", "kexec_load"], incomplete)


def captures(incomplete: str) -> list[str]:
    """The kinds of capture kernel."""
    return _begin(["stub", "linux"], incomplete)
