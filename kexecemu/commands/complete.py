"""What the shell offers when a word is completed: names that kexecemu knows. Files are the shell's own business.

Nothing here is loaded before it is asked for, so that the start of every other command is not slowed down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["configs", "fetch_targets", "fetched", "models", "of", "outcomes", "scenarios"]


def _begin(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def of(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Words that are known already."""

    def offer(incomplete: str) -> list[str]:
        return _begin(words, incomplete)

    return offer


def scenarios(incomplete: str) -> list[str]:
    """The scenarios that ship."""
    from kexecemu.data import shipped_scenarios

    return _begin(shipped_scenarios(), incomplete)


def configs(incomplete: str) -> list[str]:
    """Kconfig options with each of their values, whole: a shell that parts words at the sign has no second chance."""
    from kexecemu.kernel.base.config import option_rows

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


def fetched(incomplete: str) -> list[str]:
    """Kernels from outside, by name; a path is the shell's to complete."""
    from kexecemu.linux.fetched import FETCHED, fetchable_kernels

    return _begin([f"{FETCHED}{name}" for name in fetchable_kernels()], incomplete)


def fetch_targets(incomplete: str) -> list[str]:
    """What there is to fetch."""
    from kexecemu.fetch.targets import TARGETS

    return _begin(TARGETS, incomplete)
