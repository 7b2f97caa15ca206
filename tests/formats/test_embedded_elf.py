"""Finding an object inside a program: its place is its own header's, its length its own section table's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from kexecemu.data import fixture_path, purgatory_path
from kexecemu.formats.elfrel import embedded_objects, object_or_embedded

OURS = purgatory_path().read_bytes()
THEIRS = fixture_path("guests/kexec-tools-purgatory.ro").read_bytes()
PROGRAM = fixture_path("guests/vmlinux").read_bytes()
IDENT = b"\x7fELF\x02\x01\x01"


def test_objects_are_cut_out_whole_wherever_they_lie() -> None:
    noise = Random(1).randbytes(1000)
    data = noise + OURS + noise[:3] + THEIRS + noise
    first = len(noise)
    assert list(embedded_objects(data)) == [(first, OURS), (first + len(OURS) + 3, THEIRS)]


def test_the_object_that_a_file_itself_is_does_not_count() -> None:
    assert list(embedded_objects(OURS)) == []
    assert object_or_embedded(OURS) is OURS


def test_what_only_looks_like_a_header_is_passed_over() -> None:
    truncated = OURS[:-100]
    other_machine = OURS[:18] + b"\x3e\0" + OURS[20:]
    data = b"\0" + IDENT + b"\0" * 99 + other_machine + PROGRAM + OURS
    assert [found for _, found in embedded_objects(data)] == [OURS]
    assert list(embedded_objects(b"\0" + truncated)) == []


def test_a_program_stands_for_the_object_in_it() -> None:
    assert object_or_embedded(PROGRAM + THEIRS + OURS) == THEIRS
    assert object_or_embedded(PROGRAM) is PROGRAM
    assert object_or_embedded(b"no ELF" + OURS) == b"no ELF" + OURS
    assert object_or_embedded(b"") == b""


def test_an_object_compiled_into_a_program_is_found(tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    (tmp_path / "main.S").write_text(f'.data\n.quad 1\n.incbin "{purgatory_path()}"\n.quad 2\n')
    (tmp_path / "main.c").write_text("void _start(void) { }\n")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-freestanding-none", "-nostdlib"]
    done = subprocess.run(
        [*zig, "main.c", "main.S", "-o", "program", "-s"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert object_or_embedded((tmp_path / "program").read_bytes()) == OURS
