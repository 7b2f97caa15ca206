"""kexecemu kernel: Linux from Debian's source with a purgatory of its own: fetch, build, boot, stamp, judge."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexecemu.commands.help import HelpfulGroup, add_command
from kexecemu.commands.kernel_given import (
    BUILDING,
    ByOption,
    CmdlineOption,
    CompilerOption,
    ConfigOption,
    CpuOption,
    CpusOption,
    ElOption,
    ExpectOption,
    KaslrOption,
    KernelArgument,
    OnOption,
    PagesOption,
    SeriesOption,
    VersionArgument,
    WhenOption,
    WriteOption,
    built_kernel,
    check_cmdline,
    counted,
    failed,
    fault_given,
    machine_given,
    plan_given,
)
from kexecemu.commands.kernel_judge import JUDGE_EXAMPLES, judge
from kexecemu.commands.kernel_patches import EXAMPLES, patches
from kexecemu.commands.options import JsonOption, RawConsoleOption, VerboseOption, hearing, option, processes
from kexecemu.commands.outputs import print_json
from kexecemu.commands.streams import say_line
from kexecemu.errors import BuildError, FetchError, InputError, MachineError

if TYPE_CHECKING:
    from kexecemu.kbuild.build import BuiltKernel
    from kexecemu.kbuild.qemu import QemuMachine
    from kexecemu.kbuild.trial import TrialEnd
    from kexecemu.stray.fault import Fault

__all__ = ["app"]

app = typer.Typer(
    cls=HelpfulGroup,
    rich_markup_mode=None,
    help="Build Linux with a purgatory for kexec_file_load, boot it, and stamp on what it has loaded.",
    epilog="kexecemu kernel build 6.12\nFrom Debian's source with the series that ships: some minutes, once.\n"
    "kexecemu kernel stamp 6.12 --write initrd+0x1000=deadbeef\nA word written by DMA, and a panic: what notices it?",
)


def fetch(
    version: VersionArgument,
    cache: Annotated[
        Path | None, option("--cache", "Elsewhere than $KEXECEMU_CACHE or ~/.cache/kexecemu.", "DIR")
    ] = None,
    mirror: Annotated[
        str | None, option("--mirror", "A mirror of Debian, on a machine whose apt has none.", "URL")
    ] = None,
) -> None:
    """Fetch Debian's source of a version, some 150 MB, once: exit status 1 if it cannot be had."""
    from kexecemu.fetch.cache import cache_folder
    from kexecemu.kbuild.source import fetch_source

    folder = cache.absolute() if cache is not None else cache_folder()
    try:
        fetch_source(version, folder, partial(print, flush=True), mirror)
    except FetchError as error:
        raise failed("fetch", error) from error
    except OSError as error:
        raise InputError(f"fetch: {error.filename or folder}: {error.strerror or error}") from error


def build(
    version: VersionArgument,
    series: SeriesOption = None,
    pages: PagesOption = "4k",
    config: ConfigOption = None,
    compiler: CompilerOption = "gcc",
    jobs: Annotated[
        int | None,
        option("-j", "Jobs at a time (default: one for each CPU).", "N", BUILDING, parser=processes),
    ] = None,
    keep: Annotated[
        bool, option("--keep", "Keep source and objects, 2 GB, beside the kernel.", None, BUILDING)
    ] = False,
    json: JsonOption = False,
) -> None:
    """Build a small kernel with the series, and keep it: what was built is found again, what was cut off goes on.

    Exit status 1 if make fails. The machine needs a compiler for arm64, make, flex, bison and bc; what is missing is
    named.
    """
    from kexecemu.fetch.cache import cache_folder
    from kexecemu.kbuild.build import build_kernel

    plan = plan_given(version, series, pages, config, compiler)
    try:
        with counted("building", "objects") as on_object:
            at_a_time = jobs or os.cpu_count() or 1
            built = build_kernel(plan, cache_folder(), at_a_time, on_object, _say_waiting, keep=keep)
    except BuildError as error:
        raise failed("build", error) from error
    except OSError as error:
        raise InputError(f"build: {error.filename or cache_folder()}: {error.strerror or error}") from error
    if json:
        print_json(
            {
                "folder": str(built.folder),
                "package": built.package,
                "compiler": built.compiler,
                "steps": list(built.steps),
                "purgatory": built.purgatory is not None,
            }
        )
        return
    print(f"built      {built.image} ({built.image.stat().st_size:,} bytes)")
    print(f"source     {built.package}")
    print(f"compiler   {built.compiler}")
    for number, step in enumerate(built.steps or ("none",)):
        print(f"{'' if number else 'series':<11}{step}")
    size = f"{built.purgatory} ({built.purgatory.stat().st_size:,} bytes)" if built.purgatory else "none"
    print(f"purgatory  {size}")


def _say_waiting() -> None:
    say_line("kernel build: another one builds the same; waiting until it is done")


def boot(
    kernel: KernelArgument,
    on: OnOption = "qemu",
    cpu: CpuOption = None,
    el: ElOption = None,
    cpus: CpusOption = 1,
    kaslr: KaslrOption = True,
    cmdline: CmdlineOption = "",
    series: SeriesOption = None,
    pages: PagesOption = "4k",
    config: ConfigOption = None,
    compiler: CompilerOption = "gcc",
    json: JsonOption = False,
    verbose: VerboseOption = False,
    raw_console: RawConsoleOption = False,
) -> None:
    """Boot, load once more by kexec_file_load, panic, say what came of it: exit status 1 without a true dump."""
    check_cmdline(cmdline)
    machine = machine_given(on, cpu, el, cpus)
    built = built_kernel(kernel, series, pages, config, compiler)
    end = _tried(built, machine, cpus, kaslr, cmdline, [], json, hearing(verbose, raw_console))
    raise typer.Exit(0 if end.captured and end.reply.value == "boots" else 1)


