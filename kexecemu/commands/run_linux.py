"""kexecemu run, of a scenario whose first kernel is a real Linux."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from kexecemu.errors import FormatError, InputError
from kexecemu.files import replace_file
from kexecemu.report.json import to_text
from kexecemu.report.linux import linux_result_object, print_linux_result
from kexecemu.report.progress import live_console, progress_bar
from kexecemu.scenario.first_linux_run import run_linux_scenario
from kexecemu.scenario.schema import Scenario

__all__ = ["Outputs", "run_linux_command"]

PARTS = ("the first Linux is running", "it crashes", "the purgatory or the second Linux is running")


@dataclass(frozen=True)
class Outputs:
    """What is asked for besides the account on stdout."""

    json: bool = False
    timeline: Path | None = None
    html: Path | None = None
    vmcore: Path | None = None
    handoff: Path | None = None
    verbose: bool = False


def run_linux_command(scenario: Scenario, folder: Path, seed: int | None, outputs: Outputs) -> bool:
    """Run it, deliver what was asked for; True when all was as expected. InputError for outputs that there are not."""
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
    written = None
    try:
        if outputs.timeline is not None:
            replace_file(outputs.timeline, result.end.timeline.as_jsonl().encode())
        if outputs.vmcore is not None and result.end.vmcore is not None:
            try:
                result.end.vmcore.write(outputs.vmcore)
                written = outputs.vmcore
            except FormatError as error:
                print(f"kexecemu: no dump was written: {error}", file=sys.stderr)
    except OSError as error:
        raise InputError(f"{error.filename or 'output'}: {error.strerror or error}") from error
    if outputs.json:
        sys.stdout.write(to_text({**linux_result_object(result, written), "handoff": None}))
    else:
        from rich.console import Console

        print_linux_result(Console(), result)
        if outputs.vmcore is not None and written is None:
            print("no dump was written: no capture kernel got far enough to take one", file=sys.stderr)
    return result.as_expected
