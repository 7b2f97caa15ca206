"""A kernel is built once, kept by what decided it, and goes on where it was cut off: with a source tree of three files.

make and tar are real ones; compilers are scripts that are only asked for their version.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kexecemu.errors import BuildError, InputError
from kexecemu.kbuild.build import (
    BuildPlan,
    build_kernel,
    find_built,
    kernels_folder,
    read_built,
    series_digest,
    work_folder,
)
from kexecemu.kbuild.source import find_source
from kexecemu.kbuild.toolchain import Toolchain

MAKEFILE = """\
allnoconfig:
	@mkdir -p $(O); cp $(KCONFIG_ALLCONFIG) $(O)/.config; echo CONFIG_STUCK=y >> $(O)/.config
olddefconfig:
	@:
Image:
	@mkdir -p $(O)/arch/arm64/boot $(O)/arch/arm64/purgatory
	@echo "  CC      kernel/kexec_file.o"; echo run >> $(O)/runs
	@test ! -e "$(BREAK)" || { echo "kernel/kexec.c:7:1: error: 'x' undeclared"; false; }
	@echo "  AS      arch/arm64/kernel/head.o"
	@echo "  LDS     not an object"
	@cat file.c > $(O)/arch/arm64/boot/Image; echo $(KBUILD_BUILD_USER) > $(O)/System.map
	@test ! -e purgatory.c || cp purgatory.c $(O)/arch/arm64/purgatory/purgatory.ro
"""
OPTIONS = {"KEXEC_FILE": "y"}


@pytest.fixture(autouse=True)
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with all that a build needs, whatever the machine has."""
    if shutil.which("make") is None or shutil.which("xz") is None:
        pytest.skip("make and xz are not installed")
    folder = tmp_path / "bin"
    folder.mkdir()
    names = ["flex", "bison", "bc", "gcc", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-ld"]
    for name in [*names, "clang", "ld.lld", "llvm-ar", "llvm-nm", "llvm-objcopy"]:
        (folder / name).write_text(f"#!/bin/sh\necho {name} 1.0\n")
        (folder / name).chmod(0o755)
    for name in ("make", "tar", "xz", "sh", "cp", "cat", "mkdir", "test", "echo"):
        found = shutil.which(name)
        if found is not None:
            (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path, tools: Path) -> Path:
    """A cache with a source in it."""
    tree = tmp_path / "linux-source-6.12"
    tree.mkdir()
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "file.c").write_text("int first;\n")
    folder = tmp_path / "cache/linux-source-6.12"
    (folder / "usr/src").mkdir(parents=True)
    (folder / "PACKAGES").write_text("linux-source-6.12_6.12.57-1_all\n")
    tarball = folder / "usr/src/linux-source-6.12.tar.xz"
    subprocess.run(["tar", "-cJf", tarball, tree.name], cwd=tmp_path, check=True)
    return tmp_path / "cache"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    folder = tmp_path / "series"
    folder.mkdir()
    step = 'subject = "file: a second"\nbody = "For a test."\n'
    step += '[[edit]]\npath = "file.c"\nlines = "int second;\\n"\n'
    (folder / "01-second.toml").write_text(step)
    return folder


def plan(series: Path | None = None, **options: str) -> BuildPlan:
    return BuildPlan("6.12", (series,) if series else (), {**OPTIONS, **options})


def test_what_is_built_is_the_source_with_the_series_applied(cache: Path, series: Path) -> None:
    objects: list[None] = []
    built = build_kernel(plan(series), cache, 1, lambda: objects.append(None))
    assert built.image.read_text() == "int first;\nint second;\n"
    assert (built.steps, built.package) == (("file: a second",), "linux-source-6.12_6.12.57-1_all")
    assert len(objects) == 2
    assert built.purgatory is None
    kept = {path.name for path in built.folder.iterdir()}
    assert kept == {"Image", "System.map", "config", "BUILD.json"}
    assert (built.folder / "System.map").read_text() == "kexecemu\n"  # not whoever built it
    assert json.loads((built.folder / "BUILD.json").read_text())["options"] == OPTIONS
    assert [path.name for path in kernels_folder(cache).iterdir()] == [built.folder.name]
    assert find_source("6.12", cache).is_file()


def test_each_of_series_options_compiler_and_package_makes_another_kernel(cache: Path, series: Path) -> None:
    plans = [plan(), plan(series), plan(NR_CPUS="4"), BuildPlan("6.12", (), OPTIONS, Toolchain("clang"))]
    keys = [one.key(cache) for one in plans]
    (series / "01-second.toml").write_text(
        (series / "01-second.toml").read_text().replace("second;", "third;")
    )
    keys.append(plan(series).key(cache))
    (cache / "linux-source-6.12/PACKAGES").write_text("linux-source-6.12_6.12.58-1_all\n")
    keys.append(plan().key(cache))
    assert len(set(keys)) == len(keys)
    assert all(key.startswith("6.12-") for key in keys)


