"""What is not modelled is said once, by whoever plans a campaign."""

from __future__ import annotations

from pathlib import Path

import pytest

from kexecemu.cli import main


def test_workers_do_not_say_again_what_is_not_modelled(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["campaign", "golden", "--faults", "20", "--seed", "1", "--workers", "2", "--audit", "0"]
    assert main([*words, "--cmdline", "crashkernel=128M memtest=1", "--out", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().err
    assert said.count("memtest= is not modelled") == 1 and "NotModelled" not in said
