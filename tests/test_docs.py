"""The pages of docs/ build without a warning, and hold every public name, every command and every key."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import typer

import kexecemu
from kexecemu.cli import app
from kexecemu.kernel.base.kconfig import KNOWN_OPTIONS
from kexecemu.scenario.schema import Scenario

ROOT = Path(__file__).resolve().parent.parent


def skip_without_sphinx() -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason="the extra docs is not installed")


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What makes the parts of the pages that come from the program."""
    skip_without_sphinx()
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    return importlib.import_module("generated_pages")


def build(out: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [ROOT / ".ci" / "docs", out], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def inventory(built: Path) -> dict[str, str]:
    """Every name that the pages have an entry for, with what it is, from Sphinx's inventory (version 2)."""
    head, _, body = (built / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert b"version 2" in head
    lines = zlib.decompress(body).decode().splitlines()
    return {line.split(" ")[0]: line.split(" ")[1] for line in lines if " py:" in line}


def modules() -> Iterator[Any]:
    for one in pkgutil.walk_packages(kexecemu.__path__, "kexecemu."):
        # Shared libraries lie beside the modules that load them.
        if "-" not in one.name and not one.name.endswith(".__main__"):
            yield importlib.import_module(one.name)


@pytest.mark.slow
def test_the_pages_build_without_a_warning_and_have_every_public_name(tmp_path: Path) -> None:
    skip_without_sphinx()
    build(tmp_path)
    found = inventory(tmp_path)
    public = [f"{module.__name__}.{name}" for module in modules() for name in getattr(module, "__all__", ())]
    assert len(public) > 800
    assert [name for name in public if name not in found] == []
    assert [module.__name__ for module in modules() if found.get(module.__name__) != "py:module"] == []
    # A mark that nothing was put in place of would be a comment, and its fallback text.
    for page in ("command-line", "scenarios"):
        assert "once the pages are built" not in (tmp_path / f"{page}.html").read_text()


def test_every_command_and_option_is_on_its_page(generated: ModuleType) -> None:
    assert "<!-- generated: commands -->" in (ROOT / "docs" / "command-line.md").read_text()
    sections = re.split(r"^```\{program\} (.+)$", generated.commands(), flags=re.MULTILINE)
    text = dict(zip(sections[1::2], sections[2::2], strict=True))

    def check(command: Any, name: str) -> None:
        for member, one in getattr(command, "commands", {}).items():
            check(one, f"{name} {member}")
        for one in command.params:
            if not getattr(one, "hidden", False) and one.opts[0].startswith("-"):
                assert re.search(rf"^````\{{option\}} .*{one.opts[0]}\b", text[name], re.MULTILINE), one.opts

    check(typer.main.get_command(app), "kexecemu")
    assert len(text) >= 10


def test_every_key_of_a_scenario_and_every_kernel_option_is_on_its_page(generated: ModuleType) -> None:
    page = (ROOT / "docs" / "scenarios.md").read_text()
    assert "<!-- generated: scenario keys -->" in page
    assert "<!-- generated: kernel options -->" in page
    text = generated.scenario_keys() + generated.kernel_options()
    tables = msgspec.json.schema(Scenario)["$defs"].values()
    keys = {key for table in tables for key in table.get("properties", {})}
    assert {"at", "outcome", "stuck_cpus", "machine"} <= keys
    for key in [*keys, *KNOWN_OPTIONS]:
        assert f"\n`{key}`" in text or f"### `[{key}]`" in text or f"### `[[{key}]]`" in text, key
