"""`kexecemu purgatory build`: the object that was asked for, and an account of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kexecemu.commands.purgatory import describe_purgatory
from kexecemu.data import purgatory_path, purgatory_sources
from kexecemu.guests.purgatory import OPTIONS, files_of
from kexecemu.kernel.image.purgatory import parse_purgatory

pytestmark = pytest.mark.slow  # a compiler runs


def build(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("ziglang")
    command = [sys.executable, "-m", "kexecemu", "purgatory", "build", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("options", "name"), [(["--core"], "core"), ([], "default")])
def test_the_two_that_ship_are_built_to_the_byte(tmp_path: Path, options: list[str], name: str) -> None:
    done = build(tmp_path / "mine.ro", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "mine.ro").read_bytes() == purgatory_path(name).read_bytes()
    assert f"object       {purgatory_path(name).stat().st_size:,} bytes" in done.stdout
    assert done.stdout.endswith(f"written      {tmp_path / 'mine.ro'}\n")


def test_an_option_comes_with_what_it_needs_and_the_account_is_that_of_the_object(tmp_path: Path) -> None:
    out = tmp_path / "mine.ro"
    done = build(out, "--with", "repair", "--with", "sha2,caches", "--json")
    found = json.loads(done.stdout)
    assert found["options"] == ["caches", "sha2", "record", "locate", "policy", "repair"]
    assert (found["compiler"], found["files"]) == ("clang", [str(out)])
    assert found["sources"] == list(files_of(found["options"])) and "report.c" not in found["sources"]
    assert all((purgatory_sources() / name).is_file() for name in found["sources"])
    assert found["object_bytes"] == out.stat().st_size
    seen = describe_purgatory(parse_purgatory(out.read_bytes()))
    assert (found["bufsz"], found["memsz"]) == (seen["bufsz"], seen["memsz"])
    assert (seen["interface"], seen["symbols"]["kernel"]["purgatory_copy"]) == ("kernel", "ok")
    assert seen["symbols"]["kernel"]["purgatory_uart_base"] == "missing"


def test_what_is_left_out_takes_with_it_what_needs_it(tmp_path: Path) -> None:
    done = build(tmp_path / "mine.ro", "--without", "record", "--json")
    left = set(OPTIONS) - set(json.loads(done.stdout)["options"])
    assert left == {"record", "locate", "chosen", "repair"}


def test_a_build_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "mine.ro"
    out.write_text("before")
    done = build(out, "--with", "nosuch")
    assert (done.returncode, done.stdout, out.read_text()) == (2, "", "before")
