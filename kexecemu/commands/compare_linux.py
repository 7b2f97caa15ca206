"""kexecemu compare-linux: a real first kernel and our model of it load the same crash kernel; what differs?"""

from __future__ import annotations

import json as json_module
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexecemu.arguments import contents
from kexecemu.errors import InputError
from kexecemu.report.progress import live_console, progress_bar
from kexecemu.scenario.fetched import fetched_initrd, fetched_kernel, fetched_programs
from kexecemu.scenario.first_linux import FirstLinux, LinuxSetup
from kexecemu.scenario.first_linux_compare import boot_model, compare, config_options
from kexecemu.scenario.first_linux_rows import Row, Same
from kexecemu.scenario.first_linux_run import read_kernel
from kexecemu.shown import shown

__all__ = ["CompareOptions", "compare_linux_command", "print_rows", "rows_object"]

_WIDEST = 60


@shown()
@dataclass(frozen=True)
class CompareOptions:
    """What is booted: an Image (its config-* is looked for beside it) or fetched:NAME, and the board."""

    kernel: Path
    ram: str
    cpus: int
    cmdline: str
    seed: int


def compare_linux_command(options: CompareOptions, *, every: bool, json: bool, verbose: bool) -> bool:
    """Boot both, print the table or one JSON object; True when all is equal that should be."""
    path = fetched_kernel(options.kernel)
    image = read_kernel(path)
    programs = fetched_programs()
    setup = LinuxSetup(
        image=image,
        crash_image=image,
        crash_initrd=fetched_initrd(path),
        busybox=programs.busybox,
        kexec=programs.kexec,
        packages=programs.packages,
        ram=options.ram,
        cpus=options.cpus,
        cmdline=options.cmdline,
        seed=options.seed,
    )
    with progress_bar(verbose, ["the real kernel is running"]) as progress:
        linux = FirstLinux(setup, live_console if verbose else None)
        linux.load(progress)
    config = _config(path, linux.release)
    model = boot_model(linux, config_options(config))
    rows = compare(linux, model)
    if json:
        sys.stdout.write(json_module.dumps(rows_object(linux.release, rows), indent=2) + "\n")
    else:
        sys.stdout.write(f"Linux {linux.release} beside the model of era {model.config.release.value}\n")
        sys.stdout.write(print_rows(rows, every))
    return all(row.same is not Same.DIFFERENT for row in rows)


def _config(path: Path, release: str) -> str:
    """The kernel's configuration; "" where it is not beside it, which is said."""
    for candidate in (path.with_name(f"config-{release}"), path.with_name(".config")):
        if candidate.is_file():
            try:
                return contents(candidate, "configuration").decode()
            except UnicodeDecodeError as error:
                raise InputError(f"configuration {candidate}: {error}") from error
    print(f"kexecemu: no config-{release} beside {path}: the model has its usual options", file=sys.stderr)
    return ""


def rows_object(release: str, rows: list[Row]) -> dict[str, Any]:
    """What --json prints."""
    counts = Counter(row.same for row in rows)
    return {
        "release": release,
        "counts": {same.value: counts[same] for same in Same},
        "rows": [
            {
                "group": row.group,
                "name": row.name,
                "real": row.real,
                "model": row.model,
                "result": row.same.value,
                "why": row.why if row.same is Same.SHOWN else None,
            }
            for row in rows
        ],
    }


def print_rows(rows: list[Row], every: bool) -> str:
    """A table by groups: what differs with both values, what is equal by its number alone unless every is set."""
    lines = []
    shown = [row for row in rows if every or row.same is not Same.EQUAL]
    wide = max((len(row.name) for row in shown), default=0)
    for group in dict.fromkeys(row.group for row in rows):
        inside = [row for row in rows if row.group == group]
        counts = Counter(row.same for row in inside)
        words = ", ".join(f"{counts[same]} {same.value}" for same in Same if counts[same])
        lines += ["", f"{group}: {words}"]
        for row in inside:
            if row not in shown:
                continue
            mark = {Same.EQUAL: "=", Same.DIFFERENT: "!", Same.SHOWN: " "}[row.same]
            name = row.name.ljust(wide)
            if row.same is Same.EQUAL:
                lines.append(f"  {mark} {name}  {_cut(row.real)}")
                continue
            lines.append(f"  {mark} {name}  real  {_cut(row.real)}")
            lines.append(f"    {'':{wide}}  model {_cut(row.model)}{f'  ({row.why})' if row.why else ''}")
    total = Counter(row.same for row in rows)
    lines += ["", ", ".join(f"{total[same]} {same.value}" for same in Same)]
    return "\n".join(lines) + "\n"


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
