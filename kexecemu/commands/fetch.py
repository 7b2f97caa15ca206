"""kexecemu fetch: real kernels and tools from Debian, into a cache, for scenarios and tests that want them."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kexecemu.commands import complete
from kexecemu.commands.options import option
from kexecemu.commands.streams import say_line
from kexecemu.errors import FetchError, InputError
from kexecemu.suggest import there_are

__all__ = ["EXAMPLES", "fetch_command"]

EXAMPLES = """\
kexecemu fetch
What a real capture kernel takes: Debian's kernel, and busybox.
kexecemu fetch kernel-trixie kexec-tools
Others, by name; --list says which there are.
"""


_NAMES = "What to fetch (default: kernel busybox)."
_MIRROR = "A mirror of Debian, on a machine whose apt has none (Ubuntu, say)."


def fetch_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help=_NAMES, autocompletion=complete.fetch_targets)
    ] = None,
    show: Annotated[bool, option("--list", "Say what there is to fetch, and what is there.")] = False,
    every: Annotated[bool, option("--all", "Fetch everything that a release of Debian has.")] = False,
    cache: Annotated[
        Path | None, option("--cache", "Elsewhere than $KEXECEMU_CACHE or ~/.cache/kexecemu.", "DIR")
    ] = None,
    mirror: Annotated[str | None, option("--mirror", _MIRROR, "URL")] = None,
) -> None:
    """Fetch real arm64 kernels and tools from Debian, once: exit status 1 if something cannot be had.

    Packages come by this machine's own apt, so its mirrors and keys count, but with lists and archives of their own
    below the cache: nothing is installed, and nothing here needs root.
    """
    from kexecemu.fetch.cache import cache_folder, cached, fetch
    from kexecemu.fetch.targets import EVERY, TARGETS, USUAL

    folder = cache.absolute() if cache is not None else cache_folder()
    if show:
        for name, target in TARGETS.items():
            print(f"{name:<17}{'fetched' if cached(name, folder) else '-':<9}{target.summary}")
        return
    wanted = list(dict.fromkeys(EVERY if every else names or USUAL))
    for name in wanted:
        if name not in TARGETS:
            raise InputError(f"there is no {name!r} to fetch{there_are(name, TARGETS)}")
    try:
        fetch(wanted, folder, partial(print, flush=True), mirror)
    except FetchError as error:
        say_line(f"fetch: {error}")
        raise typer.Exit(1) from error
    except OSError as error:
        raise InputError(f"fetch: {error.filename or folder}: {error.strerror or error}") from error
