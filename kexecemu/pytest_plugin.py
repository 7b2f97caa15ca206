"""kexecemu in pytest: fixtures for crashes and campaigns, and scenario files that are tests.

    def test_a_stray_byte_is_found(kexecemu_run):
        end = kexecemu_run(faults=[Fault("initrd+0x1000", write=b"\\xff")])
        assert_outcome(end, "detected", segment="initrd")

Fault and assert_outcome are kexecemu.testing's. A file *.scenario.toml is a test that passes when the scenario ends as
its [expect] says; more files are taken by patterns in the ini file, with a slash against the path from the root folder,
without one against the name:

    [pytest]
    kexecemu_scenarios = scenarios/*.toml

A test of a campaign asks for kexecemu_campaign:

    def test_nothing_slips_through(kexecemu_campaign):
        assert_no(kexecemu_campaign("stray.toml", faults=1000), "silent", "misboot")

What fails there names faults, and pytest --kexecemu-replay ID runs one of them, in full, in place of the campaign.

pytest loads this module in every session of an environment that kexecemu is installed in. So nothing of the emulator is
imported here before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from kexecemu.campaign.summary import Summary
    from kexecemu.machine.board import Board
    from kexecemu.scenario.first_linux_run import LinuxResult
    from kexecemu.scenario.lab import End, Kernel
    from kexecemu.scenario.runner import Result
    from kexecemu.scenario.schema import Scenario

__all__ = ["ScenarioFile", "ScenarioItem"]

_OWN_PATTERN: Final = "*.scenario.toml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option and the ini value."""
    group = parser.getgroup("kexecemu", "emulated crashes")
    group.addoption(
        "--kexecemu-replay",
        metavar="ID",
        help="run this one fault, in full, in place of each campaign of kexecemu_campaign",
    )
    parser.addini(
        "kexecemu_scenarios",
        f"patterns of scenario files to collect as tests, besides {_OWN_PATTERN}",
        type="args",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse an id that is none, before anything is collected."""
    token = config.getoption("kexecemu_replay")
    if token is not None:
        from kexecemu.campaign.fault import CampaignFault
        from kexecemu.errors import InputError

        try:
            CampaignFault.parse(token)
        except InputError as error:
            raise pytest.UsageError(f"--kexecemu-replay: {error}") from None


# -- scenario files --------------------------------------------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    """Take the files that the patterns match, and those that are named on the command line."""
    if file_path.suffix != ".toml":
        return None
    patterns = [_OWN_PATTERN, *parent.config.getini("kexecemu_scenarios")]
    named = parent.session.isinitpath(file_path)
    if named or any(_matches(file_path, pattern, parent.config.rootpath) for pattern in patterns):
        return ScenarioFile.from_parent(parent, path=file_path)
    return None


def _matches(path: Path, pattern: str, root: Path) -> bool:
    if "/" not in pattern:
        return fnmatch(path.name, pattern)
    return path.is_relative_to(root) and _match(path.relative_to(root).parts, Path(pattern).parts)


def _match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Name by name, as a shell has it; ** stands for any number of folders."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_match(names[count:], patterns[1:]) for count in range(len(names)))
    return bool(names) and fnmatch(names[0], patterns[0]) and _match(names[1:], patterns[1:])


class ScenarioFile(pytest.File):
    """A scenario file, which is one test."""

    def collect(self) -> Iterator[ScenarioItem]:
        """Read the file; what is wrong with it is an error of the collection, in one line."""
        from kexecemu.errors import InputError
        from kexecemu.scenario.schema import read_scenario

        try:
            scenario = read_scenario(self.path)
        except InputError as error:
            raise self.CollectError(str(error)) from None
        # A name is a sentence for people. What a node id cannot hold goes.
        name = " ".join(scenario.name.replace("::", ":").split()) or self.path.stem
        yield ScenarioItem.from_parent(self, name=name, scenario=scenario)


class ScenarioItem(pytest.Item):
    """The run of one scenario, which must end as its [expect] says."""

    def __init__(self, *, scenario: Scenario, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.scenario = scenario

    def runtest(self) -> None:
        """Run it. Skips where nothing is expected, or where a file is missing that does not ship."""
        from kexecemu.report.again import scenario_again
        from kexecemu.testing import KexecemuFailure, failure_text

        if self.scenario.expect is None:
            pytest.skip("the scenario expects nothing: it has no [expect]")
        self._skip_unless_fetched()
        result = self._run()
        try:
            if not result.as_expected:
                path = _shown(self.path, self.config.invocation_params.dir)
                again = scenario_again(path, result.seed)
                raise KexecemuFailure(failure_text(result.end, result.mismatches, again))
        finally:
            result.kernel.board.close()

    def _run(self) -> Result | LinuxResult:
        from kexecemu.scenario.first_linux_run import run_linux_scenario
        from kexecemu.scenario.runner import run_scenario

        if self.scenario.kernel.linux is not None:
            return run_linux_scenario(self.scenario, self.path.parent)
        return run_scenario(self.scenario, self.path.parent)

    def _skip_unless_fetched(self) -> None:
        """A real kernel comes from outside, and not every machine has it."""
        from kexecemu.errors import NotFetched
        from kexecemu.scenario.fetched import fetched_initrd, fetched_kernel, fetched_programs, is_fetched

        first, load = self.scenario.kernel.linux, self.scenario.load
        capture = Path(load.kernel) if load.kernel is not None else None
        try:
            for one in (Path(first) if first is not None else None, capture):
                if is_fetched(one):
                    fetched_kernel(one)
            if first is not None:
                fetched_programs()
            if load.capture == "linux" and load.initrd is None:
                fetched_initrd(fetched_kernel(capture))
        except NotFetched as error:
            pytest.skip(str(error))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **keywords: Any) -> Any:
        """What was not as expected, or cannot be run: text alone. A traceback is for what is our own fault."""
        from kexecemu.errors import InputError, KexecError
        from kexecemu.testing import KexecemuFailure

        if isinstance(excinfo.value, KexecemuFailure):
            return str(excinfo.value)
        if isinstance(excinfo.value, InputError | KexecError):
            return f"{self.path.name}: {excinfo.value}"
        return super().repr_failure(excinfo, *args, **keywords)

    def reportinfo(self) -> tuple[Path, None, str]:
        """The heading of a failure: the file and the scenario's sentence."""
        return self.path, None, f"{self.path.name}: {self.name}"


def _shown(path: Path, folder: Path) -> Path:
    """The path as one would type it in a folder."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path


# -- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def kexecemu_board() -> Iterator[Callable[..., Board]]:
    """A function that makes an empty board: kexecemu.testing.board(ram="1G", cpus=1). Closed after the test."""
    from kexecemu.testing import board

    made: list[Board] = []

    def make(ram: str | int = "1G", cpus: int = 1) -> Board:
        made.append(board(ram, cpus))
        return made[-1]

    yield make
    _close(made)


@pytest.fixture
def kexecemu_kernel() -> Iterator[Callable[..., Kernel]]:
    """A function that boots a kernel and loads its crash image: kexecemu.testing.kernel(). Closed after the test."""
    from kexecemu.testing import kernel

    made: list[Board] = []

    def make(**options: Any) -> Kernel:
        loaded = kernel(**options)
        made.append(loaded.board)
        return loaded

    yield make
    _close(made)


@pytest.fixture
def kexecemu_run() -> Iterator[Callable[..., End]]:
    """A function that runs a scenario, keywords or both to the End: kexecemu.testing.run(). Closed after the test."""
    from kexecemu.testing import run_result

    made: list[Board] = []

    def make(scenario: str | Path | None = None, **options: Any) -> End:
        result = run_result(scenario, **options)
        made.append(result.kernel.board)
        return result.end

    yield make
    _close(made)


@pytest.fixture
def kexecemu_campaign(request: pytest.FixtureRequest) -> Callable[..., Summary]:
    """A function that runs a small campaign of a scenario and sums it up: kexecemu.testing.campaign().

    With --kexecemu-replay it tries that one fault instead, and prints what happens; a campaign that the fault is not
    from is skipped.
    """
    from kexecemu.testing import campaign

    token = request.config.getoption("kexecemu_replay")

    def make(scenario: str | Path, **options: Any) -> Summary:
        if token is None:
            return campaign(scenario, **options)
        return _replayed(scenario, token)

    return make


def _replayed(scenario: str | Path, token: str) -> Summary:
    from kexecemu.campaign.replay import replay
    from kexecemu.errors import InputError
    from kexecemu.testing import campaign, events_text

    try:
        summary = campaign(scenario, only=token)
    except InputError as error:
        pytest.skip(f"--kexecemu-replay: {error}")
    again = replay(scenario, token)
    print(f"{token}: concluded {again.concluded.outcome} ({again.concluded.how}), {again.outcome} when run")
    print(events_text(again.events))
    return summary


def _close(boards: Sequence[Board]) -> None:
    for board in boards:
        board.close()
