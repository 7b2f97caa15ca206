"""The SQLite file of a campaign: what makes one, opens it for one process alone, and says what it is."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kexecemu.campaign.header import Header
from kexecemu.errors import InputError

__all__ = ["FILE", "connect", "create", "is_empty", "plainly", "read_header"]

FILE = "campaign.sqlite"
_FORMAT = (
    3  # PRAGMA user_version; 1 did not say what became of the dumps, 2 was cut into chunks of a fixed size
)
_READABLE = (2, _FORMAT)
_APPLICATION = 0x6B657865  # PRAGMA application_id: "kexe"

_TABLES = {
    "header": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    "begun": "first INTEGER PRIMARY KEY, faults INTEGER NOT NULL",
    "result": "position INTEGER PRIMARY KEY, fault TEXT NOT NULL, stratum INTEGER NOT NULL, outcome TEXT NOT NULL, "
    "how TEXT NOT NULL, segment TEXT NOT NULL, phys INTEGER NOT NULL, detail TEXT NOT NULL, dump TEXT NOT NULL, "
    "dump_reason TEXT NOT NULL, reported INTEGER NOT NULL",
    "audit": "position INTEGER PRIMARY KEY, outcome TEXT NOT NULL, detail TEXT NOT NULL, dump TEXT NOT NULL",
    "clock": "what TEXT PRIMARY KEY, seconds REAL NOT NULL",
}


def connect(path: Path) -> sqlite3.Connection:
    """The file, open for this process alone; InputError where it cannot be."""
    try:
        connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise InputError(f"{path}: {error}") from error
    try:
        with plainly(path):
            # In this order: with an exclusive lock from the start there is no shared memory.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            _check_is_ours(connection, path)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            # Takes the lock: from here on nobody else gets in.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def plainly(path: Path) -> Iterator[None]:
    """SQLite's errors as InputError in words."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "locked" in text:
            text = "another process uses it"
        elif "not a database" in text:
            text = "is no campaign: not an SQLite file"
        raise InputError(f"{path}: {text}") from error


def is_empty(connection: sqlite3.Connection) -> bool:
    """Nothing is in it yet."""
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _check_is_ours(connection: sqlite3.Connection, path: Path) -> None:
    """Before anything is changed in it."""
    if is_empty(connection):
        return
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    form = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != _APPLICATION:
        raise InputError(f"{path}: is no campaign, but some other SQLite file")
    if form not in _READABLE:
        old = ", in which nothing is said of dumps: run that campaign again" if form == 1 else ""
        raise InputError(f"{path}: has format {form}{old}; this kexecemu reads format {_FORMAT}")


def create(connection: sqlite3.Connection, header: Header, anew: bool = False) -> None:
    """Write the tables and the header; with anew in place of those that are there."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for name in (*_TABLES, "chunk") if anew else ():
            connection.execute(f"DROP TABLE IF EXISTS {name}")
        for name, columns in _TABLES.items():
            connection.execute(f"CREATE TABLE {name} ({columns})")
        connection.executemany("INSERT INTO header VALUES (?, ?)", header.as_items())
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def read_header(connection: sqlite3.Connection, path: Path) -> Header:
    """What campaign it is; InputError where it does not say."""
    if is_empty(connection):
        raise InputError(f"{path}: no campaign there (it was not even begun)")
    return Header.from_items(connection.execute("SELECT key, value FROM header"))
