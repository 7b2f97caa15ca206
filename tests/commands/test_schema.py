"""kexecemu schema: it describes every key, takes what read_scenario takes, and refuses what that refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from kexecemu.cli import main
from kexecemu.commands.schema import scenario_schema
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.verdict import VerdictFlags, VerdictState
from kexecemu.data import fixture_path, shipped_scenarios
from kexecemu.errors import InputError
from kexecemu.kernel.base.config import Era, Protection
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.schema import Scenario

SCHEMA = scenario_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
HEAD = 'schema = 1\nname = "x"\n'


def tables() -> dict[str, dict[str, Any]]:
    return {"": SCHEMA, **{name: one for name, one in SCHEMA["$defs"].items() if "properties" in one}}


def keys() -> list[tuple[str, str, dict[str, Any]]]:
    return [(table, key, what) for table, one in tables().items() for key, what in one["properties"].items()]


def test_it_is_json_schema_of_the_newest_draft() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_file_that_ships_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    shipped = fixture_path("scenarios/scenario.schema.json").read_text()
    assert printed == shipped, "renew it: kexecemu schema --out fixtures/scenarios/scenario.schema.json"
    assert main(["schema", "--out", str(tmp_path / "mine.json")]) == 0
    assert (tmp_path / "mine.json").read_text() == printed
    assert f"{tmp_path / 'mine.json'}" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["schema", "--out", str(tmp_path / "no" / "mine.json")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"kexecemu: --out {tmp_path / 'no' / 'mine.json'}: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", shipped_scenarios())
def test_every_scenario_that_ships_names_it_in_its_first_line_and_is_valid(name: str) -> None:
    path = find_scenario(name)
    first, *_ = path.read_text().splitlines()
    assert first == "#:schema scenario.schema.json"
    assert (path.parent / first.split()[1]).is_file()
    VALIDATOR.validate(tomllib.loads(path.read_text()))


def test_every_key_of_the_file_is_described_and_nothing_else() -> None:
    assert {(table, key) for table, key, _ in keys() if table == ""} == {
        ("", one.encode_name) for one in msgspec.structs.fields(Scenario)
    }
    for table, key, what in keys():
        assert len(what["description"]) > 8, f"{table}.{key}"
        assert what["description"].endswith("."), f"{table}.{key}"
    for name, one in tables().items():
        assert one["description"], name
        assert one["additionalProperties"] is False, name


def test_every_key_has_a_default_or_says_what_holds_without_it() -> None:
    silent = [
        f"{table}.{key}"
        for table, key, what in keys()
        if key not in tables()[table].get("required", ())
        and "default" not in what
        and "Without it" not in what["description"]
    ]
    # One of these three is needed.
    assert silent == ["FaultTable.write", "FaultTable.flip", "FaultTable.model"]


def test_the_words_that_a_key_takes_are_those_of_the_code() -> None:
    kernel, expect = (SCHEMA["$defs"][name]["properties"] for name in ("KernelTable", "Expect"))
    assert kernel["era"]["enum"] == [one.value for one in Era]
    assert set(kernel["protection"]["enum"]) == {one.value for one in Protection}
    assert set(SCHEMA["$defs"]["Outcome"]["enum"]) == set(Outcome)
    assert set(expect["verdict"]["items"]["enum"]) == {one.lower() for one in VerdictFlags.__members__}
    assert set(expect["verdict_state"]["enum"]) == {one.lower() for one in VerdictState.__members__}
    assert "null" not in json.dumps(SCHEMA)


WRONG = [
    "colour = 1",
    "seed = 'one'",
    "[machine]\ncpus = '2'",
    "[machine]\nram = 1.5",
    "[machines]\nram = '1G'",
    "[kernel]\nera = '5.4'",
    "[kernel]\nera = 6.4",
    "[kernel]\nprotection = 'strong'",
    "[kernel]\nconfig = { ZONE_DMA = false }",
    "[load]\nsyscall = 'kexec'",
    "[load]\ncapture = 'windows'",
    "[[fault]]\nwrite = 'ff'",
    "[[fault]]\nat = 'initrd'",
    "[[fault]]\nat = 'initrd'\nwrite = 'ff'\nflip = 1",
    "[[fault]]\nat = 'initrd'\nwrite = 'xyz'",
    "[[fault]]\nat = 'initrd'\nwrite = ''",
    "[[fault]]\nat = 'initrd'\nflip = 256",
    "[[fault]]\nat = 'initrd'\nwrite = 'ff'\nwidth = 3",
    "[[fault]]\nat = 'initrd'\nwrite = 'ff'\nby = 'cosmic ray'",
    "[[fault]]\nat = 'initrd'\nwrite = 'ff'\nwhen = 'now'",
    "[campaign]\nsampling = 'some'",
    "[expect]\nsegment = 'dtb'",
    "[expect]\noutcome = 'good'",
    "[expect]\noutcome = 'silent'\nconsole = 'one line'",
    "[expect]\noutcome = 'silent'\nverdict = ['mmu']",
    "[expect]\noutcome = 'silent'\nverdict_state = 'fine'",
    "[matrix]",
    "[matrix]\nera = ['5.4']",
    "[matrix]\nseed = [1]",
    "[matrix]\nera = ['6.1']\n[[matrix.except]]\nera = '6.1'",
]


@pytest.mark.parametrize("text", WRONG)
def test_an_editor_refuses_what_we_refuse(text: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(HEAD + text)
    with pytest.raises(InputError):
        read_scenario(path)
    assert not VALIDATOR.is_valid(tomllib.loads(HEAD + text))


@pytest.mark.parametrize(
    "text",
    [
        "[machine]\nram = 0x8000000\ncpus = 3\ngic = 3\ndtb = 'board.dtb'",
        "[kernel]\npurgatory = false\nconfig = { CONFIG_ZONE_DMA = 'n' }",
        "[kernel]\nlinux = 'fetched:kernel'\n[machine]\ncpus = 2\nstuck_cpus = [0]",
        "[[fault]]\nat = 'dtb'\nwrite = '0xdead_beef'",
        "[campaign]\nwhere = ['initrd', 'edges']\nby = ['dma']\nmoments = ['hashing-128', 'capture-1000']",
        "[matrix]\nera = ['6.1', '6.4']\n[expect]\noutcome = 'silent'\n"
        "[[matrix.except]]\nera = '6.1'\noutcome = 'prevented'",
    ],
)
def test_an_editor_takes_what_we_take(text: str, tmp_path: Path) -> None:
    path = tmp_path / "right.toml"
    path.write_text(HEAD + text)
    read_scenario(path)
    VALIDATOR.validate(tomllib.loads(HEAD + text))
