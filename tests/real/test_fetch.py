"""The script that fetches, as far as it can be tried without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kexecemu.data import fixture_path


def run(cache: Path, *arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(fixture_path("fetch.py")), *arguments],
        env={"PATH": path, "KEXECEMU_CACHE": str(cache), "HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def tool(folder: Path, name: str, script: str) -> None:
    """A stand-in for one of apt's programs."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH on which apt finds nothing, as on a machine without a network."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool(folder, "apt-get", 'test "$4" = update && echo "W: Failed to fetch lists" >&2; exit 0')
    tool(folder, "apt-cache", 'echo "E: No packages found" >&2; exit 100')
    tool(folder, "dpkg-deb", "exit 0")
    return folder


def test_without_apt_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path / "cache", "kernel", path="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fetch: apt-get is missing: this needs Debian's apt and dpkg\n"


def test_without_a_network_it_says_what_is_missing_and_why_in_one_line(tmp_path: Path, tools: Path) -> None:
    done = run(tmp_path / "cache", "kernel", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 1
    assert done.stderr == "fetch: apt-cache depends: No packages found; Failed to fetch lists\n"


def test_a_package_that_cannot_be_unpacked_leaves_nothing_behind(tmp_path: Path, tools: Path) -> None:
    tool(tools, "apt-get", 'if test "$4" = download; then : >busybox-static_1_arm64.deb; fi')
    tool(tools, "dpkg-deb", 'echo "unexpected end of file" >&2; exit 2')
    cache = tmp_path / "cache"
    done = run(cache, "busybox", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 1
    assert done.stderr == "fetch: busybox-static_1_arm64.deb: unexpected end of file\n"
    assert {path.name for path in cache.iterdir()} == {"apt", ".lock"}


def test_only_what_is_wanted_of_a_package_gets_into_the_cache(tmp_path: Path, tools: Path) -> None:
    tool(tools, "apt-get", 'if test "$4" = download; then : >busybox-static_1_arm64.deb; fi')
    tool(tools, "dpkg-deb", 'mkdir -p "$3/bin" "$3/doc"; echo box >"$3/bin/busybox"; echo >"$3/doc/README"')
    cache = tmp_path / "cache"
    done = run(cache, "busybox", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(cache)) for path in (cache / "busybox").rglob("*") if path.is_file()}
    assert files == {"busybox/bin/busybox", "busybox/PACKAGES"}
    assert (cache / "busybox/bin/busybox").read_text() == "box\n"


def test_of_kexec_tools_the_program_is_kept_wherever_the_release_has_it(tmp_path: Path, tools: Path) -> None:
    for place in ("sbin", "usr/sbin"):
        tool(tools, "apt-get", 'if test "$4" = download; then : >kexec-tools_1_arm64.deb; fi')
        script = f'mkdir -p "$3/{place}" && echo kexec >"$3/{place}/kexec" && echo >"$3/{place}/vmcore-dmesg"'
        tool(tools, "dpkg-deb", script)
        cache = tmp_path / place.replace("/", "-")
        done = run(cache, "kexec-tools", path=f"{tools}:/usr/bin:/bin")
        assert done.returncode == 0, done.stderr
        files = {
            str(path.relative_to(cache)) for path in (cache / "kexec-tools").rglob("*") if path.is_file()
        }
        assert files == {f"kexec-tools/{place}/kexec", "kexec-tools/PACKAGES"}


def test_what_is_there_already_is_left_alone_without_any_tool(
    tmp_path: Path, fetch_module: ModuleType
) -> None:
    cache = tmp_path / "cache"
    kernel = cache / "kernel/boot/vmlinuz-1-arm64"
    kernel.parent.mkdir(parents=True)
    kernel.write_bytes(b"kernel")
    done = run(cache, "kernel", path="")
    assert (done.returncode, done.stdout) == (0, f"kernel: already there, {kernel}\n")
    assert fetch_module.cached("kernel", cache) == kernel
    assert fetch_module.cached("busybox", cache) is None


def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, fetch_module: ModuleType
) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("KEXECEMU_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert fetch_module.cache_folder() == Path("/h/.cache/kexecemu")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert fetch_module.cache_folder() == Path("/x/kexecemu")
    monkeypatch.setenv("KEXECEMU_CACHE", "/k")
    assert fetch_module.cache_folder() == Path("/k")


def test_a_name_that_is_no_target_is_refused_with_those_that_are(
    tmp_path: Path, fetch_module: ModuleType
) -> None:
    done = run(tmp_path, "vmlinuz")
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert "there is no 'vmlinuz' to fetch" in said
    assert said.endswith(f"there are {', '.join(fetch_module.TARGETS)}")
    assert {"kernel", "busybox", "dumptools", "kexec-tools"} <= set(fetch_module.TARGETS)
