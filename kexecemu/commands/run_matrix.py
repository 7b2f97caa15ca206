"""kexecemu run, of a scenario with a [matrix]: every cell, a line each, and what came of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kexecemu.commands.outputs import print_json
from kexecemu.errors import InputError, KexecError
from kexecemu.scenario.matrix import Cell, choose_cells
from kexecemu.scenario.read import read_scenario
from kexecemu.scenario.schema import Expect, Scenario
from kexecemu.visible import visible_line

if TYPE_CHECKING:
    from kexecemu.commands.run import Outputs
    from kexecemu.scenario.runner import Result

__all__ = ["chosen_scenario", "run_matrix_command"]


def chosen_scenario(path: Path, cell: str | None, expect: Expect | None) -> tuple[Scenario, list[Cell]]:
    """The scenario to run and the cells: for one alone its own scenario, else the file's. expect counts for all.

    Raises InputError for a file that is none, or a cell that it does not have.
    """
    scenario = read_scenario(path)
    cells = choose_cells(scenario, cell)
    if expect is not None:
        cells = [Cell(one.values, msgspec.structs.replace(one.scenario, expect=expect)) for one in cells]
    return cells[0].scenario if len(cells) == 1 else scenario, cells


def run_matrix_command(
    name: str, cells: Sequence[Cell], path: Path, seed: int | None, outputs: Outputs
) -> bool:
    """Run all cells and print a line each, or one JSON object; True when each ended as expected.

    Raises InputError for outputs, which are of one crash, and for a cell that cannot be run.
    """
    from kexecemu.report.json import result_object

    given = [option for option, file in outputs.files.items() if file is not None]
    if given:
        many = f"this is a matrix of {len(cells)}: add --cell {cells[0].name}"
        raise InputError(f"{given[0]} is for one crash, and {many}")
    objects: list[dict[str, Any]] = []
    good = 0
    if not outputs.json:
        print(visible_line(name))
    for cell in cells:
        result = _run(cell, path, seed, outputs)
        good += result.as_expected
        if outputs.json:
            objects.append({"cell": dict(cell.values), **result_object(result, None, str(path))})
        else:
            _print_cell(cell, result, max(len(one.name) for one in cells))
        result.kernel.board.close()
    if outputs.json:
        print_json({"name": name, "as_expected": good == len(cells), "cells": objects})
    else:
        print(f"{good} of {len(cells)} as expected")
    return good == len(cells)


def _run(cell: Cell, path: Path, seed: int | None, outputs: Outputs) -> Result:
    from kexecemu.commands.options import hearing
    from kexecemu.scenario.runner import run_scenario

    console = hearing(outputs.verbose, outputs.raw_console)
    try:
        return run_scenario(cell.scenario, path.parent, seed=seed, console=console)
    except (InputError, KexecError) as error:
        raise InputError(f"cell {cell.name}: {error}") from error


def _print_cell(cell: Cell, result: Result, width: int) -> None:
    print(
        f"{visible_line(cell.name):<{width}}  {result.end.outcome.value:<9} dump {result.end.dump.value}",
        flush=True,
    )
    for mismatch in result.mismatches:
        print(f"{'':<{width}}  unexpected: {visible_line(mismatch)}")
