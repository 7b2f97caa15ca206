"""kexecemu schema: the form of a scenario file as JSON Schema, for editors and for the documentation."""

import json
from pathlib import Path
from typing import Annotated, Any

from kexecemu.commands.options import option
from kexecemu.commands.outputs import print_or_write

__all__ = ["EXAMPLES", "scenario_schema", "schema_command"]

EXAMPLES = """\
kexecemu schema
On stdout, for whoever reads it.
kexecemu schema --out scenario.schema.json
In a file beside your scenarios, for your editor.
"""


def schema_command(out: Annotated[Path | None, option("--out", "Write it to FILE.", "FILE")] = None) -> None:
    """Print the JSON Schema of scenario files, which tells an editor what each key means.

    A scenario names it in its first line: #:schema scenario.schema.json
    """
    text = json.dumps(scenario_schema(), indent=2, ensure_ascii=False) + "\n"
    print_or_write(text, out)


def scenario_schema() -> dict[str, Any]:
    """The schema (draft 2020-12): for each key what it means, what may stand there, and what holds without it."""
    import msgspec

    from kexecemu.crash.outcome import Outcome
    from kexecemu.scenario.schema import Scenario

    schema = msgspec.json.schema(Scenario)
    tables: dict[str, Any] = schema["$defs"]
    for table in tables.values():
        for key in table.get("properties", {}).values():
            _without_null(key)
        if not table.get("required", True):
            del table["required"]
    _campaign_words(tables["CampaignTable"]["properties"])
    tables["Outcome"]["description"] = "; ".join(f"{one.value}: {one.meaning}" for one in Outcome)
    tables["Matrix"]["minProperties"] = 1
    # Either bytes or bits.
    tables["FaultTable"]["oneOf"] = [{"required": ["write"]}, {"required": ["flip"]}]
    root = tables.pop("Scenario")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": "kexecemu scenario",
        "$defs": dict(sorted(tables.items())),
    }


def _without_null(key: dict[str, Any]) -> None:
    """TOML has no null: a key that is not given stays away, and what holds then is its default."""
    if "anyOf" in key:
        left = [one for one in key["anyOf"] if one != {"type": "null"}]
        if len(left) == 1:
            del key["anyOf"]
            key.update(left[0])
        else:
            key["anyOf"] = left
    for place in (key, key.get("items", {})):
        if "enum" in place:
            # msgspec sorts them, 6.12 before 6.4.
            place["enum"] = sorted(filter(lambda one: one is not None, place["enum"]), key=_by_version)
    otherwise = key.pop("otherwise", None)
    if "default" in key and key["default"] is None:
        del key["default"]
    if otherwise is not None:
        key["default"] = otherwise
    if isinstance(key.get("default"), dict):
        key["default"] = {}


def _by_version(value: object) -> tuple[list[int], str]:
    numbers = str(value).split(".")
    return [int(one) for one in numbers if one.isdigit()], str(value)


def _campaign_words(keys: dict[str, Any]) -> None:
    """What may stand in [campaign]; kexecemu.campaign knows it, and the form of the file does not."""
    from kexecemu.campaign.areas import WHERE
    from kexecemu.stray.fault import By, When
    from kexecemu.stray.models import MODELS

    keys["where"]["items"]["examples"] = list(WHERE)
    keys["models"]["items"]["enum"] = list(MODELS)
    keys["by"]["items"]["enum"] = list(map(str, By))
    plain = "|".join(one for one in When if one is not When.IN_CAPTURE)
    keys["moments"]["items"]["pattern"] = rf"^({plain}|hashing-[0-9]+|capture-[0-9]+)$"
    for key in keys.values():
        if "items" in key:
            key |= {"minItems": 1, "uniqueItems": True}