def stamp(
    kernel: KernelArgument,
    write: WriteOption,
    when: WhenOption = "after-load",
    by: ByOption = "dma",
    expect: ExpectOption = None,
    on: OnOption = "qemu",
    cpu: CpuOption = None,
    el: ElOption = None,
    cpus: CpusOption = 1,
    kaslr: KaslrOption = True,
    cmdline: CmdlineOption = "",
    series: SeriesOption = None,
    pages: PagesOption = "4k",
    config: ConfigOption = None,
    compiler: CompilerOption = "gcc",
    json: JsonOption = False,
    verbose: VerboseOption = False,
    raw_console: RawConsoleOption = False,
) -> None:
    """The same as boot, with words written astray between the load and the capture kernel's first instruction.

    A TARGET is a segment (kernel, initrd, dtb, elfcorehdr, purgatory), purgatory:SYMBOL, crashkernel,
    crashkernel-free or a physical address, with +OFFSET.
    """
    from kexecemu.crash.purgatory_check import Reply
    from kexecemu.suggest import there_are

    if expect is not None and expect not in list(Reply):
        raise InputError(f"--expect: there is no reply {expect!r}{there_are(expect, list(Reply))}")
    check_cmdline(cmdline)
    faults = [fault_given(text, by, when) for text in write]
    machine = machine_given(on, cpu, el, cpus)
    if by == "cpu" and machine is None:
        raise InputError("--by cpu: a store by the kernel's own linear map is for QEMU")
    built = built_kernel(kernel, series, pages, config, compiler)
    end = _tried(built, machine, cpus, kaslr, cmdline, faults, json, hearing(verbose, raw_console))
    if expect is not None and end.reply.value != expect:
        say_line(f"not as expected: {end.reply.value}, not {expect}")
        raise typer.Exit(1)


def _tried(
    built: "BuiltKernel",
    machine: "QemuMachine | None",
    cpus: int,
    kaslr: bool,
    cmdline: str,
    faults: "list[Fault]",
    json: bool,
    hear: Callable[[bytes], None] | None,
) -> "TrialEnd":
    """One crash, told."""
    from kexecemu.kbuild.on_board import board_runs
    from kexecemu.kbuild.on_qemu import run_in_qemu
    from kexecemu.kbuild.trial import Trial, check_targets
    from kexecemu.report.kernel_trial import trial_text
    from kexecemu.report.progress import LINUX_PARTS, progress_bar

    check_targets(built, faults)
    trial = Trial(built, cpus=cpus, kaslr=kaslr, words=cmdline)
    try:
        if machine is None:
            with (
                progress_bar(hear is not None, LINUX_PARTS) as progress,
                board_runs(trial, hear, progress) as runs,
            ):
                end = runs.run(lambda loaded: faults)
        else:
            end = run_in_qemu(trial, machine, lambda loaded: faults, hear)
    except MachineError as error:
        raise failed("boot" if not faults else "stamp", error) from error
    where = machine.text if machine is not None else f"on our board, {cpus} CPU{'s' if cpus > 1 else ''}"
    if json:
        print_json({"machine": where, "kernel": str(built.folder), **end.as_object()})
    else:
        sys.stdout.write(trial_text(where, end))
    return end


_FETCH_EXAMPLES = """\
kexecemu kernel fetch 6.12
Into the cache; what is there is not fetched again.
kexecemu kernel fetch 7.3 --cache kernels
Elsewhere; the other commands find it by KEXECEMU_CACHE=kernels.
"""
_BUILD_EXAMPLES = """\
kexecemu kernel build 6.12
With the series that ships.
kexecemu kernel build 7.3 --pages 16k --config KASAN=y --compiler clang
Another kernel, kept beside.
"""
_BOOT_EXAMPLES = """\
kexecemu kernel boot 6.12 --cpu neoverse-v1 --el vhe --cpus 4
In QEMU.
kexecemu kernel boot ~/linux/out --on board -v
A kernel that somebody else has built, on our own board, with its console.
"""
_STAMP_EXAMPLES = """\
kexecemu kernel stamp 6.12 --write initrd+0x1000=deadbeef --expect caught
A word of the initrd.
kexecemu kernel stamp 6.12 --write purgatory:purgatory_kernel_entry=0000000000000000
The address that the purgatory jumps to.
kexecemu kernel stamp 6.12 --write initrd+0x1000=deadbeef --when after-check --expect missed
What no check can see.
"""
add_command(app, "fetch", fetch, "Commands", _FETCH_EXAMPLES)
add_command(app, "build", build, "Commands", _BUILD_EXAMPLES)
add_command(app, "boot", boot, "Commands", _BOOT_EXAMPLES)
add_command(app, "stamp", stamp, "Commands", _STAMP_EXAMPLES)
add_command(app, "judge", judge, "Commands", JUDGE_EXAMPLES)
add_command(app, "patches", patches, "Commands", EXAMPLES)