def test_a_file_that_a_step_takes_makes_another_kernel_wherever_it_is(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kexecemu.kbuild.build.series_path", lambda: tmp_path / "linux/purgatory")
    step = series / "02-taken.toml"
    step.write_text('subject = "a: b"\nbody = "c"\n[[new]]\npath = "taken"\nsource = "more/taken.txt"\n')
    missing = series_digest((series,))
    (tmp_path / "more").mkdir()
    (tmp_path / "more/taken.txt").write_text("one")
    one = series_digest((series,))
    (tmp_path / "more/taken.txt").write_text("two")
    assert len({missing, one, series_digest((series,))}) == 3


def test_what_is_there_is_not_built_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_built(plan(), cache) is None
    first = build_kernel(plan(), cache, 1)
    monkeypatch.setenv("BREAK", str(tmp_path))
    assert build_kernel(plan(), cache, 1) == first == find_built(plan(), cache)


def test_a_build_that_failed_is_told_by_its_first_error_and_goes_on_where_it_was(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAK", str(tmp_path))
    with pytest.raises(
        BuildError, match=r"make Image: kernel/kexec\.c:7:1: error: 'x' undeclared \(see .*make\.log"
    ):
        build_kernel(plan(), cache, 1)
    [work] = [path for path in kernels_folder(cache).iterdir() if path.is_dir()]
    assert find_built(plan(), cache) is None
    (work / "src/file.c").write_text("int kept;\n")  # what an interruption leaves is used
    monkeypatch.delenv("BREAK")
    built = build_kernel(plan(), cache, 1)
    assert built.image.read_text() == "int kept;\n"
    assert not work.exists()


def test_source_and_objects_are_kept_where_that_is_asked_for(cache: Path) -> None:
    built = build_kernel(plan(), cache, 1, keep=True)
    work = work_folder(built.folder)
    assert (work / "src/file.c").is_file() and read_built(work / "out").image.is_file()


def test_a_tree_that_was_not_edited_to_the_end_is_made_anew(cache: Path, series: Path) -> None:
    good = (series / "01-second.toml").read_text()
    (series / "02-third.toml").write_text(good.replace("file.c", "no-such-file.c"))
    with pytest.raises(InputError, match=r"no-such-file\.c"):
        build_kernel(plan(series), cache, 1)
    (series / "02-third.toml").unlink()
    assert build_kernel(plan(series), cache, 1).image.read_text() == "int first;\nint second;\n"


def test_an_option_that_the_kernel_does_not_take_is_named(cache: Path) -> None:
    with pytest.raises(InputError, match=r"Linux 6\.12 does not take STUCK=n \(is y\)"):
        build_kernel(plan(STUCK="n"), cache, 1)
    assert not [one for one in kernels_folder(cache).iterdir() if one.is_dir()], (
        "its tree is of no use to another"
    )


def test_without_a_source_the_command_that_fetches_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"linux-source-6\.12 is not fetched yet: run kexecemu kernel fetch 6\.12"
    ):
        build_kernel(plan(), tmp_path / "empty", 1)
    with pytest.raises(InputError, match=r"no source of Linux '6\.13'.*6\.12, 7\.3"):
        find_source("6.13", tmp_path)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["flex", "bc"], "building Linux needs flex, bc: apt-get install flex bc"),
        (["aarch64-linux-gnu-gcc", "gcc"], "gcc: apt-get install"),
    ],
)
def test_missing_tools_are_one_line_with_the_packages_that_have_them(
    cache: Path, tools: Path, lost: list[str], said: str
) -> None:
    for name in lost:
        (tools / name).unlink()
    with pytest.raises(InputError) as error:
        build_kernel(plan(), cache, 1)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_openssl_s_headers_are_asked_for_only_where_something_signs(tools: Path) -> None:
    (tools / "cc").write_text("#!/bin/sh\nexit 1\n")
    (tools / "cc").chmod(0o755)
    Toolchain().check({"MODULE_SIG": "n"})
    with pytest.raises(InputError, match=r"openssl/opensslv\.h: apt-get install libssl-dev"):
        Toolchain().check({"MODULE_SIG": "y"})


def test_a_folder_of_make_s_is_a_built_kernel_too_and_an_empty_one_is_none(tmp_path: Path) -> None:
    for name in ("boot/Image", "purgatory/purgatory.ro"):
        path = tmp_path / "out/arch/arm64" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    built = read_built(tmp_path / "out")
    assert built.image == tmp_path / "out/arch/arm64/boot/Image"
    assert built.purgatory == tmp_path / "out/arch/arm64/purgatory/purgatory.ro"
    with pytest.raises(InputError, match="no built kernel: it has neither Image nor arch/arm64/boot/Image"):
        read_built(tmp_path)


