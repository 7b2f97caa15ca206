"""What a name stands for is what the system makes of it: folders that are not there, open files, one file twice."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from kexecemu import attributes
from kexecemu.cli import main
from kexecemu.files import file_identity, hindrance, read_file, replace_file
from kexecemu.folders import folder_hindrance
from kexecemu.opened import descriptor

SMALL = ("crash", "--ram", "64M", "--cmdline", "crashkernel=16M")


# -- folders that are not there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("schema", "--out"), (*SMALL, "--html"), (*SMALL, "--vmcore")])
@pytest.mark.parametrize(
    "name", ["missing/../kept", "missing/../../{}/kept", "link", "file/../kept", "deep/link"]
)
def test_a_way_through_a_folder_that_is_not_there_leads_nowhere(
    name: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("kept", "file"):
        (tmp_path / file).write_bytes(b"dear to somebody")
    (tmp_path / "link").symlink_to("missing/../kept")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "link").symlink_to("../missing/../kept")
    before = sorted(tmp_path.rglob("*"))
    assert main([*words, f"{tmp_path}/{name.format(tmp_path.name)}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "kept").read_bytes() == b"dear to somebody"
    assert sorted(tmp_path.rglob("*")) == before


def test_no_input_is_written_by_such_a_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_bytes(b"dear to somebody")
    assert main(["crash", "--initrd", str(tmp_path / "mine"), "--html", f"{tmp_path}/missing/../mine"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert (tmp_path / "mine").read_bytes() == b"dear to somebody"


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_stays_what_it_is_by_such_a_way(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "it")
    if kind == "device":
        (tmp_path / "it").unlink()
        (tmp_path / "it").symlink_to("/dev/null")
    before = (tmp_path / "it").stat()
    with pytest.raises(FileNotFoundError):
        replace_file(f"{tmp_path}/missing/../it", b"x")
    assert (tmp_path / "it").stat() == before or stat.S_ISCHR(before.st_mode)


@pytest.mark.parametrize("words", [("load", "--dump-segments"), (*SMALL, "--handoff")])
def test_a_folder_to_write_into_is_not_found_by_such_a_way_nor_made_on_it(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    assert folder_hindrance(f"{tmp_path}/new/../there") == os.strerror(errno.ENOENT)
    assert main([*words, f"{tmp_path}/new/../there"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["there"] and not list((tmp_path / "there").iterdir())


def test_a_way_back_through_folders_that_are_there_is_a_way(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "far").symlink_to("a/b")
    replace_file(tmp_path / "a" / ".." / "x", b"1")
    replace_file(f"{tmp_path}/far/../y", b"2")  # which is a's, as the system has it
    assert (tmp_path / "x").read_bytes() == b"1" and (tmp_path / "a" / "y").read_bytes() == b"2"


# -- one file by two names ---------------------------------------------------------------------------------------------


def test_two_names_of_a_file_that_is_not_there_yet_are_one_where_their_folder_is_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("a/new")
    names = [tmp_path / name for name in ("a/new", "b/new", "a/../b/new", "c")]
    above = (tmp_path / "a").stat()
    # By its inode, which a folder has wherever it is mounted.
    assert {file_identity(name) for name in names} == {(above.st_dev, above.st_ino, "new")}
    assert file_identity(tmp_path / "a/other") != file_identity(tmp_path / "a/new")


# -- open files --------------------------------------------------------------------------------------------------------


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    given = {"capture_output": True, "text": True, "check": False, "timeout": 120, **more}
    return subprocess.run([sys.executable, "-m", "kexecemu", *words], **given)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("number", [3, 4, 5, 10])
@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd", "/proc/thread-self/fd"])
def test_what_the_program_has_opened_itself_is_no_open_file_to_name(number: int, folder: str) -> None:
    for option in ("--timeline", "--initrd"):
        done = run(*SMALL, option, f"{folder}/{number}")
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        assert "is no open file" in done.stderr or "No such file" in done.stderr


def test_an_open_file_is_written_and_read_only_as_it_was_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some initrd")
    with open(tmp_path / "file", "rb") as reading, open(tmp_path / "out", "wb") as writing:
        ends = reading.fileno(), writing.fileno()
        refused = run(*SMALL, "--timeline", f"/dev/fd/{ends[0]}", pass_fds=ends)
        assert (
            refused.returncode == 2 and "is not open for writing" in refused.stderr and refused.stdout == ""
        )
        refused = run(*SMALL, "--initrd", f"/dev/fd/{ends[1]}", pass_fds=ends)
        assert refused.returncode == 2 and "is not open for reading" in refused.stderr
        words = ("--initrd", f"/dev/fd/{ends[0]}", "--timeline", f"/dev/fd/{ends[1]}")
        assert run(*SMALL, *words, pass_fds=ends).returncode == 0
    assert (tmp_path / "out").read_bytes().startswith(b"{")


def test_an_open_file_of_another_process_is_its_and_not_ours(tmp_path: Path) -> None:
    with open(tmp_path / "theirs", "wb") as file:
        other = subprocess.Popen(["sleep", "60"], stdout=file)
    try:
        name = f"/proc/{other.pid}/fd/1"
        assert descriptor(name) is None and descriptor(f"/proc/{os.getpid()}/fd/1") == 1
        replace_file(name, b"for them")
        assert (tmp_path / "theirs").read_bytes() == b"for them"
        (tmp_path / "theirs").unlink()  # and is open still
        replace_file(name, b"once more")
        assert Path(name).read_bytes() == b"once more" and not list(tmp_path.iterdir())
    finally:
        other.kill()
        other.wait()


# -- a file that stays -------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of somebody else's, that we may write to."""
    file = tmp_path / "theirs"
    file.write_bytes(b"as it was, and longer than what comes")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "fchown", refuse)
    return file


