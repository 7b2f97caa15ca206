"""A scenario with a [matrix] is several: a cell, and a scenario of its own, for each combination of the values."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import msgspec

from kexecemu.errors import InputError
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.scenario.options import OPTIONS
from kexecemu.scenario.schema import Except, Expect, Matrix, Scenario
from kexecemu.shown import shown

__all__ = ["AXES", "Cell", "cells_of", "check_matrix", "choose_cells", "the_cell"]

AXES: Final = {one.name: one.table for one in OPTIONS.values() if one.axis}
"""The keys of a matrix, in the order in which cells are named and run, with the table that each changes."""


@shown()
@dataclass(frozen=True)
class Cell:
    """One combination, and the scenario that it is; of a scenario without a matrix there is one, without values."""

    values: tuple[tuple[str, str], ...]
    scenario: Scenario

    @property
    def name(self) -> str:
        """The values as --cell takes them: era=6.1,protection=pte."""
        return ",".join(f"{key}={value}" for key, value in self.values)


def cells_of(scenario: Scenario) -> list[Cell]:
    """All cells, the last key of AXES changing first."""
    if scenario.matrix is None:
        return [Cell((), scenario)]
    matrix = scenario.matrix
    return [Cell(values, _scenario_of(scenario, matrix, values)) for values in _combinations(matrix)]


def choose_cells(scenario: Scenario, chosen: str | None) -> list[Cell]:
    """The cells with the values that `chosen` names, as "era=6.1,protection=pte"; all for None.

    Raises InputError for what is no key or no value of the matrix.
    """
    cells = cells_of(scenario)
    if chosen is None:
        return cells
    if scenario.matrix is None:
        why = "the scenario has no [matrix], so there are no cells to choose from"
        raise InputError(f"cell {chosen!r}: {why}")
    pairs = [word.strip().partition("=")[::2] for word in chosen.split(",")]
    axes = {key: list(getattr(scenario.matrix, key)) for key, _ in cells[0].values}
    for key, value in pairs:
        if key not in axes:
            raise InputError(f"cell {chosen!r}: no key {key!r} in the matrix; it has {', '.join(axes)}")
        if value not in axes[key]:
            known = ", ".join(axes[key])
            raise InputError(f"cell {chosen!r}: no {key} {value!r} in the matrix; it has {known}")
    left = [cell for cell in cells if set(pairs) <= set(cell.values)]
    if not left:
        raise InputError(f"cell {chosen!r}: gives two values for one key")
    return left


def the_cell(scenario: Scenario, chosen: str | None) -> Scenario:
    """The one cell that `chosen` names, or a scenario without a matrix itself. InputError where it is not one."""
    cells = choose_cells(scenario, chosen)
    if len(cells) > 1:
        raise InputError(f"the scenario is a matrix of {len(cells)} cells: name one, as in {cells[0].name}")
    return cells[0].scenario


def check_matrix(scenario: Scenario) -> None:
    """InputError for a matrix without a cell, with two that are the same, or with an exception that fits none."""
    matrix = scenario.matrix
    if matrix is None:
        return
    if not any(getattr(matrix, key) for key in AXES):
        raise InputError(f"matrix: has no values; give some for {', '.join(AXES)}")
    for key in AXES:
        values = getattr(matrix, key)
        twice = next((value for at, value in enumerate(values) if value in values[:at]), None)
        if twice is not None:
            raise InputError(f"matrix.{key}: {twice!r} is there twice")
    for cell in cells_of(scenario):
        KernelConfig(cell.scenario.kernel.era, protection=cell.scenario.kernel.protection)
    for number, one in enumerate(matrix.except_):
        if not any(getattr(one, key) is not None for key in AXES):
            raise InputError(f"matrix.except[{number}]: names no cell; give some of {', '.join(AXES)}")
        if not any(_fits(one, values) for values in _combinations(matrix)):
            raise InputError(f"matrix.except[{number}]: fits no cell of the matrix")


def _combinations(matrix: Matrix) -> Iterator[tuple[tuple[str, str], ...]]:
    axes = [[(key, value) for value in getattr(matrix, key)] for key in AXES if getattr(matrix, key)]
    yield from product(*axes)


def _fits(one: Except, values: tuple[tuple[str, str], ...]) -> bool:
    given = {key: getattr(one, key) for key in AXES if getattr(one, key) is not None}
    return given.items() <= dict(values).items()


def _scenario_of(scenario: Scenario, matrix: Matrix, values: tuple[tuple[str, str], ...]) -> Scenario:
    changes: dict[str, dict[str, str]] = {"kernel": {}, "load": {}}
    for key, value in values:
        changes[AXES[key]][key] = value
    expect = scenario.expect
    for one in matrix.except_:
        if _fits(one, values):
            expect = Expect(**{name: getattr(one, name) for name in Expect.__struct_fields__})
    replace = msgspec.structs.replace
    return replace(
        scenario,
        kernel=replace(scenario.kernel, **changes["kernel"]),
        load=replace(scenario.load, **changes["load"]),
        expect=expect,
        matrix=None,
    )
