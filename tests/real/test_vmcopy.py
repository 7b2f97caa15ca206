"""The program that copies /proc/vmcore in a capture kernel, on files of this machine."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from kexecemu.data import fixture_path

pytestmark = pytest.mark.real

USAGE, NO_SOURCE, NO_TARGET = 1, 2, 3
MIB = 1 << 20


def vmcopy(arm64_program: list[str], folder: Path, *arguments: str) -> int:
    # A copy, as an installed package may have lost the mode.
    program = folder / "vmcopy"
    program.write_bytes(fixture_path("guests/vmcopy").read_bytes())
    program.chmod(0o755)
    done = subprocess.run(
        [*arm64_program, str(program), *arguments], cwd=folder, capture_output=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    return done.returncode


@pytest.mark.parametrize(
    "size", [0, 4096, 2 * MIB, 2 * MIB + 4096, 16 * MIB, 16 * MIB + 4096, 37 * MIB + 5 * 4096]
)
def test_every_byte_is_copied_and_no_more(size: int, arm64_program: list[str], tmp_path: Path) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "from").write_bytes(data)
    (tmp_path / "to").write_bytes(b"\xa5" * (size + 4096))
    status = vmcopy(arm64_program, tmp_path, "from", "to")
    if status == NO_TARGET:
        pytest.skip("the file system of temporary files has no O_DIRECT")
    assert status == 0
    assert (tmp_path / "to").read_bytes() == data + b"\xa5" * 4096


def test_what_fails_is_in_the_exit_status(arm64_program: list[str], tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(bytes(4096))
    assert vmcopy(arm64_program, tmp_path, "from") == USAGE
    assert vmcopy(arm64_program, tmp_path, "nowhere", "to") == NO_SOURCE
    assert vmcopy(arm64_program, tmp_path, "from", "nowhere") == NO_TARGET
