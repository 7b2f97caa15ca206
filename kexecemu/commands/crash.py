"""kexecemu crash: load a crash image, write astray, panic, and say what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from kexecemu.commands import options
from kexecemu.errors import InputError
from kexecemu.scenario.options import Setup

if TYPE_CHECKING:
    from kexecemu.stray.fault import By, Fault

__all__ = ["EXAMPLES", "crash_command"]

EXAMPLES = """\
kexecemu crash --write initrd+0x1000=a5a5
Two stray bytes in the loaded initrd: the purgatory finds them.
kexecemu crash --era 6.1 --write kernel+0x100=ff --html report.html
The same before 6.4, when the segments' pages were invalid; a report to look at.
kexecemu crash --capture linux --vmcore vmcore
Debian's kernel captures (kexecemu fetch kernel busybox); the dump is for crash or drgn.
"""

_FAULTS = "Stray writes"
_WRITE = "A stray write by the CPU, as initrd+0x1000=ff; repeatable."
_DMA = "A stray write by DMA, behind the MMU; repeatable."
_NAME = "a crash from the command line"


@options.takes_setup()
def crash_command(
    setup: Setup,
    write: Annotated[list[str] | None, options.option("--write", _WRITE, "TARGET=HEX", _FAULTS)] = None,
    dma: Annotated[list[str] | None, options.option("--dma", _DMA, "TARGET=HEX", _FAULTS)] = None,
    expect: options.ExpectOption = None,
    json: options.JsonOption = False,
    timeline: options.TimelineOption = None,
    html: options.HtmlOption = None,
    vmcore: options.VmcoreOption = None,
    handoff: options.HandoffOption = None,
    verbose: options.VerboseOption = False,
    raw_console: options.RawConsoleOption = False,
) -> None:
    """Load a crash image, write astray, panic, and say what came of it."""
    from kexecemu.commands.run import Outputs, deliver
    from kexecemu.scenario.expectation import parse_expect
    from kexecemu.scenario.runner import crash
    from kexecemu.stray.fault import By

    faults = [_fault(text, By.CPU) for text in write or []] + [_fault(text, By.DMA) for text in dma or []]
    wanted = parse_expect(expect) if expect else None
    outputs = Outputs(json, timeline, html, vmcore, handoff, verbose, raw_console)
    outputs.check(setup)
    with outputs.running(setup.linux is not None) as asked:
        result = crash(_NAME, setup, faults, expect=wanted, **asked)
    deliver(result, None, outputs)


def _fault(text: str, by: By) -> Fault:
    from kexecemu.stray.fault import Fault, parse_hex

    option = "--dma" if by == "dma" else "--write"
    target, equals, digits = text.rpartition("=")
    if not equals or not target:
        raise InputError(f"{option} {text!r}: write TARGET=HEX, for example initrd+0x1000=ff")
    return Fault(target, write=parse_hex(digits, f"{option} {text!r}"), by=by)
