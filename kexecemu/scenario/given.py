"""Options as they are given: keywords of the library, keys of a scenario, words of a command line; and back."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from kexecemu.errors import InputError
from kexecemu.scenario.options import OPTIONS, Setup

__all__ = [
    "SetupChanges",
    "SetupOptions",
    "command_words",
    "merged",
    "scenario_values",
    "setup_of",
    "with_changes",
]


class SetupChanges(TypedDict, total=False):
    """The options of Setup as keywords, for type checkers, without the seed."""

    ram: str | int | None
    cpus: int | None
    gic: int | None
    bbm: int
    dtb: Path | str | None
    efi_map: Path | str | None
    iomem: Path | str | None
    stuck_cpus: tuple[int, ...]
    era: str
    cmdline: str | None
    protection: str | None
    purgatory: bool | str | Path | None
    config: Mapping[str, str]
    rng_ready: bool
    linux: Path | str | None
    kernel: Path | str | None
    initrd: Path | str | None
    modules: Path | str | None
    initrd_size: str | int | None
    append: str | None
    dm_crypt_keys: int
    syscall: str | None
    way: str
    capture: str


class SetupOptions(SetupChanges, total=False):
    """The options of Setup as keywords, for type checkers."""

    seed: int


def with_changes(setup: Setup, given: Mapping[str, Any]) -> Setup:
    """The setup with other values: a config's are put to those that are there. InputError for a name that is none."""
    return replace(setup, **merged(setup.config, given))


def merged(config: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, with its config put to the one that there is; InputError for a name that is no option's."""
    for name in given:
        if name not in OPTIONS:
            raise InputError(f"no option {name!r}; there are {', '.join(sorted(OPTIONS))}")
    return {**given, "config": {**config, **OPTIONS["config"].checked(given.get("config", {}))}}


def setup_of(scenario: Any, folder: Path, seed: int | None = None) -> Setup:
    """The setup that a Scenario describes; relative paths start at `folder`, seed overrides the file's."""
    given = {}
    for name, option in OPTIONS.items():
        table = getattr(scenario, option.table) if option.table else scenario
        given[name] = option.rooted(getattr(table, name), folder)
    return Setup(**given if seed is None else {**given, "seed": seed})


def scenario_values(given: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Options by the tables of a scenario that says the same, "" for none; relative paths start at `folder`."""
    tables: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        option = OPTIONS[name]
        value = option.rooted(option.checked(value), folder)
        if isinstance(value, tuple):
            value = list(value)
        tables.setdefault(option.table, {})[name] = str(value) if isinstance(value, Path) else value
    return tables


def command_words(given: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line: --ram 1G --config KFENCE=y."""
    words = []
    for name, option in OPTIONS.items():
        value = option.checked(given[name]) if name in given else None
        if value is None:
            continue
        if isinstance(value, bool):
            words += [option.flag] if value else []
        elif isinstance(value, Mapping):
            words += [word for key, chosen in value.items() for word in (option.flag, f"{key}={chosen}")]
        else:
            words += [option.flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words
