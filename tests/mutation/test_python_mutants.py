"""The mutants themselves: drawn by a seed, each another program, and each kind in each place where it can be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutation import python_mutants, rooms
from tests.mutation.python_mutants import PythonMutant, Source, by_hand, drawn, equivalents, sources

SAMPLE = '''
"""A text that is left alone."""
from enum import Enum

__all__ = ["find"]
__all__ += ["is_one"]

class Colour(Enum):
    RED = 7
    BLUE = 8

def find(rows, most=3, *, deep=True):
    """And this one."""
    assert most != 5
    if rows and not deep:
        return None
    for row in rows:
        if row < most:
            rows[0] = max(row, most)
            continue
        most += 1
    print(rows, most)
    return Colour.RED if deep else (
        most
        - 2)

def is_one(row) -> bool:
    if row == 4:
        raise ValueError("no 4")
    return row > 1
'''


@pytest.fixture
def every(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[PythonMutant]]:
    (tmp_path / "kexecemu").mkdir()
    (tmp_path / "kexecemu/sample.py").write_text(SAMPLE)
    monkeypatch.setattr(python_mutants, "ROOT", tmp_path)
    yield drawn(["kexecemu/sample.py"], 0, 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if row < most:", "if (row <= most):"),
        ("if row < most:", "if (row >= most):"),
        ("if row < most:", "if True:"),
        ("if rows and not deep:", "if (rows or not deep):"),
        ("if rows and not deep:", "if (rows):"),
        ("if rows and not deep:", "if rows and (deep):"),
        ("rows[0] = max(row, most)", "pass"),
        ("rows[0] = max(row, most)", "rows[0] = min(row, most)"),
        ("rows[0] = max(row, most)", "rows[(1)] = max(row, most)"),
        ("def find(rows, most=3, *, deep=True):", "def find(rows, most=(4), *, deep=True):"),
        ("def find(rows, most=3, *, deep=True):", "def find(rows, most=3, *, deep=False):"),
        ("most += 1", "most -= 1"),
        ("continue", "pass"),
        ("print(rows, most)", "pass"),
        ("print(rows, most)", "(print(most, rows))"),
        ('raise ValueError("no 4")', "pass"),
        ("return row > 1", "return not (row > 1)"),
        ("RED = 7", "RED = (8)"),
    ],
)
def test_a_fault_of_each_kind_is_among_them(every: list[PythonMutant], old: str, new: str) -> None:
    assert any((one.old, one.new) == (old, new) for one in every)


def test_what_is_no_other_program_is_not_among_them(every: list[PythonMutant]) -> None:
    """The greater of two is the same in either order, and nobody reads the rest of __all__."""
    assert not any("max(most, row)" in one.new or "__all__" in one.old for one in every)


def test_each_is_another_program_with_one_change_and_its_text_left_alone(every: list[PythonMutant]) -> None:
    assert len(every) > 40
    for one in every:
        assert ast.dump(ast.parse(one.text)) != ast.dump(ast.parse(SAMPLE))
        for kept in ('"""A text that is left alone."""', '"""And this one."""', '"no 4"', "assert most != 5"):
            assert kept in one.text or (one.kind == "dropped" and kept in one.old)
        before, after = SAMPLE.splitlines(), one.text.splitlines()
        assert before[: one.line - 1] == after[: one.line - 1] and before[one.line - 1] != after[one.line - 1]
    assert {one.function for one in every} == {"", "find", "is_one"}


def test_what_is_drawn_depends_on_the_seed_alone_and_no_line_is_drawn_twice() -> None:
    paths = sources(["stray", "machine/memory/mmu"])
    sample = drawn(paths, 40, 3)
    assert sample == drawn(paths, 40, 3) != drawn(paths, 40, 4)
    assert len({(one.path, one.line) for one in sample}) == 40
    assert len({one.kind for one in sample}) > 6


def test_lines_by_hand_and_of_equivalent_ones_are_lines_of_today() -> None:
    assert len(by_hand()) > 10
    for key in equivalents():
        path, function, old, _ = key.split("\t| ")
        source = Source(path)
        assert function in {"", *(name for _, _, name in source.functions)}
        assert old in " ".join(source.data.decode().split()), key


def test_tests_are_ordered_by_what_killed_before_and_by_what_calls_the_function() -> None:
    mutant = PythonMutant("kexecemu/a.py", "f", 1, "compare", "", "", "")
    here = {
        "times": {"t::1": 3.0, "t::2": 1.0, "t::3": 0.1},
        "reaches": {"t::1": ["kexecemu/a.py::f"], "t::2": []},
    }
    there = {
        "times": {"u::1": 1.0, "u::2": 0.5},
        "reaches": {"u::1": ["kexecemu/a.py::f"], "": ["kexecemu/b.py::f"]},
    }
    away = {"times": {"v::1": 1.0}, "reaches": {"v::1": ["kexecemu/a.py::g"]}}
    assert list(rooms.in_order(mutant, [here, there, away], [])) == ["u::1", "t::1", "u::2", "t::3", "t::2"]
    assert next(iter(rooms.in_order(mutant, [here, there, away], ["t::2", "gone"]))) == "t::2"
    # Nothing is known to reach it: all of them, those of cheap files first.
    there["times"]["u::3"] = 0.1
    nowhere = PythonMutant("kexecemu/c.py", "", 1, "compare", "", "", "")
    assert list(rooms.in_order(nowhere, [there, away], [])) == ["v::1", "u::3", "u::2", "u::1"]


def test_files_named_after_the_module_are_tried_before_those_that_mention_it_and_cheap_ones() -> None:
    mutant = PythonMutant("kexecemu/kernel/boot/free_area.py", "f", 1, "compare", "", "", "")
    files = [
        "t",
        "tests/kernel/test_mm_init.py",
        "tests/kernel/test_free_area.py",
    ]  # the second one imports it
    maps = [
        {"times": {f"{file}::1": cost}, "reaches": {f"{file}::1": [f"{mutant.path}::f"]}}
        for cost, file in enumerate(files)
    ]
    named = f"{files[-1]}::by a fixture"
    maps[-1]["times"][named] = 0.5
    assert list(rooms.in_order(mutant, maps, [])) == [
        f"{files[2]}::1",
        named,
        *(f"{file}::1" for file in reversed(files[:2])),
    ]


def test_the_rooms_that_are_tried_are_there_with_tests_of_their_own() -> None:
    for path in sources(rooms.ROOMS.split(",")):
        assert rooms.near(path), path
        assert not set(rooms.near(path)) & set(rooms.far(path))
