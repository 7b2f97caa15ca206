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


def files_of(cache: Path, what: str) -> set[str]:
    """The files in a target's folder, as paths below it; links to folders are not entered."""
    folder = cache / what
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_of_kexec_tools_the_program_and_its_libraries_are_kept_wherever_the_release_has_them(
    tmp_path: Path, tools: Path
) -> None:
    for usr in ("", "usr/"):
        # apt downloads what has dependencies into its archives.
        folder = "for word; do case $word in *apt.conf) folder=${word%/apt.conf};; esac; done"
        archive = '>"$folder/cache/archives/kexec-tools_1_arm64.deb"'
        tool(tools, "apt-get", f'{folder}; if test "$4" = install; then : {archive}; fi')
        library = f"{usr}lib/aarch64-linux-gnu"
        script = [
            f'mkdir -p "$3/{usr}sbin" "$3/{library}/perl"',
            f'touch "$3/{usr}sbin/kexec" "$3/{usr}sbin/vmcore-dmesg"',
            f'touch "$3/{library}/libc.so.6" "$3/{library}/ld-linux-aarch64.so.1" "$3/{library}/perl/B.so"',
            f'ln -s aarch64-linux-gnu/ld-linux-aarch64.so.1 "$3/{usr}lib"',
        ]
        tool(tools, "dpkg-deb", "\n".join(script))
        cache = tmp_path / f"cache{usr.strip('/')}"
        done = run(cache, "kexec-tools", path=f"{tools}:/usr/bin:/bin")
        assert done.returncode == 0, done.stderr
        kept = ("sbin/kexec", "lib/ld-linux-aarch64.so.1")
        libraries = ("ld-linux-aarch64.so.1", "libc.so.6")
        assert files_of(cache, "kexec-tools") == {
            "PACKAGES",
            *(f"{usr}{name}" for name in kept),
            *(f"{library}/{name}" for name in libraries),
        }


KERNEL_PACKAGE = """\
mkdir -p "$3/boot" "$3/lib/modules/6-arm64/kernel/drivers/virtio" "$3/lib/modules/6-arm64/kernel/fs"
touch "$3/boot/vmlinuz-6-arm64" "$3/boot/config-6-arm64" "$3/boot/System.map-6-arm64"
touch "$3/lib/modules/6-arm64/modules.builtin" "$3/lib/modules/6-arm64/modules.order"
cd "$3/lib/modules/6-arm64/kernel"
touch drivers/virtio/virtio.ko drivers/virtio/virtio_mmio.ko.xz drivers/virtio/virtio_pci.ko fs/ext4.ko"""


@pytest.fixture
def kernel_tools(tools: Path) -> Path:
    """A PATH on which apt has one kernel, in a package with much else."""
    package = 'if test "$4" = download; then echo "$5" >>asked; : >linux-image-6-arm64_1_arm64.deb; fi'
    tool(tools, "apt-get", package)
    tool(tools, "apt-cache", 'echo "  Depends: linux-image-6-arm64"')
    tool(tools, "dpkg-deb", KERNEL_PACKAGE)
    return tools


def test_of_a_kernel_its_configuration_and_the_modules_of_a_disk_are_kept(
    tmp_path: Path, kernel_tools: Path, fetch_module: ModuleType
) -> None:
    cache = tmp_path / "cache"
    done = run(cache, "kernel", path=f"{kernel_tools}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    modules = "lib/modules/6-arm64"
    assert files_of(cache, "kernel") == {
        "PACKAGES",
        "boot/config-6-arm64",
        "boot/vmlinuz-6-arm64",
        f"{modules}/modules.builtin",
        f"{modules}/kernel/drivers/virtio/virtio.ko",
        f"{modules}/kernel/drivers/virtio/virtio_mmio.ko.xz",
    }
    assert fetch_module.kernel_modules("kernel", cache) == cache / "kernel" / modules
    assert fetch_module.fetched_folder("kernel", cache) == cache / "kernel"
    assert fetch_module.kernel_modules("kernel-trixie", cache) is None
    assert fetch_module.fetched_folder("kernel-trixie", cache) is None


def test_a_kernel_that_was_fetched_without_its_modules_is_fetched_again(
    tmp_path: Path, kernel_tools: Path, fetch_module: ModuleType
) -> None:
    cache = tmp_path / "cache"
    (cache / "kernel/boot").mkdir(parents=True)
    (cache / "kernel/boot/vmlinuz-5-arm64").touch()
    assert fetch_module.cached("kernel", cache) is None
    done = run(cache, "kernel", path=f"{kernel_tools}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert fetch_module.cached("kernel", cache) == cache / "kernel/boot/vmlinuz-6-arm64"
    assert not (cache / "kernel/boot/vmlinuz-5-arm64").exists()
    assert {path.name for path in cache.iterdir()} == {"apt", "kernel", ".lock"}


MIRRORS = """\
Debian Debian http://mirror.example/debian/
Debian Debian http://mirror.example/debian/
Debian Debian-Security http://mirror.example/security/
Other Other http://elsewhere.example/debian/"""


def test_another_release_comes_from_the_machine_s_mirrors(tmp_path: Path, kernel_tools: Path) -> None:
    script = (kernel_tools / "apt-get").read_text().removeprefix("#!/bin/sh\n")
    tool(kernel_tools, "apt-get", f'if test "$4" = indextargets; then echo "{MIRRORS}"; fi\n{script}')
    cache = tmp_path / "cache"
    done = run(cache, "kernel-trixie", path=f"{kernel_tools}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    sources = (cache / "apt-trixie/sources.list").read_text()
    assert [line.split()[-3:] for line in sources.splitlines()] == [
        ["http://mirror.example/debian/", "trixie", "main"],
        ["http://mirror.example/security/", "trixie-security", "main"],
    ]
    conf = (cache / "apt-trixie/apt.conf").read_text()
    assert f'Dir::Etc::SourceList "{cache}/apt-trixie/sources.list";' in conf
    assert 'Dir::Etc::SourceParts "/dev/null";' in conf
    assert done.stdout.splitlines()[:2] == [
        "apt: updating the lists of arm64 packages",
        "apt: updating the lists of arm64 packages of trixie",
    ]


def test_on_a_machine_without_debian_s_sources_another_release_cannot_be_had(
    tmp_path: Path, kernel_tools: Path
) -> None:
    done = run(tmp_path / "cache", "kernel-trixie", path=f"{kernel_tools}:/usr/bin:/bin")
    assert done.returncode == 1
    assert done.stderr == "fetch: trixie: no source of this machine's apt is Debian's\n"


def test_what_is_there_already_is_left_alone_without_any_tool(
    tmp_path: Path, fetch_module: ModuleType
) -> None:
    cache = tmp_path / "cache"
    kernel = cache / "kernel/boot/vmlinuz-1-arm64"
    modules = cache / "kernel/lib/modules/1-arm64"
    for file in (kernel, cache / "kernel/boot/config-1-arm64", modules / "modules.builtin"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"kernel")
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
    assert {"kernel", "kernel-trixie", "busybox", "dumptools", "kexec-tools"} <= set(fetch_module.TARGETS)
