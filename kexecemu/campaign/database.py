"""The SQLite file of a campaign: what makes one, opens it for one process alone, and says what it is."""

import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kexecemu.campaign.header import Header
from kexecemu.campaign.store_check import check_header, check_results, check_tables
from kexecemu.errors import InputError

__all__ = ["FILE", "connect", "connect_to_read", "create", "is_empty", "plainly", "read_header"]

FILE = "campaign.sqlite"
# PRAGMA user_version; 1 did not say what became of the dumps, 2 was cut into chunks of a fixed size.
_FORMAT, _IN_CHUNKS = 3, 2
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
_CHUNKS = {"chunk": "number INTEGER PRIMARY KEY, done INTEGER NOT NULL"}


class _Database(sqlite3.Connection):
    """A connection whose errors are InputErrors, whoever meets them, and that may have a folder of its own."""

    path = Path()
    folder: tempfile.TemporaryDirectory[str] | None = None

    def cursor(self, *_: Any) -> Any:
        return super().cursor(_Rows)

    def execute(self, *words: Any) -> Any:
        return self.cursor().execute(*words)

    def executemany(self, *words: Any) -> Any:
        return self.cursor().executemany(*words)

    def close(self) -> None:
        super().close()
        if self.folder is not None:
            self.folder.cleanup()


class _Rows(sqlite3.Cursor):
    def execute(self, *words: Any) -> Any:
        with plainly(self.connection.path):  # type: ignore[attr-defined]
            return super().execute(*words)

    def executemany(self, *words: Any) -> Any:
        with plainly(self.connection.path):  # type: ignore[attr-defined]
            return super().executemany(*words)

    def fetchone(self) -> Any:
        return next(self, None)

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            with plainly(self.connection.path):  # type: ignore[attr-defined]
                raise error


def _open(name: str | Path, path: Path) -> _Database:
    """A connection to a file, by an absolute name or an address (file:...), which is called `path` to users."""
    with plainly(path):
        given: dict[str, Any] = {"isolation_level": None, "check_same_thread": False, "uri": True}
        connection: _Database = sqlite3.connect(name, timeout=1.0, factory=_Database, **given)
    connection.path = path
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """The file, to look at: nothing is changed in it, unless a process that was killed has left it to be put right.

    Where that cannot be done in place, in a folder that nobody may write to, it is done in a copy.
    """
    try:
        with open(path, "rb") as file:
            left = file.read(20)[18:] == b"\2\2"  # in WAL mode
            left |= any(path.with_name(f"{path.name}-{end}").exists() for end in ("wal", "journal"))
            if left and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
                return connect(path)
            if left:
                return _copied(path, file.fileno())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    connection = _open(f"{path.absolute().as_uri()}?mode=ro", path)
    try:
        _check_is_ours(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _copied(path: Path, fd: int) -> sqlite3.Connection:
    try:
        # Where SQLite has its shared lock: taken while a campaign writes.
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 510, 0x40000002)
    except BlockingIOError:
        raise InputError(f"{path}: another process uses it") from None
    folder = tempfile.TemporaryDirectory(prefix="kexecemu-store-")
    try:
        for one in path.parent.glob(f"{path.name}*"):
            shutil.copyfile(one, Path(folder.name, one.name))
        connection = connect(Path(folder.name, path.name), path)
    except BaseException:
        folder.cleanup()
        raise
    connection.folder = folder
    return connection


def connect(file: Path, path: Path | None = None) -> _Database:
    """The file, open for this process alone; InputError where it cannot be. path is what it is called to users."""
    path = path or file
    if file.exists() and not file.is_file():
        raise InputError(f"{path}: is no regular file")  # some never end
    connection = _open(file.absolute(), path)
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
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is damaged: {error}") from error
    except (sqlite3.Error, OverflowError) as error:
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
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (form,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise InputError(f"{path}: is no campaign, but some other SQLite file")
    if form not in (_IN_CHUNKS, _FORMAT):
        old = ", in which nothing is said of dumps: run that campaign again" if form == 1 else ""
        raise InputError(f"{path}: has format {form}{old}; this kexecemu reads format {_FORMAT}")
    tables = _TABLES
    if form == _IN_CHUNKS:
        tables = _CHUNKS | {name: columns for name, columns in _TABLES.items() if name != "begun"}
    check_tables(connection, tables, path)


def create(connection: sqlite3.Connection, header: Header) -> None:
    """Write the tables and the header, in place of those that are there."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for name in (*_TABLES, *_CHUNKS):
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
    try:
        header = Header.from_items(connection.execute("SELECT key, value FROM header"))
    except (ValueError, RecursionError) as error:  # no JSON, or none of a header
        raise InputError(f"{path}: is damaged: its header: {str(error)[:200]}") from error
    check_header(header, path)
    (form,) = connection.execute("PRAGMA user_version").fetchone()
    check_results(connection, header, path, begun=form == _FORMAT)
    return header
