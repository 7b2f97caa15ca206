"""kexecemu run, of a scenario whose first kernel is a real Linux."""

from __future__ import annotations

import sys
from pathlib import Path

from kexecemu.commands.outputs import print_json, print_written
from kexecemu.commands.run import Outputs, write_outputs
from kexecemu.errors import InputError
from kexecemu.report.linux import linux_result_object, print_linux_result
from kexecemu.report.progress import live_console, progress_bar
from kexecemu.report.terminal import account
from kexecemu.scenario.first_linux_run import run_linux_scenario
from kexecemu.scenario.schema import Scenario

__all__ = ["run_linux_command"]

PARTS = ("the first Linux is running", "it crashes", "the purgatory or the second Linux is running")


def run_linux_command(
    scenario: Scenario, named: str | None, folder: Path, seed: int | None, outputs: Outputs
) -> bool:
    """Run it, deliver what was asked for; True when all was as expected. InputError for outputs that there are not.

    named is how the user named the scenario, None without one, folder the one of its file.
    """
    if outputs.html is not None:
        raise InputError(
            "--html: there is no page yet for a first kernel that is a real one; --json has all of it"
        )
    if outputs.handoff is not None:
        raise InputError("--handoff: a first kernel that is a real one is not handed over")
    with progress_bar(outputs.verbose, PARTS) as progress:
        result = run_linux_scenario(
            scenario,
            folder,
            seed=seed,
            progress=progress,
            console=live_console if outputs.verbose else None,
        )
    files, dump = write_outputs(result, outputs)
    if outputs.json:
        print_json({**linux_result_object(result, dump, named), "handoff": None}, files)
    else:
        print_linux_result(account(), result)
        if outputs.vmcore is not None and dump is None:
            print("no dump was written: no capture kernel got far enough to take one", file=sys.stderr)
        print_written(files)
    return result.as_expected
