"""A store that is damaged, foreign, deleted or not ours to write to: one line and status 2, or the right answer."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import string
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_engine
import pytest

from kexecemu.campaign.job import discard_engine
from kexecemu.campaign.store import Store
from kexecemu.campaign.work import Campaign, plan_campaign, run_campaign
from kexecemu.cli import main
from kexecemu.errors import InputError

FAULTS = 60
FILE = "campaign.sqlite"
DAMAGES = int(os.environ.get("KEXECEMU_DAMAGES", "120"))
"""How many of each kind; 2,000 and more were tried."""

Damage = Callable[[random.Random, Path], object]


def planned(sampling: str = "uniform") -> Campaign:
    scenario = fake_engine.scenario("a fake campaign", sampling)
    return plan_campaign(scenario, Path(), FAULTS, 2, named="fake.toml", chunk=20, engine=fake_engine.make)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stores")
    for name in ("one", "other"):
        run_campaign(planned(), folder / name, audit=10)
    yield folder
    discard_engine()


def flip(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 1, 2, 8, 100))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(chance: random.Random, path: Path) -> None:
    data = path.read_bytes()
    at, end = sorted(chance.randrange(len(data)) for _ in range(2))
    kind = chance.choice(("cut", "zeros", "gone", "noise", "page"))
    inside = {
        "cut": b"",
        "zeros": bytes(end - at),
        "gone": data[end:],
        "noise": chance.randbytes(end - at) + data[end:],
        "page": data[4096:8192] + data[end:],
    }
    path.write_bytes(data[:at] + inside[kind])


VALUES = (
    *(None, 0, -1, 1, 2, 59, 60, 10**9, 2**63 - 1, -(2**63), 0.5, float("inf"), -1e300, b"", b"\xff\xfe", ""),
    *(
        "x",
        "silent",
        "true",
        "run",
        "dma.byte.0.initrd+0.after-load",
        "a.b.c.d",
        "....+",
        "1" * 4301,
        "[" * 5000,
    ),
    *("null", "NaN", "-5", "{}", "[]", "[[1, 2, 3, 4, 5, 6]]", "\x1b[2J\n", "1e400"),
)


def rewrite(chance: random.Random, path: Path) -> None:
    """Values of rows: of a wrong type, beyond every bound, of another column."""
    connection = sqlite3.connect(path)
    for _ in range(chance.choice((1, 1, 2))):
        table = chance.choice(("header", "begun", "result", "audit", "clock"))
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        name, value = chance.choice(names), chance.choice(VALUES)
        if table == "header":
            name = "value"
        rows = [row for (row,) in connection.execute(f"SELECT rowid FROM {table}")]
        if not rows:
            continue
        if chance.randrange(4) == 0:
            connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (chance.choice(rows),))
            continue
        try:
            connection.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", (value, chance.choice(rows)))
        except sqlite3.Error:
            continue
    connection.commit()
    connection.close()


def reform(chance: random.Random, path: Path) -> None:
    """Tables: gone, renamed, of other columns, views in their place; other SQLite files with our mark."""
    table = chance.choice(("header", "begun", "result", "audit", "clock"))
    word = "".join(chance.choices(string.ascii_lowercase, k=4))
    statements = chance.choice(
        (
            (f"DROP TABLE {table}",),
            (f"ALTER TABLE {table} RENAME TO {word}",),
            (f"ALTER TABLE {table} ADD COLUMN {word} TEXT",),
            (f"ALTER TABLE {table} RENAME TO {word}", f"CREATE VIEW {table} AS SELECT * FROM {word}"),
            (f"CREATE TABLE {word} (a)",),
            (f"CREATE TRIGGER {word} AFTER INSERT ON begun BEGIN DELETE FROM result; END",),
            (
                f"CREATE TABLE copy AS SELECT * FROM {table}",
                f"DROP TABLE {table}",
                f"ALTER TABLE copy RENAME TO {table}",
            ),
            (f"PRAGMA user_version = {chance.randrange(-5, 9)}",),
            (f"PRAGMA application_id = {chance.randrange(1 << 31)}",),
            ("PRAGMA journal_mode = WAL",),
            ("PRAGMA encoding = 'UTF-16'", "VACUUM"),
            (f"DELETE FROM {table}",),
        )
    )
    connection = sqlite3.connect(path)
    for one in statements:
        connection.execute(one)
    connection.commit()
    connection.close()


def beside(chance: random.Random, path: Path) -> None:
    """What SQLite takes for its own journals."""
    end = chance.choice(("-wal", "-journal", "-shm"))
    data = chance.choice(
        (b"", chance.randbytes(5000), path.read_bytes(), bytes(512), b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
    )
    path.with_name(FILE + end).write_bytes(data)


@pytest.mark.parametrize("damage", [flip, cut, rewrite, reform, beside])
def test_a_damaged_store_is_refused_in_one_line_or_read_to_its_end(
    damage: Damage, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = Counter[int]()
    for seed in range(DAMAGES):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole / "one", folder)
        damage(random.Random(f"{damage.__name__} {seed}"), folder / FILE)
        words = ["campaign-compare", str(whole / "other"), str(folder), "--html", str(tmp_path / "h.html")]
        status = main(words)
        said = capsys.readouterr()
        assert status in (0, 2), f"{damage.__name__} {seed}: {status}: {said.err}"
        assert len(said.err.splitlines()) == (status == 2) and bool(said.out) == (status == 0), said.err
        ends[status] += 1
        if seed % 4 == 0:
            try:
                run_campaign(planned(), folder, resume=True, audit=5)
            except InputError as error:
                assert str(error)
    # What lies beside a file that was closed well is not its journal.
    assert damage is beside or ends[2] > DAMAGES // 10, ends
    assert Store.read(whole / "one").count() == FAULTS


def test_a_store_that_is_deleted_while_the_campaign_runs_is_no_success(tmp_path: Path) -> None:
    for name in ("deleted", "replaced"):
        out = tmp_path / name

        def lose(phase: str, done: int, total: int, outcomes: object, out: Path = out) -> None:
            if done == 20:
                (out / FILE).unlink()
                if out.name == "replaced":
                    (out / FILE).write_bytes(b"")

        with pytest.raises(InputError, match="was deleted or replaced while it was written"):
            run_campaign(planned(), out, audit=0, progress=lose)
    discard_engine()


def test_a_store_that_is_deleted_at_the_end_is_no_success_either(tmp_path: Path) -> None:
    def lose(phase: str, done: int, total: int, outcomes: object) -> None:
        if done == FAULTS:
            (tmp_path / FILE).unlink()

    with pytest.raises(InputError, match="was deleted or replaced"):
        run_campaign(planned(), tmp_path, audit=0, progress=lose)
    discard_engine()


def as_nobody(folder: Path, act: Callable[[], object]) -> int:
    """The status of a child that is nobody and may not write into the folder."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    child = os.fork()
    if child == 0:
        status = 99
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            status = int(str(act()))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("left", ["closed", "killed"])
def test_a_store_in_a_folder_that_is_read_only_is_read(left: str, whole: Path, tmp_path: Path) -> None:
    above = tmp_path
    while above != above.parent:  # nobody has to get there
        if above.stat().st_uid == os.getuid():
            above.chmod(above.stat().st_mode | 0o055)
        above = above.parent
    folder = tmp_path / "there"
    shutil.copytree(whole / "one", folder)
    if left == "killed":  # what is in the log has to be read as well
        connection = sqlite3.connect(folder / FILE)
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("UPDATE result SET outcome = 'hung' WHERE position = 7")
        connection.commit()
        shutil.copytree(folder, tmp_path / "killed")
        connection.close()
        folder = tmp_path / "killed"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read() -> int:
        with Store.read(folder) as store:
            return 7 if [*store.rows()][7].outcome == "hung" else len([*store.rows()])

    assert as_nobody(folder, read) == (7 if left == "killed" else FAULTS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    folder.chmod(0o755)


def test_looking_at_a_store_changes_nothing(whole: Path) -> None:
    path = whole / "one" / FILE
    before = path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()
    with Store.read(path.parent) as store, Store.read(path.parent) as again:
        assert [*store.rows()] == [*again.rows()]
    assert (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) == before


def test_what_is_no_file_under_a_store_s_name_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(InputError, match="is no regular file"):
        run_campaign(planned(), tmp_path, audit=0)
    discard_engine()
