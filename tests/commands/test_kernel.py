"""What kexecemu kernel says of a crash, and with which exit status: with a model's crash in a real kernel's place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kexecemu import Board, Kernel, KernelConfig
from kexecemu.cli import main
from kexecemu.crash.purgatory_check import UNTOUCHED, Reply
from kexecemu.data import fixture_path, purgatory_path
from kexecemu.formats.elfrel import parse
from kexecemu.kbuild import judge, on_qemu
from kexecemu.kbuild.qemu import QemuMachine
from kexecemu.kbuild.trial import Loaded, Trial, TrialEnd, WhatIsWritten, trial_end


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What passes for a built kernel."""
    (tmp_path / "Image").write_bytes(b"")
    return tmp_path


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[QemuMachine]]:
    """The machines that were asked for; each crash is the model's."""
    machines: list[QemuMachine] = []

    def run(trial: Trial, machine: QemuMachine, written: WhatIsWritten, hear: Any = None) -> TrialEnd:
        machines.append(machine)
        kernel = Kernel.boot(Board("256M"), KernelConfig("6.12", purgatory=True), cmdline="crashkernel=64M")
        image = kernel.kexec_file_load(fixture_path("guests/capture-Image").read_bytes(), bytes(0x2000), "")
        assert image is not None and kernel.crashk_res is not None
        for fault in written(
            Loaded(kernel.ram, kernel.crashk_res, image, parse(purgatory_path().read_bytes()))
        ):
            kernel.inject(fault)
        end = kernel.panic()
        account = end.injections, end.damage, end.purgatory, end.capture
        dump = None if end.capture is None else True
        return trial_end(end.outcome, image, *account, el=1, release="6.12.0-test", dump=dump)

    monkeypatch.setattr(on_qemu, "run_in_qemu", run)
    yield machines


def test_a_boot_that_captures_is_told_and_is_0(
    folder: Path, tried: list[QemuMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cpu", "neoverse-v1", "--el", "vhe", "--cpus", "4"]
    assert main(["kernel", "boot", f"{folder}/", *words]) == 0
    text = capsys.readouterr().out
    assert tried == [QemuMachine("neoverse-v1", "vhe", 4)]
    assert text.startswith(
        "kernel     Linux 6.12.0-test, in QEMU, -cpu neoverse-v1, vhe, 4 CPUs\nloaded     kernel "
    )
    assert "purgatory  at EL1: started the kernel; its record says match, " in text
    assert text.endswith("outcome    captured: nothing was harmed and the dump was taken\nreply      boots\n")
    assert "stamped" not in text


def test_a_stamp_is_told_with_what_it_did_and_what_noticed(
    folder: Path, tried: list[QemuMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--write", "initrd+0x10=deadbeef", "--write", "crashkernel-free=a5"]
    assert main(["kernel", "stamp", f"{folder}/", *words, "--expect", "caught"]) == 0
    text = capsys.readouterr().out
    assert "): 00000000 -> deadbeef\n           crashkernel-free (" in text
    assert "refused the image; its record says mismatch" in text
    assert "capture    not entered\n" in text
    assert tried == [QemuMachine()]


def test_another_reply_than_the_expected_one_is_1_with_one_line(
    folder: Path, tried: list[QemuMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--write", "initrd+0x10=deadbeef", "--expect", "missed"]
    assert main(["kernel", "stamp", f"{folder}/", *words]) == 1
    assert capsys.readouterr().err == "kexecemu: not as expected: caught, not missed\n"
    assert len(tried) == 1


@pytest.mark.parametrize("words", [["boot"], ["stamp", "--write", "kernel+0x100=ff"]])
def test_every_key_of_json_is_on_its_page(
    folder: Path, tried: list[QemuMachine], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    main(["kernel", words[0], f"{folder}/", *words[1:], "--json"])
    found = json.loads(capsys.readouterr().out)
    page = (Path(__file__).parents[2] / "docs/json.md").read_text()
    assert len(tried) == 1 and found["reply"] in list(Reply)
    assert [key for key in found if f"`{key}`" not in page] == []


def test_a_judge_that_finds_a_difference_is_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [judge.Judged(UNTOUCHED, {"model": [Reply.BOOTS], "qemu": [Reply.BOOTS]}, captured={"qemu": True})]
    monkeypatch.setattr(judge, "judge_kernel", lambda *words, **more: rows)
    assert main(["kernel", "judge", f"{folder}/"]) == 0
    assert "1 row, 1 run: all are as the model says" in capsys.readouterr().out
    rows.append(judge.Judged("initrd", {"model": [Reply.CAUGHT], "qemu": [Reply.MISSED]}))
    assert main(["kernel", "judge", f"{folder}/", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["as_the_model_says"] is False
    assert found["faults"][1]["differs"] == ["qemu"]
    page = (Path(__file__).parents[2] / "docs/json.md").read_text()
    keys = {*found, *found["faults"][0]}
    assert {key for key in keys if f"`{key}`" not in page} == set()
