"""Which keys of a scenario mean something where the first kernel is a real Linux, and which only there."""

from __future__ import annotations

from typing import Any

from kexecemu.errors import InputError
from kexecemu.scenario.options import check_first
from kexecemu.scenario.schema import Scenario

__all__ = ["check_linux", "check_real"]


def check_linux(data: dict[str, Any], scenario: Scenario) -> None:
    """InputError for keys that make no sense with a real first kernel, or only with one."""
    tables = [data.get(table, {}) for table in ("machine", "kernel", "load")]
    given = {key: value for table in tables for key, value in table.items()}
    check_first(given)
    if scenario.kernel.linux is None:
        return
    check_real(scenario.load.initrd, scenario.kernel.cmdline)
    for table in ("crash", "campaign", "matrix"):
        for key in data.get(table, {}):
            raise InputError(
                f"{table}.{key} means nothing where the first kernel is a real one (kernel.linux)"
            )


def check_real(initrd: str | None, cmdline: str | None) -> None:
    """InputError for values with which a real first kernel leads to nothing."""
    if initrd == "none":
        raise InputError("load.initrd: a real capture kernel needs an initrd that takes the dump")
    if any(word == "quiet" or word.startswith("loglevel=") for word in (cmdline or "").split()):
        raise InputError(
            "kernel.cmdline: the first kernel must say on its console that it is left: no quiet, no loglevel="
        )
