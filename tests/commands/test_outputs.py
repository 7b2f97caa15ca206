"""Every file that is written is named; --json prints one object with all that the account for people has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kexecemu.campaign.version import own_version
from kexecemu.cli import main

SMALL = """
schema = 1
name = "a small machine"
seed = 3
[machine]
ram = "64M"
[kernel]
era = "6.1"
cmdline = "crashkernel=16M"
[[fault]]
at = "initrd+0x10"
write = "ffff"
[[fault]]
by = "dma"
at = "dtb"
write = "00"
when = "before-panic"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def written(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The files that the account names at its end."""
    main([*words])
    # Behind it only says how to go on from a handoff.
    lines = capsys.readouterr().out.partition("\nhandoff ")[0].splitlines()
    named = [line.removeprefix("written      ") for line in lines if line.startswith("written ")]
    assert lines[len(lines) - len(named) :] == [f"written      {name}" for name in named]
    return named


def objects(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    main([*words, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def files_but(folder: Path, *names: str) -> list[str]:
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name not in names)


CAMPAIGN = "campaign quiet.toml --faults 3 --seed 1 --out out --workers 1"
ALL = ("--timeline", "t.jsonl", "--html", "r.html", "--vmcore", "vmcore", "--handoff", "hand")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "golden", *ALL),
        ("crash", "--ram", "64M", "--cmdline", "crashkernel=16M", *ALL),
        ("load", "--ram", "64M", "--cmdline", "crashkernel=16M", "--dump-segments", "a/b"),
        tuple(f"{CAMPAIGN} --audit 0 --html c.html --rows rows.jsonl".split()),
    ],
    ids=lambda words: words[0],
)
def test_every_file_is_named_in_the_account_and_in_the_object(
    words: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "quiet.toml").write_text(SMALL.split("[[fault]]")[0])
    named = written(capsys, *words)
    assert sorted(named) == files_but(folder, "small.toml", "quiet.toml")
    assert len(named) >= 3
    more = ("--resume",) if words[0] == "campaign" else ()
    assert objects(capsys, *words, *more)["files"] == named
    assert sorted(named) == files_but(folder, "small.toml", "quiet.toml")


def test_a_comparison_names_its_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "quiet.toml").write_text(SMALL.split("[[fault]]")[0])
    for way in ("none", "pte"):
        words = ("campaign", "quiet.toml", "--faults", "5", "--seed", "1", "--out", way, "--audit", "0")
        assert main([*words, "--workers", "1", "--protection", way]) == 0
    capsys.readouterr()
    assert written(capsys, "campaign-compare", "none", "pte", "--html", "page.html") == ["page.html"]
    assert (folder / "page.html").is_file()
    assert objects(capsys, "campaign-compare", "none", "pte")["files"] == []


def test_nothing_is_named_when_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert written(capsys, "run", "small.toml") == []
    found = objects(capsys, "run", "small.toml", "--vmcore", "vmcore")
    assert (found["outcome"], found["files"], found["vmcore"]) == ("detected", [], None)


def test_a_runs_object_has_what_the_account_has(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = objects(capsys, "run", "small.toml", "--timeline", "t.jsonl")
    assert found["schema"] == 1
    assert (found["scenario"], found["name"], found["seed"]) == ("small.toml", "a small machine", 3)
    assert (found["era"], found["protection"], found["version"]) == ("6.1", "pte", own_version())
    lines = (folder / "t.jsonl").read_text().splitlines()
    assert found["timeline"] == [json.loads(line) for line in lines]
    assert f"outcome      detected: {found['reason']}" in account(capsys, "run", "small.toml")
    cpu, dma = found["injections"]
    segments = {one["name"]: one["mem"] for one in found["segments"]}
    assert (cpu["at"], cpu["by"], cpu["when"]) == ("initrd+0x10", "cpu", "after-load")
    assert (cpu["phys"], cpu["length"], cpu["width"]) == (segments["initrd"] + 0x10, 2, 1)
    assert cpu["changed"] is False and cpu["before"] == cpu["after"] and "fault" in cpu["exception"]
    assert (dma["by"], dma["when"], dma["phys"]) == ("dma", "before-panic", segments["dtb"])
    assert (dma["before"], dma["after"], dma["changed"], dma["exception"]) == ("d0", "00", True, None)


def account(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main([*words])
    return capsys.readouterr().out


def test_a_crash_without_a_scenario_and_a_load_say_so_with_the_same_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = ("--ram", "64M", "--cmdline", "crashkernel=16M", "--protection", "readonly", "--era", "6.12")
    crash, load = objects(capsys, "crash", *machine), objects(capsys, "load", *machine)
    run = objects(capsys, "run", "small.toml")
    assert list(crash) == list(run)
    assert crash["scenario"] is None
    assert crash["injections"] == []
    for found in (crash, load):
        assert (found["era"], found["protection"], found["schema"]) == ("6.12", "readonly", 1)
