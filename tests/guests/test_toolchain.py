"""The compilers of guest code: what is said where there is none."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path

import pytest

from kexecemu.errors import InputError
from kexecemu.guests.toolchain import ZIGLANG, BuildError, Toolchain

ROOT = Path(__file__).resolve().parents[2]


def test_without_clang_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match=f"^clang is not here: pip install ziglang=={ZIGLANG}$") as raised:
        Toolchain("zig", tmp_path, tmp_path)
    assert isinstance(raised.value, InputError)


def test_another_clang_than_the_pinned_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setattr(Toolchain, "_run", lambda self, command: "0.1.0\n")
    with pytest.raises(
        BuildError, match=f"ziglang {ZIGLANG} is needed for the same bytes, and here is 0.1.0"
    ):
        Toolchain("zig", tmp_path, tmp_path)


def compilers(monkeypatch: pytest.MonkeyPatch, machine: str, *there: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in there else None)


def test_gcc_is_the_cross_compiler_or_the_machine_s_own_where_that_is_arm64(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cross = ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-ld")
    compilers(monkeypatch, "x86_64", "gcc", "ld", *cross)
    assert Toolchain("gcc", tmp_path, tmp_path)._cc == ["aarch64-linux-gnu-gcc"]
    compilers(monkeypatch, "aarch64", "gcc", "ld")
    assert Toolchain("gcc", tmp_path, tmp_path)._cc == ["gcc"]
    compilers(monkeypatch, "x86_64", "gcc", "ld")
    with pytest.raises(BuildError, match=r"^aarch64-linux-gnu-gcc is not installed: apt-get install "):
        Toolchain("gcc", tmp_path, tmp_path)


def test_the_pinned_clang_is_the_one_that_the_tests_install() -> None:
    assert f"ziglang == {ZIGLANG}\n" in (ROOT / "setup.cfg").read_text()
