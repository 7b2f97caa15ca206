"""kexecemu list: everything that can be named, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kexecemu.cli import main
from kexecemu.commands.list import LISTS
from kexecemu.crash.outcome import Outcome
from kexecemu.data import shipped_scenarios
from kexecemu.kernel.base.config import Era, KernelConfig
from kexecemu.kernel.base.kconfig import KNOWN_OPTIONS
from kexecemu.limits import LIMITS
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.stray.models import MODELS

NAMES = {
    "scenarios": shipped_scenarios(),
    "models": list(MODELS),
    "configs": sorted(KNOWN_OPTIONS),
    "eras": [era.value for era in Era],
    "outcomes": [outcome.value for outcome in Outcome],
    "limits": [one.name for one in LIMITS],
}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["list", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def rows(capsys: pytest.CaptureFixture[str], what: str) -> list[dict[str, Any]]:
    value = json.loads(printed(capsys, what, "--json"))
    assert list(value) == [what]
    found: list[dict[str, Any]] = value[what]
    return found


@pytest.mark.parametrize("what", LISTS)
def test_every_name_is_listed_with_what_it_is(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, what)
    assert [row["name"] for row in found] == NAMES[what]
    assert all(value is None or value != "" for row in found for value in row.values())
    lines = printed(capsys, what).splitlines()
    first = [line.split()[0] for line in lines if not line.startswith(" ") and not line.startswith("model ")]
    assert first == NAMES[what]
    assert all(len(line.split()) > 2 for line in lines)


def test_a_scenario_is_listed_with_the_outcome_that_it_expects(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "scenarios")
    for row in rows(capsys, "scenarios"):
        scenario = read_scenario(find_scenario(row["name"]))
        assert row["sentence"] == scenario.name
        assert row["outcome"] == (scenario.expect.outcome.value if scenario.expect else None)
        assert f"{row['name']:<32} {row['outcome'] or '-':<10} {row['sentence']}\n" in text


def test_an_option_is_listed_with_its_default_and_an_era_with_its_protection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert {row["name"]: row["default"] for row in rows(capsys, "configs")} == dict(KNOWN_OPTIONS)
    policy = next(row for row in rows(capsys, "configs") if row["name"] == "KEXEC_PURGATORY_POLICY")
    assert policy["values"] == "stop, reset, off, return, boot, repair"
    for row in rows(capsys, "eras"):
        assert row["protection"] == KernelConfig(row["name"]).way.value
