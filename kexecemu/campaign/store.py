"""Where a campaign's results are kept: one SQLite file, which is right after kill -9 at any moment.

Results are stored some at a time, as they come back, each time in one transaction. What is left to do is what has no
result, so a campaign that was killed has each result once or not at all. The file is in WAL mode with an exclusive
lock: commits are cheap, no shared memory is used (so a network file system will do), and a second process that wants to
write to the same campaign is told. Nothing is promised about a power cut but that the file stays a consistent one.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kexecemu.campaign.database import FILE, connect, connect_to_read, create, is_empty, plainly, read_header
from kexecemu.campaign.fault import Decided
from kexecemu.campaign.header import Header
from kexecemu.errors import InputError
from kexecemu.files import file_identity
from kexecemu.shown import shown

__all__ = ["Audit", "Counted", "Store", "StoredRow"]


@shown()
class StoredRow(NamedTuple):
    """One result. stratum is the number of one of the header's; reported is 0 or 1."""

    position: int
    fault: str
    stratum: int
    outcome: str
    how: str
    segment: str
    phys: int
    detail: str
    dump: str
    dump_reason: str
    reported: int


@shown()
class Counted(NamedTuple):
    """How many results are alike: those of one stratum, segment, outcome, way of finding it, dump and reported."""

    stratum: int
    segment: str
    outcome: str
    how: str
    dump: str
    reported: int
    faults: int


@shown()
class Audit(NamedTuple):
    """A fault of the sample that was run to its end, after it had been decided without.

    decided and run are outcomes, decided_dump and run_dump what became of the dump.
    """

    position: int
    fault: str
    decided: str
    how: str
    run: str
    detail: str
    decided_dump: str
    run_dump: str

    @property
    def agrees(self) -> bool:
        """Outcome and dump are as decided."""
        return (self.decided, self.decided_dump) == (self.run, self.run_dump)


