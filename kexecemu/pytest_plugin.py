"""kexecemu in pytest: fixtures for crashes and campaigns, and scenario files that are tests.

    def test_a_stray_byte_is_found(kexecemu_run):
        end = kexecemu_run(faults=[Fault("initrd+0x1000", write=b"\\xff")])
        assert_outcome(end, "detected", segment="initrd")

Fault and assert_outcome are kexecemu.testing's. A file *.scenario.toml is a test that passes when the scenario ends as
its [expect] says; more files are taken by patterns in the ini file, with a slash against the path from the root folder,
without one against the name:

    [pytest]
    kexecemu_scenarios = scenarios/*.toml

A scenario with a [matrix] is a test for each of its cells. -m kexecemu selects scenarios and tests with these fixtures,
and a mark gives what their calls leave open: @pytest.mark.kexecemu(era="6.1").

A test that fails shows the crash behind it, whatever it asserted, and leaves report, console, timeline and scenario in
pytest's temporary folder, or, with the dump, below --kexecemu-artefacts DIR (ini: kexecemu_artefacts).

A test of a campaign asks for kexecemu_campaign:

    def test_nothing_slips_through(kexecemu_campaign):
        assert_no(kexecemu_campaign("stray.toml", faults=1000), "silent", "misboot")

What fails there names faults, and pytest --kexecemu-replay ID runs one of them, in full, in place of the campaign.

pytest loads this module in every session of an environment that kexecemu is installed in. So nothing of the emulator is
imported here before a test asks for it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from kexecemu.campaign.summary import Summary
    from kexecemu.crash.end import End
    from kexecemu.crash.kernel import Kernel
    from kexecemu.machine.board import Board

_OWN_PATTERN: Final = "*.scenario.toml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option and the ini value."""
    group = parser.getgroup("kexecemu", "emulated crashes")
    group.addoption(
        "--kexecemu-replay",
        metavar="ID",
        help="run this one fault, in full, in place of each campaign of kexecemu_campaign",
    )
    group.addoption(
        "--kexecemu-artefacts",
        metavar="DIR",
        help="keep report, console, timeline, dump and scenario of each failed test's crash in a folder below DIR",
    )
    parser.addini(
        "kexecemu_artefacts",
        "where the artefacts of failed tests go, from the root folder; default: pytest's temporary folder, no dump",
        default="",
    )
    parser.addini(
        "kexecemu_scenarios",
        f"patterns of scenario files to collect as tests, besides {_OWN_PATTERN}",
        type="args",
        default=[],
    )


def _on_ctrl_c(number: int, frame: FrameType | None) -> None:
    """As Python's own, but for Ctrl-C in the middle of a run: the engine loads what knows about that."""
    interrupt = sys.modules.get("kexecemu.interrupt")
    if interrupt is None:
        raise KeyboardInterrupt
    interrupt.on_ctrl_c(number, frame)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse an id that is none, before anything is collected."""
    if threading.current_thread() is threading.main_thread():
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, _on_ctrl_c)
            config.add_cleanup(partial(signal.signal, signal.SIGINT, before))  # type: ignore[arg-type]
    config.addinivalue_line(
        "markers",
        "kexecemu(**options): a test that crashes a kernel. kexecemu_run, kexecemu_kernel and kexecemu_board take the "
        "options (era=, protection=, ...) for what a call does not say. All tests with these fixtures, and all "
        "scenario files, have the marker: -m kexecemu selects them.",
    )
    token = config.getoption("kexecemu_replay")
    if token is not None:
        from kexecemu.campaign.fault import CampaignFault
        from kexecemu.errors import InputError
        from kexecemu.visible import visible

        try:
            CampaignFault.parse(token)
        except InputError as error:
            raise pytest.UsageError(visible(f"--kexecemu-replay: {error}")) from None


# -- scenario files --------------------------------------------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.File | None:
    """Take the files that the patterns match, and those that are named on the command line."""
    if file_path.suffix != ".toml":
        return None
    patterns = [_OWN_PATTERN, *parent.config.getini("kexecemu_scenarios")]
    named = parent.session.isinitpath(file_path)
    if named or any(_matches(file_path, pattern, parent.config.rootpath) for pattern in patterns):
        from kexecemu.pytest_scenarios import ScenarioFile

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


# -- what failed, and what is left of it ------------------------------------------------------------------------------


_COMPARED = pytest.StashKey[Any]()  # the last bare comparison that failed: Compared, or None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what crashes kernels, so that -m selects it; a scenario marks itself."""
    if any(name.startswith("kexecemu_") for name in getattr(item, "fixturenames", ())):
        item.add_marker("kexecemu")


