"""kexecemu compare-linux: a real first kernel and our model of it load the same crash kernel; what differs?"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kexecemu.arguments import contents
from kexecemu.commands.options import JsonOption, RawConsoleOption, VerboseOption, flag, hearing, option
from kexecemu.commands.outputs import print_json
from kexecemu.commands.streams import say_line
from kexecemu.errors import InputError, NothingReserved
from kexecemu.visible import lines_text

__all__ = ["EXAMPLES", "compare_linux_command"]

EXAMPLES = """\
kexecemu compare-linux
Debian's kernel (kexecemu fetch kernel busybox kexec-tools) and its model.
kexecemu compare-linux --ram 1G --cmdline crashkernel=256M --all
Another board; lines that are equal, or do not count, are printed too.
"""

_KERNEL = "A real arm64 Image, or fetched:NAME."
_SYSCALL = "The call that loads the crash kernel: kexec_file_load needs a kernel that has it."
_CMDLINE = "The first kernel's command line, with crashkernel=."


def compare_linux_command(
    kernel: Annotated[
        Path, flag("kernel", text=_KERNEL, panel="The first kernel", default="fetched:kernel")
    ] = Path("fetched:kernel"),
    ram: Annotated[str, flag("ram", text="RAM, for example 1G.", default="512M")] = "512M",
    cpus: Annotated[int, flag("cpus", text="Number of CPUs.")] = 1,
    cmdline: Annotated[str, flag("cmdline", text=_CMDLINE, default="crashkernel=192M")] = "crashkernel=192M",
    syscall: Annotated[
        str | None, flag("syscall", text=_SYSCALL, panel="The crash kernel", default="kexec_load")
    ] = None,
    seed: Annotated[int, flag("seed")] = 0,
    every: Annotated[bool, option("--all", "Print equal lines too, and those that do not count.")] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    raw_console: RawConsoleOption = False,
) -> None:
    """Boot a real kernel and the model of it alike, load by kexec-tools, compare: exit 1 if something differs."""
    from kexecemu.linux.fetched import fetched_kernel
    from kexecemu.linux.first import FirstLinux
    from kexecemu.linux.first_records import believed
    from kexecemu.linux.rows import Same
    from kexecemu.report.linux_rows import print_rows, rows_object
    from kexecemu.report.progress import progress_bar
    from kexecemu.scenario.linux_compare import boot_model, compare, config_options
    from kexecemu.scenario.linux_setup import linux_setup
    from kexecemu.scenario.options import Setup

    path = fetched_kernel(kernel)
    given = Setup(linux=path, ram=ram, cpus=cpus, seed=seed, syscall=syscall)
    setup = replace(linux_setup(given), cmdline=cmdline)
    console = hearing(verbose, raw_console)
    with progress_bar(console is not None, ["the real kernel is running"]) as progress:
        linux = FirstLinux(setup, console)
        try:
            linux.load(progress)
        except NothingReserved as error:
            say_line(f"nothing is loaded, what there is besides is compared: {error}")
    text = _config(path, linux.release)
    built_in = path.with_name("purgatory.ro") if "CONFIG_ARM64_KEXEC_PURGATORY=y" in text else None
    model = boot_model(linux, config_options(text), built_in)
    warnings = model.not_modelled()
    for words in warnings:
        say_line(words)
    with believed():
        rows = compare(linux, model)
    if json:
        print_json(rows_object(linux.release, rows, warnings))
    else:
        sys.stdout.write(
            lines_text([f"Linux {linux.release} beside the model of era {model.config.release.value}"])
        )
        sys.stdout.write(print_rows(rows, every))
    raise typer.Exit(1 if any(row.same is Same.DIFFERENT for row in rows) else 0)


def _config(path: Path, release: str) -> str:
    """The kernel's configuration; "" where it is not beside it, which is said."""
    for name in (f"config-{release}", ".config", "config"):
        candidate = path.with_name(name)
        if candidate.is_file():
            try:
                return contents(candidate, "configuration").decode()
            except UnicodeDecodeError as error:
                raise InputError(f"configuration {candidate}: {error}") from error
    say_line(f"no config-{release} beside {path}: the model has its usual options")
    return ""
