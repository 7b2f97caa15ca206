"""kexecemu purgatory build: an object with the options that one wants, from the sources that ship."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from kexecemu.commands import complete
from kexecemu.commands.options import JsonOption, option
from kexecemu.commands.outputs import Written, check_outputs, print_json, print_written
from kexecemu.data import purgatory_sources
from kexecemu.errors import InputError
from kexecemu.guests.purgatory import OPTIONS, build_purgatory, chosen_options, code_lines, files_of
from kexecemu.guests.unifdef import without_options
from kexecemu.kernel.image.purgatory import link_at, parse_purgatory
from kexecemu.machine.virt import RAM_BASE
from kexecemu.suggest import there_are
from kexecemu.visible import lines_text

__all__ = ["BUILD_EXAMPLES", "build", "describe_build"]

_COMPILERS = {"clang": "zig", "gcc": "gcc"}
_NAMES = f"{', '.join(OPTIONS)}; with commas or repeated."
BUILD_EXAMPLES = """\
kexecemu purgatory build --core --out core.ro
The core alone, as it ships.
kexecemu purgatory build --with caches,sha2 --out fast.ro
As fast as with all options, and nothing else.
kexecemu purgatory build --without repair --compiler gcc --out mine.ro
All but one, by gcc.
"""


def describe_build(options: tuple[str, ...], data: bytes) -> dict[str, Any]:
    """What an object with these options is made of: sources, lines of code, sizes in bytes.

    Lines that are for other options do not count.
    """
    files = files_of(options)
    texts = {name: (purgatory_sources() / name).read_text() for name in files}
    linked = link_at(parse_purgatory(data), RAM_BASE)
    return {
        "options": list(options),
        "sources": list(files),
        "code_lines": sum(map(code_lines, without_options(texts, set(options), kernel=False).values())),
        "object_bytes": len(data),
        "bufsz": len(linked.buf),
        "memsz": linked.segment.memsz,
    }


def build(
    out: Annotated[Path, option("--out", "Where to write the object.", "FILE", show_default=False)],
    core: Annotated[bool, option("--core", "None of the options: the core alone.")] = False,
    wanted: Annotated[
        list[str] | None,
        option(
            "--with",
            f"These options, and what they need: {_NAMES}",
            "NAME",
            autocompletion=complete.of(OPTIONS),
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        option(
            "--without",
            "All others but these, and what needs them.",
            "NAME",
            autocompletion=complete.of(OPTIONS),
        ),
    ] = None,
    compiler: Annotated[
        str,
        option(
            "--compiler",
            "clang (the one in the ziglang wheel) or gcc.",
            "NAME",
            autocompletion=complete.of(_COMPILERS),
        ),
    ] = "clang",
    json: JsonOption = False,
) -> None:
    """Compile a purgatory with all options, with those that are named or with none."""
    if core and wanted:
        raise InputError("--core is none of the options, --with is some: give one of them")
    if compiler not in _COMPILERS:
        raise InputError(f"no compiler {compiler!r}{there_are(compiler, _COMPILERS)}")
    options = chosen_options([] if core else _names(wanted), _names(without) or ())
    check_outputs({"--out": out})
    data = build_purgatory(options, _COMPILERS[compiler])
    found = describe_build(options, data)
    written = Written()
    written.write("--out", out, lambda: data)
    if json:
        print_json({"compiler": compiler, **found}, written.files)
    else:
        sys.stdout.write(_text(compiler, found))
        print_written(written.files)
    written.exit()


def _names(given: Iterable[str] | None) -> list[str] | None:
    return [name for text in given for name in text.split(",")] if given else None


def _text(compiler: str, found: dict[str, Any]) -> str:
    lines = [
        "core         entry, check of itself, of the table and of the device tree, digest of all regions"
    ]
    lines += [f"{name:<13}{OPTIONS[name].summary}" for name in found["options"]]
    lines += [
        "",
        f"compiler     {compiler}",
        f"sources      {len(found['sources'])} files, {found['code_lines']:,} lines of code",
        f"object       {found['object_bytes']:,} bytes",
        f"loaded       {found['bufsz']:,} bytes, {found['memsz']:,} in memory",
    ]
    return lines_text(lines)
