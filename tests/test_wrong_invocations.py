"""Everything that can be got wrong on the command line: exit status and the one line that says what it is.

data/wrong-invocations.txt lists them, by kinds. An invocation is `$ kexecemu WORDS` as a shell takes them, below it the
exit status and all that stderr holds; "…" in it stands for a list that grows. A line `toml TEXT` before it is the
file s.toml. They run in a folder with the files that bad_files() makes, and nothing in it may be another one after it.
"""

from __future__ import annotations

import gzip
import os
import re
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from image_header import build

from kexecemu.cli import main
from kexecemu.data import fixture_path, purgatory_path
from kexecemu.formats.fdt import FdtEditor
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.ranges import PhysRange

LIST = Path(__file__).resolve().parent / "data" / "wrong-invocations.txt"
STUB = fixture_path("guests/capture-Image").read_bytes()
PURGATORY = purgatory_path().read_bytes()
PEM = "-----BEGIN {0}-----\n{1}\n-----END {0}-----\n"


class Wrong(NamedTuple):
    """One invocation: the text of s.toml or None, the words, and what is to come of it."""

    toml: str | None
    words: str
    status: int
    line: str


def listed() -> Iterator[Wrong]:
    toml, words = None, ""
    for line in LIST.read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "toml":
            toml = rest.encode().decode("unicode_escape")
        elif mark == "$":
            words = rest
        elif mark.isdigit():
            yield Wrong(toml, words, int(mark), rest)
            toml = None
        else:
            assert not line or mark == "#", line


ALL = list(listed())


def _large_tree() -> bytes:
    """A board's device tree of more than 2 MiB."""
    tree = FdtEditor(virt_device_tree([PhysRange.of(0x40000000, 1 << 30)], 1, 0x9000000), 4 << 20)
    tree.setprop(0, "padding", bytes(2 << 20))
    tree.pack()
    return tree.to_bytes()


def damaged(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are not what they should be."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    files = {
        "empty": b"",
        "text": b"#!/bin/sh\n" * 100,
        "short.Image": STUB[:40],
        "cut.Image": STUB[:5000],
        "16k.Image": damaged(STUB, 24, b"\x0c"),
        "no-size.Image": damaged(STUB, 16, bytes(8)),
        "huge.Image": build(image_size=1 << 30),
        "zip.Image": gzip.compress(STUB, mtime=0)[:1000],
        "zip.head": gzip.compress(STUB, mtime=0)[:9],
        "zboot.efi": struct.pack("<2s2x4sII8x32s", b"MZ", b"zimg", 64, 100, b"zstd22") + bytes(200),
        "vmlinux": fixture_path("guests/vmlinux").read_bytes(),
        "large.dtb": _large_tree(),
        "x86.ro": damaged(PURGATORY, 18, b"\x3e\x00"),
        "cut.ro": PURGATORY[:100],
        "other.ro": PURGATORY.replace(b"purgatory_sha_regions\0", b"purgatory_sha_regionz\0"),
        "bad.pem": PEM.format("CERTIFICATE", "!!!!").encode(),
        "key.pem": PEM.format("PRIVATE KEY", "AAAA").encode(),
        "garbage.dtb": b"\xd0\x0d\xfe\xed" + b"\xff" * 60,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file in it, with what changes when it is written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def test_a_hundred_and_more_are_listed_and_none_twice() -> None:
    assert len(ALL) >= 100
    assert len({(one.toml, one.words) for one in ALL}) == len(ALL)
    assert {one.status for one in ALL} == {2}


@pytest.mark.parametrize("wrong", ALL, ids=[f"{one.words} {one.toml or ''}"[:90] for one in ALL])
def test_a_wrong_invocation_is_answered_in_one_line_and_changes_nothing(
    wrong: Wrong, bad_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bad_files)
    monkeypatch.setenv("KEXECEMU_CACHE", str(bad_files / "folder" / "no cache"))
    scenario = bad_files / "s.toml"
    scenario.unlink(missing_ok=True)
    if wrong.toml is not None:
        scenario.write_text(wrong.toml, encoding="utf-8")
    before = state(bad_files)
    program, *words = shlex.split(wrong.words)
    assert program == "kexecemu"
    status = main(words)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith("\n") and printed.err.count("\n") == 1, printed.err
    wanted = ".*".join(map(re.escape, wrong.line.split("…")))
    assert re.fullmatch(wanted, printed.err.rstrip("\n")), f"{printed.err}is not\n{wrong.line}"
    assert status == wrong.status
    assert state(bad_files) == before
    assert os.getcwd() == str(bad_files)
