"""What is given to the commands of kexecemu kernel: which kernel, built how, on which machine."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexecemu.commands.options import option, processes
from kexecemu.commands.streams import say_line
from kexecemu.errors import InputError, MachineError
from kexecemu.visible import unguarded

if TYPE_CHECKING:
    from kexecemu.kbuild.build import BuildPlan, BuiltKernel
    from kexecemu.kbuild.qemu import QemuMachine
    from kexecemu.stray.fault import Fault

__all__ = [
    "BOOTING",
    "BUILDING",
    "ByOption",
    "CmdlineOption",
    "CompilerOption",
    "ConfigOption",
    "CpuOption",
    "CpusOption",
    "ElOption",
]
__all__ += ["ExpectOption", "WhenOption", "WriteOption"]
__all__ += ["KaslrOption", "KernelArgument", "OnOption", "PagesOption", "SeriesOption", "VersionArgument"]
__all__ += [
    "built_kernel",
    "check_cmdline",
    "counted",
    "failed",
    "fault_given",
    "machine_given",
    "plan_given",
]

BUILDING, BOOTING = "What is built", "The machine"

_VERSION = "A version of Linux: 6.12 or 7.3."
_KERNEL = "A version that has been built, or a folder with an Image: a build's, or make's O=."
_SERIES = "purgatory (the default), protect, folders with a series (*.toml), several with commas; or none."
_PAGES = "Size of a page: 4k, 16k or 64k."
_CONFIG = "A line of the kernel's configuration, as KASAN=y. Repeatable."
_COMPILER = "gcc or clang."
_ON = "qemu, or board: our own."
_CMDLINE = "Words for the first kernel's command line, as rodata=noalias."
_EL = "Where the kernel lives: el1 (the default), el2 (at EL1, its stub at EL2) or vhe (at EL2). QEMU only."
_CPU = "max (the default), neoverse-v1, cortex-a57, or neoverse-v3: max with that one's ID. QEMU only."
_WRITE = "Write these bytes there, as initrd+0x1000=deadbeef. Repeatable."
_WHEN = "after-load; at-jump: as the purgatory is entered; or after-check: as the kernel is."
_BY = "dma: behind every CPU's back; or cpu: a store through the kernel's linear map, which may fault. QEMU only."
_EXPECT = "The reply to expect, a word of kexecemu purgatory check; another exits with 1."

VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help=_VERSION)]
KernelArgument = Annotated[str, typer.Argument(metavar="VERSION|DIR", help=_KERNEL)]
SeriesOption = Annotated[str | None, option("--series", _SERIES, "NAME,...|DIR|none", BUILDING)]
PagesOption = Annotated[str, option("--pages", _PAGES, "SIZE", BUILDING)]
ConfigOption = Annotated[list[str] | None, option("--config", _CONFIG, "LINE", BUILDING)]
CompilerOption = Annotated[str, option("--compiler", _COMPILER, "NAME", BUILDING)]
CpuOption = Annotated[str | None, option("--cpu", _CPU, "NAME", BOOTING)]
ElOption = Annotated[str | None, option("--el", _EL, "LEVEL", BOOTING)]
CpusOption = Annotated[int, option("--cpus", "Number of CPUs.", "N", BOOTING, parser=processes)]
KaslrOption = Annotated[
    bool, typer.Option("--kaslr/--nokaslr", help="Move the kernel about.", rich_help_panel=BOOTING)
]
CmdlineOption = Annotated[str, option("--cmdline", _CMDLINE, "TEXT", BOOTING)]
OnOption = Annotated[str, option("--on", _ON, "WHERE", BOOTING)]
WriteOption = Annotated[list[str], option("--write", _WRITE, "TARGET=HEX")]
WhenOption = Annotated[str, option("--when", _WHEN, "MOMENT")]
ByOption = Annotated[str, option("--by", _BY, "WHO")]
ExpectOption = Annotated[str | None, option("--expect", _EXPECT, "REPLY")]


def failed(what: str, error: Exception) -> typer.Exit:
    """The one line on stderr, and exit status 1; 2 where it is the machine, and nothing came of it."""
    say_line(f"kernel {what}: {error}")
    return typer.Exit(2 if isinstance(error, MachineError) else 1)


def plan_given(
    version: str, series: str | None, pages: str, config: list[str] | None, compiler: str
) -> "BuildPlan":
    """What is to be built. InputError for a version, a series or a word that there is none of."""
    from kexecemu.kbuild.build import BuildPlan
    from kexecemu.kbuild.options import fragment
    from kexecemu.kbuild.series import find_series
    from kexecemu.kbuild.source import check_version
    from kexecemu.kbuild.toolchain import Toolchain

    check_version(version)
    names = ("purgatory" if series is None else series).split(",")
    if "none" in names and len(names) > 1:
        raise InputError(f"--series {series}: none, and others")
    folders = () if names == ["none"] else tuple(map(find_series, names))
    if len({one.resolve() for one in folders}) < len(folders):
        raise InputError(f"--series {series}: one of them is there twice")
    return BuildPlan(version, folders, fragment(pages, config or ()), Toolchain(compiler))


def built_kernel(
    kernel: str, series: str | None, pages: str, config: list[str] | None, compiler: str
) -> "BuiltKernel":
    """The kernel that was built so, or the one in a folder; InputError with the command that builds it."""
    from kexecemu.fetch.cache import cache_folder
    from kexecemu.kbuild.build import find_built, read_built
    from kexecemu.kbuild.source import SOURCES

    usual = {"--pages": "4k", "--compiler": "gcc"}
    lines = [("--config", line) for line in config or ()]
    given = [("--series", series), ("--pages", pages), *lines, ("--compiler", compiler)]
    words = [(name, one) for name, one in given if one is not None and one != usual.get(name)]
    if os.sep in kernel:
        if not Path(kernel).is_dir():
            raise InputError(f"{kernel}: is no folder")
        if words:
            raise InputError(f"{words[0][0]}: the kernel in {kernel} is as it was built")
        return read_built(Path(kernel))
    if kernel and kernel not in SOURCES and Path(kernel).is_dir():
        raise InputError(f"there is no source of Linux {kernel!r}; the folder of that name is ./{kernel}")
    found = find_built(plan_given(kernel, series, pages, config, compiler), cache_folder())
    if found is None:
        command = " ".join(["kexecemu kernel build", kernel, *itertools.chain(*words)])
        raise InputError(f"Linux {kernel} is not built so yet: run {command}")
    return found


def machine_given(on: str, cpu: str | None, el: str | None, cpus: int) -> "QemuMachine | None":
    """QEMU's, or None for our board."""
    from kexecemu.kbuild.qemu import QemuMachine

    if on not in ("qemu", "board"):
        raise InputError(f"--on {on!r} is not one of qemu, board")
    if on == "qemu":
        return QemuMachine(cpu or "max", el or "el1", cpus)
    for name, value in (("--cpu", cpu), ("--el", el)):
        if value is not None:
            raise InputError(f"{name} {value}: our own board has one CPU model, and that lives at EL1")
    return None


