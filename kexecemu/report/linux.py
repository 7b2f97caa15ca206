"""A run of two real kernels, told to people and to programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from kexecemu.report.json import account_object, dump_object, linux_object, run_object
from kexecemu.report.text import print_account, ram_and_cpus
from kexecemu.scenario.first_linux_run import LinuxResult

__all__ = ["linux_result_object", "print_linux_result"]


def print_linux_result(console: Console, result: LinuxResult) -> None:
    """The whole account: setting, events, console since the panic, damage, outcome."""
    setup = result.setup
    checks = "kexec-tools' purgatory" if setup.checks else "kexec-tools' purgatory with --no-checks"
    stuck = (
        f", stuck at the crash: {', '.join(f'cpu{one}' for one in setup.stuck_cpus)}"
        if setup.stuck_cpus
        else ""
    )
    print_account(
        console,
        result.name,
        f"{ram_and_cpus(result.kernel.board)}{stuck}; the first kernel is Linux {result.kernel.release}, "
        f"{checks}; seed {result.seed}",
        result.end,
        result.mismatches,
    )


def linux_result_object(
    result: LinuxResult, vmcore: Path | None, scenario: str | None = None
) -> dict[str, Any]:
    """What `kexecemu run --json` prints of it: the keys of every run; nobody has an ELF of the first kernel."""
    return {
        **run_object(result, vmcore, None),
        "verdict": None,
        **dump_object(result.end),
        "mismatches": result.mismatches,
        "first_linux": result.kernel.release,
        "linux": linux_object(result.end),
        **account_object(result, scenario, None),
    }
