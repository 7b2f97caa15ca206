"""A campaign on a real dask.distributed cluster, of which one worker is killed midway: the table is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import fake_engine
import pytest

from kexecemu.campaign.cluster import dask_workers
from kexecemu.campaign.job import discard_engine
from kexecemu.campaign.store import Store, StoredRow
from kexecemu.campaign.summary import Summary
from kexecemu.campaign.work import plan_campaign, run_campaign
from kexecemu.cli import main
from kexecemu.errors import InputError

pytestmark = pytest.mark.slow  # clusters are started

pytest.importorskip("distributed", reason="the extra dask is not installed")

FAULTS, CHUNK = 1200, 50
HERE = Path(__file__).parent


class Cluster:
    """A scheduler and its workers, each a process of this machine."""

    def __init__(self, folder: Path, processes: ExitStack) -> None:
        self.file = folder / "scheduler.json"
        self.processes = processes
        self.start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        deadline = time.monotonic() + 60
        while not self.file.exists() or not self.file.read_text().strip():
            assert time.monotonic() < deadline, "the scheduler does not start"
            time.sleep(0.1)
        self.address: str = json.loads(self.file.read_text())["address"].removeprefix("tcp://")
        self.workers = [self.add_worker(), self.add_worker()]

    def start(self, module: str, *options: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent), *sys.path])
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"distributed.cli.{module}",
                "--scheduler-file",
                str(self.file),
                "--no-dashboard",
                *options,
            ],
            # Two lost workers are enough to give a task up (four by default); a third one stays.
            env={**os.environ, "PYTHONPATH": path, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.callback(process.wait)
        self.processes.callback(process.kill)
        return process

    def add_worker(self) -> subprocess.Popen[bytes]:
        return self.start("dask_worker", "--nthreads", "2", "--no-nanny", "--host", "127.0.0.1")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as processes:
        yield Cluster(tmp_path, processes)
    discard_engine()


def campaign(out: Path, name: str, **options: object) -> Summary:
    planned = plan_campaign(
        fake_engine.scenario(name), Path(), FAULTS, 11, chunk=CHUNK, engine=fake_engine.make
    )
    return run_campaign(planned, out, audit=20, **options)  # type: ignore[arg-type]


def rows(folder: Path) -> list[StoredRow]:
    with Store.read(folder) as store:
        return list(store.rows())


def test_a_cluster_that_loses_a_worker_midway_gives_the_table_of_one_process(
    cluster: Cluster, tmp_path: Path
) -> None:
    name = "slow=2"  # so that there is a midway
    killed = []

    def kill_one(phase: str, done: int, total: int, outcomes: Mapping[str, int]) -> None:
        if phase == "faults" and done >= FAULTS // 3 and not killed:
            cluster.workers[0].kill()
            killed.append(done)

    with dask_workers(cluster.address) as (make, threads):
        assert threads in (2, 4)  # the second worker may still be on its way
        summary = campaign(tmp_path / "dask", name, executor=make, progress=kill_one)
    assert killed and killed[0] < FAULTS
    assert cluster.workers[0].wait() != 0 and cluster.workers[1].poll() is None
    alone = campaign(tmp_path / "alone", name)
    assert rows(tmp_path / "dask") == rows(tmp_path / "alone")
    assert summary.table_sha256 == alone.table_sha256
    assert summary.audited == alone.audited == 20 and not summary.disagreements


def test_the_command_line_gives_its_campaign_to_a_cluster(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "small.toml"
    scenario.write_text(
        'schema = 1\nname = "small"\n[machine]\nram = "128M"\n[kernel]\ncmdline = "crashkernel=32M"\n'
    )
    tables = []
    for place in (f"dask://{cluster.address}", "local"):
        words = [
            "--faults",
            "2500",
            "--seed",
            "1",
            "--audit",
            "4",
            "--workers",
            "1",
            "--executor",
            place,
            "--json",
        ]
        assert main(["campaign", str(scenario), "--out", str(tmp_path / place[:4]), *words]) == 0
        found = json.loads(capsys.readouterr().out)
        tables.append(
            (found["table_sha256"], found["outcomes"], found["audited"], found["audit_disagreements"])
        )
    assert tables[0] == tables[1]
    assert tables[0][2:] == (4, 0)


def test_a_fault_that_kills_workers_of_a_cluster_is_found(cluster: Cluster, tmp_path: Path) -> None:
    planned = plan_campaign(fake_engine.scenario(), Path(), FAULTS, 11, chunk=CHUNK, engine=fake_engine.make)
    fault = next(
        one for one in map(planned.space.fault, planned.sample[FAULTS // 2 :]) if one.base == "kernel"
    )
    cluster.add_worker()
    cluster.add_worker()
    with dask_workers(cluster.address) as (make, _):
        summary = campaign(tmp_path / "dask", f"kill={fault.offset:x}", executor=make)
    killers = [row.fault for row in rows(tmp_path / "dask") if row.outcome == "error"]
    assert fault.id in killers
    assert all(f"kernel+{fault.offset:x}." in one for one in killers)
    assert summary.outcomes["error"] == len(killers)
    campaign(tmp_path / "alone", "nothing goes wrong")
    others = [row for row in rows(tmp_path / "alone") if row.fault not in killers]
    assert [row for row in rows(tmp_path / "dask") if row.fault not in killers] == others


def test_a_scheduler_that_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kexecemu.campaign.cluster._PATIENCE", 1)
    with (
        pytest.raises(InputError, match=r"--executor dask://127\.0\.0\.1:1: no scheduler"),
        dask_workers("127.0.0.1:1"),
    ):
        pass


def test_a_scheduler_without_workers_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kexecemu.campaign.cluster._PATIENCE", 3)
    monkeypatch.setattr(Cluster, "add_worker", lambda self: None)
    with ExitStack() as processes:
        cluster = Cluster(tmp_path, processes)
        with pytest.raises(InputError, match="the scheduler has no workers"), dask_workers(cluster.address):
            pass
