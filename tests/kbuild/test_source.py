"""Debian's source comes by an apt of its own, from the release that has the version: with scripts in apt's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kexecemu

PACKAGES = str(Path(kexecemu.__file__).parents[1])
TRIXIE = "Debian Debian trixie http://mirror.example/debian/"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """apt's programs: the one that downloads writes down what for and from where."""
    folder = tmp_path / "bin"
    folder.mkdir()
    get = f"""\
if test "$4" = indextargets; then echo "{TRIXIE}"; fi
if test "$4" = download; then echo "$5" >>{tmp_path}/asked; cat "${{2%apt.conf}}sources.list" >>{tmp_path}/asked 2>&1
: >"$5_1_all.deb"; fi"""
    deb = 'mkdir -p "$3/usr/src/deep"; for v in 6.12 7.3; do echo tar >"$3/usr/src/linux-source-$v.tar.xz"; done'
    for name, script in (("apt-get", get), ("apt-cache", ""), ("dpkg", "echo amd64"), ("dpkg-deb", deb)):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def fetch(tmp_path: Path, *words: str, path: str) -> subprocess.CompletedProcess[str]:
    cache = tmp_path / "cache"
    return subprocess.run(
        [sys.executable, "-m", "kexecemu", "kernel", "fetch", *words],
        env={"PATH": path, "KEXECEMU_CACHE": str(cache), "HOME": str(cache), "PYTHONPATH": PACKAGES},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("version", "release"), [("6.12", "trixie"), ("7.3", "trixie-backports")])
def test_a_version_comes_from_its_release_once_and_only_the_tarball_is_kept(
    tmp_path: Path, tools: Path, version: str, release: str
) -> None:
    path = f"{tools}:{os.defpath}"
    done = fetch(tmp_path, version, path=path)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith(f"linux-source-{version}\n")
    assert release == "trixie" or release in asked
    folder = tmp_path / f"cache/linux-source-{version}"
    files = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
    assert files == {"PACKAGES", f"usr/src/linux-source-{version}.tar.xz"}
    again = fetch(tmp_path, version, path=path)
    assert "already there" in again.stdout
    assert (tmp_path / "asked").read_text() == asked


def test_what_cannot_be_had_is_one_line_and_leaves_nothing(tmp_path: Path, tools: Path) -> None:
    (tools / "apt-get").write_text('#!/bin/sh\necho "E: no network" >&2\nexit 100\n')
    done = fetch(tmp_path, "6.12", path=f"{tools}:{os.defpath}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("kexecemu: kernel fetch: ")
    assert not (tmp_path / "cache/linux-source-6.12").exists()
