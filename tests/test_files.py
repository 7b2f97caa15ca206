"""What is read has an end, and what is written is whole."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kexecemu import files
from kexecemu.cli import main
from kexecemu.files import LARGEST, read_file


@pytest.mark.parametrize(
    "command",
    [
        ["crash", "--kernel", "FILE"],
        ["crash", "--initrd", "FILE"],
        ["crash", "--dtb", "FILE"],
        ["crash", "--purgatory", "FILE"],
        ["load", "--syscall", "kexec_load", "--purgatory", "FILE"],
        ["purgatory", "info", "FILE"],
        ["verify-image", "FILE", "--ca", "FILE"],
        ["run", "FILE.toml"],
    ],
)
def test_a_fifo_that_nobody_writes_to_is_refused_and_not_waited_for(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fifo", "fifo.toml"):
        os.mkfifo(tmp_path / name)
    words = [word.replace("FILE", str(tmp_path / "fifo")) for word in command]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("is no regular file\n") and len(err.splitlines()) == 1


def test_what_a_shell_has_opened_already_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from a command")
    os.close(writing)
    os.set_inheritable(reading, True)  # as a shell hands it down
    try:
        assert read_file(f"/dev/fd/{reading}") == b"from a command"
    finally:
        os.close(reading)


def test_a_device_that_never_ends_is_refused() -> None:
    with pytest.raises(OSError, match="is no regular file"):
        read_file("/dev/zero")


def test_a_pipe_that_does_not_end_is_read_to_its_bound(tmp_path: Path) -> None:
    endless = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    assert endless.stdout is not None
    os.set_inheritable(endless.stdout.fileno(), True)
    with endless, pytest.raises(OSError, match="is larger than 100,000 bytes"):
        try:
            read_file(f"/dev/fd/{endless.stdout.fileno()}", 100_000)
        finally:
            endless.kill()


def test_a_file_is_read_up_to_its_bound_and_no_further(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1000)
    assert read_file(file, 1000) == b"x" * 1000
    with pytest.raises(OSError, match="is larger than 999 bytes"):
        read_file(file, 999)
    os.truncate(file, LARGEST + 1)  # none of it is read
    with pytest.raises(OSError, match=r"is larger than 4,294,967,296 bytes"):
        read_file(file)


def test_a_device_is_none_to_read_whatever_opened_it(tmp_path: Path) -> None:
    with open("/dev/zero", "rb") as zero, pytest.raises(OSError, match="is no regular file"):
        os.set_inheritable(zero.fileno(), True)
        read_file(f"/dev/fd/{zero.fileno()}")
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="is no regular file"):
        read_file(tmp_path / "link")


def test_a_file_whose_size_nobody_knows_is_read_to_its_end() -> None:
    assert read_file("/proc/self/status").startswith(b"Name:")


def test_what_would_have_to_be_waited_for_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc/kmsg, which says that it is a regular file, or a FIFO that takes the place of one."""
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(files, "_check_readable", lambda *_: None)
    fd = os.open(tmp_path / "fifo", os.O_RDWR)
    try:
        for sent in (b"", b"so far"):
            os.write(fd, sent)
            with pytest.raises(OSError, match="has nothing to read now: somebody would have to write to it"):
                read_file(tmp_path / "fifo")
    finally:
        os.close(fd)
