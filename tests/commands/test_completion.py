"""What bash offers when a word is completed, by the script that typer installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kexecemu.crash.outcome import Outcome
from kexecemu.data import shipped_scenarios

ROOT = Path(__file__).resolve().parents[2]


def offered(*words: str) -> list[str]:
    """What the program answers when the last of the words is to be completed."""
    environment = {
        **os.environ,
        "COMP_WORDS": " ".join(["kexecemu", *words]),
        "COMP_CWORD": str(len(words)),
        "_KEXECEMU_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-m", "kexecemu"], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["camp"], ["campaign", "campaign-compare"]),
        (["purgatory", "ch"], ["check"]),
        (["run", "--time"], ["--timeline"]),
        (["run", "initrd-s"], ["initrd-stamped"]),
        (["replay", "some.fault", "gol"], ["golden"]),
        (["campaign", "campaign-1"], ["campaign-16m"]),
        (["crash", "--era", "6.4"], ["6.4"]),
        (["linear-map", "--protection", "b"], ["bbml2"]),
        (["crash", "--config", "ZONE_DMA="], ["ZONE_DMA=y", "ZONE_DMA=n"]),
        (["crash", "--config", "KEXEC_PURGATORY_POLICY=rep"], ["KEXEC_PURGATORY_POLICY=repair"]),
        (["crash", "--config", "CMA"], ["CMA=y", "CMA=n", "CMA_SIZE_MBYTES=0"]),
        (["crash", "--expect", "m"], ["masked", "misboot"]),
        (["crash", "--purgatory", "d"], ["default"]),
        (["crash", "--syscall", "kexec_l"], ["kexec_load"]),
        (["crash", "--capture", "l"], ["linux"]),
        (["crash", "--kernel", "fetched:kernel-t"], ["fetched:kernel-trixie"]),
        (["list", "mo"], ["models"]),
        (["crash", "--kernel", "./"], []),  # a path: bash completes it by itself
    ],
)
def test_names_are_completed(words: list[str], found: list[str]) -> None:
    assert offered(*words) == found


def test_all_scenarios_and_outcomes_are_offered() -> None:
    assert offered("run", "") == shipped_scenarios()
    assert offered("crash", "--expect", "") == [outcome.value for outcome in Outcome]


@pytest.fixture
def kexecemu(tmp_path: Path) -> Path:
    """A folder with the program as it is installed."""
    program = tmp_path / "bin" / "kexecemu"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m kexecemu "$@"\n')
    program.chmod(0o755)
    return program.parent


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_what_install_completion_writes(kexecemu: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PATH": f"{kexecemu}{os.pathsep}{os.environ['PATH']}"}

    def bash(script: str) -> str:
        done = subprocess.run(
            ["bash", "--norc", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    assert str(home) in bash("kexecemu --install-completion; true")
    complete = "COMP_WORDS=(kexecemu run gol); COMP_CWORD=2; _kexecemu_completion kexecemu"
    assert bash(f'source ~/.bashrc; {complete}; echo "${{COMPREPLY[@]}}"').split() == ["golden"]
    assert "_kexecemu_completion" in bash("kexecemu --show-completion; true")
