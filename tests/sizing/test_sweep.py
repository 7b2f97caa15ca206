"""Which sizes a sweep asks for, how it goes on where one was interrupted, and the command."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from kexecemu.cli import main
from kexecemu.data import fixture_path
from kexecemu.errors import InputError
from kexecemu.scenario.options import Setup
from kexecemu.sizing import sweep as sweeping
from kexecemu.sizing.memory import Memory
from kexecemu.sizing.run import NOT_LOADED, NOT_RESERVED, Asked, Row, run_size, setup_for
from kexecemu.sizing.sweep import Plan, RowFile, check_setup, sweep

M = 1 << 20
STUB = [
    "--kernel",
    str(fixture_path("guests/capture-Image")),
    "--initrd",
    str(fixture_path("guests/initrd.cpio")),
]


def stub() -> Setup:
    """A setup whose capture kernel is the stub: no Linux, and done at once."""
    return Setup(kernel=fixture_path("guests/capture-Image"), initrd=fixture_path("guests/initrd.cpio"))


class Kernels:
    """In place of the workers: a kernel that works in some sizes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, works: set[int], cma: bool = False) -> None:
        self.asked: list[list[Asked]] = []
        self.works, self.cma = works, cma
        monkeypatch.setattr(sweeping, "_Workers", lambda setup, jobs: self)

    def __enter__(self) -> Kernels:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rows(self, asked: list[Asked]) -> list[Row]:
        self.asked.append(asked)
        return [self.row(one) for one in reversed(asked)]  # as they come

    def row(self, asked: Asked) -> Row:
        good = asked.size // M in self.works or bool(asked.more)
        words = ("captured", "true", "done") if good else ("trapped", "none", "panic")
        memory = Memory(M, cma=64 * M if self.cma and not asked.more else 0)
        return Row(asked, words[0], words[1], "", end=words[2], memory=memory)


def sizes_of(rows: list[Row]) -> list[str]:
    return [f"{row.asked.size // M}{'' if row.works else '!'}{row.asked.more}" for row in rows]


def test_between_two_steps_that_differ_it_is_tried_down_to_the_fine_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = Kernels(monkeypatch, {*range(64, 100), *range(116, 300)})
    rows = sweep(stub(), Plan(tuple(range(32 * M, 145 * M, 16 * M))))
    assert sizes_of(rows) == [
        "32!", "48!", "56!", "60!", "64", "80", "96", "100!", "104!", "112!", "116", "120", "128", "144"
    ]  # fmt: skip
    assert all(asked.size % (4 * M) == 0 for some in kernels.asked for asked in some)


def test_where_something_took_memory_it_is_tried_without(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernels(monkeypatch, {64, 128}, cma=True)
    rows = sweep(stub(), Plan((64 * M, 100 * M, 128 * M), fine=64 * M, what_if=("nosmp",)))
    assert sizes_of(rows) == ["64", "64nosmp", "100!", "100cma=0", "100nosmp", "128", "128nosmp"]


def test_what_is_known_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels(monkeypatch, {64})
    known = [kernels.row(Asked(64 * M))]
    told: list[tuple[Asked, int]] = []
    sweep(stub(), Plan((64 * M, 65 * M)), known=known, told=lambda row, left: told.append((row.asked, left)))
    assert kernels.asked == [[Asked(65 * M)]]
    assert told == [(Asked(65 * M), 0)]


def test_between_what_works_and_what_cannot_be_reserved_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = Kernels(monkeypatch, {64})
    none = [Row(Asked(128 * M), NOT_RESERVED, "none", ""), Row(Asked(32 * M), NOT_LOADED, "none", "")]
    rows = sweep(stub(), Plan((32 * M, 64 * M, 128 * M), fine=16 * M), known=none)
    assert sizes_of(rows) == ["32!", "48!", "64", "128!"]
    assert kernels.asked == [[Asked(64 * M)], [Asked(48 * M)]]


def test_a_size_is_a_load_and_a_run() -> None:
    setup = replace(stub(), cmdline="debug")
    assert run_size(setup, Asked(64 * M)).works
    refused = run_size(setup, Asked(M))
    assert (refused.outcome, refused.works) == (NOT_LOADED, False)
    assert "does not fit" in refused.reason
    none = run_size(setup, Asked(2048 * M))
    assert none.outcome == NOT_RESERVED and "cannot allocate crashkernel" in none.reason
    asked = setup_for(setup, Asked(64 * M, "cma=0"))
    assert (asked.cmdline, asked.capture) == ("debug crashkernel=65536K", "linux")
    assert asked.append == f"{setup.value('append')} cma=0"


def test_a_worker_that_dies_is_a_row() -> None:
    with sweeping._Workers(stub(), 1) as workers:
        rows = workers.rows([Asked(64 * M), Asked(65 * M)])
        assert next(rows).works
        (worker,) = workers._idle
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        died = next(rows, None)
        assert died is not None
        assert (died.outcome, died.works) == ("error", False) and "process that ran it died" in died.reason


@pytest.mark.parametrize(
    ("sizes", "fine", "words"),
    [
        ((), M * 4, "1 to 4096 sizes"),
        (tuple(range(5000)), M * 4, "not 5000"),
        ((M,), 4096, "1 MiB, and no finer"),
    ],
)
def test_plans_that_make_no_sense_are_refused(sizes: tuple[int, ...], fine: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Plan(sizes, fine)


def test_a_setup_that_no_size_makes_good_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="crashkernel= in it"):
        check_setup(replace(stub(), cmdline="crashkernel=64M"), Plan((M,)))
    with pytest.raises(InputError, match="missing"):
        check_setup(replace(stub(), kernel=tmp_path / "missing"), Plan((M,)))


def test_rows_are_kept_of_one_setup_and_one_version(tmp_path: Path) -> None:
    path, row = tmp_path / "rows", run_size(stub(), Asked(64 * M))
    kept = RowFile(path, stub(), "1")
    kept.add(row)
    kept.add(replace(row, asked=Asked(65 * M), memory=Memory(5, cma=3), last=("a", "b")))
    assert RowFile(path, stub(), "1").rows == kept.rows
    for setup, version in ((replace(stub(), ram="2G"), "1"), (stub(), "2")):
        with pytest.raises(InputError, match="of another setup, or another version"):
            RowFile(path, setup, version)
    for text in (b"", b"nothing\n", path.read_bytes() + b"{}\n", path.read_bytes()[:-9]):
        path.write_bytes(text)
        with pytest.raises(InputError, match="has no rows of an earlier run"):
            RowFile(path, stub(), "1")


def test_the_command_prints_and_writes_what_it_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["size", *STUB, "--sizes", "1M,8M", "--jobs", "1", "--rows", str(tmp_path / "rows")]
    assert main([*words, "--html", str(tmp_path / "sizes.html")]) == 0
    text = capsys.readouterr().out
    assert "from 4M on every size that was tried works" in text and "largest hole in crashkernel" in text
    assert '<td class="works">works</td>' in (tmp_path / "sizes.html").read_text()
    rows = (tmp_path / "rows").read_text()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["size"] // M, one["works"], one["outcome"]) for one in found["sizes"]] == [
        (1, False, "not loaded"), (4, True, "captured"), (8, True, "captured")
    ]  # fmt: skip
    assert (found["smallest"], found["all_from"], found["take"]) == (4 * M, 4 * M, None)
    assert (tmp_path / "rows").read_text() == rows


def test_where_no_size_works_the_status_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", *STUB, "--sizes", "1M", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["smallest"] is None
