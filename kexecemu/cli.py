"""The command line: kexecemu run, crash and load.

Exit status: 0 as expected, 1 not as expected, 2 bad input with one line on stderr.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexecemu.commands.campaign import campaign_command, compare_command
from kexecemu.commands.fetch import fetch_command
from kexecemu.commands.linear_map import linear_map_command
from kexecemu.commands.purgatory import app as purgatory_app
from kexecemu.commands.replay import replay_command
from kexecemu.commands.schema import schema_command
from kexecemu.errors import FormatError, InputError, KexecemuError, KexecError

if TYPE_CHECKING:
    from kexecemu.capture.handoff import Handoff
    from kexecemu.faults.fault import By, Fault
    from kexecemu.kernel.kimage import Kimage
    from kexecemu.scenario.lab import Kernel
    from kexecemu.scenario.runner import Result
    from kexecemu.scenario.setup import Setup

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="See, break and measure kexec and kdump on arm64.",
)

_AS_EXPECTED, _NOT_AS_EXPECTED, _BAD_INPUT, _INTERRUPTED = 0, 1, 2, 130

KernelOption = Annotated[
    Path | None, typer.Option("--kernel", help="Image of the crash kernel (default: the capture stub).")
]
InitrdOption = Annotated[
    Path | None, typer.Option("--initrd", help="Its initrd (default: a small one; 'none' for none).")
]
AppendOption = Annotated[str | None, typer.Option("--append", help="Its command line.")]
RamOption = Annotated[str | None, typer.Option("--ram", help="RAM of the board, for example 1G.")]
CpusOption = Annotated[int | None, typer.Option("--cpus", help="Number of CPUs.")]
CmdlineOption = Annotated[
    str | None, typer.Option("--cmdline", help="The first kernel's command line, with crashkernel=.")
]
DtbOption = Annotated[Path | None, typer.Option("--dtb", help="A device tree that describes another board.")]
EraOption = Annotated[str, typer.Option("--era", help="6.1, 6.4 or 6.12.")]
ProtectionOption = Annotated[
    str | None, typer.Option("--protection", help="none, pte, readonly or bbml2 (default: the era's own).")
]
ConfigOption = Annotated[
    list[str] | None, typer.Option("--config", help="A Kconfig option, for example ZONE_DMA=n; repeatable.")
]
PurgatoryOption = Annotated[str, typer.Option("--purgatory", help="default, none or a purgatory object.")]
SyscallOption = Annotated[
    str, typer.Option("--syscall", help="kexec_file_load, or kexec_load (kexec-tools' way).")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of all randomness.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TimelineOption = Annotated[Path | None, typer.Option("--timeline", help="Write the events as JSON lines.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write a report as one HTML file.")]
VmcoreOption = Annotated[Path | None, typer.Option("--vmcore", help="Write the dump.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the console as it is printed (on stderr).")
]
ExpectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--expect",
        metavar="OUTCOME|KEY=VALUE",
        help="The outcome to expect, or another key of [expect] as KEY=VALUE; repeatable. All else exits with 1.",
    ),
]
HandoffOption = Annotated[
    Path | None,
    typer.Option("--handoff", help="Write the machine at the jump to DIR, for QEMU to go on from there."),
]


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A TOML file, or the name of a scenario that ships.")],
    json: JsonOption = False,
    seed: SeedOption = None,
    timeline: TimelineOption = None,
    html: HtmlOption = None,
    vmcore: VmcoreOption = None,
    handoff: HandoffOption = None,
    verbose: VerboseOption = False,
    cell: Annotated[
        str | None, typer.Option("--cell", help="Cells of its [matrix], for example era=6.1,protection=pte.")
    ] = None,
    expect: ExpectOption = None,
) -> None:
    """Run a scenario and say what came of it."""
    from kexecemu.commands.run_matrix import chosen_scenario, run_matrix_command
    from kexecemu.report.progress import live_console, progress_bar
    from kexecemu.scenario.expectation import parse_expect
    from kexecemu.scenario.runner import run_scenario
    from kexecemu.scenario.schema import find_scenario

    path = find_scenario(scenario)
    parsed, cells = chosen_scenario(path, cell, parse_expect(expect) if expect else None)
    _check_outputs(timeline, html, vmcore)
    if len(cells) > 1:
        files = {"--timeline": timeline, "--html": html, "--vmcore": vmcore, "--handoff": handoff}
        good = run_matrix_command(
            parsed.name, cells, path.parent, seed, json=json, verbose=verbose, outputs=files
        )
        raise typer.Exit(_AS_EXPECTED if good else _NOT_AS_EXPECTED)
    if parsed.kernel.linux is not None:
        from kexecemu.commands.run_linux import Outputs, run_linux_command

        outputs = Outputs(json, timeline, html, vmcore, handoff, verbose)
        good = run_linux_command(parsed, path.parent, seed, outputs)
        raise typer.Exit(_AS_EXPECTED if good else _NOT_AS_EXPECTED)
    taker = _HandoffTaker(handoff)
    if handoff is not None and any(fault.when == "after-check" for fault in parsed.fault):
        raise InputError("--handoff: a fault after the check cannot be handed over: it is not in memory yet")
    with progress_bar(verbose) as progress:
        result = run_scenario(
            parsed,
            path.parent,
            seed=seed,
            progress=progress,
            at_jump=taker.at_jump,
            console=live_console if verbose else None,
        )
    _deliver(result, json, timeline, html, vmcore, taker)


@app.command()
def crash(
    kernel: KernelOption = None,
    initrd: InitrdOption = None,
    append: AppendOption = None,
    ram: RamOption = None,
    cpus: CpusOption = None,
    cmdline: CmdlineOption = None,
    dtb: DtbOption = None,
    era: EraOption = "6.4",
    protection: ProtectionOption = None,
    config: ConfigOption = None,
    purgatory: PurgatoryOption = "default",
    syscall: SyscallOption = "kexec_file_load",
    capture: Annotated[
        str,
        typer.Option(
            "--capture", help="stub, or linux: a real capture kernel, by default Debian's, is run to its end."
        ),
    ] = "stub",
    write: Annotated[
        list[str] | None, typer.Option("--write", help="TARGET=HEX: a stray write by the CPU; repeatable.")
    ] = None,
    dma: Annotated[
        list[str] | None, typer.Option("--dma", help="TARGET=HEX: a stray write by DMA; repeatable.")
    ] = None,
    expect: ExpectOption = None,
    seed: SeedOption = None,
    json: JsonOption = False,
    timeline: TimelineOption = None,
    html: HtmlOption = None,
    vmcore: VmcoreOption = None,
    handoff: HandoffOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Load a crash image, write astray, panic, and say what came of it."""
    from kexecemu.faults.fault import By
    from kexecemu.report.progress import live_console, progress_bar
    from kexecemu.scenario.expectation import parse_expect
    from kexecemu.scenario.runner import crash as crash_now

    if capture not in ("stub", "linux"):
        raise InputError(f"--capture is stub or linux, not {capture!r}")
    faults = [_fault(text, By.CPU) for text in write or []] + [_fault(text, By.DMA) for text in dma or []]
    wanted = parse_expect(expect) if expect else None
    setup = _setup(
        kernel, initrd, append, ram, cpus, cmdline, dtb, era, protection, config, purgatory, syscall, seed
    )
    setup = replace(setup, capture=capture)
    _check_outputs(timeline, html, vmcore)
    taker = _HandoffTaker(handoff)
    with progress_bar(verbose) as progress:
        result = crash_now(
            "a crash from the command line",
            setup,
            faults,
            expect=wanted,
            progress=progress,
            at_jump=taker.at_jump,
            console=live_console if verbose else None,
        )
    _deliver(result, json, timeline, html, vmcore, taker)