@pytest.mark.parametrize("told", [b"{bad", b"[1]", b"\xff\xfe", b"[" * 100_000, b""])
def test_a_damaged_account_of_a_build_is_one_line(tmp_path: Path, told: bytes) -> None:
    (tmp_path / "Image").write_bytes(b"")
    (tmp_path / "BUILD.json").write_bytes(told)
    with pytest.raises(InputError, match=r"BUILD\.json: is damaged: "):
        read_built(tmp_path)


def test_what_a_compiler_is_told_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert Toolchain("gcc").words() == ["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"]
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert Toolchain("gcc").words() == ["ARCH=arm64", "CROSS_COMPILE="]
    assert Toolchain("clang").words() == ["ARCH=arm64", "LLVM=1"]
    with pytest.raises(InputError, match="--compiler 'tcc' is not one of gcc, clang"):
        Toolchain("tcc")


@pytest.mark.parametrize("text", ["exit 3", "exit 0", "kill $$"])
def test_a_compiler_that_says_nothing_is_none(tools: Path, text: str) -> None:
    (tools / "gcc").write_text(f"#!/bin/sh\n{text}\n")
    (tools / "aarch64-linux-gnu-gcc").write_text(f"#!/bin/sh\n{text}\n")
    with pytest.raises(InputError, match="gcc --version says nothing: it is no compiler"):
        Toolchain().release()


def test_a_compiler_s_version_may_be_in_any_encoding(tools: Path) -> None:
    for name in ("gcc", "aarch64-linux-gnu-gcc"):
        (tools / name).write_bytes(b"#!/bin/sh\nprintf 'gcc \\377 1.0\\nmore\\n'\n")
    assert Toolchain().release() == "gcc \ufffd 1.0"


@pytest.mark.parametrize("told", [b"5", b"null", b"true", b'"ab"', b'{"a": 1}', b"[1]", b"[", b"\xff", b"[]"])
def test_a_damaged_work_folder_is_made_anew(cache: Path, series: Path, told: bytes) -> None:
    work = work_folder(kernels_folder(cache) / plan(series).key(cache))
    (work / "src").mkdir(parents=True)
    (work / "out").mkdir()
    (work / "STEPS.json").write_bytes(told)
    (work / "out/wanted").write_bytes(b"\xff")
    (work / "out/.config").write_bytes(b"\xff")
    assert build_kernel(plan(series), cache, 1).steps == ("file: a second",)


def test_a_file_in_the_place_of_a_work_folder_is_in_nobody_s_way(cache: Path) -> None:
    work = work_folder(kernels_folder(cache) / plan().key(cache))
    work.parent.mkdir(parents=True)
    work.write_bytes(b"")
    assert build_kernel(plan(), cache, 1).image.is_file()


def test_a_source_that_cannot_be_unpacked_is_one_short_line(cache: Path) -> None:
    tarball = find_source("6.12", cache)
    tarball.write_bytes(b"garbage" * 1000)
    with pytest.raises(InputError) as refused:
        build_kernel(plan(), cache, 1)
    assert str(refused.value).startswith(str(tarball)) and len(str(refused.value)) < len(str(tarball)) + 320


def test_a_series_for_another_version_is_refused_before_anything_is_done(cache: Path, series: Path) -> None:
    step = series / "01-second.toml"
    step.write_text(f'versions = ["7.3"]\n{step.read_text()}')
    for way in (lambda: build_kernel(plan(series), cache, 1), lambda: find_built(plan(series), cache)):
        with pytest.raises(InputError, match=r"series: no step of this series is for Linux 6.12"):
            way()
    assert not kernels_folder(cache).exists()


def test_a_series_that_does_not_fit_leaves_no_tree(cache: Path, series: Path) -> None:
    step = series / "01-second.toml"
    step.write_text(f"{step.read_text()}after = 'nowhere'\n")
    with pytest.raises(InputError, match=r"file.c: no lines fit 'nowhere'"):
        build_kernel(plan(series), cache, 1)
    assert list(kernels_folder(cache).iterdir()) == []


def test_who_waits_for_another_build_of_the_same_is_told_so(cache: Path) -> None:
    told: list[str] = []
    build_kernel(plan(), cache, 1, on_wait=lambda: told.append("waiting"))
    assert told == []
    lock = kernels_folder(cache) / f".{plan().key(cache)}.lock"
    assert not lock.exists()
    with open(lock, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def waiting() -> None:
            told.append("waiting")
            fcntl.flock(other, fcntl.LOCK_UN)

        assert build_kernel(plan(), cache, 1, on_wait=waiting).image.is_file()
    assert told == ["waiting"]


def test_a_lock_that_its_holder_has_deleted_is_taken_anew(cache: Path) -> None:
    """Who waited for it holds a file that nobody else would find."""
    lock = kernels_folder(cache) / f".{plan().key(cache)}.lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waits = 0

        def waiting() -> None:
            nonlocal waits
            waits += 1
            lock.unlink()
            fcntl.flock(other, fcntl.LOCK_UN)

        assert build_kernel(plan(), cache, 1, on_wait=waiting).image.is_file()
    assert waits == 1 and not lock.exists()
