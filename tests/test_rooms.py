"""Who imports whom: nothing imports upward, in the house or in a room of it, and nothing in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "kexecemu"


def imports(path: Path) -> Iterator[str]:
    """The modules that a module imports, as paths below kexecemu/ without their end; those for types alone left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kexecemu."):
            module = str(node.module).removeprefix("kexecemu.").replace(".", "/")
            if (HOUSE / module).is_dir():
                yield from (f"{module}/{one.name}" for one in node.names)
            else:
                yield module


def modules() -> dict[str, set[str]]:
    """Each module with what it imports; the package itself and its plain `__init__`s left out."""
    paths = {str(path.relative_to(HOUSE).with_suffix("")): path for path in sorted(HOUSE.rglob("*.py"))}
    return {
        name: set(imports(path)) & set(paths)
        for name, path in paths.items()
        if not name.rpartition("/")[2].startswith("__")
    }


def levels() -> dict[str, int]:
    """Every room, and every room in a room, with its place in the tables of the page about the house."""
    page = (ROOT / "docs" / "contributing.md").read_text()
    rows = [
        re.findall(r"`kexecemu/([\w/]+?)(?:/|\.py)`", line.split("|")[1])
        for line in page.splitlines()
        if "|" in line
    ]
    return {room: number for number, row in enumerate(rows) for room in row}


def test_each_room_imports_only_from_those_above_it_in_the_table() -> None:
    level = levels()
    assert {"errors", "machine", "kernel", "stray", "linux", "crash", "campaign", "cli"} <= set(level)
    wrong = [
        f"{name}: {one}"
        for name, imported in modules().items()
        for one in imported
        if level.get(one.split("/")[0], 0) > level[name.split("/")[0]]
    ]
    assert wrong == []


@pytest.mark.parametrize("house", ["machine", "kernel"])
def test_a_room_in_a_room_imports_only_from_those_above_it_too(house: str) -> None:
    level = levels()
    inside = {
        path.relative_to(HOUSE).as_posix()
        for path in (HOUSE / house).iterdir()
        if (path / "__init__.py").exists()
    }
    assert inside and inside <= set(level)
    wrong = []
    for name, imported in modules().items():
        room = name.rpartition("/")[0]
        if room in inside:
            wrong += [
                f"{name}: {one}"
                for one in imported
                if one.rpartition("/")[0] in inside and level[one.rpartition("/")[0]] > level[room]
            ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(modules()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))