@shown("path", "header")
class Store:
    """A campaign's file, open in this process alone. Close it, or use it as a context manager."""

    def __init__(self, path: Path, connection: sqlite3.Connection, header: Header) -> None:
        self.path = path
        self.header = header
        self.db = connection
        self._identity = file_identity(path)

    @classmethod
    def begin(cls, folder: Path, header: Header, resume: bool = False) -> Store:
        """A new campaign in the folder, or with resume the one that is there, if it is the same one.

        With resume and no campaign there, a new one begins. Raises InputError when there are results already and
        resume was not asked for, when they are another campaign's (saying what differs), and when the file cannot be
        used or another process uses it.
        """
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror or error}") from error
        connection = connect(path)
        try:
            with plainly(path):
                if is_empty(connection):
                    create(connection, header)
                    return cls(path, connection, header)
                found = read_header(connection, path)
                (results,) = connection.execute("SELECT count(*) FROM result").fetchone()
                if not resume and results:
                    raise InputError(
                        f"{folder}: there are {results} results of a campaign already: go on with --resume, or choose "
                        "another folder"
                    )
                differences = found.differences(header)
                if differences and results:
                    raise InputError(f"{folder}: holds another campaign: its {'; its '.join(differences)}")
                if differences or not resume:
                    create(connection, header)
                    found = header
                return cls(path, connection, found)
        except BaseException:
            connection.close()
            raise

    @classmethod
    def read(cls, folder: Path) -> Store:
        """The campaign in a folder, to look at. Raises InputError when there is none, or another process uses it."""
        path = folder / FILE
        if not path.is_file():
            raise InputError(f"{folder}: no campaign there (no {FILE})")
        connection = connect_to_read(path)
        try:
            with plainly(path):
                return cls(path, connection, read_header(connection, path))
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Leave one file that stands for itself, without a log beside it."""
        try:
            self.db.execute("PRAGMA journal_mode=DELETE")
        except (sqlite3.Error, InputError):
            pass  # the log is kept then, and taken up by whoever opens the file next
        finally:
            self.db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_in_place(self) -> None:
        """InputError where the file is no longer what the folder has under its name: it was deleted meanwhile."""
        if file_identity(self.path) != self._identity:
            raise InputError(f"{self.path}: was deleted or replaced while it was written")

    def pending(self) -> list[range]:
        """The positions that have no result, in order."""
        gaps, at = [], 0
        for (position,) in self.db.execute("SELECT position FROM result ORDER BY position"):
            if position > at:
                gaps.append(range(at, position))
            at = position + 1
        return [*gaps, range(at, self.header.faults)] if at < self.header.faults else gaps

    def begun(self) -> list[range]:
        """The positions that were begun in a process that did not live to finish them."""
        return [
            range(first, first + faults)
            for first, faults in self.db.execute("SELECT * FROM begun ORDER BY first")
        ]

    def mark_begun(self, positions: range) -> None:
        """Say that these alone are begun in the process that also holds the store: they may take both along."""
        with self._transaction():
            self.db.execute("DELETE FROM begun")
            self.db.execute("INSERT INTO begun VALUES (?, ?)", (positions.start, len(positions)))

    def add_results(
        self,
        first: int,
        results: Sequence[Decided],
        strata: Sequence[int],
        seconds: float = 0.0,
        begun: int = 0,
    ) -> None:
        """The results from one position on, all or none of them. One that is there already is left alone.

        seconds is the host's time since the last ones. So many behind them stay begun.
        """
        with self._transaction():
            rows = [_row(at, *row) for at, row in enumerate(zip(strata, results, strict=True), first)]
            columns = ", ".join("?" * len(StoredRow._fields))
            conflict = "ON CONFLICT (position) DO NOTHING"
            self.db.executemany(f"INSERT INTO result VALUES ({columns}) {conflict}", rows)
            self.db.execute("DELETE FROM begun WHERE first = ?", (first,))
            if begun:
                self.db.execute("INSERT INTO begun VALUES (?, ?)", (first + len(results), begun))
            self._tick("decide", seconds)

    def add_audits(self, audits: Iterable[tuple[int, Decided]], seconds: float = 0.0) -> None:
        """What full emulation found of some positions of the sample."""
        with self._transaction():
            self.db.executemany(
                "INSERT OR IGNORE INTO audit VALUES (?, ?, ?, ?)",
                ((position, str(one.outcome), one.detail, str(one.dump)) for position, one in audits),
            )
            self._tick("audit", seconds)

    def _tick(self, what: str, seconds: float) -> None:
        update = "ON CONFLICT (what) DO UPDATE SET seconds = seconds + excluded.seconds"
        self.db.execute(f"INSERT INTO clock VALUES (?, ?) {update}", (what, seconds))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.check_in_place()
        with plainly(self.path):
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    def count(self) -> int:
        """How many faults have a result."""
        (count,) = self.db.execute("SELECT count(*) FROM result").fetchone()
        return int(count)

    def _select(self, which: str, *values: str | int) -> Iterator[StoredRow]:
        query = f"SELECT {', '.join(StoredRow._fields)} FROM result {which}"
        return map(StoredRow._make, self.db.execute(query, values))

    def rows(self) -> Iterator[StoredRow]:
        """All results in the order of the sample."""
        return self._select("ORDER BY position")

    def counts(self) -> list[Counted]:
        """How many results there are of each kind, in the order of the kinds."""
        columns = ", ".join(Counted._fields[:-1])
        query = f"SELECT {columns}, count(*) FROM result GROUP BY {columns} ORDER BY {columns}"
        return list(map(Counted._make, self.db.execute(query)))

    def hits(self, start: int, end: int, cells: int, what: str = "outcome") -> list[tuple[int, str, int]]:
        """What hit physical start to end (end exclusive), cut into equal cells: cell, outcome, count.

        what is "outcome", or "dump" for that in its place.
        """
        query = (
            f"SELECT (phys - ?) * ? / ? AS cell, {what}, count(*) FROM result WHERE phys >= ? AND phys < ? "
            f"GROUP BY cell, {what} ORDER BY cell, {what}"
        )
        return list(self.db.execute(query, (start, cells, end - start, start, end)))

    def first(self, outcome: str, limit: int) -> list[StoredRow]:
        """The first results of the sample with an outcome, those before the others that nobody reported."""
        which = "WHERE outcome = ? ORDER BY reported AND outcome = 'trapped', position LIMIT ?"
        return list(self._select(which, outcome, limit))

    def decided(self) -> Iterator[StoredRow]:
        """All results that were found without a run to the end, in the order of the sample."""
        return self._select("WHERE how <> 'run' ORDER BY position")

    def audits(self) -> list[Audit]:
        """All audits in the order of the sample."""
        query = (
            "SELECT a.position, r.fault, r.outcome, r.how, a.outcome, a.detail, r.dump, a.dump FROM audit a "
            "JOIN result r ON r.position = a.position ORDER BY a.position"
        )
        return [Audit._make(row) for row in self.db.execute(query)]

    def seconds(self, what: str) -> float:
        """The host's time that "decide" or "audit" took so far."""
        (seconds,) = self.db.execute("SELECT total(seconds) FROM clock WHERE what = ?", (what,)).fetchone()
        return float(seconds)

    def table_sha256(self) -> str:
        """Over all results in the order of the sample: one line each, fields parted by tabs."""
        digest = hashlib.sha256()
        for row in self.rows():
            digest.update(("\t".join(map(str, row)) + "\n").encode())
        return digest.hexdigest()


def _row(position: int, stratum: int, one: Decided) -> StoredRow:
    where = one.segment, one.phys, one.detail
    dump = str(one.dump), one.dump_reason, int(one.reported)
    return StoredRow(position, one.fault.id, stratum, str(one.outcome), one.how.value, *where, *dump)
