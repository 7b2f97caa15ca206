"""The command line: which commands there are, and what their ends are to the shell.

A command is a function in a file of its own below kexecemu/commands; here it gets its name and the heading that it has
in --help. The options that several commands share are in commands/options.py.

Exit status: 0 as expected, 1 not as expected, 2 bad input with one line on stderr, 70 a bug of ours with one line that
says where its traceback is, 71 where a campaign cannot keep its processes alive, 130 after Ctrl-C, 141 where nobody
reads stdout any more.
"""

import os
import re
import sys
import warnings
from typing import Annotated

import typer

from kexecemu.commands import (
    campaign,
    campaign_compare,
    collect,
    compare_linux,
    crash,
    fetch,
    kernel,
    linear_map,
    load,
    purgatory,
    replay,
    run,
    schema,
    size,
    verify_image,
)
from kexecemu.commands import list as listing
from kexecemu.commands.bug import host_reason, report_bug
from kexecemu.commands.help import HelpfulGroup, add_command, usage_text
from kexecemu.commands.options import option
from kexecemu.commands.streams import UNREAD, StdoutError, own_streams, say_line
from kexecemu.errors import KexecemuError, WorkersDied
from kexecemu.interrupt import INTERRUPTED, Stopped
from kexecemu.visible import visible_streams

__all__ = ["app", "main"]

_COMPLETE = "_KEXECEMU_COMPLETE"
_AS_EXPECTED, _BAD_INPUT, _NO_WORKERS = 0, 2, 71  # the last is EX_OSERR of sysexits.h

app = typer.Typer(
    cls=HelpfulGroup,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="See, break and measure kexec and kdump on arm64.",
    epilog="kexecemu run initrd-stamped\nA scenario that ships, from the load to the dump.\n"
    "kexecemu run --help\nWhat a command does, with its options and examples.",
)

RUN, MANY, LOOK, SET_UP = "Run a crash", "Many faults at once", "Look and measure", "Set up"

add_command(app, "run", run.run_command, RUN, run.EXAMPLES)
add_command(app, "crash", crash.crash_command, RUN, crash.EXAMPLES)
add_command(app, "campaign", campaign.campaign_command, MANY, campaign.EXAMPLES)
add_command(app, "campaign-compare", campaign_compare.compare_command, MANY, campaign_compare.EXAMPLES)
add_command(app, "replay", replay.replay_command, MANY, replay.EXAMPLES)
app.add_typer(purgatory.app, name="purgatory", rich_help_panel=LOOK)
app.add_typer(kernel.app, name="kernel", rich_help_panel=LOOK)
add_command(app, "collect", collect.collect_command, LOOK, collect.EXAMPLES)
add_command(app, "size", size.size_command, LOOK, size.EXAMPLES)
add_command(app, "load", load.load_command, LOOK, load.EXAMPLES)
add_command(app, "linear-map", linear_map.linear_map_command, LOOK, linear_map.EXAMPLES)
add_command(app, "verify-image", verify_image.verify_image_command, LOOK, verify_image.EXAMPLES)
add_command(app, "compare-linux", compare_linux.compare_linux_command, LOOK, compare_linux.EXAMPLES)
add_command(app, "fetch", fetch.fetch_command, SET_UP, fetch.EXAMPLES)
add_command(app, "list", listing.list_command, SET_UP, listing.EXAMPLES)
add_command(app, "schema", schema.schema_command, SET_UP, schema.EXAMPLES)


_VERSION = "Print the release, and a hash of the code in force."


def _print_version(asked: bool) -> None:
    if asked:
        from kexecemu.campaign.version import own_version

        print(f"kexecemu {own_version()}")
        raise typer.Exit(_AS_EXPECTED)


@app.callback()
def _start(
    version: Annotated[bool, option("--version", _VERSION, is_eager=True, callback=_print_version)] = False,
) -> None:
    """See, break and measure kexec and kdump on arm64."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. What it prints is all visible: no text of others is obeyed."""
    with own_streams(), visible_streams(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say_line(str(message))
        asked = os.environ.get(_COMPLETE, "")
        if asked and not re.fullmatch(r"(complete|source)_(bash|zsh|fish|powershell|pwsh)", asked):
            return _refuse(f"{_COMPLETE}={asked!r} is nothing that a shell's completion asks for")
        try:
            status = app(arguments, prog_name="kexecemu", standalone_mode=False)
            sys.stdout.flush()
        except KeyboardInterrupt:
            status = INTERRUPTED
        except SystemExit as end:
            # typer's answer to a pipe that breaks, which is not stdout's: that has an error of its own.
            if not isinstance(end.__context__, OSError):
                raise
            return _status_of(end.__context__)
        except Exception as error:
            return _status_of(error)
        if status == INTERRUPTED:
            say_line("interrupted")
        return status if isinstance(status, int) else _AS_EXPECTED


def _status_of(error: Exception) -> int:
    """What an error is to the shell, told in one line."""
    if isinstance(error, StdoutError) and error.unread:
        return UNREAD
    if isinstance(error, StdoutError):
        return _refuse(f"stdout: {error}")
    if isinstance(error, Stopped):
        return _refuse(f"interrupted: {error}", INTERRUPTED)
    if isinstance(error, WorkersDied):
        return _refuse(str(error), _NO_WORKERS)
    if isinstance(error, KexecemuError):
        return _refuse(str(error))
    # Wrong usage: typer carries click's exceptions, of its own or of the library, depending on its version.
    if hasattr(error, "format_message"):
        return _refuse(usage_text(error))
    if os.environ.get(_COMPLETE) and isinstance(error, KeyError | ValueError):
        return _refuse(f"{_COMPLETE}: {error} of the environment is missing or wrong")
    reason = host_reason(error)
    return _refuse(reason) if reason is not None else report_bug(error)


def _refuse(reason: str, status: int = _BAD_INPUT) -> int:
    """Say in one line why there is no result."""
    say_line(reason)
    return status


if __name__ == "__main__":
    sys.exit(main())
