"""The scenarios that ship: each gives its outcome, says what it teaches, and gives the same bytes every time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from shipped import every_scenario, skip_if_not_fetched

from kexecemu.data import shipped_scenarios
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import Result, run_scenario

# Relied on from outside: name and outcome.
CONTRACT = {
    "golden": "captured",
    "initrd-stamped": "detected",
    "kernel-text-stamped": "detected",
    "stamped-without-purgatory": "silent",
    "stamped-under-pte": "prevented",
    "dma-under-pte": "detected",
    "dma-under-pte-without-purgatory": "silent",
    "free-memory-stamped": "latent",
    "same-value-write": "masked",
    "digest-stamped": "detected",
    "write-after-check": "silent",
    "debian-captures": "captured",
    "debian-initrd-stamped": "detected",
}


def run(name: str) -> Result:
    path = find_scenario(name)
    return run_scenario(read_scenario(path), path.parent)


def test_every_promised_scenario_ships_and_expects_what_was_promised() -> None:
    assert {*CONTRACT, "purgatory-code-stamped"} <= set(shipped_scenarios())
    for name, outcome in CONTRACT.items():
        expect = read_scenario(find_scenario(name)).expect
        assert expect is not None
        assert expect.outcome.value == outcome


@pytest.mark.parametrize("name", every_scenario())
def test_it_gives_its_outcome_twice_with_the_same_timeline_console_and_dump(
    name: str, tmp_path: Path
) -> None:
    skip_if_not_fetched(name)
    first, second = run(name), run(name)
    assert first.mismatches == []
    assert first.end.timeline.as_jsonl() == second.end.timeline.as_jsonl()
    assert first.kernel.board.uart.output == second.kernel.board.uart.output
    assert first.end.instructions == second.end.instructions
    if first.end.vmcore is None:
        assert second.end.vmcore is None
        return
    dumps = []
    for number, result in enumerate((first, second)):
        assert result.end.vmcore is not None
        path = tmp_path / str(number)
        result.end.vmcore.write(path)
        with path.open("rb") as file:
            # 4 MiB hold headers, notes and the kernel's own image; the whole dump is nearly a GiB of zeros.
            dumps.append((path.stat().st_size, file.read(4 << 20)))
    assert dumps[0] == dumps[1]


@pytest.mark.parametrize("name", shipped_scenarios())
def test_it_explains_itself(name: str) -> None:
    text = find_scenario(name).read_text()
    comment = " ".join(re.findall(r"^# (.*)$", text, re.MULTILINE))
    assert len(comment.split()) >= 35
    scenario = read_scenario(find_scenario(name))
    assert scenario.expect is not None
    assert len(scenario.name) > 20


def test_false_alarm_and_blind_spot_are_called_so() -> None:
    assert "FALSE ALARM" in find_scenario("digest-stamped").read_text()
    assert "BLIND SPOT" in find_scenario("purgatory-code-stamped").read_text()
