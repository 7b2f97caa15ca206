"""What the shell offers when a word is completed: names that kexecemu knows. Files are the shell's own business.

Nothing here is loaded before it is asked for, so that the start of every other command is not slowed down.
"""

from collections.abc import Callable, Iterable
from importlib import import_module

__all__ = ["configs", "fetch_targets", "fetched", "models", "of", "outcomes", "scenarios"]


def _offered(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def offer(incomplete: str) -> list[str]:
        return [str(name) for name in names() if name.startswith(incomplete)]

    return offer


def of(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Words that are known already."""
    return _offered(lambda: words)


def _config_words() -> Iterable[str]:
    from kexecemu.kernel.base.kconfig import option_rows

    for row in option_rows():
        values = {"y or n": ["y", "n"], "a number": [row.default]}.get(row.values, row.values.split(", "))
        yield from (f"{row.name}={value}" for value in values)


configs = _offered(_config_words)
"""Kconfig options with each of their values, whole: a shell that parts words at the sign has no second chance."""
scenarios = _offered(lambda: import_module("kexecemu.data").shipped_scenarios())
"""The scenarios that ship."""
outcomes = _offered(lambda: import_module("kexecemu.crash.outcome").Outcome)
"""The outcomes of a crash."""
models = _offered(lambda: import_module("kexecemu.stray.models").MODELS)
"""The fault models."""
fetched = _offered(
    lambda: [f"fetched:{name}" for name in import_module("kexecemu.linux.fetched").fetchable_kernels()]
)
"""Kernels from outside, by name; a path is the shell's to complete."""
fetch_targets = _offered(lambda: import_module("kexecemu.fetch.targets").TARGETS)
"""What there is to fetch."""
