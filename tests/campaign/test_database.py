"""The file of a campaign by itself: what marks it, how it is opened, and what is left behind when it is closed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kexecemu.campaign import database
from kexecemu.campaign.fault import CampaignFault, Decided, How
from kexecemu.campaign.header import Header
from kexecemu.campaign.store import Store
from kexecemu.errors import InputError
from kexecemu.stray.fault import By, When

HEADER = Header(
    "1", "c" * 64, "none", "default", 7, 25, 100, "shuffle uniform", strata=(("a", "b", "c", "d", "e", 100),)
)


def test_the_file_is_marked_as_a_campaign_s_and_by_its_format(tmp_path: Path) -> None:
    Store.begin(tmp_path, HEADER).close()
    plain = sqlite3.connect(tmp_path / "campaign.sqlite")
    (mark,), (form,) = (
        plain.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
    )
    names = {name for (name,) in plain.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    plain.close()
    assert (mark.to_bytes(4, "big"), form) == (b"kexe", 3)
    assert names == {"header", "begun", "result", "audit", "clock"}


def test_folders_are_made_on_the_way(tmp_path: Path) -> None:
    Store.begin(tmp_path / "a" / "b" / "c", HEADER).close()
    assert (tmp_path / "a/b/c/campaign.sqlite").is_file()


def test_a_folder_s_name_is_a_name_and_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("file:there", "50%25 #1?mode=memory"):
        Store.begin(Path(name), HEADER).close()
        assert (tmp_path / name / "campaign.sqlite").is_file()
        with Store.read(Path(name)) as store:
            assert store.header == HEADER


def test_whoever_meets_an_error_is_told_the_file(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        path = tmp_path / "campaign.sqlite"
        for run in (store.db.execute, store.db.cursor().execute):
            with pytest.raises(InputError, match=f"{path}: no such table: nowhere"):
                run("SELECT * FROM nowhere")
        with pytest.raises(InputError, match=f"{path}: "):
            store.db.executemany("INSERT INTO begun VALUES (?, ?)", [(1, None)])
        # What is no UTF-8 is met as it is read.
        with pytest.raises(InputError, match=f"{path}: "):
            store.db.execute("SELECT CAST(x'ff' AS TEXT)").fetchone()
        assert store.db.execute("SELECT 1 WHERE 0").fetchone() is None


def test_a_store_may_be_used_by_another_thread_than_the_one_that_opened_it(tmp_path: Path) -> None:
    found: list[int] = []
    with Store.begin(tmp_path, HEADER) as store:
        thread = threading.Thread(target=lambda: found.append(store.count()))
        thread.start()
        thread.join()
    assert found == [0]


def test_a_campaign_that_is_done_is_looked_at_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.begin(tmp_path, HEADER).close()
    path = tmp_path / "campaign.sqlite"
    before = path.read_bytes()

    def no_folder(*_: object, **__: object) -> None:
        raise AssertionError("it is copied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", no_folder)
    with Store.read(tmp_path) as store:
        assert store.count() == 0
        with pytest.raises(InputError, match="readonly"):
            store.mark_begun(range(3))
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("left", ["wal", "journal"])
def test_what_a_killed_process_left_is_put_right_in_a_copy_where_nobody_may_write(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    store = Store.begin(begun, HEADER)
    store.mark_begun(range(4))
    found = tmp_path / "found"
    shutil.copytree(begun, found)
    store.close()
    if left == "journal":
        for one in found.glob("*-wal"):
            one.unlink()
        shutil.copy(begun / "campaign.sqlite", found / "campaign.sqlite")
        (found / "campaign.sqlite-journal").write_bytes(b"")
    before = {one.name: one.read_bytes() for one in found.iterdir()}
    made: list[Path] = []
    folder = tempfile.TemporaryDirectory

    class Folder(folder[str]):  # type: ignore[valid-type, misc]
        def __init__(self, **options: str) -> None:
            super().__init__(**options)
            made.append(Path(self.name))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Folder)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with Store.read(found) as copy:
        assert copy.begun() == [range(4)]
        (own,) = made
        assert own.is_dir() and own.name.startswith("kexecemu-store-")
    assert not own.exists()
    assert {one.name: one.read_bytes() for one in found.iterdir()} == before


def test_a_copy_that_cannot_be_opened_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.begin(tmp_path, HEADER).close()
    (tmp_path / "campaign.sqlite-wal").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    made: list[str] = []

    def connect(file: Path, path: Path) -> None:
        made.append(str(file.parent))
        assert path == tmp_path / "campaign.sqlite"
        raise InputError("no")

    monkeypatch.setattr(database, "connect", connect)
    with pytest.raises(InputError, match="no"):
        Store.read(tmp_path)
    assert made and not Path(made[0]).exists()


def test_a_header_that_was_not_written_whole_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and header are there at once, or what was there before."""
    with Store.begin(tmp_path, HEADER) as store:
        other = replace(HEADER, seed=8)
        monkeypatch.setattr(Header, "as_items", lambda self: [("seed", None)])
        with pytest.raises(InputError):
            database.create(store.db, other)
        assert store.count() == 0
        assert database.read_header(store.db, store.path) == HEADER
        assert not store.db.in_transaction


