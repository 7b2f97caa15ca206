"""README and the pages of docs/ are true: outputs are real, commands are run or at least understood, examples run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from kexecemu.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MOST_BYTES = 10_000


def load_outputs() -> ModuleType:
    name = "outputs"
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / "outputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


outputs = load_outputs()
PAGES = outputs.pages()


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def tiers(mark: Any) -> list[pytest.MarkDecorator]:
    return [pytest.mark.real] * mark.real + [pytest.mark.slow] * mark.slow


every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)
every_mark = pytest.mark.parametrize(
    "mark",
    [
        pytest.param(mark, marks=tiers(mark), id=f"{page_id(page)}-{mark.verb} {mark.what}")
        for page in PAGES
        for mark in outputs.marks(page)
    ],
)


def skip_what_is_missing(names: list[str]) -> None:
    missing = outputs.missing(names)
    if missing:
        pytest.skip(f"{', '.join(missing)}: not here; kexecemu fetch brings kernels and Debian's tools")


# -- what stands there -----------------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert len(README.read_bytes()) <= MOST_BYTES


@every_mark
def test_below_a_mark_stands_what_it_says(mark: Any, tmp_path: Path) -> None:
    skip_what_is_missing(mark.missing)
    made = mark.made(tmp_path)
    assert mark.same(made), f"run python .ci/outputs.py\n{made}"


def test_the_marks_that_matter_are_there() -> None:
    found = [
        (mark.page.name, mark.verb, mark.what.split(";")[0]) for page in PAGES for mark in outputs.marks(page)
    ]
    assert ("README.md", "output", "kexecemu run initrd-stamped") in found
    assert ("README.md", "picture", "initrd-stamped") in found
    assert ("README.md", "file", "fixtures/scenarios/initrd-stamped.toml") in found
    assert {what for _, verb, what in found if verb == "table"} == set(outputs._TABLES)


@every_page
def test_links_and_names_of_files_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).is_file(), link
    for name in re.findall(r"`((?:kexecemu|tests|fixtures|purgatory|docs|\.ci)/[\w./-]+)`", text):
        assert "NAME" in name or "_build" in name or (ROOT / name).exists(), name


@every_page
def test_every_code_block_says_what_it_is(page: Path) -> None:
    fences = re.findall(r"^```.*$", page.read_text(), re.MULTILINE)
    assert all(fence != "```" for fence in fences[::2])
    assert all(fence == "```" for fence in fences[1::2])


# -- commands --------------------------------------------------------------------------------------------------------


def test_there_are_exactly_two_set_up_commands_and_they_bring_their_own_environment() -> None:
    commands = re.findall(r"<!-- \w+ -->\n```sh\n(.*)\n```", README.read_text())
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
    assert commands == [outputs.setup_command("run"), outputs.setup_command("test")]
    assert "kexecemu run" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.parametrize(
    ("lines", "needs"),
    [
        pytest.param(lines, needs, marks=[pytest.mark.real] * ("kernel" in needs), id=lines.splitlines()[0])
        for lines, needs in outputs.command_blocks()
    ],
)
def test_readme_s_commands_run_as_they_stand(lines: str, needs: list[str], tmp_path: Path) -> None:
    skip_what_is_missing(needs)
    done = outputs.run_commands(lines, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def commands_of(page: Path) -> list[list[str]]:
    """Every call of kexecemu in a page's blocks of commands, as words."""
    calls = []
    for lines, _ in outputs.command_blocks(page):
        for line in lines.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word in (";", "&&", "|", ">", "<"):
                    if words[:1] == ["kexecemu"]:
                        calls.append(words)
                    words = []
                else:
                    words.append(word)
    return calls


def parse(command: Any, words: list[str]) -> None:
    """Let typer read the words as it would, without doing what they say."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        command.make_context(command.name, list(words))
        return
    assert words[0] in subcommands, f"no command {words[0]}"
    parse(subcommands[words[0]], words[1:])


@every_page
def test_every_command_on_a_page_is_one_that_the_program_takes(page: Path) -> None:
    for words in commands_of(page):
        parse(typer.main.get_command(app), words[1:])
    for name in re.findall(r"`kexecemu ([a-z][\w-]*)", page.read_text()):
        assert name in typer.main.get_command(app).commands, name


def test_a_command_that_the_program_does_not_take_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no command"):
        parse(typer.main.get_command(app), ["crsh"])
    with pytest.raises(Exception, match="--purgatry"):
        parse(typer.main.get_command(app), ["crash", "--purgatry", "none"])


@pytest.mark.parametrize(
    "command",
    [
        "run golden",
        "load",
        "linear-map",
        "campaign campaign-16m --faults 9 --seed 1 --out out --audit 0 --workers 1",
    ],
)
def test_every_key_of_json_is_on_its_page(command: str, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "kexecemu", *command.split(), "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    page = (ROOT / "docs" / "json.md").read_text()
    assert [key for key in json.loads(done.stdout) if f"`{key}`" not in page] == []


# -- examples --------------------------------------------------------------------------------------------------------


def examples(kind: str) -> list[Any]:
    return [
        pytest.param(example, id=f"{page_id(page)}-{number}")
        for page in PAGES
        for number, example in enumerate(re.findall(rf"```{kind}\n(.*?)```", page.read_text(), re.DOTALL))
    ]


@pytest.mark.parametrize("example", [one for one in examples("python") if "Kernel.boot" in one.values[0]])
def test_the_library_example_runs_and_finds_the_damage(example: str) -> None:
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "detected initrd+0x1000, 1 byte"


@pytest.mark.parametrize("example", [one for one in examples("python") if "def test_" in one.values[0]])
def test_the_example_of_tests_passes_under_pytest(example: str, tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "kexecemu.pytest_plugin", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",  # CI's are for its own run
        },
        capture_output=True,
        text=True,
    )
    assert f"{example.count('def test_')} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("example", examples("toml"))
def test_the_example_of_a_scenario_is_toml(example: str) -> None:
    assert tomllib.loads(example)["schema"] == 1


def test_what_a_mark_cuts_is_cut() -> None:
    lines = [f"{number}\n" for number in range(1, 13)]
    assert outputs._cut(lines, ["from 9", "without 11"]) == ["9\n", "10\n", "12\n"]
    assert outputs._cut(lines, ["from 3", "to 5"]) == ["3\n", "4\n"]
    assert outputs._cut(lines, ["fold 1 2"]) == ["1\n", "... 9 lines ...\n", "11\n", "12\n"]


def test_an_output_that_is_no_longer_so_is_found_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: outcomes -->\n| old |\n<!-- end -->\nafter\n")
    assert outputs.check(page) == outputs.renew(page) == ["page.md: table: outcomes"]
    text = page.read_text()
    assert text.startswith("before\n<!-- table: outcomes -->\n\n| outcome |")
    assert text.endswith("|\n\n<!-- end -->\nafter\n")
    assert outputs.check(page) == outputs.renew(page) == []
