"""From a path or a name to a checked Scenario."""

from pathlib import Path

import msgspec

from kexecemu.arguments import instance, toml_table
from kexecemu.data import fixture_path, shipped_scenarios
from kexecemu.errors import InputError
from kexecemu.files import read_file
from kexecemu.scenario.checks import checks_of
from kexecemu.scenario.schema import Scenario
from kexecemu.scenario.toml_lines import at_line, validation_text
from kexecemu.suggest import did_you_mean

__all__ = ["find_scenario", "read_scenario"]

_LARGEST = 16 << 20  # bytes of text


def find_scenario(name: str | Path) -> Path:
    """The path of a scenario: a TOML file, or the name of one that ships. InputError when there is neither."""
    name = str(instance(name, (str, Path), "scenario"))
    path = Path(name)
    if path.suffix == ".toml" or "/" in name:
        return path
    shipped = fixture_path(f"scenarios/{name}.toml")
    if not shipped.is_file():
        known = shipped_scenarios()
        like = did_you_mean(name, known)
        raise InputError(f"no scenario {name!r}{like}: give a .toml file or one of {', '.join(known)}")
    return shipped


def read_scenario(path: str | Path) -> Scenario:
    """Read and check a scenario file, or one that ships, by its name. Raises InputError that names file and key."""
    path = path if isinstance(path, Path) else find_scenario(path)
    try:
        text = read_file(path, _LARGEST).decode()
        data = toml_table(text)
    except OSError as error:
        raise InputError(f"scenario {path}: {error.strerror or error}") from error
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"scenario {path}: {error}") from error
    try:
        scenario = msgspec.convert(data, Scenario)
    except msgspec.ValidationError as error:
        raise InputError(f"scenario {path}: {validation_text(error, text, Scenario)}") from error
    for where, check in checks_of(data, scenario):
        try:
            check()
        except InputError as error:
            # A refusal of a key says so in front: "machine.stuck_cpus: ...".
            named = tuple(str(error).split(":")[0].split(" ")[0].split("."))
            key = named if not where and len(named) > 1 else where
            raise InputError(f"scenario {path}: {at_line(text, key, error)}") from error
    return scenario