def test_while_another_process_writes_no_copy_is_made(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom kexecemu.campaign import database\n"
        "from kexecemu.errors import InputError\n"
        "os.access = lambda *_: False\n"
        "database.tempfile.TemporaryDirectory = lambda **_: sys.exit('it is copied')\n"
        "try:\n    database.connect_to_read(Path(sys.argv[1]))\nexcept InputError as error:\n    sys.exit(str(error))\n"
    )
    path = tmp_path / "campaign.sqlite"
    command = [sys.executable, "-c", script, str(path)]
    with Store.begin(tmp_path, HEADER) as store:
        store.mark_begun(range(3))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, f"{path}: another process uses it\n")


def test_a_file_that_cannot_be_opened_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        database.connect_to_read(tmp_path / "nowhere")
    assert str(refusal.value) == f"{tmp_path}/nowhere: No such file or directory"
    with pytest.raises(InputError, match=f"{tmp_path}: is no regular file"):
        database.connect(tmp_path)
    (tmp_path / "other").write_bytes(b"a diary" * 1000)
    with pytest.raises(InputError, match="what it is called: is no campaign: not an SQLite file"):
        database.connect(tmp_path / "other", Path("what it is called"))


def test_a_store_is_written_to_with_a_log_by_one_process_alone(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        names = ("journal_mode", "synchronous", "locking_mode")
        modes = [store.db.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
        assert modes == ["wal", 1, "exclusive"]
        assert store.db.isolation_level is None


def test_a_connection_that_comes_to_nothing_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    with Store.begin(ours, HEADER) as store:
        fault = CampaignFault(By.DMA, "byte", 0, "initrd", 0, When.AFTER_LOAD)
        store.add_results(0, [Decided(fault, "hung", How.RUN, "", 0)], [0])
    other.mkdir()
    plain = sqlite3.connect(other / "campaign.sqlite")
    plain.execute("CREATE TABLE diary (day TEXT)")
    plain.close()
    closed: list[bool] = []
    close = database._Database.close

    def noted(self: database._Database) -> None:
        closed.append(True)
        close(self)

    monkeypatch.setattr(database._Database, "close", noted)
    attempts: list[Callable[[], Store]] = [
        lambda: Store.read(other),
        lambda: Store.begin(other, HEADER),
        lambda: Store.begin(ours, HEADER),
        lambda: Store.begin(ours, replace(HEADER, seed=9), resume=True),
    ]
    for open_ in attempts:
        closed.clear()
        with pytest.raises(InputError):
            open_()
        assert closed == [True]
    damaged = sqlite3.connect(ours / "campaign.sqlite")
    damaged.execute("UPDATE header SET value = 'x'")
    damaged.commit()
    damaged.close()
    closed.clear()
    with pytest.raises(InputError, match="is damaged: its header: "):
        Store.read(ours)
    assert closed == [True]


def test_a_file_with_nothing_in_it_is_no_campaign_yet_and_one_can_begin_there(tmp_path: Path) -> None:
    (tmp_path / "campaign.sqlite").write_bytes(b"")
    with pytest.raises(InputError, match=r"no campaign there \(it was not even begun\)"):
        Store.read(tmp_path)
    with Store.begin(tmp_path, HEADER, resume=True) as store:
        assert store.header == HEADER and store.pending() == [range(25)]


def test_a_campaign_that_begins_anew_has_nothing_of_the_same_one_before_it(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        store.mark_begun(range(3))
    named = replace(HEADER, name="by another name")
    with Store.begin(tmp_path, HEADER, resume=True) as store:
        assert store.begun() == [range(3)]
    with Store.begin(tmp_path, named) as store:
        assert (store.begun(), store.header) == ([], named)
    with Store.begin(tmp_path, HEADER, resume=True) as store:
        assert store.header == named
