"""A campaign's rows for other programs: a line each, in the order of the sample, the same in both forms."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from kexecemu.campaign.fault import CampaignFault
from kexecemu.campaign.store import Store, StoredRow
from kexecemu.cli import main
from kexecemu.errors import InputError
from kexecemu.report.campaign_rows import COLUMNS, check_rows, write_rows

SCENARIO = """
schema = 1
name = "rows"
[machine]
ram = "64M"
[kernel]
cmdline = "crashkernel=16M"
[campaign]
where = ["segments", "crashkernel-free"]
models = ["byte", "memset"]
by = ["cpu", "dma"]
moments = ["after-load", "hashing", "capture-100"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "rows.toml").write_text(SCENARIO)
    words = ["campaign", str(folder / "rows.toml"), "--faults", "40", "--seed", "5", "--audit", "0"]
    assert (
        main([*words, "--out", str(folder / "out"), "--workers", "1", "--rows", str(folder / "c.csv")]) == 0
    )
    write_rows(folder / "c.jsonl", folder / "out")
    return folder


def test_columns_are_the_parts_of_the_name_and_all_that_the_store_has(folder: Path) -> None:
    assert COLUMNS[:4] == ("id", "writer", "model", "moment")
    assert set(COLUMNS[4:]) == set(StoredRow._fields) - {"position", "fault", "stratum"}
    assert {"outcome", "how", "segment", "phys"} <= set(COLUMNS)


def test_there_is_a_row_for_each_fault_in_the_order_of_the_sample(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "c.jsonl").read_text().splitlines()]
    with Store.read(folder / "out") as store:
        results = list(store.rows())
    assert [row["id"] for row in rows] == [one.fault for one in results]
    assert len(rows) == 40
    for row, result in zip(rows, results, strict=True):
        fault = CampaignFault.parse(row["id"])
        assert tuple(row) == COLUMNS
        assert (row["writer"], row["model"]) == (fault.by.value, fault.model)
        assert row["moment"].startswith(fault.moment.value) and row["id"].endswith(f".{row['moment']}")
        assert (row["outcome"], row["phys"], row["segment"]) == (result.outcome, result.phys, result.segment)
    assert {row["moment"].partition("-")[0] for row in rows} == {"after", "hashing", "capture"}


def test_both_forms_say_the_same_and_the_same_again(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "c.jsonl").read_text().splitlines()]
    with (folder / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{name: str(value) for name, value in line.items()} for line in lines]
    before = (folder / "c.csv").read_bytes()
    write_rows(folder / "c.csv", folder / "out")
    assert (folder / "c.csv").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["c.csv", "c.jsonl", "out", "rows.toml"]


def test_a_file_is_replaced_whole_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("the old one")
    with pytest.raises(InputError, match="no campaign there"):
        write_rows(tmp_path / "rows.csv", tmp_path)
    assert (tmp_path / "rows.csv").read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.CSV", "rows.csv.gz", ".csv"])
def test_a_name_that_does_not_say_the_form_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"the name ends in \.csv or \.jsonl"):
        check_rows(Path(name))
