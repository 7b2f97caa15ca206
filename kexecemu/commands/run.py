"""kexecemu run: a scenario from its file to its outcome; and what run and crash do with a finished run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexecemu.commands import options
from kexecemu.commands.outputs import (
    Written,
    check_folder,
    check_outputs,
    input_files,
    print_json,
    print_written,
)
from kexecemu.commands.streams import say_line
from kexecemu.errors import FormatError, InputError, KexecError
from kexecemu.visible import visible_line

if TYPE_CHECKING:
    from kexecemu.crash.handoff import Handoff
    from kexecemu.crash.kernel import Kernel
    from kexecemu.scenario.options import Setup
    from kexecemu.scenario.runner import Result
    from kexecemu.scenario.schema import Scenario

__all__ = ["EXAMPLES", "Outputs", "deliver", "located", "run_command"]

EXAMPLES = """\
kexecemu run initrd-stamped
A scenario that ships: a stray word in the initrd is caught.
kexecemu run mine.toml --html report.html --vmcore vmcore
Your own file; a report with pictures, and the dump for crash or drgn.
kexecemu run golden --json
The same for a program: one JSON object.
"""

_AFTER_JUMP = ("hashing", "after-check", "capture")
_SAME_AS_JUMP = "hashing-0"


@dataclass
class Outputs:
    """What is asked for besides the account on stdout; taken is what --handoff wrote at the jump.

    hashing is for a run with a write at hashing-0: no instruction after the jump, and in the handoff as well.
    """

    json: bool = False
    timeline: Path | None = None
    html: Path | None = None
    vmcore: Path | None = None
    handoff: Path | None = None
    verbose: bool = False
    raw_console: bool = False
    hashing: bool = False
    taken: Handoff | None = None
    written: Written = field(default_factory=Written)

    @property
    def files(self) -> dict[str, Path | None]:
        """What is to be written, by the option that asked for it."""
        return {f"--{name}": getattr(self, name) for name in ("timeline", "html", "vmcore", "handoff")}

    def check(self, setup: Setup, scenario: Path | None = None) -> None:
        """InputError for what cannot be written, or is one of the files that decide the load."""
        inputs = input_files(setup, scenario)
        files = {option: path for option, path in self.files.items() if option != "--handoff"}
        check_outputs(files, inputs)
        if self.handoff is not None:
            from kexecemu.crash.handoff import FILES

            check_folder("--handoff", self.handoff, FILES, {**inputs, **files})

    @contextmanager
    def running(self, linux: bool) -> Iterator[dict[str, Any]]:
        """The arguments of a run that make it show and write what is asked for; linux: the first kernel is a real one.

        --handoff writes the machine down at the jump.
        """
        from kexecemu.report.progress import LINUX_PARTS, PARTS, progress_bar
        from kexecemu.stray.fault import When

        console = options.hearing(self.verbose, self.raw_console)
        acts = {}
        if self.handoff is not None:
            acts[When.AT_JUMP, 0] = self._take_at_jump
            if self.hashing:
                acts[When.WHILE_HASHING, 0] = self._take
        with progress_bar(console is not None, LINUX_PARTS if linux else PARTS) as progress:
            yield {"progress": progress, "acts": acts, "console": console}

    def _take_at_jump(self, kernel: Kernel) -> None:
        if not self.hashing or kernel.image is None or kernel.image.purgatory is None:
            self._take(kernel)

    def _take(self, kernel: Kernel) -> None:
        from kexecemu.crash.handoff import write_handoff

        assert self.handoff is not None and kernel.image is not None
        with self.written.writing("--handoff", self.handoff):
            self.taken = write_handoff(self.handoff, kernel, kernel.image)


def run_command(
    scenario: options.ScenarioArgument,
    json: options.JsonOption = False,
    seed: options.SeedOption = None,
    timeline: options.TimelineOption = None,
    html: options.HtmlOption = None,
    vmcore: options.VmcoreOption = None,
    handoff: options.HandoffOption = None,
    verbose: options.VerboseOption = False,
    raw_console: options.RawConsoleOption = False,
    cell: Annotated[
        str | None,
        options.option("--cell", "Cells of its [matrix], as era=6.1,protection=pte.", "KEY=VALUE,..."),
    ] = None,
    expect: options.ExpectOption = None,
) -> None:
    """Run a scenario and say what came of it."""
    from kexecemu.campaign.plan import plan_of
    from kexecemu.commands.run_matrix import chosen_scenario, run_matrix_command
    from kexecemu.scenario.expectation import parse_expect
    from kexecemu.scenario.read import find_scenario
    from kexecemu.scenario.runner import run_scenario, scenario_setup

    path = find_scenario(scenario)
    parsed, cells = chosen_scenario(path, cell, parse_expect(expect) if expect else None)
    with located(path, parsed):
        plan_of(parsed)  # a campaign over it is another command's, but that there can be one is not
    outputs = Outputs(json, timeline, html, vmcore, handoff, verbose, raw_console)
    if len(cells) > 1:
        good = run_matrix_command(parsed.name, cells, path, seed, outputs)
        raise typer.Exit(0 if good else 1)
    outputs.check(scenario_setup(parsed, path.parent, seed), path)
    faults = [table.fault() for table in parsed.fault] if handoff is not None else []
    outputs.hashing = any(fault.when_word == _SAME_AS_JUMP for fault in faults)
    for fault in faults:
        if fault.when in _AFTER_JUMP and fault.when_word != _SAME_AS_JUMP:
            raise InputError(
                f"--handoff: the machine is handed over at the jump, and a fault at {fault.when_word} is later"
            )
    with located(path, parsed), outputs.running(bool(parsed.kernel.linux)) as asked:
        result = run_scenario(parsed, path.parent, seed=seed, **asked)
    deliver(result, scenario, outputs)


@contextmanager
def located(path: Path, scenario: Scenario) -> Iterator[None]:
    """A refusal of a key that only the machine can judge is told with the file and the line of it."""
    try:
        yield
    except KexecError:
        raise  # the kernel's own reason, which is about the load
    except InputError as error:
        key = _key_of(str(error), scenario)
        if key is None:
            raise
        from kexecemu.scenario.toml_lines import at_line

        text = path.read_text(encoding="utf-8")
        raise InputError(f"scenario {path}: {at_line(text, key, error)}") from error


def _key_of(words: str, scenario: Scenario) -> tuple[str | int, ...] | None:
    """The key that a refusal names: a campaign's in front, or a fault's target."""
    match = re.match(r"campaign\.(\w+): |target '?([^:' ]*(?::\w+)?)", words)
    if match is None:
        return None
    if match[1]:
        return "campaign", match[1]
    for number, fault in enumerate(scenario.fault):
        if match[2] in (fault.at, fault.at.partition("+")[0]):
            return "fault", number, "at"
    return None


def _write_dump(result: Result, outputs: Outputs) -> Path | None:
    """Write the dump, as far as there is one: its path if it was written."""
    if outputs.vmcore is None or result.end.vmcore is None:
        return None
    try:
        with outputs.written.writing("--vmcore", outputs.vmcore):
            result.end.vmcore.write(outputs.vmcore)
            outputs.written.files.append(outputs.vmcore)
            return outputs.vmcore
    except FormatError as error:
        # The run's result stands: that there is no dump is part of it.
        say_line(f"no dump was written: {error}")
    return None


def deliver(result: Result, scenario: str | None, outputs: Outputs) -> None:
    """Write what was asked for, give the account, and exit. scenario is how it was named, None without one."""
    from kexecemu.report.html import render

    written, files, taken = outputs.written, outputs.written.files, outputs.taken
    written.write("--timeline", outputs.timeline, result.end.timeline.as_jsonl)
    dump = _write_dump(result, outputs)
    written.write("--html", outputs.html, lambda: render(result))
    if taken is not None:
        files += taken.files
    if outputs.json:
        from kexecemu.report.json import result_object

        told = taken and {
            "folder": str(taken.folder),
            "script": str(taken.script),
            "el": taken.el,
            "command": taken.command,
        }
        print_json({**result_object(result, dump, scenario), "handoff": told}, files)
    else:
        from kexecemu.report.terminal import account
        from kexecemu.report.text import print_result

        print_result(account(), result)
        if outputs.vmcore is not None and result.end.vmcore is None:
            print("no dump was written: no capture kernel got far enough to take one", file=sys.stderr)
        print_written(files)
        if taken is not None:
            print(f"handoff      QEMU goes on from the jump: {visible_line(str(taken.script))}")
            print(shlex.join(taken.command))
    if outputs.handoff is not None and taken is None and not written.failed:
        print("no handoff was written: the first kernel did not get to the image's entry", file=sys.stderr)
    written.exit(0 if result.as_expected else 1)
