"""Run a scenario: set up, write astray, crash, compare with what was expected."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kexecemu.arguments import instance
from kexecemu.arguments import path as path_of
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.moments import At, follow, injecting
from kexecemu.crash.moments import crash as moments_of
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.verdict import VerdictFlags
from kexecemu.errors import InputError
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.first import FirstLinux
from kexecemu.scenario.given import setup_of
from kexecemu.scenario.linux_setup import linux_setup
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.schema import Expect, Scenario
from kexecemu.scenario.setup import Listener, Setup, load_disturbed, prepare
from kexecemu.shown import shown
from kexecemu.stray.fault import Fault, When
from kexecemu.stray.first import Progress

__all__ = ["Result", "crash", "mismatches_of", "run_scenario", "scenario_setup"]


@shown()
@dataclass(frozen=True)
class Result:
    """A finished run: the kernel and its image for whoever wants to look, and the end.

    mismatches says in words what was not as expected; [] when all was, or nothing was expected. syscall is the one that
    loaded the image.
    """

    name: str
    seed: int
    kernel: Kernel | FirstLinux
    image: Kimage
    end: End
    mismatches: list[str]
    expected: bool = False
    syscall: str = "kexec_file_load"

    @property
    def model(self) -> Kernel | None:
        """The kernel where it is the model; None where the first kernel was a real Linux."""
        return self.kernel if isinstance(self.kernel, Kernel) else None

    @property
    def as_expected(self) -> bool:
        """Nothing was expected, or all of it came true."""
        return not self.mismatches


def scenario_setup(scenario: Scenario, folder: Path, seed: int | None = None) -> Setup:
    """The setup that a scenario describes; relative paths start at `folder`, seed overrides the file's."""
    if scenario.matrix is not None:
        raise InputError(
            f"the scenario is a matrix, which `kexecemu run` and pytest run; a campaign needs one of its cells in "
            f"a file of its own: {scenario.name}"
        )
    return setup_of(scenario, folder, seed)


def crash(
    name: str,
    setup: Setup,
    faults: list[Fault],
    message: str = "sysrq triggered crash",
    expect: Expect | None = None,
    progress: Progress | None = None,
    acts: Mapping[At, Callable[[Any], object]] | None = None,
    console: Listener | None = None,
) -> Result:
    """Load, make every fault happen at its moment, panic, and follow the machine to the end.

    acts are called with the first kernel at their moments, behind the faults there.
    """
    for fault in faults:
        instance(fault, Fault, "fault")
    first, image = _loaded(setup, faults, progress, console)
    later = [fault for fault in faults if fault.when is not When.DURING_LOAD]
    for fault in later:
        first.place(fault)  # a target that is not there is told before anything runs
    todo = injecting(first, later)
    for at, act in (acts or {}).items():
        todo.setdefault(at, []).append(partial(act, first))
    linux = setup.linux is not None or setup.capture == "linux"
    end = follow(moments_of(first, message, todo, linux=linux, progress=progress), todo)
    wrong = mismatches_of(end, expect)
    return Result(name, setup.seed, first, image, end, wrong, expect is not None, setup.call)


def _loaded(
    setup: Setup, faults: Sequence[Fault], progress: Progress | None, console: Listener | None
) -> tuple[Kernel | FirstLinux, Kimage]:
    """The first kernel, the model or a real one, with its crash image loaded."""
    during = [fault for fault in faults if fault.when is When.DURING_LOAD]
    if setup.linux is None:
        return load_disturbed(setup, during, console) if during else prepare(setup, console)
    if during:
        why = "a write during the load needs the model: nobody stops Linux there"
        raise InputError(f"fault at {during[0].at}: {why}")
    linux = FirstLinux(linux_setup(setup), console)
    return linux, linux.load(progress)


def run_scenario(
    scenario: Scenario | str | Path,
    folder: str | Path | None = None,
    *,
    seed: int | None = None,
    progress: Progress | None = None,
    acts: Mapping[At, Callable[[Any], object]] | None = None,
    console: Listener | None = None,
) -> Result:
    """Run a scenario: a file, the name of one that ships, or what read_scenario() has of one.

    Relative paths in it start at `folder`: by default the file's own, the current one where only the scenario is given.
    """
    if not isinstance(scenario, Scenario):
        path = find_scenario(scenario)
        scenario, folder = read_scenario(path), path.parent if folder is None else folder
    folder = Path() if folder is None else path_of(folder, "folder")
    return crash(
        scenario.name,
        scenario_setup(scenario, folder, seed),
        [table.fault() for table in scenario.fault],
        scenario.crash.message,
        scenario.expect,
        progress,
        acts,
        console,
    )


def mismatches_of(end: End, expect: Expect | None) -> list[str]:
    """What was not as expected, in words."""
    if expect is None:
        return []
    wrong = []
    if end.outcome is not expect.outcome:
        wrong.append(f"outcome is {end.outcome.value}, expected {expect.outcome.value}")
    if expect.dump is not None and end.dump is not expect.dump:
        wrong.append(f"dump is {end.dump.value} ({end.dump_reason}), expected {expect.dump.value}")
    damaged = list(dict.fromkeys(one.segment for one in end.damage))
    for segment in dict.fromkeys([*filter(None, [expect.segment]), *expect.segments]):
        if segment not in damaged:
            wrong.append(f"damaged is {', '.join(damaged) or 'nothing'}, expected {segment}")
    wrong += [f"the console does not say {text!r}" for text in expect.console if text not in end.console]
    wrong += [f"the console says {text!r}" for text in expect.console_absent if text in end.console]
    wrong += _wrong_verdict(end, expect)
    if expect.outcome is Outcome.ERROR:
        wrong.append("no scenario can expect error: that is a failure of kexecemu itself")
    return wrong


def _wrong_verdict(end: End, expect: Expect) -> list[str]:
    """What the purgatory's record does not say as expected."""
    if not expect.verdict and expect.verdict_state is None:
        return []
    if end.verdict is None:
        return ["there is no record of the purgatory's, so it cannot say what was expected of it"]
    wrong = []
    state = end.verdict.state.name.lower()
    if expect.verdict_state not in (None, state):
        wrong.append(f"verdict_state is {state}, expected {expect.verdict_state}")
    flags = [name.lower() for name, flag in VerdictFlags.__members__.items() if flag in end.verdict.flags]
    missing = [flag for flag in expect.verdict if flag not in flags]
    if missing:
        told = ", ".join(flags) or "without flags"
        wrong.append(f"verdict is {told}, expected {', '.join(missing)} among them")
    return wrong
