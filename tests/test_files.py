"""What is read has an end, and what is written is whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kexecemu.cli import main
from kexecemu.files import read_file


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
    try:
        assert read_file(f"/dev/fd/{reading}") == b"from a command"
    finally:
        os.close(reading)


def test_a_device_that_never_ends_is_refused() -> None:
    with pytest.raises(OSError, match="is no regular file"):
        read_file("/dev/zero")
