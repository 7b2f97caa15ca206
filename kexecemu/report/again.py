"""How to have a run again: one line for a shell, or a scenario file.

A crash that the command line has words for gets those, any other a line of Python or a file. With what was expected
they end with status 1 and say what is not so.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kexecemu.scenario.expectation import expect_words
from kexecemu.scenario.given import command_words
from kexecemu.scenario.options import Setup
from kexecemu.scenario.schema import Expect
from kexecemu.scenario.toml import given_keys, scenario_of, scenario_toml
from kexecemu.shown import shown
from kexecemu.stray.fault import By, Fault, When

__all__ = ["Again", "scenario_again"]


def scenario_again(
    scenario: str | Path, seed: int, cell: str | None = None, expect: Expect | None = None
) -> str:
    """The line that runs a scenario, a path or the name of one that ships, with a seed.

    cell is the one of its matrix; expect takes the place of what the file expects.
    """
    words = ["kexecemu", "run", str(scenario), "--seed", str(seed), *(["--cell", cell] if cell else [])]
    return shlex.join([*words, *_expect_words(expect)])


@shown()
@dataclass(frozen=True)
class Again:
    """What kexecemu.testing.run() was given, and what it made of that: enough to have the crash again.

    scenario, cell, given and options are run()'s arguments; name, setup, faults and message are all of the crash.
    """

    scenario: str | Path | None
    cell: str | None
    given: Sequence[Fault]
    options: Mapping[str, object]
    name: str
    setup: Setup
    faults: Sequence[Fault]
    message: str

    def command(self, expect: Expect | None = None) -> str | None:
        """The command of ours that has the crash again; None when there are no words for some of it.

        With expect it ends with status 1 where the crash does not end so, and says what is wrong.
        """
        if self.scenario is not None and not self.given and not self.options.keys() - {"seed"}:
            return scenario_again(self.scenario, self.setup.seed, self.cell, expect)
        if self.scenario is not None or not _has_words(self.given):
            return None
        words = command_words(self.options)
        for fault in self.given:
            option = "--dma" if fault.by is By.DMA else "--write"
            words += [option, f"{fault.at}={(fault.write or b'').hex()}"]
        return shlex.join(["kexecemu", "crash", *words, *_expect_words(expect)])

    def python(self, expect: Expect | None = None) -> str:
        """A line of Python that does the same, whatever it is."""
        arguments = [repr(str(self.scenario))] if self.scenario is not None else []
        arguments += [f"cell={self.cell!r}"] if self.cell else []
        if self.given:
            arguments.append(f"faults=[{', '.join(_fault_text(fault) for fault in self.given)}]")
        for name, value in self.options.items():
            arguments.append(f"{name}={(str(value) if isinstance(value, Path) else value)!r}")
        run = f"run({', '.join(arguments)})"
        does = f"print({run}.outcome)"
        if expect is not None:
            wanted = [run, *(f"{key}={value!r}" for key, value in given_keys(expect).items())]
            does = f"assert_outcome({', '.join(wanted)})"
        return shlex.join(["python", "-c", f"from kexecemu.testing import *; {does}"])

    def line(self, expect: Expect | None = None) -> str:
        """One of the two: the command where it has words."""
        return self.command(expect) or self.python(expect)

    def file(self, expect: Expect | None = None) -> str:
        """The crash as the text of a scenario file."""
        return scenario_toml(scenario_of(self.name, self.setup, self.faults, self.message, expect))


def _expect_words(expect: Expect | None) -> list[str]:
    return [word for one in (expect_words(expect) if expect else []) for word in ("--expect", one)]


def _has_words(faults: Sequence[Fault]) -> bool:
    """kexecemu crash writes single bytes after the load, those of the CPU before those of DMA."""
    plain = all(fault.write and fault.when is When.AFTER_LOAD and fault.width == 1 for fault in faults)
    return plain and not any(one.by is By.DMA and other.by is By.CPU for one, other in pairwise(faults))


def _fault_text(fault: Fault) -> str:
    """The fault as Python: what is not its default."""
    what = f"write={fault.write!r}" if fault.write is not None else f"flip={fault.flip or 0:#x}"
    if fault.model is not None:
        what = f"model={fault.model!r}, variant={fault.variant}"
    text = [repr(fault.at), what]
    if fault.by is not By.CPU:
        text.append(f"by=By.{fault.by.name}")
    if fault.when is not When.AFTER_LOAD:
        step = "" if not fault.step else f", step={fault.step}"
        text.append(f"when=When.{fault.when.name}{step}")
    if fault.width != 1:
        text.append(f"width={fault.width}")
    return f"Fault({', '.join(text)})"