@app.command()
def load(
    kernel: KernelOption = None,
    initrd: InitrdOption = None,
    append: AppendOption = None,
    ram: RamOption = None,
    cpus: CpusOption = None,
    cmdline: CmdlineOption = None,
    dtb: DtbOption = None,
    era: EraOption = "6.4",
    protection: ProtectionOption = None,
    config: ConfigOption = None,
    purgatory: PurgatoryOption = "default",
    syscall: SyscallOption = "kexec_file_load",
    seed: SeedOption = None,
    dump_segments: Annotated[
        Path | None, typer.Option("--dump-segments", help="Write each segment as loaded to DIR/NAME.bin.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Load a crash image, print where everything lies, and stop."""
    from rich.console import Console

    from kexecemu.files import replace_file
    from kexecemu.report.json import load_object, to_text
    from kexecemu.report.text import print_layout
    from kexecemu.scenario.setup import prepare

    setup = _setup(
        kernel, initrd, append, ram, cpus, cmdline, dtb, era, protection, config, purgatory, syscall, seed
    )
    booted, image = prepare(setup)
    if dump_segments is not None:
        try:
            dump_segments.mkdir(parents=True, exist_ok=True)
            for segment in image.segments:
                replace_file(
                    dump_segments / f"{segment.name}.bin", booted.ram.read(segment.mem, segment.memsz)
                )
        except OSError as error:
            raise InputError(f"--dump-segments {dump_segments}: {error.strerror or error}") from error
    if json:
        sys.stdout.write(to_text(load_object(booted, image, setup.seed)))
    else:
        print_layout(Console(), booted, image)


@app.command("verify-image")
def verify_image(
    image: Annotated[Path, typer.Argument(help="A signed arm64 Image.")],
    ca: Annotated[
        list[Path],
        typer.Option("--ca", help="A trusted certificate, PEM (one or several) or DER; repeatable."),
    ],
    json: JsonOption = False,
) -> None:
    """Verify an Image's signature as kexec_file_load would: exit status 0 if it is good, 1 if it is refused."""
    from kexecemu.commands.verify_image import verify_image_command

    verify_image_command(image, ca, json)


app.command("linear-map")(linear_map_command)


@app.command("compare-linux")
def compare_linux(
    kernel: Annotated[Path, typer.Option("--kernel", help="A real arm64 Image, or fetched:NAME.")] = Path(
        "fetched:kernel"
    ),
    ram: Annotated[str, typer.Option("--ram", help="RAM of the board.")] = "512M",
    cpus: Annotated[int, typer.Option("--cpus", help="Number of CPUs.")] = 1,
    cmdline: Annotated[
        str, typer.Option("--cmdline", help="The first kernel's command line, with crashkernel=.")
    ] = "crashkernel=192M",
    seed: SeedOption = None,
    every: Annotated[bool, typer.Option("--all", help="Print equal lines too.")] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Boot a real kernel and the model of it alike, load by kexec-tools, compare: exit 1 if something differs."""
    from kexecemu.commands.compare_linux import CompareOptions, compare_linux_command

    setup = CompareOptions(kernel, ram, cpus, cmdline, seed or 0)
    good = compare_linux_command(setup, every=every, json=json, verbose=verbose)
    raise typer.Exit(_AS_EXPECTED if good else _NOT_AS_EXPECTED)


app.command("fetch")(fetch_command)
app.add_typer(purgatory_app, name="purgatory")
app.command("campaign")(campaign_command)
app.command("campaign-compare")(compare_command)
app.command("replay")(replay_command)
app.command("schema")(schema_command)


def _setup(
    kernel: Path | None,
    initrd: Path | None,
    append: str | None,
    ram: str | None,
    cpus: int | None,
    cmdline: str | None,
    dtb: Path | None,
    era: str,
    protection: str | None,
    config: list[str] | None,
    purgatory: str,
    syscall: str,
    seed: int | None,
) -> Setup:
    from kexecemu.kernel.config import split_options
    from kexecemu.scenario.setup import DEFAULT_APPEND, Setup

    no_initrd = initrd is not None and str(initrd) == "none"
    return Setup(
        kernel=kernel,
        initrd=None if no_initrd else initrd,
        no_initrd=no_initrd,
        append=DEFAULT_APPEND if append is None else append,
        ram=ram,
        cpus=cpus,
        cmdline=cmdline,
        dtb=dtb,
        era=era,
        protection=protection,
        purgatory=purgatory,
        options=split_options(config or ()),
        seed=seed or 0,
        syscall=syscall,
    )


def _fault(text: str, by: By) -> Fault:
    from kexecemu.faults.fault import Fault, parse_hex

    option = "--dma" if by == "dma" else "--write"
    target, equals, digits = text.rpartition("=")
    if not equals:
        raise InputError(f"{option} {text!r}: write TARGET=HEX, for example initrd+0x1000=ff")
    return Fault(target, write=parse_hex(digits, f"{option} {text!r}"), by=by)


def _check_outputs(*paths: Path | None) -> None:
    """Say at once, not after the run, that an output cannot be written."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise InputError(f"{path}: is a directory")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")


class _HandoffTaker:
    """Writes the machine down at the jump, if a folder was asked for."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None and folder.exists() and not folder.is_dir():
            raise InputError(f"--handoff {folder}: is not a folder")
        self.folder = folder
        self.taken: Handoff | None = None

    def at_jump(self, kernel: Kernel, image: Kimage) -> None:
        from kexecemu.capture.handoff import write_handoff

        if self.folder is None:
            return
        try:
            self.taken = write_handoff(self.folder, kernel, image)
        except OSError as error:
            raise InputError(f"--handoff {self.folder}: {error.strerror or error}") from error

    def as_object(self) -> dict[str, object] | None:
        if self.taken is None:
            return None
        return {
            "folder": str(self.taken.folder),
            "script": str(self.taken.script),
            "el": self.taken.el,
            "command": self.taken.command,
        }


def _deliver(
    result: Result,
    json: bool,
    timeline: Path | None,
    html: Path | None,
    vmcore: Path | None,
    handoff: _HandoffTaker,
) -> None:
    from kexecemu.files import replace_file

    try:
        if timeline is not None:
            replace_file(timeline, result.end.timeline.as_jsonl().encode())
        written = None
        if vmcore is not None and result.end.vmcore is not None:
            try:
                result.end.vmcore.write(vmcore)
                written = vmcore
            except FormatError as error:
                # The run's result stands: that there is no dump is part of it.
                print(f"kexecemu: no dump was written: {error}", file=sys.stderr)
        if html is not None:
            from kexecemu.report.html import render

            replace_file(html, render(result).encode())
    except OSError as error:
        raise InputError(f"{error.filename or 'output'}: {error.strerror or error}") from error
    if json:
        from kexecemu.report.json import result_object, to_text

        sys.stdout.write(to_text({**result_object(result, written), "handoff": handoff.as_object()}))
    else:
        from rich.console import Console

        from kexecemu.report.text import print_result

        print_result(Console(), result)
        if vmcore is not None and written is None:
            print("no dump was written: no capture kernel got far enough to take one", file=sys.stderr)
        if handoff.taken is not None:
            print(f"handoff      QEMU goes on from the jump: {handoff.taken.script}")
            print(shlex.join(handoff.taken.command))
    if handoff.folder is not None and handoff.taken is None:
        print("no handoff was written: the first kernel did not get to the image's entry", file=sys.stderr)
    raise typer.Exit(_AS_EXPECTED if result.as_expected else _NOT_AS_EXPECTED)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        status = app(arguments, standalone_mode=False)
    except (InputError, KexecError) as error:
        print(f"kexecemu: {' '.join(str(error).split())}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        print("kexecemu: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except KexecemuError:
        raise
    except Exception as error:
        # Wrong usage: typer carries click's exceptions, of its own or of the library, depending on its version.
        if hasattr(error, "format_message"):
            print(f"kexecemu: {' '.join(error.format_message().split())}", file=sys.stderr)
            return _BAD_INPUT
        raise
    if status == _INTERRUPTED:
        # typer has caught Ctrl-C itself.
        print("kexecemu: interrupted", file=sys.stderr)
    return status if isinstance(status, int) else _AS_EXPECTED


if __name__ == "__main__":
    sys.exit(main())
