"""What is left of a failed test's crash, in a folder of its own: report, console, timeline, dump, scenario."""

import hashlib
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.errors import FormatError
from kexecemu.failure import KnownEnd
from kexecemu.files import replace_file
from kexecemu.folders import replacing_folder
from kexecemu.linux.first import FirstLinux
from kexecemu.report.again import Again
from kexecemu.scenario.runner import Result
from kexecemu.scenario.schema import Expect
from kexecemu.visible import visible

__all__ = ["FILES", "again_in", "chosen_folder", "folder_of", "keep", "note_end", "shown"]

FILES: Final = {
    "report": "report.html",
    "console": "console.txt",
    "timeline": "timeline.jsonl",
    "vmcore": "vmcore",
    "scenario": "scenario.toml",
}
"""What may be in the folder."""

_LONGEST_NAME = 80


def folder_of(item: pytest.Item) -> Path | None:
    """Where the artefacts of a test go: below --kexecemu-artefacts or its ini value, else pytest's temporary folder.

    The name is made from the test's, and no other test has it. None where there is no temporary folder either.
    """
    config = item.config
    chosen = chosen_folder(config)
    if chosen is None:
        factory = getattr(config, "_tmp_path_factory", None)
        if factory is None:
            return None
        chosen = Path(factory.getbasetemp(), "kexecemu")
    plain = re.sub(r"[^A-Za-z0-9=.]+", "-", item.nodeid).strip("-.")
    if len(plain) > _LONGEST_NAME:
        plain = f"{plain[: _LONGEST_NAME // 2]}--{plain[-_LONGEST_NAME // 2 :]}"
    return chosen / (f"{plain}-{hashlib.sha256(item.nodeid.encode()).hexdigest()[:8]}")


def chosen_folder(config: pytest.Config) -> Path | None:
    """The folder that was asked for: the option's path starts where pytest was called, the ini value's at the root."""
    option, ini = config.getoption("kexecemu_artefacts"), config.getini("kexecemu_artefacts")
    if option:
        return Path(config.invocation_params.dir, option)
    return Path(config.rootpath, ini) if ini else None


def note_end(item: pytest.Item, end: End) -> None:
    """The outcome of a crash into the test's properties, which the junit file has."""
    item.user_properties += [("kexecemu_outcome", end.outcome.value), ("kexecemu_dump", end.dump.value)]


def again_in(folder: Path | None, item: pytest.Item, end: End, expect: Expect | None) -> str:
    """The line that fails again in the same words: a command, one with the scenario that keep() writes, or the test.

    Where [expect] has no words for what was asserted it is the test, and the crash alone in a second line.
    """
    again = end.again if isinstance(end, KnownEnd) else None
    test = shlex.join(["pytest", _node(item)])
    if again is None:
        return test
    if expect is None:
        return f"{test}\ncrash: {_crash_alone(folder, item, again, None)}"
    return _crash_alone(folder, item, again, expect)


def _crash_alone(folder: Path | None, item: pytest.Item, again: Again, expect: Expect | None) -> str:
    command = again.command(expect)
    if command is not None:
        return command
    if folder is None:
        return again.python(expect)
    return shlex.join(["kexecemu", "run", str(shown(folder / FILES["scenario"], item.config))])


def _node(item: pytest.Item) -> str:
    """The test's id, from the folder that pytest was called in."""
    file, colons, rest = item.nodeid.partition("::")
    return f"{shown(item.config.rootpath / file, item.config)}{colons}{rest}"


def shown(path: Path, config: pytest.Config) -> Path:
    """The path as one would type it where pytest was called."""
    folder = config.invocation_params.dir
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def keep(
    folder: Path,
    end: End,
    kernel: Kernel | FirstLinux | None,
    expect: Expect | None,
    wrong: list[str],
    *,
    test: str,
    dump: bool,
) -> dict[str, Path]:
    """Write what there is of a test's crash; what a former run has left goes. OSError if that
    cannot be: then nothing is written.

    Gives the files that were written, by the keys of FILES.
    """
    writers: dict[str, Callable[[Path], object]] = {
        "console": lambda path: replace_file(path, visible(end.console).encode()),
        "timeline": lambda path: replace_file(path, end.timeline.as_jsonl().encode()),
    }
    again = end.again if isinstance(end, KnownEnd) else None
    name, seed, syscall = test, 0, "kexec_file_load"
    if again is not None:
        name, seed, syscall = f"{again.name} ({test})", again.setup.seed, again.setup.call
        text = replace(again, name=name).file(expect)
        writers["scenario"] = lambda path: replace_file(path, text.encode())
    if kernel is not None and kernel.image is not None:
        from kexecemu.report.html import render

        result = Result(name, seed, kernel, kernel.image, end, wrong, expect is not None, syscall)
        writers["report"] = lambda path: replace_file(path, render(result).encode())
    if dump and end.vmcore is not None:
        writers["vmcore"] = end.vmcore.write
    written = {}
    with replacing_folder(folder, without=FILES.values()) as new:
        for what, write in writers.items():
            with suppress(FormatError):  # no dump: the account of the crash says why
                write(new / FILES[what])
                written[what] = folder / FILES[what]
    return {what: written[what] for what in FILES if what in written}