def test_a_file_whose_owner_cannot_be_kept_is_overwritten_and_stays(theirs: Path) -> None:
    before = theirs.stat()
    replace_file(theirs, b"new")
    assert theirs.read_bytes() == b"new" and theirs.stat().st_ino == before.st_ino
    assert [one.name for one in theirs.parent.iterdir()] == ["theirs"]


def test_one_for_which_there_is_no_room_is_as_it_was(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 100, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _: full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(theirs, bytes(range(256)) * 4096)
    assert theirs.read_bytes() == b"as it was, and longer than what comes"
    assert [one.name for one in theirs.parent.iterdir()] == ["theirs"]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EPERM])
def test_a_file_that_cannot_be_renamed_over_is_overwritten(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounted").write_bytes(b"before")
    inode = (tmp_path / "mounted").stat().st_ino

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    replace_file(tmp_path / "mounted", b"new")
    assert (tmp_path / "mounted").read_bytes() == b"new" and (tmp_path / "mounted").stat().st_ino == inode
    with pytest.raises(OSError, match=os.strerror(number)):
        replace_file(tmp_path / "none", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["mounted"]


def test_extended_attributes_and_the_acl_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, dict[str, bytes]] = {}  # by inode: not every file system has any

    def of(file: str | int) -> dict[str, bytes]:
        return kept.setdefault(os.stat(file).st_ino, {})

    monkeypatch.setattr(os, "listxattr", lambda file: [*of(file), "security.selinux"])
    monkeypatch.setattr(os, "getxattr", lambda file, name: of(file)[name])
    monkeypatch.setattr(os, "setxattr", lambda file, name, value: of(file).__setitem__(name, value))
    monkeypatch.setattr(os, "removexattr", lambda file, name: of(file).pop(name))
    file = tmp_path / "file"
    file.write_bytes(b"before")
    wanted = {"system.posix_acl_access": b"acl", "user.a": b"b"}
    of(str(file)).update(wanted)
    replace_file(file, b"after")
    assert file.read_bytes() == b"after" and of(str(file)) == wanted


@pytest.mark.parametrize("mode", [0o2664, 0o4755, 0o6777, 0o1644])
def test_a_file_that_is_replaced_keeps_what_a_write_leaves_of_its_mode(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    file.chmod(mode)
    replace_file(file, b"x")
    assert stat.S_IMODE(file.stat().st_mode) == mode & ~(stat.S_ISUID | stat.S_ISGID)


def test_what_can_only_be_appended_to_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: set[int] = set()

    def ioctl(fd: int, request: int, flags: bytearray) -> int:
        assert request & 0xFFFF == 0x6601  # FS_IOC_GETFLAGS
        flags[:] = struct.pack("l", 0x20 if os.fstat(fd).st_ino in marked else 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    (tmp_path / "log").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    marked |= {(tmp_path / name).stat().st_ino for name in ("log", "folder")}
    assert attributes.append_only(str(tmp_path / "log")) and not attributes.append_only(str(tmp_path))
    assert hindrance(tmp_path / "log") == "can only be appended to"
    assert "can be renamed" in hindrance(tmp_path / "folder" / "new")
    assert "can be renamed" in folder_hindrance(tmp_path / "folder")
    assert hindrance(tmp_path / "new") == folder_hindrance(tmp_path / "new") == ""


@pytest.mark.parametrize("mode", [0o200, 0o222])
def test_an_output_need_not_be_readable(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_bytes(b"")
    (tmp_path / "out").chmod(mode)
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, wanted, **more: not wanted & os.R_OK and real(path, wanted)
    )
    assert main(["schema", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").stat().st_size > 1000 and stat.S_IMODE(
        (tmp_path / "out").stat().st_mode
    ) == mode


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_file_is_in_memory_once_while_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(400 << 20)
    code = "import re, sys; from kexecemu.files import read_file; size = len(read_file(sys.argv[1]))"
    # Not ru_maxrss, which has what the process was before it began to run this.
    code += "; peak = re.search('VmHWM:.* ([0-9]+) kB', open('/proc/self/status').read())[1]"
    code += "; print(size >> 20, int(peak) >> 10)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large")], capture_output=True, text=True, check=True
    )
    size, peak = map(int, done.stdout.split())
    assert size == 400 and peak < 600


@pytest.mark.parametrize("more", [b"", b"x", b"xy" * 100_000])
def test_a_file_that_grows_while_it_is_read_is_read_to_its_end(
    more: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real = tmp_path / "file", os.fstat
    file.write_bytes(b"abc")

    def then_grow(fd: int) -> os.stat_result:
        found = real(fd)
        if found.st_ino == file.stat().st_ino and found.st_size == 3:
            with open(file, "ab") as growing:
                growing.write(more)
        return found

    monkeypatch.setattr(os, "fstat", then_grow)
    assert read_file(file) == b"abc" + more


# -- what a shell and a terminal say -----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["0", "00", "-5", "abc", "\u00b2", "9" * 5000, ""])
def test_no_number_of_columns_takes_the_account_away(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["list", "eras"]) == 0
    wanted = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    assert main(["list", "eras"]) == 0
    assert capsys.readouterr().out == wanted and "7.3" in wanted


@pytest.mark.parametrize(
    ("word", "more"),
    [
        ("x", {}),
        ("complete_", {}),
        ("complete_bash", {}),
        ("complete_bash", {"COMP_WORDS": "kexecemu run", "COMP_CWORD": "x"}),
    ],
)
def test_completion_that_no_shell_asks_for_is_refused_in_one_line(word: str, more: dict[str, str]) -> None:
    done = run("run", env={**os.environ, "_KEXECEMU_COMPLETE": word, **more})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("kexecemu: _KEXECEMU_COMPLETE") and done.stderr.count("\n") == 1


def test_python_without_docstrings_runs_a_crash_all_the_same() -> None:
    def run_with(*words: str) -> bytes:
        command = [sys.executable, *words, "-m", "kexecemu", "run", "golden"]
        return subprocess.run(command, capture_output=True, check=True).stdout

    assert run_with("-OO") == run_with()
