"""Which keys of a scenario mean something where the first kernel is a real Linux, and which only there."""

from __future__ import annotations

from typing import Any

from kexecemu.errors import InputError
from kexecemu.scenario.options import check_first
from kexecemu.scenario.schema import Scenario
from kexecemu.stray.fault import When

__all__ = ["check_linux"]


def check_linux(data: dict[str, Any], scenario: Scenario) -> None:
    """InputError for keys that make no sense with a real first kernel, or only with one."""
    tables = [data.get(table, {}) for table in ("machine", "kernel", "load")]
    given = {key: value for table in tables for key, value in table.items()}
    check_first(given)
    if scenario.kernel.linux is None:
        return
    for table in ("crash", "campaign", "matrix"):
        for key in data.get(table, {}):
            raise InputError(
                f"{table}.{key} means nothing where the first kernel is a real one (kernel.linux)"
            )
    if scenario.load.initrd == "none":
        raise InputError("load.initrd: a real capture kernel needs an initrd that takes the dump")
    cmdline = scenario.kernel.cmdline or ""
    if any(word == "quiet" or word.startswith("loglevel=") for word in cmdline.split()):
        raise InputError(
            "kernel.cmdline: the first kernel must say on its console that it is left: no quiet, no loglevel="
        )
    if any(table.when is When.AFTER_CHECK for table in scenario.fault):
        raise InputError("a fault after-check needs the model: a real purgatory's jump is not stopped at")
