"""What is written destroys nothing: devices, links, permissions, inputs, other outputs, and what was there before."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from kexecemu.cli import main
from kexecemu.files import hindrance, replace_file, replacing
from kexecemu.folders import folder_hindrance, replacing_folder

OUTPUTS = ("--timeline", "--html", "--vmcore")
SMALL = ("crash", "--ram", "64M", "--cmdline", "crashkernel=16M")


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    given = {"capture_output": True, "text": True, "check": False, **more}
    return subprocess.run([sys.executable, "-m", "kexecemu", *words], **given)  # type: ignore[call-overload, no-any-return]


class Disk:
    """Files of more than so many bytes do not fit on it."""

    room = 1 << 60

    def open(self, fd: int, mode: str, **more: Any) -> IO[bytes]:
        """What kexecemu.files opens."""
        if mode != "w+b":
            return open(fd, mode, **more)
        disk = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                if self.tell() + len(data) > disk.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(data)

        return io.BufferedRandom(File(fd, "w+"))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk that is full once its room is set."""
    made = Disk()
    monkeypatch.setattr("kexecemu.files.open", made.open, raising=False)
    return made


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one line of a command that is refused before anything runs."""

    def refuse(*words: object) -> str:
        monkeypatch.setattr("kexecemu.scenario.setup.boot", lambda *_: pytest.fail("it has begun to run"))
        assert main(list(map(str, words))) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err.removeprefix("kexecemu: ").rstrip("\n")

    return refuse


# -- what is no regular file -------------------------------------------------------------------------------------------


def test_a_device_stays_a_device_whichever_output_it_is(tmp_path: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        null.write_bytes(b"")
    except PermissionError:
        null = Path("/dev/null")
    before = null.stat()
    assert main([*SMALL, *(word for one in OUTPUTS for word in (one, str(null)))]) == 0
    after = null.stat()
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_rdev) == (before.st_ino, before.st_rdev)


def test_a_device_that_is_full_is_told_behind_the_account() -> None:
    done = run(*SMALL, "--timeline", "/dev/full")
    assert done.returncode == 2 and "outcome      captured" in done.stdout
    assert done.stderr == "kexecemu: --timeline /dev/full: No space left on device\n"


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_fifo_passes_on_the_bytes_that_a_file_would_get(option: str, tmp_path: Path) -> None:
    file, fifo = tmp_path / "file", tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    assert main([*SMALL, option, str(fifo)]) == 0
    reader.join()
    assert main([*SMALL, option, str(file)]) == 0
    assert stat.S_ISFIFO(fifo.stat().st_mode) and got == [file.read_bytes()] and len(got[0]) > 1000


def test_what_a_shell_has_opened_is_written_where_it_stands(tmp_path: Path) -> None:
    with open(tmp_path / "all", "w+b") as file:
        file.write(b"before\n")
        file.flush()
        done = run(*SMALL, "--timeline", "/dev/stdout", capture_output=False, stdout=file)
        assert done.returncode == 0
        file.seek(0)
        lines = file.read().splitlines()
    assert (
        lines[0] == b"before" and json.loads(lines[1])["kind"] == "boot" and lines[-1].startswith(b"written")
    )
    reading, writing = os.pipe()
    replace_file(f"/dev/fd/{writing}", b"through")
    assert os.read(reading, 100) == b"through"
    os.close(reading)
    os.close(writing)


def test_the_file_that_stdout_goes_to_is_not_replaced(tmp_path: Path) -> None:
    with open(tmp_path / "all", "wb") as file:
        done = run(*SMALL, "--html", str(tmp_path / "all"), capture_output=False, stdout=file, stderr=-1)
    assert done.returncode == 2 and "is where this command's own output goes" in done.stderr


# -- links, permissions, names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_and_stays(there: bool, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "target", tmp_path / "link", tmp_path / "second"
    link.symlink_to("far/target")
    second.symlink_to("link")
    if there:
        target.write_text("before")
    assert main(["schema", "--out", str(second)]) == 0
    assert os.readlink(second) == "link" and os.readlink(link) == "far/target"
    assert not target.is_symlink() and json.loads(target.read_text())["title"] == "kexecemu scenario"
    assert [one.name for one in target.parent.iterdir()] == ["target"]


def test_a_link_into_nowhere_and_one_in_a_circle_are_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "lost").symlink_to("no/where")
    (tmp_path / "circle").symlink_to("circle")
    assert "there is no folder" in refused("schema", "--out", tmp_path / "lost")
    assert "Too many levels of symbolic links" in refused("schema", "--out", tmp_path / "circle")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o777, 0o444, 0o604])
def test_a_file_that_is_replaced_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    file.chmod(mode)
    with replacing(file) as new:
        beside = next(one for one in tmp_path.iterdir() if one != file)
        assert stat.S_IMODE(beside.stat().st_mode) == mode  # before there is anything in it
        new.write(b"after")
    assert stat.S_IMODE(file.stat().st_mode) == mode and file.read_bytes() == b"after"


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o000])
def test_a_new_file_has_what_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        replace_file(tmp_path / "file", b"")
        replace_file(tmp_path / "program", b"", executable=True)
        with replacing_folder(tmp_path / "folder") as new:
            replace_file(new / "file", b"")
    finally:
        os.umask(before)
    modes = [
        stat.S_IMODE((tmp_path / name).stat().st_mode)
        for name in ("file", "program", "folder", "folder/file")
    ]
    assert modes == [0o666 & ~mask, 0o777 & ~mask, 0o777 & ~mask, 0o666 & ~mask]


@pytest.mark.parametrize("name", ["x" * 250, "x" * 255, "é" * 127, ".kexecemu.1.0", "a\nb", "-"])
def test_a_name_may_be_as_long_as_the_file_system_has_them(name: str, tmp_path: Path) -> None:
    (tmp_path / f".kexecemu.{os.getpid()}.0").write_text("left by another one of that number")
    replace_file(tmp_path / name, b"1")
    assert (tmp_path / name).read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 2


def test_a_name_that_is_longer_or_none_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "File name too long" in refused("schema", "--out", tmp_path / ("x" * 256))
    for words in (("schema", "--out"), ("load", "--dump-segments")):
        assert "null byte" in refused(*words, f"{tmp_path}/a\0b")
    assert hindrance("a\0b") == folder_hindrance("a\0b") == "embedded null byte"
    assert "File name too long" in refused("load", "--dump-segments", tmp_path / ("x" * 256) / "y")


# -- inputs and other outputs ------------------------------------------------------------------------------------------


def by_path(file: Path) -> Path:
    return Path(file.parent, "..", file.parent.name, file.name)


def by_link(file: Path) -> Path:
    link = file.with_name("link")
    link.symlink_to(file.name)
    return link


def by_inode(file: Path) -> Path:
    hard = file.with_name("hard")
    os.link(file, hard)
    return hard


@pytest.mark.parametrize("other", [by_path, by_link, by_inode])
@pytest.mark.parametrize("option", ["--kernel", "--initrd", "--dtb", "--purgatory"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_no_output_is_an_input(
    output: str, option: str, other: Callable[[Path], Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "mine"
    file.write_bytes(b"dear to somebody")
    assert refused("crash", option, file, output, other(file)).endswith(f": is an input, {option}")
    scenario = tmp_path / "s.toml"
    key = {"--kernel": "load", "--initrd": "load", "--dtb": "machine", "--purgatory": "kernel"}[option]
    scenario.write_text(f'schema = 1\nname = "x"\n[{key}]\n{option[2:]} = "mine"\n')
    assert refused("run", scenario, output, file).endswith(f": is an input, {option}")
    assert refused("run", scenario, output, scenario).endswith(": is an input, the scenario")
    if output == "--html":
        words = ("--faults", 1, "--seed", 1, "--out", tmp_path / "out")
        assert refused("campaign", scenario, *words, output, file).endswith(f": is an input, {option}")
    assert file.read_bytes() == b"dear to somebody"


@pytest.mark.parametrize("other", [by_path, by_link, by_inode])
def test_no_two_outputs_are_one_file(
    other: Callable[[Path], Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    same = other(file)
    assert "--timeline and --html are the same file" in refused("crash", "--timeline", file, "--html", same)
    if other is not by_inode:
        file.unlink()
        assert "are the same file" in refused("crash", "--vmcore", file, "--html", same)


def test_no_output_is_within_a_folder_that_writes_a_file_of_that_name(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("state.json", "ram-40000000.bin", "run-qemu.sh", "start.bin", "low.bin"):
        said = refused("crash", "--handoff", folder, "--timeline", folder / name)
        assert f"would write over {folder / name}, --timeline" in said
    (folder / "initrd.bin").write_bytes(b"mine")
    assert "would write over" in refused("load", "--initrd", folder / "initrd.bin", "--dump-segments", folder)
    words = ("campaign", "golden", "--faults", 1, "--seed", 1, "--out", folder)
    assert "would write over" in refused(*words, "--html", folder / "campaign.sqlite")


# -- what fails --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("option", OUTPUTS)
def test_a_full_disk_leaves_what_was_there_and_the_account_is_given(
    option: str, old: bool, disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    if old:
        file.write_text("before")
    disk.room = 1000
    for json_ in ((), ("--json",)):
        assert main([*SMALL, option, str(file), *json_]) == 2
        out, err = capsys.readouterr()
        assert err == f"kexecemu: {option} {file}: No space left on device\n"
        if json_:
            told = json.loads(out)
            assert told["outcome"] == "captured" and told["vmcore"] is None and told["files"] == []
        else:
            assert "outcome      captured" in out and "written" not in out
        assert [one.name for one in tmp_path.iterdir()] == ["file"] * old
        assert not old or file.read_text() == "before"


def test_an_outcome_that_is_not_expected_is_told_though_the_disk_is_full(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.room = 0
    assert main([*SMALL, "--expect", "hung", "--vmcore", str(tmp_path / "v")]) == 2
    out, err = capsys.readouterr()
    assert "unexpected" in out and err.count("\n") == 1


def test_the_other_files_are_written_where_one_cannot_be(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.room = 12_000
    assert main([*SMALL, "--html", str(tmp_path / "h"), "--timeline", str(tmp_path / "t")]) == 2
    out, err = capsys.readouterr()
    assert err == f"kexecemu: --html {tmp_path / 'h'}: No space left on device\n"
    assert [one.name for one in tmp_path.iterdir()] == ["t"] and f"written      {tmp_path / 't'}" in out


@pytest.mark.parametrize("words", [(*SMALL, "--handoff"), ("load", *SMALL[1:], "--dump-segments")])
def test_a_folder_comes_whole_or_not_at_all(
    words: tuple[str, ...], disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = tmp_path / "a" / "b", tmp_path / "old"
    before = dict.fromkeys(("start.bin", "kernel.bin", "mine"), "before")
    old.mkdir()
    for name, text in before.items():
        (old / name).write_text(text)
    for disk.room in (0, 5000, 20_000):
        for folder in (new, old):
            assert main([*words, str(folder)]) == 2
            out, err = capsys.readouterr()
            assert err == f"kexecemu: {words[-1]} {folder}: No space left on device\n"
            assert "initrd" in out and "written" not in out
        assert [one.name for one in tmp_path.iterdir()] == ["old"]
        assert {one.name: one.read_text() for one in old.iterdir()} == before
    disk.room = 1 << 60
    for folder in (new, old):
        assert main([*words, str(folder)]) == 0
    names = {one.name for one in new.iterdir()}
    assert {one.name for one in old.iterdir()} == names | set(before)
    assert (old / "mine").read_text() == "before" and not any(name.startswith(".") for name in names)


def test_a_folder_whose_files_cannot_all_take_their_places_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "gone"):
        (tmp_path / name).write_text(f"old {name}")
    real = os.replace
    for fails_at in range(1, 8):
        calls = 0

        def fail(source: str, target: str, fails_at: int = fails_at) -> None:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise OSError(errno.EIO, "Input/output error", str(target))
            real(source, target)

        monkeypatch.setattr(os, "replace", fail)
        with (
            pytest.raises(OSError, match="Input/output"),
            replacing_folder(tmp_path, without=("gone",)) as new,
        ):
            for name in ("a", "b", "c", "d"):
                monkeypatch.setattr(os, "replace", real)
                replace_file(new / name, b"new")
            monkeypatch.setattr(os, "replace", fail)
        monkeypatch.setattr(os, "replace", real)
        assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {
            name: f"old {name}" for name in ("a", "b", "c", "gone")
        }
    with replacing_folder(tmp_path, without=("gone",)) as new:
        replace_file(new / "a", b"new a")
    assert sorted(one.read_text() for one in tmp_path.iterdir()) == ["new a", "old b", "old c"]


def test_what_fails_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file") as file:
        file.write(b"half" if 1 // 0 else b"")
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "a" / "b") as new:
        (new / "half").write_bytes(b"half" if 1 // 0 else b"")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_mounted_where_it_is_keeps_its_inode(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("before, and longer")
    theirs.write_text("")
    if subprocess.run(["mount", "--bind", ours, theirs], capture_output=True, check=False).returncode:
        pytest.skip("mounting takes root")
    try:
        replace_file(theirs, b"after")
    finally:
        subprocess.run(["umount", theirs], check=True)
    assert ours.read_text() == "after" and sorted(one.name for one in tmp_path.iterdir()) == [
        "ours",
        "theirs",
    ]


def test_a_folder_that_may_not_be_written_to_is_said_before_anything_runs(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    if os.geteuid() == 0 and subprocess.run(["chattr", "+i", tmp_path], check=False).returncode:
        pytest.skip("to root only what is immutable is not writable, and this file system has none of that")
    try:
        assert hindrance(tmp_path / "file") == f"no permission to write into {tmp_path}"
        assert folder_hindrance(tmp_path) == "no permission to write into it"
        assert folder_hindrance(tmp_path / "a" / "b") == f"no permission to write into {tmp_path}"
        for words in (["schema", "--out", f"{tmp_path}/s"], [*SMALL, "--handoff", f"{tmp_path}/h"]):
            done = run(*words)
            assert done.returncode == 2 and "no permission to write into" in done.stderr and done.stdout == ""
    finally:
        subprocess.run(["chattr", "-i", tmp_path], capture_output=True, check=False)
        tmp_path.chmod(0o755)
