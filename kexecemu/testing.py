r"""What tests of kexec and kdump import: a board, a loaded kernel, a crash, and an assertion that explains itself.

>>> from kexecemu.testing import By, Fault, assert_outcome, run
>>> end = run(faults=[Fault("initrd+0x1000", write=b"\xff")])
>>> assert_outcome(end, "detected", segment="initrd")

A scenario that ships or lies in a file does as well, and so does one with something changed:

>>> assert_outcome(run("initrd-stamped"), "detected", segment="initrd")
>>> assert_outcome(run("initrd-stamped", purgatory="none"), "silent")

A whole campaign of stray writes does too, from a scenario with a [campaign] table:

>>> assert_no(campaign("campaign-16m", faults=20, audit=1), "silent", "misboot", "hung", "trapped")

Where an assertion fails it shows the end of the timeline, what is not as expected, and the command that does the same
again. With pytest the fixtures kexecemu_board, kexecemu_kernel, kexecemu_run and kexecemu_campaign give the same
(see kexecemu.pytest_plugin), and clean up behind the test.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypedDict

from kexecemu.arguments import instance, integer, text
from kexecemu.errors import InputError
from kexecemu.faults.fault import By, Fault, When
from kexecemu.faults.outcome import Outcome
from kexecemu.machine.board import Board
from kexecemu.machine.timeline import Event
from kexecemu.report.again import crash_again
from kexecemu.scenario.lab import End, Kernel
from kexecemu.scenario.runner import Result, crash, mismatches_of, scenario_setup
from kexecemu.scenario.schema import Expect, find_scenario, read_scenario
from kexecemu.scenario.setup import Setup, prepare

if TYPE_CHECKING:
    from typing import Unpack

    from kexecemu.campaign.summary import Summary

__all__ = [
    "By",
    "End",
    "Fault",
    "Kernel",
    "KexecemuFailure",
    "Outcome",
    "SetupOptions",
    "When",
    "assert_no",
    "assert_outcome",
    "board",
    "campaign",
    "events_text",
    "failure_text",
    "kernel",
    "run",
    "run_result",
]

_EVENTS = 15  # of the timeline's end: from the load on in most runs
_EXAMPLES = 3  # of each outcome
_MESSAGE = "sysrq triggered crash"


class SetupOptions(TypedDict, total=False):
    """The keywords of kernel() and run(), as kexecemu.scenario.setup.Setup explains them; paths may be strings."""

    kernel: Path | str | None
    initrd: Path | str | None
    no_initrd: bool
    initrd_size: str | int | None
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
    gic: int | None


class KexecemuFailure(AssertionError):
    """A crash did not end as expected; the message is all there is to say, a traceback adds nothing."""


@dataclass(frozen=True, repr=False)
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
        path = find_scenario(scenario)
        read = read_scenario(path)
        name, message, setup = read.name, read.crash.message, scenario_setup(read, path.parent)
        own = [table.fault() for table in read.fault]
    setup = _changed(setup, options)
    faults = [faults] if isinstance(faults, Fault) else list(instance(faults, Sequence, "faults"))
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
    instance(end, End, "end")
    if outcome not in list(Outcome):
        raise InputError(f"{outcome!r} is no outcome; they are {', '.join(Outcome)}")
    pieces = [console] if isinstance(console, str) else list(instance(console, Sequence, "console"))
    if segment is not None:
        text(segment, "segment")
    wrong = mismatches_of(end, Expect(Outcome(outcome), segment, pieces))
    if wrong:
        raise KexecemuFailure(failure_text(end, wrong))


def campaign(
    scenario: str | Path,
    *,
    faults: int = 300,
    seed: int = 1,
    workers: int = 1,
    audit: int = 30,
    only: str | None = None,
) -> Summary:
    """A small campaign, in this process unless there are to be several workers, and what came of it.

    The scenario's [campaign] table says what is drawn from; audit is how many of the faults that are decided without a
    run are run all the same. only is the id of one fault to try in place of any others. Nothing is kept on disk.
    Raises InputError for what cannot be tried, MachineError when the machine cannot be relied on.
    """
    from kexecemu.campaign.fault import CampaignFault
    from kexecemu.campaign.job import discard_engine
    from kexecemu.campaign.work import plan_campaign, run_campaign

    path = find_scenario(scenario)
    for name, value in (("faults", faults), ("seed", seed), ("workers", workers), ("audit", audit)):
        integer(value, name, 0)
    fault = CampaignFault.parse(text(only, "only")) if only is not None else None
    try:
        plan = plan_campaign(
            read_scenario(path),
            path.parent,
            1 if fault is not None else faults,
            seed,
            named=shlex.quote(str(scenario)),
            source=path.read_text(encoding="utf-8"),
        )
        if fault is not None:
            header = replace(plan.header, sampler=f"only {fault.id}")
            plan = replace(plan, sample=[plan.space.index(fault)], header=header)
        with TemporaryDirectory(prefix="kexecemu-") as folder:
            return run_campaign(plan, Path(folder), workers=workers, audit=audit)
    finally:
        discard_engine()


def assert_no(summary: Summary, *outcomes: Outcome | str) -> None:
    """Fail if a campaign has faults with these outcomes, or if its audit disagrees.

    Raises KexecemuFailure with examples and the lines that have them again; InputError for an outcome that there is
    none of, and when none is given.
    """
    __tracebackhide__ = True
    from kexecemu.campaign.summary import Summary

    instance(summary, Summary, "summary")
    unknown = [str(one) for one in outcomes if one not in list(Outcome)]
    if unknown or not outcomes:
        raise InputError(f"{', '.join(unknown) or 'nothing'} is no outcome; they are {', '.join(Outcome)}")
    wrong, examples = [], []
    for outcome in map(Outcome, outcomes):
        if summary.outcomes[outcome]:
            wrong.append(f"{summary.outcomes[outcome]:,} {outcome.value}, expected none: {outcome.meaning}")
            for one in summary.examples[outcome][:_EXAMPLES]:
                where = f"{one.outcome} at {one.phys:#x} in {one.segment or 'no segment'}"
                examples += ["", where + (f": {one.detail}" if one.detail else "")]
                examples += [f"again: {summary.reproducer(one)}"]
    for odd in summary.disagreements[:_EXAMPLES]:
        wrong.append(f"the audit finds {odd.run} where {odd.decided} was concluded ({odd.how})")
        examples += ["", f"again: {summary.reproducer(odd)}"]
    if wrong:
        raise KexecemuFailure("\n".join([*wrong, "", f"based on {summary.basis}", *examples]))


def failure_text(end: End, wrong: Sequence[str], again: str | None = None) -> str:
    """Why a test failed, for people: what is wrong, the end of the timeline, and the line that does it again."""
    instance(end, End, "end")
    again = getattr(end, "again", "") if again is None else again
    lines = [*wrong, "", events_text(list(end.timeline))]
    lines += [f"damage: {damage}" for damage in islice(end.damage, 8)]
    if len(end.damage) > 8:
        lines.append(f"damage: and {len(end.damage) - 8} more")
    if again:
        lines += ["", f"again: {again}"]
    return "\n".join(lines)


def events_text(events: Sequence[Event]) -> str:
    """The end of a timeline, one event a line."""
    instance(events, Sequence, "events")
    shown = events[-_EVENTS:]
    title = "timeline" if len(shown) == len(events) else f"the last {len(shown)} of {len(events)} events"
    lines = [f"{event.when:>14,}  {event.kind:<14} {event.text}" for event in shown]
    return "\n".join([f"{title}, time in instructions:", *lines])


def _changed(setup: Setup, options: SetupOptions) -> Setup:
    """The setup with options over it; InputError for one that it has not."""
    known = {one.name for one in fields(Setup)}
    given = dict(options)
    for name in given:
        if name not in known:
            raise InputError(f"no option {name!r}; there are {', '.join(sorted(known))}")
    return replace(setup, **given)  # type: ignore[arg-type]  # checked by name above, by value in Setup
