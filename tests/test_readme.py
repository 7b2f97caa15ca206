"""README is true: its outputs are real, its example runs, its commands are the two that CI uses."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_outputs_in_readme_are_what_the_commands_print(readme: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    assert "<!-- output: kexecemu run" in text
    assert readme.renewed(text) == text


def test_there_are_exactly_two_set_up_commands(readme: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"^pip install", text, re.MULTILINE)) == 2
    assert "kexecemu run" in readme.setup_command("run")
    assert "pytest" in readme.setup_command("test")


def test_the_library_example_runs_and_finds_the_damage() -> None:
    text = (ROOT / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert example
    done = subprocess.run([sys.executable, "-c", example[1]], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "detected initrd+0x1000, 1 byte"


def test_the_example_of_tests_passes_under_pytest(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    [example] = [
        one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "kexecemu_campaign" in one
    ]
    (tmp_path / "test_example.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "kexecemu.pytest_plugin", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_what_a_mark_cuts_is_cut(readme: ModuleType) -> None:
    lines = [f"{number}\n" for number in range(1, 13)]
    assert readme._cut(lines, ["from 9", "without 11"]) == ["9\n", "10\n", "12\n"]
    assert readme._cut(lines, ["from 3", "to 5"]) == ["3\n", "4\n"]
    assert readme._cut(lines, ["fold 1 2"]) == ["1\n", "... 9 lines ...\n", "11\n", "12\n"]
