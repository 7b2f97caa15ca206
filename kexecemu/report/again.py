"""How to have a run again: one line for a shell.

A crash that the command line has words for gets those, any other a line of Python.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from kexecemu.faults.fault import By, Fault, When

__all__ = ["crash_again", "scenario_again"]

_WORDS = {
    "kernel": "--kernel",
    "initrd": "--initrd",
    "append": "--append",
    "ram": "--ram",
    "cpus": "--cpus",
    "gic": "--gic",
    "cmdline": "--cmdline",
    "dtb": "--dtb",
    "era": "--era",
    "protection": "--protection",
    "purgatory": "--purgatory",
    "seed": "--seed",
    "syscall": "--syscall",
    "capture": "--capture",
}


def scenario_again(scenario: str | Path, seed: int) -> str:
    """The line that runs a scenario, a path or the name of one that ships, with a seed."""
    return shlex.join(["kexecemu", "run", str(scenario), "--seed", str(seed)])


def crash_again(
    scenario: str | Path | None, seed: int, faults: Sequence[Fault], options: Mapping[str, object]
) -> str:
    """The line that has a crash of kexecemu.testing.run() again, from what run() was given.

    options are fields of kexecemu.scenario.setup.Setup; seed is the one that was used in the end.
    """
    if scenario is not None and not faults and not options.keys() - {"seed"}:
        return scenario_again(scenario, seed)
    if scenario is None and _has_words(faults):
        words = _setup_words(options)
        if words is not None:
            for fault in faults:
                words += [f"--{'dma' if fault.by is By.DMA else 'write'}"]
                words += [f"{fault.at}={(fault.write or b'').hex()}"]
            # What was not given is the same in the command as in Setup.
            return shlex.join(["kexecemu", "crash", *words])
    return shlex.join(["python", "-c", _python(scenario, faults, options)])


def _has_words(faults: Sequence[Fault]) -> bool:
    """kexecemu crash writes single bytes after the load, those of the CPU before those of DMA."""
    plain = all(fault.write and fault.when is When.AFTER_LOAD and fault.width == 1 for fault in faults)
    return plain and not any(one.by is By.DMA and other.by is By.CPU for one, other in pairwise(faults))


def _setup_words(options: Mapping[str, object]) -> list[str] | None:
    """What was given, as options of the command; None when it has no word for some of it."""
    words: list[str] = []
    for name, value in options.items():
        if name == "options" and isinstance(value, Mapping):
            words += [word for key, chosen in value.items() for word in ("--config", f"{key}={chosen}")]
        elif name == "no_initrd":
            words += ["--initrd", "none"] if value else []
        elif name == "rng_ready":
            words += ["--rng-ready"] if value else []
        elif name == "purgatory" and (value is None or isinstance(value, bool)):
            words += ["--purgatory", "default" if value else "none"]
        elif name in _WORDS:
            words += [_WORDS[name], str(value)] if value is not None else []
        else:
            return None
    return words


def _python(scenario: str | Path | None, faults: Sequence[Fault], options: Mapping[str, object]) -> str:
    arguments = [repr(str(scenario))] if scenario is not None else []
    if faults:
        arguments.append(f"faults=[{', '.join(_fault_text(fault) for fault in faults)}]")
    arguments += [
        f"{name}={(str(value) if isinstance(value, Path) else value)!r}" for name, value in options.items()
    ]
    return f"from kexecemu.testing import *; print(run({', '.join(arguments)}).outcome)"


def _fault_text(fault: Fault) -> str:
    """The fault as Python: what is not its default."""
    text = [repr(fault.at)]
    text.append(f"write={fault.write!r}" if fault.write is not None else f"flip={fault.flip:#x}")
    if fault.by is not By.CPU:
        text.append(f"by=By.{fault.by.name}")
    if fault.when is not When.AFTER_LOAD:
        text.append(f"when=When.{fault.when.name}")
    if fault.width != 1:
        text.append(f"width={fault.width}")
    return f"Fault({', '.join(text)})"
