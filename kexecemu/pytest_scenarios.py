"""Scenario files as tests: what kexecemu's pytest plugin collects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kexecemu.campaign.plan import plan_of
from kexecemu.errors import InputError, KexecError, NotFetched
from kexecemu.failure import KexecemuFailure
from kexecemu.linux.fetched import fetched_initrd, fetched_kernel, fetched_programs, is_fetched
from kexecemu.pytest_artefacts import note_end, shown
from kexecemu.report.again import scenario_again
from kexecemu.scenario.matrix import cells_of
from kexecemu.scenario.read import read_scenario
from kexecemu.scenario.runner import Result, run_scenario
from kexecemu.scenario.schema import Scenario
from kexecemu.visible import visible, visible_line

__all__ = ["ScenarioFile", "ScenarioItem"]


class ScenarioFile(pytest.File):
    """A scenario file, which is one test, or one for each cell of its matrix."""

    def collect(self) -> Iterator[ScenarioItem]:
        """Read the file; what is wrong with it is an error of the collection, in one line."""
        try:
            scenario = read_scenario(self.path)
            plan_of(scenario)  # a campaign over it is another test's, but that there can be one is not
        except InputError as error:
            raise self.CollectError(visible(str(error))) from None
        # A name is a sentence for people. What a node id cannot hold goes.
        name = " ".join(visible(scenario.name).replace("::", ":").split()) or self.path.stem
        for cell in cells_of(scenario):
            full = f"{name}[{visible_line(cell.name)}]" if cell.name else name
            yield ScenarioItem.from_parent(self, name=full, scenario=cell.scenario, cell=cell.name)


class ScenarioItem(pytest.Item):
    """The run of one scenario, which must end as its [expect] says."""

    def __init__(self, *, scenario: Scenario, cell: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.scenario = scenario
        self.cell = cell
        self.result: Result | None = None
        self.add_marker("kexecemu")

    def runtest(self) -> None:
        """Run it. Skips where nothing is expected, or where a file is missing that does not ship."""
        if self.scenario.expect is None:
            pytest.skip("the scenario expects nothing: it has no [expect]")
        self._skip_unless_fetched()
        self.result = result = run_scenario(self.scenario, self.path.parent)
        note_end(self, result.end)
        if not result.as_expected:
            again = scenario_again(shown(self.path, self.config), result.seed, self.cell)
            raise KexecemuFailure(result.mismatches, result.end, self.scenario.expect, again=again)

    def teardown(self) -> None:
        """Give the memory back."""
        if self.result is not None:
            self.result.kernel.board.close()
            self.result = None

    def _skip_unless_fetched(self) -> None:
        """A real kernel comes from outside, and not every machine has it."""
        load = self.scenario.load
        first, capture = (one and Path(one) for one in (self.scenario.kernel.linux, load.kernel))
        try:
            for one in filter(is_fetched, (first, capture)):
                fetched_kernel(one)
            if first is not None:
                fetched_programs()
            if load.capture == "linux" and load.initrd is None:
                fetched_initrd(fetched_kernel(capture))
        except NotFetched as error:
            pytest.skip(visible(str(error)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **keywords: Any) -> Any:
        """What was not as expected, or cannot be run: text alone. A traceback is for what is our own fault."""
        if isinstance(excinfo.value, KexecemuFailure):
            return str(excinfo.value)
        if isinstance(excinfo.value, InputError | KexecError):
            return visible(f"{self.path.name}: {excinfo.value}")
        return super().repr_failure(excinfo, *args, **keywords)

    def reportinfo(self) -> tuple[Path, None, str]:
        """The heading of a failure: the file and the scenario's sentence."""
        return self.path, None, visible_line(f"{self.path.name}: {self.name}")