def check_cmdline(cmdline: str) -> None:
    """InputError for words with which the first kernel does not get to the crash, or is not heard."""
    from kexecemu.kernel.base.cmdline import is_one_line, parameter

    if not is_one_line(cmdline):
        raise InputError(f"--cmdline: one line of printable ASCII, not {cmdline!r}")
    if parameter(cmdline, "console") is not None:
        raise InputError("--cmdline console=: it is on the first PL011 that the kernel is listened to")


def fault_given(text: str, by: str = "dma", when: str = "after-load") -> "Fault":
    """TARGET=HEX, written by DMA or by a CPU's store, at a moment of on_qemu.MOMENTS."""
    from kexecemu.kbuild.on_qemu import MOMENTS
    from kexecemu.stray.fault import By, Fault, When, parse_hex, parse_when

    at, sign, digits = text.rpartition("=")
    if not sign or not at or not digits:
        raise InputError(f"--write {text!r} is not TARGET=HEX, as initrd+0x1000=deadbeef")
    if by not in ("dma", "cpu"):
        raise InputError(f"--by {by!r} is not one of dma, cpu")
    moment, _ = parse_when(when, "--when", MOMENTS)
    if by == "cpu" and moment is not When.AFTER_LOAD:
        raise InputError(f"--by cpu --when {when}: the kernel is gone by then, no CPU of it stores")
    return Fault(at, write=parse_hex(digits, f"--write {text}"), by=By(by), when=moment)


@contextmanager
def counted(what: str, of: str) -> Iterator[Callable[[], None]]:
    """A line on stderr with how many there were so far, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    terminal = unguarded(sys.stderr)
    numbers = itertools.count(1)
    try:
        yield lambda: print(f"\r{what}: {next(numbers)} {of}", end="", file=terminal, flush=True)
    finally:
        print("\r\x1b[K", end="", file=terminal, flush=True)
