"""Which keys of a scenario mean something where the first kernel is a real Linux, and which only there."""

from __future__ import annotations

from typing import Any

from kexecemu.errors import InputError
from kexecemu.scenario.schema import Scenario
from kexecemu.stray.fault import When

__all__ = ["check_linux"]

# What means something to a real first kernel; all else is the model's.
_KEYS = {
    "machine": ("ram", "cpus", "gic", "stuck_cpus"),
    "kernel": ("linux", "cmdline", "purgatory"),
    "load": ("kernel", "initrd", "append", "syscall", "capture"),
    "crash": (),
    "campaign": (),
    "matrix": (),
}


def check_linux(data: dict[str, Any], scenario: Scenario) -> None:
    """InputError for keys that make no sense with a real first kernel, or only with one."""
    if scenario.kernel.linux is None:
        if scenario.machine.stuck_cpus:
            raise InputError(
                "machine.stuck_cpus needs a real first kernel (kernel.linux): only its CPUs can be stuck"
            )
        return
    for table, known in _KEYS.items():
        for key in data.get(table, {}):
            if key not in known:
                raise InputError(
                    f"{table}.{key} means nothing where the first kernel is a real one (kernel.linux)"
                )
    given = {
        "kernel.purgatory": (data["kernel"].get("purgatory", "kexec-tools"), ("kexec-tools", "none")),
        "load.syscall": (data.get("load", {}).get("syscall", "kexec_load"), ("kexec_load",)),
        "load.capture": (data.get("load", {}).get("capture", "linux"), ("linux",)),
    }
    for key, (value, possible) in given.items():
        if value not in possible:
            words = " or ".join(possible)
            raise InputError(f"{key} is {words} where the first kernel is a real one, not {value!r}")
    if scenario.load.initrd == "none":
        raise InputError("load.initrd: a real capture kernel needs an initrd that takes the dump")
    cmdline = scenario.kernel.cmdline or ""
    if any(word == "quiet" or word.startswith("loglevel=") for word in cmdline.split()):
        raise InputError(
            "kernel.cmdline: the first kernel must say on its console that it is left: no quiet, no loglevel="
        )
    if any(table.when is When.AFTER_CHECK for table in scenario.fault):
        raise InputError("a fault after-check needs the model: a real purgatory's jump is not stopped at")
