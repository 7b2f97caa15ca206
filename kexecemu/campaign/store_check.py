"""Whether a campaign's file holds what a campaign writes: whoever reads it can then rely on every value in it.

A file that was damaged, made by hand or by another program is refused here, in one line, before anything is made of it.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from kexecemu.campaign.fault import How
from kexecemu.campaign.header import Header
from kexecemu.crash.dump import Dump
from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError

__all__ = ["check_header", "check_results", "check_tables"]

_TYPES = {"INTEGER": "integer", "TEXT": "text", "REAL": "real"}
_PHYS_LIMIT = 1 << 48
_MOST = 1 << 62  # what can be counted in SQLite's numbers, and summed


def _one_of(words: type[StrEnum]) -> str:
    return f"IN ({', '.join(repr(one.value) for one in words)})"


def check_tables(connection: sqlite3.Connection, tables: Mapping[str, str], path: Path) -> None:
    """InputError where tables are not those that a campaign makes, or a column holds something else than it says."""
    found = set(connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    if found != {("table", name, f"CREATE TABLE {name} ({columns})") for name, columns in tables.items()}:
        raise InputError(f"{path}: is damaged, or no campaign of ours: other tables")
    (whole,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if whole != "ok":
        raise InputError(f"{path}: is damaged: {str(whole)[:200]}")
    for table, columns in tables.items():
        for words in columns.split(","):
            name, kind = words.split()[:2]
            wrong = f"SELECT 1 FROM {table} WHERE typeof({name}) <> '{_TYPES[kind]}' LIMIT 1"
            if connection.execute(wrong).fetchone() is not None:
                raise InputError(f"{path}: is damaged: {table}.{name} is not always {kind.lower()}")


def check_header(header: Header, path: Path) -> None:
    """InputError where the header's numbers make no campaign."""
    sizes = [row[-1] for row in header.strata]
    wrong = [
        not 1 <= header.faults <= header.population < _MOST,
        header.seed < 0,
        min(sizes, default=0) < 0 or sum(sizes) != header.population,
        any(not 0 <= start < end <= _PHYS_LIMIT for _, start, end, _ in header.areas),
    ]
    if any(wrong):
        raise InputError(f"{path}: is damaged: its header makes no campaign")


def check_results(connection: sqlite3.Connection, header: Header, path: Path, *, begun: bool) -> None:
    """InputError where a result is none that a campaign with this header has. begun: there is a table of that name."""
    for table, rule in _rules(header):
        if table == "begun" and not begun:
            continue
        row = connection.execute(f"SELECT 1 FROM {table} WHERE NOT ({rule}) LIMIT 1").fetchone()
        if row is not None:
            raise InputError(f"{path}: is damaged: {table}s that no campaign has")
    for stratum, drawn in connection.execute("SELECT stratum, count(*) FROM result GROUP BY stratum"):
        if drawn > header.strata[stratum][-1]:
            raise InputError(f"{path}: is damaged: more results of a stratum than there are faults in it")


def _rules(header: Header) -> Iterator[tuple[str, str]]:
    """Conditions in SQL that hold for each row of a table."""
    yield "begun", f"first >= 0 AND faults > 0 AND first <= {header.faults} - faults"
    yield "result", f"position BETWEEN 0 AND {header.faults - 1}"
    yield "result", f"stratum BETWEEN 0 AND {len(header.strata) - 1}"
    yield "result", f"outcome {_one_of(Outcome)} AND how {_one_of(How)} AND dump {_one_of(Dump)}"
    yield "result", f"reported IN (0, 1) AND phys BETWEEN 0 AND {_PHYS_LIMIT}"
    yield "result", "fault GLOB '?*.?*.?*.?*+?*.?*' AND fault NOT GLOB '*.*.*.*.*.*'"
    yield "audit", f"outcome {_one_of(Outcome)} AND dump {_one_of(Dump)}"
    yield "audit", "position IN (SELECT position FROM result)"
    yield "clock", "seconds BETWEEN 0 AND 1e15"
