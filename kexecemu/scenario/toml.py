"""A scenario as the text of its file: read again it is the same scenario."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kexecemu.scenario.given import merged, scenario_values
from kexecemu.scenario.options import Setup, given_options
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.schema import Crash, Expect, FaultTable, Scenario
from kexecemu.stray.fault import Fault
from kexecemu.visible import visible_string

__all__ = ["changed", "changed_scenario", "given_keys", "scenario_of", "scenario_toml"]

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


def scenario_toml(scenario: Scenario) -> str:
    """The text of a file that says this; what is not given stays away."""
    data = given_keys(scenario)
    lines = [f"{key} = {_value(value)}" for key, value in data.items() if not _is_table(value)]
    for key, value in data.items():
        for table in value if isinstance(value, list) else [value]:
            if _is_table(value):
                heading = f"[[{key}]]" if isinstance(value, list) else f"[{key}]"
                lines += ["", heading, *(f"{name} = {_value(one)}" for name, one in table.items())]
    return "\n".join(lines) + "\n"


def given_keys(table: msgspec.Struct) -> dict[str, Any]:
    """The keys of a table, and of those in it, whose values are not the defaults; as builtins."""
    given = {}
    for one in msgspec.structs.fields(table):
        value = getattr(table, one.name)
        factory = one.default_factory
        if value == (factory() if callable(factory) else one.default):
            continue
        if isinstance(value, msgspec.Struct):
            value = given_keys(value)
        elif isinstance(value, list):
            value = [given_keys(item) if isinstance(item, msgspec.Struct) else item for item in value]
        given[one.encode_name] = msgspec.to_builtins(value)
    return given


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_name(key)} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_value, value)) + "]"
    # A basic string, a number and a truth value are the same in JSON; only DEL may stand bare there and not here.
    return visible_string(json.dumps(value, ensure_ascii=False))


def _name(key: str) -> str:
    return key if _BARE.match(key) else _value(key)


def scenario_of(
    name: str, setup: Setup, faults: Sequence[Fault], message: str, expect: Expect | None = None
) -> Scenario:
    """The scenario of a crash that was put together from a setup. Paths become absolute ones."""
    tables = [_table(fault) for fault in faults]
    scenario = Scenario(schema=1, name=name, fault=tables, crash=Crash(message), expect=expect)
    return changed(scenario, given_options(setup))


def changed(scenario: Scenario, given: Mapping[str, Any]) -> Scenario:
    """The scenario with other options. Paths start where we are; a config's are put to those that are there.

    A device tree in place of the usual board has RAM, CPUs and interrupt controller of its own.
    """
    new: dict[str, Any] = {}
    if given.get("dtb") is not None and scenario.machine.dtb is None:
        given = {"ram": None, "cpus": None, "gic": None, **given}
    for table, values in scenario_values(merged(scenario.kernel.config, given), Path.cwd()).items():
        if table:
            new[table] = msgspec.structs.replace(getattr(scenario, table), **values)
        else:
            new |= values
    return msgspec.structs.replace(scenario, **new)


def changed_scenario(name: str | Path, given: Mapping[str, Any]) -> tuple[Path, Scenario]:
    """A scenario, by its path or the name of one that ships, with other options, and its path."""
    path = find_scenario(name)
    return path, changed(read_scenario(path), given)


def _table(fault: Fault) -> FaultTable:
    write = fault.write.hex() if fault.write is not None else None
    how = write, fault.flip, fault.when_word, fault.width
    return FaultTable(fault.at, fault.by, *how, fault.model, fault.variant)