def pytest_assertrepr_compare(
    config: pytest.Config, op: str, left: object, right: object
) -> list[str] | None:
    """Say what a bare assertion about an End's outcome, dump or console found; the report goes on from there."""
    if "kexecemu.crash.kernel" not in sys.modules:
        return None
    from kexecemu.pytest_failures import compare

    compared = compare(op, left, right)
    if compared is None:
        return None
    config.stash[_COMPARED] = compared
    return [compared.asserted, compared.wrong]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell a failure by the crash behind it, and keep what is left of that."""
    if call.excinfo is None or "kexecemu.errors" not in sys.modules:
        return (yield)
    if isinstance(call.excinfo.value, pytest.skip.Exception | pytest.xfail.Exception):
        return (yield)
    from kexecemu.pytest_failures import Failure

    failure = Failure(item, call, item.config.stash.get(_COMPARED, None))
    report = yield
    if report.failed:
        failure.tell(report)
        failure.make_visible(report)
    item.config.stash[_COMPARED] = None
    return report


# -- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def kexecemu_board(request: pytest.FixtureRequest) -> Iterator[Callable[..., Board]]:
    """A function that makes an empty board: kexecemu.testing.board(ram="1G", cpus=1). Closed after the test."""
    from kexecemu.testing import board

    marked = {key: value for key, value in _marked(request.node).items() if key in ("ram", "cpus")}

    def make(*arguments: Any, **options: Any) -> Board:
        return made.enter_context(board(*arguments, **({} if arguments else marked) | options))

    with ExitStack() as made:
        yield make


@pytest.fixture
def kexecemu_kernel(request: pytest.FixtureRequest) -> Iterator[Callable[..., Kernel]]:
    """A function that boots a kernel and loads its crash image: kexecemu.testing.kernel(). Closed after the test."""
    from kexecemu.testing import kernel

    marked = _marked(request.node)
    with ExitStack() as made:
        yield lambda **options: made.enter_context(kernel(**marked | options))


@pytest.fixture
def kexecemu_run(request: pytest.FixtureRequest) -> Iterator[Callable[..., End]]:
    """A function that runs a scenario, keywords or both to the End: kexecemu.testing.run(). Closed after the test."""
    from kexecemu.pytest_artefacts import note_end
    from kexecemu.testing import run_result

    marked = _marked(request.node)

    def make(scenario: str | Path | None = None, **options: Any) -> End:
        result = run_result(scenario, **marked | options)
        made.enter_context(result.kernel.board)
        note_end(request.node, result.end)
        return result.end

    with ExitStack() as made:
        yield make


def _marked(node: pytest.Item) -> dict[str, Any]:
    """The options of the marks on a test, those nearest to it first of all."""
    options: dict[str, Any] = {}
    for mark in reversed(list(node.iter_markers("kexecemu"))):
        if mark.args:
            pytest.fail('the marker kexecemu takes options by name, as in era="6.1"', pytrace=False)
        options |= mark.kwargs
    return options


@pytest.fixture
def kexecemu_campaign(request: pytest.FixtureRequest) -> Callable[..., Summary]:
    """A function that runs a small campaign of a scenario and sums it up: kexecemu.testing.campaign().

    With --kexecemu-replay it tries that one fault instead, and prints what happens; a campaign that the fault is not
    from is skipped.
    """
    from kexecemu.scenario.given import SetupChanges
    from kexecemu.testing import campaign

    token = request.config.getoption("kexecemu_replay")

    def make(scenario: str | Path, **options: Any) -> Summary:
        if token is None:
            return campaign(scenario, **options)
        changes = {name: one for name, one in options.items() if name in SetupChanges.__annotations__}
        return _replayed(scenario, token, changes)

    return make


def _replayed(scenario: str | Path, token: str, changes: dict[str, Any]) -> Summary:
    from kexecemu.campaign.engine import FaultDecider
    from kexecemu.campaign.fault import CampaignFault
    from kexecemu.campaign.replay import replay_in
    from kexecemu.errors import InputError
    from kexecemu.scenario.toml import changed_scenario
    from kexecemu.testing import campaign, events_text
    from kexecemu.visible import visible

    try:
        summary = campaign(scenario, only=token, **changes)
    except InputError as error:
        pytest.skip(visible(f"--kexecemu-replay: {error}"))
    path, parsed = changed_scenario(scenario, changes)
    with closing(FaultDecider(parsed, path.parent)) as engine:
        again = replay_in(engine, CampaignFault.parse(token), trace=False, culprit=False)
    print(f"{token}: concluded {again.concluded.outcome} ({again.concluded.how}), {again.outcome} when run")
    print(events_text(again.events))
    return summary
