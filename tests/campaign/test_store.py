"""The store: results all or none of a time, none twice; one process at a time; campaigns that are not mixed."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kexecemu.campaign.database import plainly
from kexecemu.campaign.fault import CampaignFault, Decided, How
from kexecemu.campaign.header import Header
from kexecemu.campaign.store import Store
from kexecemu.errors import InputError
from kexecemu.stray.fault import By, When

HEADER = Header(
    version="1+abc",
    config_hash="c" * 64,
    protection="none",
    purgatory="default",
    seed=7,
    faults=25,
    population=10**6,
    sampler="shuffle uniform",
    name="a campaign",
    scenario="here.toml",
    source="schema = 1\n",
    strata=(("initrd", "hashed", "byte", "dma", "after-load", 10**6),),
    areas=(("initrd", 0x1000, 0x2000, "hashed"),),
)


def decided(position: int, outcome: str = "detected") -> Decided:
    fault = CampaignFault(By.DMA, "byte", position, "initrd", position, When.AFTER_LOAD)
    dump = "none" if outcome == "detected" else "true"
    text = f"the {position}th, über alles"
    return Decided(
        fault, outcome, How.HASH, "initrd", 0x1000 + position, text, dump, "why", outcome == "detected"
    )


CHUNKS = [range(10), range(10, 20), range(20, 25)]


def chunk(number: int) -> list[Decided]:
    return [decided(position) for position in CHUNKS[number]]


def add(store: Store, number: int, results: Sequence[Decided] | None = None) -> None:
    found = chunk(number) if results is None else results
    store.add_results(CHUNKS[number].start, found, [0] * len(found), 0.5)


def test_what_was_stored_is_there_again(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        for number in (2, 0, 1):  # they come back in any order
            add(store, number)
        store.add_audits([(3, decided(3, "hung"))], 2.0)
    with Store.read(tmp_path) as store:
        assert store.header == HEADER
        rows = list(store.rows())
        assert [row.position for row in rows] == list(range(25))
        for row in rows:
            one = decided(row.position)
            found = (one.fault.id, 0, "detected", "hash", "initrd", one.phys, one.detail, "none", "why", 1)
            assert row[1:] == found
        (audit,) = store.audits()
        assert audit == (
            3,
            decided(3).fault.id,
            "detected",
            "hash",
            "hung",
            decided(3).detail,
            "none",
            "true",
        )
        assert not audit.agrees
        assert store.seconds("decide") == 1.5 and store.seconds("audit") == 2.0
        assert store.pending() == [] and store.count() == 25


def test_a_folder_holds_one_file_when_the_store_is_closed(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        add(store, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["campaign.sqlite"]


def test_a_result_that_comes_twice_counts_once(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        add(store, 1)
        add(store, 1, [decided(position, "silent") for position in range(10, 22)])
        assert store.count() == 12
        assert [row.outcome for row in store.rows()] == ["detected"] * 10 + ["silent"] * 2


@pytest.mark.parametrize("cuts", [[25], [1] * 25, [3, 7, 1, 14], [24, 1]])
def test_the_table_does_not_depend_on_how_the_sample_was_cut(tmp_path: Path, cuts: list[int]) -> None:
    with Store.begin(tmp_path / "whole", HEADER) as store:
        store.add_results(0, [decided(one) for one in range(25)], [0] * 25)
        whole = store.table_sha256()
    with Store.begin(tmp_path / "cut", HEADER) as store:
        first = 0
        for size in cuts:
            assert store.pending() == [range(first, 25)]
            store.add_results(first, [decided(first + one) for one in range(size)], [0] * size)
            first += size
        assert store.pending() == [] and store.table_sha256() == whole


def test_what_is_pending_is_what_has_no_result(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        for first, size in ((20, 1), (3, 4), (0, 1), (7, 1)):
            store.add_results(first, [decided(first + one) for one in range(size)], [0] * size)
        assert store.pending() == [range(1, 3), range(8, 20), range(21, 25)]


def test_a_chunk_that_cannot_be_stored_whole_is_not_stored(tmp_path: Path) -> None:
    bad = chunk(0)
    bad[7] = replace(bad[7], segment=None)  # type: ignore[arg-type]
    with Store.begin(tmp_path, HEADER) as store:
        with pytest.raises(InputError):
            add(store, 0, bad)
        assert store.count() == 0 and store.pending() == [range(25)]
        add(store, 0)
        assert store.count() == 10


def test_results_and_strata_are_as_many(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        for strata in ([0] * 9, [0] * 11):
            with pytest.raises(ValueError, match="argument 2"):
                store.add_results(0, chunk(0), strata)
        assert store.count() == 0


def test_what_was_begun_is_pending_until_it_is_done(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        store.mark_begun(range(3))
        store.mark_begun(range(10, 20))
    with Store.begin(tmp_path, HEADER, resume=True) as store:
        assert store.begun() == [range(10, 20)]
        assert store.pending() == [range(25)]
        store.add_results(10, chunk(1)[:4], [0] * 4, begun=6)
        assert store.begun() == [range(14, 20)]
        store.add_results(14, chunk(1)[4:], [0] * 6)
        assert store.begun() == [] and store.pending() == [range(10), range(20, 25)]


def test_results_that_are_there_are_refused_without_resume(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        add(store, 0)
    with pytest.raises(InputError, match=r"there are 10 results of a campaign already.*--resume"):
        Store.begin(tmp_path, HEADER)
    with Store.begin(tmp_path, HEADER, resume=True) as store:
        assert store.count() == 10 and store.pending() == [range(10, 25)]


def test_a_campaign_without_results_stands_in_nobodys_way(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        store.mark_begun(range(10))
    other = replace(HEADER, seed=8)
    with Store.begin(tmp_path, other) as store:
        assert store.header == other and store.begun() == []
    with Store.begin(tmp_path, HEADER, resume=True) as store:
        assert store.header == HEADER


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 8, "seed is 7, not 8"),
        ("faults", 26, "faults is 25, not 26"),
        ("config_hash", "d" * 64, "config_hash is 'c"),
        ("version", "2", "version is '1\\+abc', not '2'"),
        ("protection", "pte", "protection is 'none', not 'pte'"),
        ("sampler", "shuffle stratified", "sampler is"),
    ],
)
def test_campaigns_are_not_mixed(tmp_path: Path, key: str, value: object, said: str) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        add(store, 0)
    with pytest.raises(InputError, match=f"another campaign: its {said}"):
        Store.begin(tmp_path, replace(HEADER, **{key: value}), resume=True)
    with Store.read(tmp_path) as store:
        assert store.count() == 10


def test_the_name_and_the_path_of_a_scenario_make_no_other_campaign(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        add(store, 0)
    with Store.begin(tmp_path, replace(HEADER, scenario="there.toml", source=""), resume=True) as store:
        assert store.count() == 10 and store.header == HEADER


def test_the_table_has_one_digest_that_no_clock_and_no_order_change(tmp_path: Path) -> None:
    digests = []
    for name, order, outcome in (
        ("a", (0, 1, 2), "detected"),
        ("b", (2, 1, 0), "detected"),
        ("c", (0, 1, 2), "silent"),
    ):
        with Store.begin(tmp_path / name, HEADER) as store:
            for number in order:
                positions = CHUNKS[number]
                results = [decided(one, outcome) for one in positions]
                store.add_results(positions.start, results, [0] * len(results), number)
            digests.append(store.table_sha256())
    assert digests[0] == digests[1] != digests[2]


def test_hits_are_counted_by_cell(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        add(store, 0)
        add(store, 1, [decided(position, "silent") for position in CHUNKS[1]])
        assert store.hits(0x1000, 0x1000 + 20, 4) == [
            (0, "detected", 5),
            (1, "detected", 5),
            (2, "silent", 5),
            (3, "silent", 5),
        ]
        assert store.hits(0x1001, 0x1003, 1) == [(0, "detected", 2)]
        assert store.hits(0x5000, 0x6000, 8) == []


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom kexecemu.campaign.store import Store\n"
        "from kexecemu.errors import InputError\n"
        "try:\n    Store.read(Path(sys.argv[1]))\nexcept InputError as error:\n    sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with Store.begin(tmp_path, HEADER) as store:
        add(store, 0)
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 1 and "another process uses it" in refused.stderr
        add(store, 1)
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0


def test_a_folder_without_a_campaign_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no campaign there"):
        Store.read(tmp_path)
    with pytest.raises(InputError, match="no campaign there"):
        Store.read(tmp_path / "nowhere")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "campaign.sqlite"
    path.write_bytes(b"a diary, and not a database at all" * 100)
    before = path.read_bytes()
    for open_ in (Store.read, lambda folder: Store.begin(folder, HEADER, resume=True)):
        with pytest.raises(InputError, match="is no campaign"):
            open_(tmp_path)
    assert path.read_bytes() == before
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE diary (day TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    for open_ in (Store.read, lambda folder: Store.begin(folder, HEADER)):
        with pytest.raises(InputError, match="some other SQLite file"):
            open_(tmp_path)
    assert path.read_bytes() == before


def test_a_column_of_whatever_table_that_holds_another_kind_of_value_is_refused_by_its_name(
    tmp_path: Path,
) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        add(store, 0)
        store.db.execute("INSERT INTO begun VALUES (10, 5)")
        store.db.execute("INSERT INTO audit VALUES (1, 'detected', '', 'none')")
    wrong = {"INTEGER": 0.5, "TEXT": b"bytes", "REAL": "half a second"}
    path, tried = tmp_path / "campaign.sqlite", 0
    whole = path.read_bytes()
    for table in ("header", "begun", "result", "audit", "clock"):
        other = sqlite3.connect(path)
        columns = [(name, kind) for _, name, kind, *_ in other.execute(f"PRAGMA table_info({table})")]
        other.close()
        for name, kind in columns:
            if (kind, name) in (("INTEGER", "first"), ("INTEGER", "position")):
                continue  # a primary key, of which SQLite sees to that itself
            path.write_bytes(whole)
            other = sqlite3.connect(path)
            other.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = 1", (wrong[kind],))
            if table == "begun":
                other.execute(f"UPDATE begun SET {name} = 1.5")
            other.commit()
            other.close()
            with pytest.raises(InputError, match=rf"{table}\.{name} is not always {kind.lower()}\Z"):
                Store.read(tmp_path)
            tried += 1
    assert tried == 2 + 1 + 10 + 3 + 2


@pytest.mark.parametrize("open_", [Store.read, lambda folder: Store.begin(folder, HEADER, resume=True)])
def test_a_campaign_that_was_cut_into_chunks_is_read_and_gone_on_with(
    tmp_path: Path, open_: Callable[[Path], Store]
) -> None:
    """Format 2: chunks of a fixed size, and nothing of what was begun."""
    with Store.begin(tmp_path, HEADER) as store:
        add(store, 0)
        store.db.execute("DROP TABLE begun")
        store.db.execute("CREATE TABLE chunk (number INTEGER PRIMARY KEY, done INTEGER NOT NULL)")
        store.db.execute("INSERT INTO chunk VALUES (0, 1)")
        store.db.execute("PRAGMA user_version = 2")
    with open_(tmp_path) as store:
        assert [row.position for row in store.rows()] == list(range(10))


@pytest.mark.parametrize("kind", ["-wal", "-journal"])
def test_what_a_killed_process_left_in_a_journal_of_either_kind_is_put_right(
    tmp_path: Path, kind: str
) -> None:
    with Store.begin(tmp_path / "left", HEADER) as store:
        add(store, 0)
    path = tmp_path / "left" / "campaign.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(f"PRAGMA journal_mode={'WAL' if kind == '-wal' else 'DELETE'}")
    other.execute("PRAGMA cache_size=1")  # so that pages are in the file before the end of the transaction
    other.execute("BEGIN")
    other.execute("UPDATE result SET detail = ?", ("x" * 100_000,))
    shutil.copytree(path.parent, tmp_path / "found")
    other.execute("ROLLBACK")
    other.close()
    found = tmp_path / "found"
    assert sorted(one.name for one in found.iterdir() if one.suffix != ".sqlite-shm") == [
        path.name,
        path.name + kind,
    ]
    with Store.read(found) as store:
        assert {row.detail for row in store.rows()} == {f"the {n}th, über alles" for n in range(10)}


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        store.db.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="has format 99"):
        Store.read(tmp_path)


@pytest.mark.parametrize("open_", [Store.read, lambda folder: Store.begin(folder, HEADER, resume=True)])
def test_a_campaign_from_before_there_were_dumps_is_refused_in_words(
    tmp_path: Path, open_: Callable[[Path], Store]
) -> None:
    with Store.begin(tmp_path, HEADER) as store:
        store.db.execute("PRAGMA user_version = 1")
    said = "has format 1, in which nothing is said of dumps: run that campaign again; this kexecemu reads format 3"
    with pytest.raises(InputError, match=said):
        open_(tmp_path)


def test_the_digest_of_the_table_is_of_the_dumps_too(tmp_path: Path) -> None:
    digests = set()
    for number, dump in enumerate(("true", "wrong")):
        with Store.begin(tmp_path / str(number), HEADER) as store:
            add(store, 0, [replace(one, dump=dump) for one in chunk(0)])
            digests.add(store.table_sha256())
    assert len(digests) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        Store.begin(tmp_path / "file" / "out", HEADER)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (sqlite3.OperationalError("database is locked"), "here: another process uses it"),
        (sqlite3.DatabaseError("file is not a database"), "here: is no campaign: not an SQLite file"),
        (sqlite3.DatabaseError("disk I/O error"), "here: disk I/O error"),
        (OverflowError("int too large"), "here: int too large"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            "here: is damaged: 'utf-8' codec can't decode byte 0xff",
        ),
    ],
)
def test_what_sqlite_says_is_said_in_words_with_the_file_s_name(error: Exception, said: str) -> None:
    with pytest.raises(InputError) as refusal, plainly(Path("here")):
        raise error
    assert str(refusal.value).startswith(said)
    with pytest.raises(KeyError), plainly(Path("here")):
        raise KeyError("not SQLite's")
