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
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kexecemu.arguments import instance, integer, text
from kexecemu.crash.dump import Dump
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.verdict import VerdictFlags, VerdictState
from kexecemu.errors import InputError
from kexecemu.failure import KexecemuFailure, KnownEnd, again_line, events_text, failure_text
from kexecemu.machine.board import Board
from kexecemu.report.again import Again
from kexecemu.scenario.given import SetupChanges, SetupOptions, command_words, with_changes
from kexecemu.scenario.matrix import the_cell
from kexecemu.scenario.options import Setup
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import Result, crash, mismatches_of, scenario_setup
from kexecemu.scenario.schema import Expect
from kexecemu.scenario.setup import prepare
from kexecemu.scenario.toml import changed
from kexecemu.stray.fault import By, Fault, When

if TYPE_CHECKING:
    from typing import Unpack

    from kexecemu.campaign.summary import Summary

__all__ = [
    "By",
    "Dump",
    "End",
    "Fault",
    "Kernel",
    "KexecemuFailure",
    "KnownEnd",
    "Outcome",
    "SetupOptions",
    "When",
    "again_line",
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

_EXAMPLES = 3  # of each outcome
_MESSAGE = "sysrq triggered crash"


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
    return prepare(with_changes(Setup(), options))[0]


def run(
    scenario: str | Path | None = None,
    *,
    faults: Sequence[Fault] = (),
    cell: str | None = None,
    **options: Unpack[SetupOptions],
) -> End:
    """One crash from end to end: of a scenario (a TOML file, or the name of one that ships), of keywords, or of both.

    faults come on top of the scenario's; options change its setup. cell is the one to run of a scenario with a
    [matrix], as "era=6.1,protection=pte". What it expects is not looked at: see assert_outcome(). Raises what kernel()
    raises.

    >>> run(faults=[Fault("initrd", flip=1, by=By.DMA, when=When.AFTER_CHECK)]).outcome.value
    'silent'
    """
    return run_result(scenario, faults=faults, cell=cell, **options).end


def run_result(
    scenario: str | Path | None = None,
    *,
    faults: Sequence[Fault] = (),
    cell: str | None = None,
    **options: Unpack[SetupOptions],
) -> Result:
    """As run(), with the kernel and the image beside the end; result.kernel.board.close() gives their memory back."""
    if scenario is None:
        name, message, setup, own = "a crash of a test", _MESSAGE, Setup(), []
        if cell is not None:
            raise InputError(f"cell {cell!r}: there is no scenario that it could be a cell of")
    else:
        path = find_scenario(scenario)
        read = the_cell(read_scenario(path), cell)
        name, message, setup = read.name, read.crash.message, scenario_setup(read, path.parent)
        own = [table.fault() for table in read.fault]
    setup = with_changes(setup, options)
    faults = [faults] if isinstance(faults, Fault) else list(instance(faults, Sequence, "faults"))
    result = crash(name, setup, [*own, *faults], message)
    again = Again(scenario, cell, faults, options, name, setup, [*own, *faults], message)
    plain = {one.name: getattr(result.end, one.name) for one in fields(End)}
    return replace(result, end=KnownEnd(**plain, again=again, kernel=result.kernel))


def assert_outcome(
    end: End,
    outcome: Outcome | str,
    *,
    segment: str | None = None,
    segments: Sequence[str] = (),
    console: str | Sequence[str] = (),
    dump: Dump | str | None = None,
    console_absent: str | Sequence[str] = (),
    verdict: str | Sequence[str] = (),
    verdict_state: str | None = None,
) -> None:
    """Fail unless a crash ended as expected; the keywords are those of a scenario's [expect].

    Each of the segments must be damaged; the console must hold each piece of text of console, and none of
    console_absent; the purgatory's record must have the flags of verdict, and be in verdict_state.

    dump is what must have become of the dump: "true" (taken, equal to the crashed memory), "wrong" or "none".

    Raises KexecemuFailure, an AssertionError whose text is the end of the timeline, what differs, and how to have it
    again; InputError for an outcome, a dump, a flag or a state that there is none of.
    """
    __tracebackhide__ = True
    instance(end, End, "end")
    if outcome not in list(Outcome):
        raise InputError(f"{outcome!r} is no outcome; they are {', '.join(Outcome)}")
    if dump is not None and dump not in list(Dump):
        raise InputError(f"{dump!r} says nothing of a dump; the words are {', '.join(Dump)}")
    if segment is not None:
        text(segment, "segment")
    states = [verdict_state] if verdict_state else []
    expect = Expect(
        outcome=Outcome(outcome),
        segment=segment,
        segments=_listed(segments),
        console=_listed(console),
        console_absent=_listed(console_absent),
        verdict=_known(VerdictFlags, _listed(verdict), "flag of a verdict"),
        verdict_state=_known(VerdictState, states, "state of a verdict")[0] if states else None,
        dump=Dump(dump) if dump is not None else None,
    )
    wrong = mismatches_of(end, expect)
    if wrong:
        raise KexecemuFailure(wrong, end, expect)


def _listed(words: str | Sequence[str]) -> list[str]:
    return [words] if isinstance(words, str) else list(instance(words, Sequence, "words"))


def _known(kind: type[VerdictFlags | VerdictState], words: list[str], what: str) -> list[str]:
    """The words, each of which must name a member; in lower case, as [expect] has them."""
    known = [name.lower() for name in kind.__members__]
    for word in words:
        if word not in known:
            raise InputError(f"{word!r} is no {what}; they are {', '.join(known)}")
    return words


def campaign(
    scenario: str | Path,
    *,
    faults: int = 300,
    seed: int = 1,
    workers: int = 1,
    audit: int = 30,
    only: str | None = None,
    **options: Unpack[SetupChanges],
) -> Summary:
    """A small campaign, in this process unless there are to be several workers, and what came of it.

    The scenario's [campaign] table says what is drawn from; audit is how many of the faults that are decided without a
    run are run all the same. only is the id of one fault to try in place of any others; options change the scenario's
    setup, as those of run() do. Nothing is kept on disk.
    Raises InputError for what cannot be tried, MachineError when the machine cannot be relied on.
    """
    from kexecemu.campaign.fault import CampaignFault
    from kexecemu.campaign.job import discard_engine
    from kexecemu.campaign.work import plan_campaign, run_campaign

    path = find_scenario(scenario)
    for name, value in {"faults": faults, "seed": seed, "workers": workers, "audit": audit}.items():
        integer(value, name, 0)
    fault = CampaignFault.parse(text(only, "only")) if only is not None else None
    try:
        plan = plan_campaign(
            changed(read_scenario(path), options),
            path.parent,
            1 if fault is not None else faults,
            seed,
            named=shlex.quote(str(scenario)),
            options=shlex.join(command_words(options)),
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
                examples += [f"again: {summary.reproducer(one)} --not {outcome.value}"]
    for odd in summary.disagreements[:_EXAMPLES]:
        wrong.append(f"the audit finds {odd.run} where {odd.decided} was concluded ({odd.how})")
        examples += ["", f"again: {summary.reproducer(odd)}"]
    if wrong:
        raise KexecemuFailure(wrong, more=["", f"based on {summary.basis}", *examples])
