"""kexecemu campaign, campaign-compare and replay: exit statuses, the outputs, resuming, bad input in one line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import fake_engine
import pytest

from kexecemu.campaign import job, work
from kexecemu.campaign.store import Store
from kexecemu.cli import main
from kexecemu.crash.outcome import Outcome

SCENARIO = """
schema = 1
name = "a small campaign"
[machine]
ram = "128M"
[kernel]
cmdline = "crashkernel=32M"
[campaign]
where = ["segments"]
models = ["byte"]
by = ["cpu", "dma"]
moments = ["after-load"]
"""
HOST_TIMES = ("injections_per_second", "seconds", "audit_seconds")


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SCENARIO)
    return path


def campaign(*words: object) -> int:
    return main(["campaign", *map(str, words)])


def report(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert campaign(*words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def small(scenario: Path, out: Path, faults: int = 60, seed: int = 1) -> list[object]:
    return [scenario, "--faults", faults, "--seed", seed, "--out", out, "--workers", 1, "--audit", 3]


def test_the_contracts_keys_are_there(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, *small(scenario, tmp_path / "out"))
    assert found["faults"] == sum(found["outcomes"].values()) == 60
    assert list(found["outcomes"]) == [outcome.value for outcome in Outcome]
    assert found["population"] > 10**6
    assert found["audited"] == 3 and found["audit_disagreements"] == 0
    assert found["injections_per_second"] > 0
    assert set(found["intervals"]) == set(found["outcomes"])
    assert found["seed"] == 1 and len(found["config_hash"]) == 64 and found["version"] and found["sampler"]
    with Store.read(tmp_path / "out") as store:
        assert found["table_sha256"] == store.table_sha256()


def test_the_same_seed_gives_the_same_output_but_for_the_hosts_clock(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = report(capsys, *small(scenario, tmp_path / "first"))
    second = report(capsys, *small(scenario, tmp_path / "second"))
    other = report(capsys, *small(scenario, tmp_path / "other", seed=2))
    for one in (first, second, other):
        for key in (*HOST_TIMES, "files"):
            one.pop(key)
    assert first == second
    assert first["table_sha256"] != other["table_sha256"]


def test_the_text_and_the_page_say_what_came_of_it(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert campaign(*small(scenario, tmp_path / "out"), "--html", page) == 0
    said = capsys.readouterr().out
    assert "a small campaign" in said and "detected" in said
    assert "a small campaign" in page.read_text(encoding="utf-8")


def test_results_are_not_overwritten_but_gone_on_with(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = small(scenario, tmp_path / "out")
    first = report(capsys, *words)
    assert campaign(*words) == 2
    assert "--resume" in capsys.readouterr().err
    again = report(capsys, *words, "--resume")
    assert again == first
    assert campaign(*small(scenario, tmp_path / "out", seed=2), "--resume") == 2
    assert "seed is 1, not 2" in capsys.readouterr().err
    assert campaign(*words, "--resume", "--protection", "pte") == 2
    assert "protection is 'none', not 'pte'" in capsys.readouterr().err


def test_protection_and_purgatory_can_be_given_and_are_part_of_the_reproducer(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(
        capsys, *small(scenario, tmp_path / "out", 200), "--protection", "pte", "--purgatory", "none"
    )
    assert (found["protection"], found["purgatory"]) == ("pte", "none")
    assert found["outcomes"]["prevented"] > 0 and found["outcomes"]["silent"] > 0
    assert found["outcomes"]["detected"] == 0
    silent = next(one for one in found["worst"] if one["outcome"] == "silent")
    assert (
        silent["reproducer"]
        == f"kexecemu replay {silent['fault']} {scenario} --protection pte --purgatory none"
    )
    assert main([*silent["reproducer"].split()[1:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["fault"], again["outcome"], again["phys"]) == (silent["fault"], "silent", silent["phys"])


def test_a_purgatory_objects_path_starts_where_we_are(
    scenario: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kexecemu.scenario.read import read_scenario
    from kexecemu.scenario.toml import changed

    monkeypatch.chdir(scenario.parent)
    parsed = read_scenario(scenario)
    assert changed(parsed, {"purgatory": "my.ro"}).kernel.purgatory == str(scenario.parent / "my.ro")
    assert changed(parsed, {}) == parsed
    assert changed(parsed, {"protection": "pte", "purgatory": "none"}).kernel.protection == "pte"


def test_options_in_place_of_the_scenarios_make_another_campaign_that_its_reproducers_name(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "campaign",
        str(scenario),
        "--faults",
        "40",
        "--seed",
        "1",
        "--workers",
        "1",
        "--audit",
        "3",
        "--json",
    ]
    found = []
    for policy in ("stop", "repair"):
        given = [
            "--config",
            "KEXEC_PURGATORY_COPY=y",
            "--config",
            f"KEXEC_PURGATORY_POLICY={policy}",
            "--rng-ready",
        ]
        assert main([*words, *given, "--out", str(tmp_path / policy)]) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert found[-1]["options"] == shlex.join(given)
    assert found[0]["config_hash"] != found[1]["config_hash"]
    assert found[0]["dumps"]["true"] < found[1]["dumps"]["true"] == 40
    fault = "dma.byte.10.initrd+10.after-load"
    for one, dump in zip(found, ("none", "true"), strict=True):
        assert main(["replay", fault, str(scenario), *shlex.split(one["options"]), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["dump"] == dump
    # A campaign that was begun one way does not go on in another.
    assert main([*words, "--out", str(tmp_path / "repair"), "--resume"]) == 2
    assert "config_hash is" in capsys.readouterr().err


def test_an_audit_that_disagrees_exits_with_1_and_names_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    liar = tmp_path / "liar.toml"
    liar.write_text('schema = 1\nname = "lie=1234"\n')
    monkeypatch.setattr(work, "plan_campaign", partial(work.plan_campaign, engine=fake_engine.make))
    monkeypatch.setattr(fake_engine, "AREAS", fake_engine.AREAS[:1])
    words = [
        liar,
        "--faults",
        60_000,
        "--seed",
        1,
        "--out",
        tmp_path / "out",
        "--workers",
        1,
        "--audit",
        60_000,
    ]
    assert campaign(*words, "--json") == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["audit_disagreements"] == len(found["disagreements"]) >= 1
    assert all("kernel+1234." in one["fault"] for one in found["disagreements"])
    for one in found["disagreements"]:
        assert one["fault"] in printed.err
    with Store.read(tmp_path / "out") as store:
        assert [one.fault for one in store.audits() if one.run != one.decided] == [
            one["fault"] for one in found["disagreements"]
        ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "cloud"], "--executor 'cloud': is local or dask://HOST:PORT"),
        (["--executor", "dask://"], "is local or dask://HOST:PORT"),
        (["--protection", "wishes"], "wishes"),
        (["--purgatory", "nowhere.ro"], "nowhere.ro"),
        (["--html", "/nowhere/at/all.html"], "there is no folder /nowhere/at"),
        (["--faults", "0"], "--faults"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_bad_input_is_one_line(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert campaign(*small(scenario, tmp_path / "out"), *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_scenario_with_faults_of_its_own_is_no_campaign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert campaign(*small(Path("initrd-stamped"), tmp_path / "out")) == 2
    assert "[[fault]]" in capsys.readouterr().err


def test_two_campaigns_are_compared(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SCENARIO.replace('["segments"]', '["kernel", "initrd"]')
    scenario.write_text(text)
    report(capsys, *small(scenario, tmp_path / "pte", 200), "--protection", "pte", "--purgatory", "none")
    report(capsys, *small(scenario, tmp_path / "none", 200), "--protection", "none", "--purgatory", "none")
    assert main(["campaign-compare", str(tmp_path / "pte"), str(tmp_path / "none"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        sum(count for row in found["outcomes"].values() for count in row.values()) == found["faults"] == 200
    )
    assert found["first"]["protection"] == "pte" and found["second"]["protection"] == "none"
    assert found["first"]["caught_alone"] == found["classes"]["caught"]["harm"] > 0
    assert found["second"]["caught_alone"] == 0
    low, high = found["first"]["interval"]
    assert 0 < low < found["first"]["caught_alone"] / 200 < high < 1
    page = tmp_path / "comparison.html"
    assert main(["campaign-compare", str(tmp_path / "pte"), str(tmp_path / "none"), "--html", str(page)]) == 0
    assert found["first"]["examples"][0]["fault"] in page.read_text(encoding="utf-8")
    said = capsys.readouterr().out
    assert "first alone" in said and found["first"]["examples"][0]["fault"] in said
    assert "200 faults of a population of" in said
    report(capsys, *small(scenario, tmp_path / "other", 200, seed=9), "--purgatory", "none")
    assert main(["campaign-compare", str(tmp_path / "pte"), str(tmp_path / "other")]) == 2
    assert "seed is 1, not 9" in capsys.readouterr().err


def test_a_fault_is_replayed_by_its_name(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = "dma.byte.10.initrd+10.after-load"
    assert main(["replay", fault, str(scenario)]) == 0
    said = capsys.readouterr().out
    assert fault in said and "outcome      detected" in said
    assert main(["replay", fault, str(scenario), "--json", "--trace", "--culprit"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == found["concluded"] == "detected" and found["agrees"] is True
    assert found["segment"] == "initrd" and found["trace"] and found["culprits"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nonsense", "is no fault"),
        ("dma.byte.ff.nowhere+10.after-load", "nowhere"),
        ("dma.none.0.initrd+0.after-load", "none"),
    ],
)
def test_a_fault_that_is_none_is_one_line(
    scenario: Path, capsys: pytest.CaptureFixture[str], fault: str, said: str
) -> None:
    assert main(["replay", fault, str(scenario)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "campaign",
        str(scenario),
        "--faults",
        "200000",
        "--seed",
        "1",
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "kexecemu", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while (
        not (out / "campaign.sqlite-wal").exists() or (out / "campaign.sqlite-wal").stat().st_size < 300_000
    ):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    said, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == ""
    assert "faults are stored; go on with: kexecemu campaign" in error and "--resume" in error
    assert error.startswith("kexecemu: interrupted: ") and error.count("\n") == 1
    with Store.read(out) as store:
        assert 0 < store.count() < 200_000
        assert f"{store.count():,} of 200,000" in error


def test_workers_that_cannot_be_kept_alive_are_one_line_and_a_status_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "die.toml"
    scenario.write_text(f'schema = 1\nname = "die={os.getpid()}"\n')
    monkeypatch.setattr(work, "plan_campaign", partial(work.plan_campaign, engine=fake_engine.make))
    words = ["--faults", 300, "--seed", 1, "--out", tmp_path / "out", "--workers", 2]
    assert campaign(scenario, *words) == 71
    assert capsys.readouterr().err == "kexecemu: a worker process dies before it has done anything\n"


def test_no_engine_is_kept_when_a_campaign_is_over(scenario: Path, tmp_path: Path) -> None:
    assert campaign(*small(scenario, tmp_path / "out"), "--json") == 0
    assert job._kept is None
