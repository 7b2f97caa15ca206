"""The script that fetches, as far as it can be tried without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import kexecemu
from kexecemu.errors import FetchError, NotFetched
from kexecemu.fetch.apt import Archive, run_program
from kexecemu.fetch.cache import cache_folder, cached, fetched, fetched_folder, kernel_modules
from kexecemu.fetch.targets import TARGETS

PACKAGES = str(Path(kexecemu.__file__).parents[1])


def run(cache: Path, *arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kexecemu", "fetch", *arguments],
        env={"PATH": path, "KEXECEMU_CACHE": str(cache), "HOME": str(cache), "PYTHONPATH": PACKAGES},
        capture_output=True,
        text=True,
        timeout=60,
    )


def tool(folder: Path, name: str, script: str) -> None:
    """A stand-in for one of apt's programs."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


MIRRORS = """\
Debian Debian bookworm http://mirror.example/debian/
Debian Debian bookworm-updates http://mirror.example/debian/
Debian Debian-Security bookworm-security http://mirror.example/security/
Other Other bookworm http://elsewhere.example/debian/"""
# What apt-get says on a machine of Debian 12; the action is its fourth word.
BOOKWORM = f'if test "$4" = indextargets; then echo "{MIRRORS}"; fi'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH on which apt finds nothing, as on a machine without a network."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool(folder, "apt-get", 'test "$4" = update && echo "W: Failed to fetch lists" >&2; exit 0')
    tool(folder, "dpkg", "echo amd64")
    tool(folder, "apt-cache", 'echo "E: No packages found" >&2; exit 100')
    tool(folder, "dpkg-deb", "exit 0")
    return folder


def test_without_apt_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path / "cache", "kernel", path="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "kexecemu: fetch: apt-get is missing: this needs Debian's apt and dpkg\n"


