"""A campaign's faults as a table for other programs, a row each in the order of the sample: CSV, or JSON lines."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from kexecemu.campaign.store import Store, StoredRow
from kexecemu.errors import InputError
from kexecemu.files import replacing
from kexecemu.visible import json_text, visible_line

__all__ = ["COLUMNS", "check_rows", "write_rows"]

# The parts of a fault's name that are worth a column, and all that the store knows of what came of it.
_OF_THE_NAME = ("writer", "model", "moment")
_INTERNAL = ("position", "fault", "stratum")
COLUMNS = ("id", *_OF_THE_NAME, *(field for field in StoredRow._fields if field not in _INTERNAL))
"""phys is the physical address of the first byte, as an integer; moment has its number; segment is "" for none."""

_FORMS = (".csv", ".jsonl")


def check_rows(path: Path) -> None:
    """InputError when the file's name does not say in which form it is wanted."""
    if path.suffix not in _FORMS:
        raise InputError(f"--rows {path}: the name ends in {' or '.join(_FORMS)}, which says the form")


def _values(row: StoredRow) -> list[str | int]:
    writer, model, _, _, moment = row.fault.split(".")
    named = row._asdict()
    return [row.fault, writer, model, moment, *(named[name] for name in COLUMNS[1 + len(_OF_THE_NAME) :])]


def _lines(rows: Iterator[StoredRow], form: str) -> Iterator[str]:
    if form == ".jsonl":
        for row in rows:
            yield json_text(dict(zip(COLUMNS, _values(row), strict=True))) + "\n"
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([visible_line(one) if isinstance(one, str) else one for one in _values(row)])
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def write_rows(path: Path, folder: Path) -> None:
    """Write the results of the campaign in a folder to a file, whole or not at all, without holding them all.

    Raises InputError when there is no campaign, OSError when the file cannot be written.
    """
    with Store.read(folder) as store, replacing(path) as file:
        for line in _lines(store.rows(), path.suffix):
            file.write(line.encode())
