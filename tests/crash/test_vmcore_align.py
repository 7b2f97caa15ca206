"""p_align of a dump's notes, as /proc/vmcore of 6.1.176 (0), of 6.12.117 and of 7.3.4 (4) has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile


@pytest.mark.parametrize(("era", "align"), [("6.1", 0), ("6.7", 0), ("6.12", 4), ("7.3", 4)])
def test_the_notes_are_aligned_as_the_era_does_it(era: str, align: int, tmp_path: Path) -> None:
    vmcore = tmp_path / "vmcore"
    machine = ("--era", era, "--ram", "256M", "--cmdline", "crashkernel=64M", "--vmcore", str(vmcore))
    subprocess.run([sys.executable, "-m", "kexecemu", "crash", *machine], check=True, capture_output=True)
    with vmcore.open("rb") as file:
        segments = [(one["p_type"], one["p_align"]) for one in ELFFile(file).iter_segments()]
    assert segments[0] == ("PT_NOTE", align)
    assert {align for kind, align in segments[1:]} == {0}
