"""How the command line explains itself: groups, examples, nothing cut off, and a quick start."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import kexecemu
from kexecemu.cli import app, main
from kexecemu.scenario.setup import Setup


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, with the words that lead to it."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def helped(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_fits_80_columns_has_examples_and_nothing_is_cut_off(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = helped(capsys, *path, "--help")
    lines = text.splitlines()
    assert lines[0].startswith(f"Usage: {' '.join(['kexecemu', *path])} ")
    assert not re.search(r"\.\.\.$", re.sub(r"\[ARGS\]\.\.\.|FILES\.\.\.", "", text), re.MULTILINE)
    assert "\x1b" not in text
    assert len(examples(ALL[path])) >= 2
    too_long = [line for line in lines if len(line) > 80 and line.strip() not in examples(ALL[path])]
    assert too_long == []
    assert helped(capsys, *path, "-h") == text


def examples(command: Any) -> list[str]:
    return (command.epilog or "").splitlines()[::2]


@pytest.mark.parametrize("line", [line for command in ALL.values() for line in examples(command)])
def test_every_example_is_a_line_that_the_command_understands(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "kexecemu"
    command: Any = ALL[()]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if words != ["--help"]:
        command.make_context("kexecemu", words)  # raises what a wrong line gets


@pytest.mark.parametrize("words", [(), ("purgatory",)])
def test_a_group_alone_prints_its_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert helped(capsys, *words) == helped(capsys, *words, "--help")


def test_commands_stand_in_groups_in_one_order(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys)
    places = [
        text.index(f"\n{title}:\n")
        for title in (
            "Run a crash",
            "Many faults at once",
            "Look and measure",
            "Set up",
            "Options",
            "Examples",
        )
    ]
    assert places == sorted(places)
    assert text.index("\nRun a crash:") < text.index("\n  crash ") < text.index("\nMany faults at once:")


def test_the_version_is_the_release_and_a_hash_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    from kexecemu.campaign.version import own_version

    text = helped(capsys, "--version")
    assert re.fullmatch(r"kexecemu \d+\.\d+\.\d+\+[0-9a-f]{8}\n", text)
    assert text.split()[1] == own_version()


def test_a_package_that_is_no_checkout_says_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = another\nversion = 9\n")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "7.8.9")
    assert kexecemu._version(tmp_path / "kexecemu") == "7.8.9"
    (tmp_path / "setup.cfg").write_text("no section = 1\n")
    assert kexecemu._version(tmp_path / "kexecemu") == "7.8.9"
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = kexecemu\nversion = 1.2\n")
    assert kexecemu._version(tmp_path / "kexecemu") == "1.2"


def test_what_is_not_given_is_as_setup_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from kexecemu.scenario import setup as module

    seen: list[Setup] = []

    def boot(setup: Setup) -> None:
        seen.append(setup)
        raise typer.Exit(5)

    monkeypatch.setattr(module, "boot", boot)
    assert main(["load"]) == 5
    assert main(["load", "--initrd", "none", "--config", "KFENCE=y", "--gic", "3", "--rng-ready"]) == 5
    assert seen == [Setup(), Setup(initrd="none", config={"KFENCE": "y"}, gic=3, rng_ready=True)]


def test_help_and_version_start_quickly_and_load_no_engine() -> None:
    code = (
        "import sys; from kexecemu.cli import main; main(['--help']); "
        "print(sorted({'unicorn', 'msgspec', 'cryptography', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    spent = []
    for _ in range(3):
        before = children()
        subprocess.run([sys.executable, "-m", "kexecemu", "--help"], capture_output=True, check=True)
        spent.append(children() - before)
    assert min(spent) < 0.6, spent  # 0.13 s of CPU where this was written


def children() -> float:
    """Seconds of CPU that ended processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
