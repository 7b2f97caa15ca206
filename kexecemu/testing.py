r"""What tests of kexec and kdump import: a board, a loaded kernel, a crash, and an assertion that explains itself.

>>> from kexecemu.testing import By, Fault, assert_outcome, run
>>> end = run(faults=[Fault("initrd+0x1000", write=b"\xff")])
>>> assert_outcome(end, "detected", segment="initrd")

A scenario that ships or lies in a file does as well, and so does one with something changed:

>>> assert_outcome(run("initrd-stamped"), "detected", segment="initrd")
>>> assert_outcome(run("initrd-stamped", purgatory="none"), "silent")

Where an assertion fails it shows the end of the timeline, what is not as expected, and the command that does the same
again. With pytest the fixtures kexecemu_board, kexecemu_kernel, kexecemu_run and kexecemu_campaign give the same
(see kexecemu.pytest_plugin), and clean up behind the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from kexecemu.errors import InputError
from kexecemu.faults.fault import By, Fault, When
from kexecemu.faults.outcome import Outcome
from kexecemu.machine.board import Board
from kexecemu.report.again import crash_again
from kexecemu.scenario.lab import End, Kernel
from kexecemu.scenario.runner import Result, crash, mismatches_of, scenario_setup
from kexecemu.scenario.schema import Expect, find_scenario, read_scenario
from kexecemu.scenario.setup import Setup, prepare

if TYPE_CHECKING:
    from typing import Unpack

__all__ = [
    "By",
    "End",
    "Fault",
    "Kernel",
    "KexecemuFailure",
    "Outcome",
    "SetupOptions",
    "When",
    "assert_outcome",
    "board",
    "failure_text",
    "kernel",
    "run",
]

_EVENTS = 15  # of the timeline's end: from the load on in most runs
_MESSAGE = "sysrq triggered crash"


class SetupOptions(TypedDict, total=False):
    """The keywords of kernel() and run(), as kexecemu.scenario.setup.Setup explains them; paths may be strings."""

    kernel: Path | str | None
    initrd: Path | str | None
    no_initrd: bool
    append: str
    ram: str | int | None
    cpus: int | None
    cmdline: str | None
    dtb: Path | str | None
    era: str
    protection: str | None
    purgatory: bool | str | Path | None
    options: Mapping[str, str]
    rng_ready: bool
    seed: int
    syscall: str
    capture: str


class KexecemuFailure(AssertionError):
    """A crash did not end as expected; the message is all there is to say, a traceback adds nothing."""


@dataclass(frozen=True)
class _KnownEnd(End):
    """An End that knows how to be had again: a line for a shell."""

    again: str = ""


def board(ram: str | int = "1G", cpus: int = 1) -> Board:
    """A board with nothing on it. ram is a size in bytes or as "512M".

    >>> with board("512M", cpus=2) as empty:
    ...     empty.ram.size >> 20, len(empty.cpus)
    (512, 2)
    """
    return Board(ram, cpus)


def kernel(**options: Unpack[SetupOptions]) -> Kernel:
    """A first kernel that has booted and loaded its crash image, ready for stray writes and panic().

    Raises InputError for options that cannot be used, KexecError when the load is refused.

    >>> loaded = kernel(protection="pte", purgatory="none")
    >>> loaded.image.segment("initrd").memsz > 0
    True
    >>> loaded.stray_write("initrd", b"stray").changed
    False
    >>> loaded.panic().outcome.value
    'prevented'
    >>> loaded.board.close()
    """
    return prepare(_changed(Setup(), options))[0]


def run(
    scenario: str | Path | None = None,
    *,
    faults: Sequence[Fault] = (),
    **options: Unpack[SetupOptions],
) -> End:
    """One crash from end to end: of a scenario (a TOML file, or the name of one that ships), of keywords, or of both.

    faults come on top of the scenario's; options change its setup. What it expects is not looked at: see
    assert_outcome(). Raises what kernel() raises.

    >>> run(faults=[Fault("initrd", flip=1, by=By.DMA, when=When.AFTER_CHECK)]).outcome.value
    'silent'
    """
    result = run_result(scenario, faults=faults, **options)
    return result.end


def run_result(
    scenario: str | Path | None = None,
    *,
    faults: Sequence[Fault] = (),
    **options: Unpack[SetupOptions],
) -> Result:
    """As run(), with the kernel and the image beside the end; result.kernel.board.close() gives their memory back."""
    if scenario is None:
        name, message, setup, own = "a crash of a test", _MESSAGE, Setup(), []
    else:
        path = find_scenario(str(scenario))
        read = read_scenario(path)
        name, message, setup = read.name, read.crash.message, scenario_setup(read, path.parent)
        own = [table.fault() for table in read.fault]
    setup = _changed(setup, options)
    result = crash(name, setup, [*own, *faults], message)
    again = crash_again(scenario, setup.seed, faults, options)
    known = _KnownEnd(**{one.name: getattr(result.end, one.name) for one in fields(End)}, again=again)
    return replace(result, end=known)


def assert_outcome(
    end: End,
    outcome: Outcome | str,
    *,
    segment: str | None = None,
    console: str | Sequence[str] = (),
) -> None:
    """Fail unless a crash ended as expected; segment must be damaged, and the console hold each piece of text.

    Raises KexecemuFailure, an AssertionError whose text is the end of the timeline, what differs, and how to have it
    again; InputError for an outcome that there is none of.
    """
    __tracebackhide__ = True
    if outcome not in set(Outcome):
        raise InputError(f"{outcome!r} is no outcome; they are {', '.join(Outcome)}")
    pieces = [console] if isinstance(console, str) else list(console)
    wrong = mismatches_of(end, Expect(Outcome(outcome), segment, pieces))
    if wrong:
        raise KexecemuFailure(failure_text(end, wrong))


def failure_text(end: End, wrong: Sequence[str], again: str | None = None) -> str:
    """Why a test failed, for people: what is wrong, the end of the timeline, and the line that does it again."""
    events = list(end.timeline)
    shown = events[-_EVENTS:]
    title = "timeline" if len(shown) == len(events) else f"the last {len(shown)} of {len(events)} events"
    again = getattr(end, "again", "") if again is None else again
    lines = [*wrong, "", f"{title}, time in instructions:"]
    lines += [f"{event.when:>14,}  {event.kind:<14} {event.text}" for event in shown]
    lines += [f"damage: {damage}" for damage in islice(end.damage, 8)]
    if len(end.damage) > 8:
        lines.append(f"damage: and {len(end.damage) - 8} more")
    if again:
        lines += ["", f"again: {again}"]
    return "\n".join(lines)


def _changed(setup: Setup, options: SetupOptions) -> Setup:
    """The setup with options over it; InputError for one that it has not."""
    known = {one.name for one in fields(Setup)}
    given = dict(options)
    for name in given:
        if name not in known:
            raise InputError(f"no option {name!r}; there are {', '.join(sorted(known))}")
    for name in ("kernel", "initrd", "dtb"):
        value = given.get(name)
        if isinstance(value, str):
            given[name] = Path(value)
    return replace(setup, **given)  # type: ignore[arg-type]  # checked by name above, by value in prepare()