def test_without_a_network_it_says_what_is_missing_and_why_in_one_line(tmp_path: Path, tools: Path) -> None:
    done = run(tmp_path / "cache", "kernel", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 1
    whose = "no source of this machine's apt is Debian's"
    assert done.stderr == f"kexecemu: fetch: bookworm: {whose}: Failed to fetch lists\n"


def test_a_package_that_cannot_be_unpacked_leaves_nothing_behind(tmp_path: Path, tools: Path) -> None:
    tool(tools, "apt-get", f'{BOOKWORM}; if test "$4" = download; then : >busybox-static_1_arm64.deb; fi')
    tool(tools, "dpkg-deb", 'echo "unexpected end of file" >&2; exit 2')
    cache = tmp_path / "cache"
    done = run(cache, "busybox", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 1
    assert done.stderr == "kexecemu: fetch: busybox-static_1_arm64.deb: unexpected end of file\n"
    assert {path.name for path in cache.iterdir()} == {"apt", ".lock"}


def test_only_what_is_wanted_of_a_package_gets_into_the_cache(tmp_path: Path, tools: Path) -> None:
    tool(tools, "apt-get", f'{BOOKWORM}; if test "$4" = download; then : >busybox-static_1_arm64.deb; fi')
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
        tool(tools, "apt-get", f'{BOOKWORM}; {folder}; if test "$4" = install; then : {archive}; fi')
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
    tool(tools, "apt-get", f"{BOOKWORM}; {package}")
    tool(tools, "apt-cache", 'echo "  Depends: linux-image-6-arm64"')
    tool(tools, "dpkg-deb", KERNEL_PACKAGE)
    return tools


def test_of_a_kernel_its_configuration_and_the_modules_of_a_disk_are_kept(
    tmp_path: Path, kernel_tools: Path
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
    assert kernel_modules("kernel", cache) == cache / "kernel" / modules
    assert fetched_folder("kernel", cache) == cache / "kernel"
    assert kernel_modules("kernel-trixie", cache) is None
    assert fetched_folder("kernel-trixie", cache) is None


def test_a_kernel_that_was_fetched_without_its_modules_is_fetched_again(
    tmp_path: Path, kernel_tools: Path
) -> None:
    cache = tmp_path / "cache"
    (cache / "kernel/boot").mkdir(parents=True)
    (cache / "kernel/boot/vmlinuz-5-arm64").touch()
    assert cached("kernel", cache) is None
    with pytest.raises(NotFetched, match="run kexecemu fetch kernel "):
        fetched("kernel", cache)
    done = run(cache, "kernel", path=f"{kernel_tools}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert cached("kernel", cache) == cache / "kernel/boot/vmlinuz-6-arm64"
    assert not (cache / "kernel/boot/vmlinuz-5-arm64").exists()
    assert {path.name for path in cache.iterdir()} == {"apt", "kernel", ".lock"}


def test_another_release_comes_from_the_machine_s_mirrors(tmp_path: Path, kernel_tools: Path) -> None:
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
    assert [line for line in done.stdout.splitlines() if line.startswith("apt: ")] == [
        "apt: updating the lists of arm64 packages",
        "apt: updating the lists of arm64 packages of trixie",
    ]


def test_backports_have_no_security_suite_of_their_own(tmp_path: Path, kernel_tools: Path) -> None:
    cache = tmp_path / "cache"
    done = run(cache, "kernel-backports", path=f"{kernel_tools}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    [source] = (cache / "apt-trixie-backports/sources.list").read_text().splitlines()
    assert source.split()[-3:] == ["http://mirror.example/debian/", "trixie-backports", "main"]


SPLIT_PACKAGES = """\
folder="$3/usr/lib/modules/7-arm64"; mkdir -p "$folder/kernel/drivers/block"
case "$2" in
*linux-base-7*) echo CONFIG_KEXEC=y >"$folder/config"; touch "$folder/modules.builtin" ;;
*linux-binary-7*) echo image >"$folder/vmlinuz" ;;
*linux-modules-7*) touch "$folder/kernel/drivers/block/virtio_blk.ko.xz" ;;
esac"""
SPLIT_DEPENDENCIES = """\
case "$6" in
linux-image-cloud-arm64) echo "  Depends: linux-base-cloud-arm64"; echo "  Depends: linux-image-7-arm64" ;;
linux-image-7-arm64)
    echo "  Depends: dracut"; echo "  Depends: linux-base-arm64"
    for part in base binary modules; do echo "  Depends: linux-$part-7-arm64"; done ;;
esac"""


def test_a_kernel_whose_package_is_split_is_laid_out_as_the_others(tmp_path: Path, tools: Path) -> None:
    download = 'if test "$4" = download; then shift 4; for one; do : >"${one}_1_arm64.deb"; done; fi'
    tool(tools, "apt-get", f"{BOOKWORM}; {download}")
    tool(tools, "apt-cache", SPLIT_DEPENDENCIES)
    tool(tools, "dpkg-deb", SPLIT_PACKAGES)
    cache = tmp_path / "cache"
    done = run(cache, "kernel-backports", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert files_of(cache, "kernel-backports") == {
        "PACKAGES",
        "boot/config-7-arm64",
        "boot/vmlinuz-7-arm64",
        "usr/lib/modules/7-arm64/kernel/drivers/block/virtio_blk.ko.xz",
        "usr/lib/modules/7-arm64/modules.builtin",
    }
    packages = (cache / "kernel-backports/PACKAGES").read_text().split()
    assert packages == [f"linux-{part}-7-arm64_1_arm64" for part in ("base", "binary", "image", "modules")]
    kernel = fetched("kernel-backports", cache)
    assert kernel == cache / "kernel-backports/boot/vmlinuz-7-arm64"
    modules = kernel_modules("kernel-backports", cache)
    assert modules is not None and (modules / "kernel/drivers/block/virtio_blk.ko.xz").exists()


def test_qemu_is_started_by_its_own_loader_with_its_own_libraries(tmp_path: Path, tools: Path) -> None:
    folder = "for word; do case $word in *apt.conf) folder=${word%/apt.conf};; esac; done"
    archive = '>"$folder/cache/archives/qemu-system-arm_1_amd64.deb"'
    tool(tools, "apt-get", f'{BOOKWORM}; {folder}; if test "$4" = install; then : {archive}; fi')
    library = '"$3/usr/lib/x86_64-linux-gnu'
    script = [
        f'mkdir -p "$3/usr/bin" "$3/usr/lib64" "$3/usr/share/qemu" {library}"',
        'echo program >"$3/usr/bin/qemu-system-aarch64"; touch "$3/usr/share/qemu/efi-virtio.rom"',
        f'touch {library}/libc.so.6"',
        # The loader of this test says what it was started with.
        'printf \'#!/bin/sh\\necho "$@"\\n\' >"$3/usr/lib64/ld-linux-x86-64.so.2"',
        'chmod +x "$3/usr/lib64/ld-linux-x86-64.so.2"',
    ]
    tool(tools, "dpkg-deb", "\n".join(script))
    cache = tmp_path / "cache"
    done = run(cache, "qemu", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    qemu = fetched("qemu", cache)
    (tmp_path / "link").symlink_to(qemu)
    said = subprocess.run([tmp_path / "link", "-M", "virt"], capture_output=True, text=True, check=True)
    root = cache / "qemu"
    assert said.stdout.split() == [
        "--library-path",
        f"{root}/usr/lib/x86_64-linux-gnu",
        f"{root}/usr/bin/qemu-system-aarch64",
        "-L",
        f"{root}/usr/share/qemu",
        "-M",
        "virt",
    ]


def test_the_list_says_what_there_is_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "busybox/bin").mkdir(parents=True)
    (tmp_path / "busybox/bin/busybox").touch()
    done = run(tmp_path, "--list", path="")
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    assert list(rows) == list(TARGETS)
    assert {name for name, state in rows.items() if state == "fetched"} == {"busybox"}


def test_on_a_machine_without_debian_s_sources_another_release_cannot_be_had(
    tmp_path: Path, kernel_tools: Path
) -> None:
    script = (kernel_tools / "apt-get").read_text().replace("Debian ", "Ubuntu ")
    (kernel_tools / "apt-get").write_text(script)
    cache, path = tmp_path / "cache", f"{kernel_tools}:/usr/bin:/bin"
    done = run(cache, "kernel-trixie", path=path)
    assert done.returncode == 1
    why = "no source of this machine's apt is Debian's: give one with --mirror URL"
    assert done.stderr == f"kexecemu: fetch: trixie: {why}\n"
    done = run(cache, "kernel-trixie", "--mirror", "http://given.example/debian", path=path)
    assert done.returncode == 0, done.stderr
    [source] = (cache / "apt-trixie/sources.list").read_text().splitlines()
    assert source.split()[-3:] == ["http://given.example/debian", "trixie", "main"]


def test_what_is_there_already_is_left_alone_without_any_tool(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kernel = cache / "kernel/boot/vmlinuz-1-arm64"
    modules = cache / "kernel/lib/modules/1-arm64"
    for file in (kernel, cache / "kernel/boot/config-1-arm64", modules / "modules.builtin"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"kernel")
    done = run(cache, "kernel", path="")
    assert (done.returncode, done.stdout) == (0, f"kernel: already there, {kernel}\n")
    assert cached("kernel", cache) == kernel
    assert cached("busybox", cache) is None


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("KEXECEMU_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/h/.cache/kexecemu")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/kexecemu")
    monkeypatch.setenv("KEXECEMU_CACHE", "/k")
    assert cache_folder() == Path("/k")


def test_a_name_that_is_no_target_is_refused_with_those_that_are(tmp_path: Path) -> None:
    done = run(tmp_path, "vmlinuz")
    assert done.returncode == 2
    [said] = done.stderr.splitlines()
    assert said == f"kexecemu: there is no 'vmlinuz' to fetch; there are {', '.join(TARGETS)}"
    assert {"kernel", "kernel-trixie", "busybox", "dumptools", "kexec-tools"} <= set(TARGETS)


OLD = "pool/main/l/linux/image-6+deb13_6-1~bpo13+1_arm64.deb"


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("mirror.example", ["http://mirror.example/debian/"]),
        ("snapshot.debian.org", ["http://mirror.example/debian/", "http://mirror.example/security/"]),
        ("nowhere", []),
    ],
)
def test_what_no_release_has_any_more_comes_from_a_mirror_or_from_the_snapshots(
    tmp_path: Path, kernel_tools: Path, monkeypatch: pytest.MonkeyPatch, there: str, asked: list[str]
) -> None:
    monkeypatch.setenv("PATH", f"{kernel_tools}:/usr/bin:/bin")
    apt = Archive(tmp_path / "cache", lambda line: None).apt("bookworm", "arm64")
    seen: list[str] = []

    def helped(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        if not command[0].endswith("apt-helper"):
            return run_program(command, cwd)
        what, uri, place, digest = command[3:]
        assert (what, digest) == ("download-file", "SHA256:1234") and unquote(uri).endswith(OLD)
        seen.append(unquote(uri).removesuffix(OLD))
        if there in uri:
            Path(place).write_text("package")
        return subprocess.CompletedProcess(command, 0 if there in uri else 100, "", "")

    monkeypatch.setattr("kexecemu.fetch.apt.run_program", helped)
    if there == "nowhere":
        with pytest.raises(
            FetchError, match=r"^image-6\+deb13_6-1~bpo13\+1_arm64.deb: no release of Debian has it"
        ):
            apt.download_old(OLD, "1234", tmp_path)
        return
    apt.download_old(OLD, "1234", tmp_path)
    assert (tmp_path / Path(OLD).name).read_text() == "package"
    assert seen[: len(asked)] == asked and there in seen[-1]


def test_all_is_what_releases_have(tmp_path: Path, tools: Path) -> None:
    """A mirror that has thrown an old package away is nobody's fault."""
    old = [name for name, one in TARGETS.items() if one.old]
    assert old == ["kernel-6.18"]
    done = run(tmp_path / "cache", "--all", path=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 1 and "6.18" not in done.stdout + done.stderr
