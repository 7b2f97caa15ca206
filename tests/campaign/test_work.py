"""A campaign's work: the same table whoever does it, and what happens when workers die, lie, fail or are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_engine
import pytest

from kexecemu.campaign import workers
from kexecemu.campaign.job import discard_engine
from kexecemu.campaign.process import WorkerProcess
from kexecemu.campaign.store import Store, StoredRow
from kexecemu.campaign.summary import Summary
from kexecemu.campaign.tasks import Task
from kexecemu.campaign.work import Campaign, Interrupted, plan_campaign, run_campaign
from kexecemu.errors import InputError, MachineError, WorkersDied
from kexecemu.scenario.schema import Scenario

FAULTS, CHUNK = 700, 100
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    yield
    discard_engine()


def plan(scenario: Scenario, faults: int = FAULTS, seed: int = 5) -> Campaign:
    return plan_campaign(
        scenario, Path(), faults, seed, named="fake.toml", source="", chunk=CHUNK, engine=fake_engine.make
    )


def campaign(out: Path, name: str = "a fake campaign", **options: Any) -> Summary:
    seed, faults = options.pop("seed", 5), options.pop("faults", FAULTS)
    return run_campaign(plan(fake_engine.scenario(name), faults, seed), out, **options)


def rows(folder: Path) -> list[StoredRow]:
    with Store.read(folder) as store:
        return list(store.rows())


def offset_of(position: int) -> int:
    """Where a fault of the sample hits the kernel, for names of scenarios: the first one from position on."""
    planned = plan(fake_engine.scenario())
    for one in range(position, FAULTS):
        fault = planned.space.fault(planned.sample[one])
        if fault.base == "kernel":
            return int(fault.offset)
    raise AssertionError("no fault in the kernel")


def test_a_campaign_has_one_result_for_each_fault_of_the_sample(tmp_path: Path) -> None:
    planned = plan(fake_engine.scenario())
    summary = run_campaign(planned, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row.position for row in found] == list(range(FAULTS))
    assert [row.fault for row in found] == [planned.space.fault(index).id for index in planned.sample]
    assert len({row.fault for row in found}) == FAULTS
    assert sum(summary.outcomes.values()) == FAULTS
    engine = fake_engine.make(fake_engine.scenario(), Path())
    for row, index in zip(found, planned.sample, strict=True):
        decided = engine.decide(planned.space.fault(index))
        assert (row.outcome, row.how, row.phys) == (decided.outcome, decided.how, decided.phys)


def test_one_process_four_processes_and_threads_give_the_same_table(tmp_path: Path) -> None:
    alone = campaign(tmp_path / "alone")
    four = campaign(tmp_path / "four", workers=4)
    with ThreadPoolExecutor(3) as threads:
        threaded = campaign(tmp_path / "threads", executor=threads)
        assert threads.submit(int).result() == 0  # it stays its owner's
    made = campaign(tmp_path / "made", executor=lambda: ThreadPoolExecutor(2))
    tables = [rows(tmp_path / name) for name in ("alone", "four", "threads", "made")]
    assert tables[0] == tables[1] == tables[2] == tables[3]
    digests = {one.table_sha256 for one in (alone, four, threaded, made)}
    assert len(digests) == 1
    assert alone.audited == four.audited == threaded.audited > 200


def test_another_seed_gives_another_table(tmp_path: Path) -> None:
    assert campaign(tmp_path / "5").table_sha256 != campaign(tmp_path / "6", seed=6).table_sha256


def test_nothing_is_stored_when_the_golden_gate_is_shut(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="golden runs differ"):
        campaign(tmp_path / "out", "refuse")
    assert not (tmp_path / "out").exists()


def test_an_exception_is_an_error_of_its_fault_alone(tmp_path: Path) -> None:
    at = offset_of(250)
    summary = campaign(tmp_path / "raise", f"raise={at:x}")
    errors = [row for row in rows(tmp_path / "raise") if row.outcome == "error"]
    assert [row.detail for row in errors] == [f"RuntimeError: no such thing at {at:#x}"] * len(errors)
    assert summary.outcomes["error"] == len(errors) >= 1
    undisturbed = campaign(tmp_path / "whole")
    assert undisturbed.outcomes["error"] == 0
    others = [row for row in rows(tmp_path / "whole") if row.position not in {one.position for one in errors}]
    assert [row for row in rows(tmp_path / "raise") if row.outcome != "error"] == others


def test_an_exception_that_cannot_be_pickled_is_an_error_like_any_other(tmp_path: Path) -> None:
    summary = campaign(tmp_path / "odd", f"odd={offset_of(0):x}", workers=2)
    assert summary.outcomes["error"] >= 1
    assert "no RAM at physical" in summary.examples["error"][0].detail


def test_a_fault_that_kills_its_worker_is_found_and_the_rest_goes_on(tmp_path: Path) -> None:
    at = offset_of(350)
    summary = campaign(tmp_path / "killed", f"kill={at:x}", workers=2)
    found = rows(tmp_path / "killed")
    errors = [row for row in found if row.outcome == "error"]
    assert errors and len(errors) == summary.outcomes["error"]
    assert all(f"kernel+{at:x}." in row.fault for row in errors)
    assert errors[0].detail == "the process that tried it died, twice"
    campaign(tmp_path / "whole")
    whole = rows(tmp_path / "whole")
    assert [row for row in found if row not in errors] == [
        row for row in whole if f"kernel+{at:x}." not in row.fault
    ]
    assert [row.position for row in found] == list(range(FAULTS))


def test_workers_that_die_before_they_do_anything_stop_the_campaign_and_not_every_fault(
    tmp_path: Path,
) -> None:
    with pytest.raises(WorkersDied, match="dies before it has done anything"):
        campaign(tmp_path / "out", f"die={os.getpid()}", workers=2)
    with Store.read(tmp_path / "out") as store:
        assert store.count() == 0


def test_processes_that_somebody_kills_while_they_start_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []

    class Hit(WorkerProcess):
        """One that is killed before it has done anything, as long as there were no two."""

        def give(self, task: Task) -> None:
            if not task.indices and len(killed) < 2:
                assert self.pid is not None
                os.kill(self.pid, signal.SIGKILL)
                killed.append(self.pid)
            super().give(task)

    monkeypatch.setattr(workers, "WorkerProcess", Hit)
    summary = campaign(tmp_path / "hit", f"kill={offset_of(350):x}", workers=2)
    assert len(killed) == 2
    assert sum(summary.outcomes.values()) == FAULTS


def test_a_worker_with_another_image_takes_no_part(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="something else than the campaign's image"):
        campaign(tmp_path / "out", "other", workers=2)


class KilledWorker(Exception):
    """As dask's: known by its name."""


class Unsteady(Executor):
    """Loses every third task with its worker, or does something else in its place."""

    def __init__(self, lose: Callable[[], None] | None = None) -> None:
        self.inner = ThreadPoolExecutor(1)
        self.instead = lose or self.lose
        self.count = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return (
            self.inner.submit(self.instead) if self.count % 3 == 0 else self.inner.submit(fn, *args, **kwargs)
        )

    def lose(self) -> None:
        raise KilledWorker("a task")


def failing_as(module: str) -> Callable[[], None]:
    """A function of that module's in which a result cannot be unpacked, as dask's own may fail when a worker dies."""
    names: dict[str, Any] = {"__name__": module}
    exec("def cascade():\n    typ, exc, tb = [1, 2, 3, 4]\n", names)
    cascade: Callable[[], None] = names["cascade"]
    return cascade


def test_a_task_that_fails_in_dask_s_own_code_is_done_here(tmp_path: Path) -> None:
    found = campaign(tmp_path / "confused", executor=Unsteady(failing_as("distributed.cfexecutor")), audit=0)
    assert found.outcomes["error"] == 0
    assert found.table_sha256 == campaign(tmp_path / "alone", audit=0).table_sha256


def test_what_fails_in_other_code_is_no_loss_and_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many values to unpack"):
        campaign(tmp_path / "confused", executor=Unsteady(failing_as("kexecemu.campaign.job")), audit=0)


def test_tasks_that_an_executor_loses_are_done_here(tmp_path: Path) -> None:
    unsteady = campaign(tmp_path / "unsteady", executor=Unsteady(), audit=0)
    assert unsteady.outcomes["error"] == 0
    assert unsteady.table_sha256 == campaign(tmp_path / "alone", audit=0).table_sha256


def test_an_audit_that_disagrees_is_reported_with_the_faults_name(tmp_path: Path) -> None:
    at = offset_of(0)
    summary = campaign(tmp_path / "out", f"lie={at:x}", audit=FAULTS)
    lies = [row for row in rows(tmp_path / "out") if f"kernel+{at:x}." in row.fault]
    assert [one.fault for one in summary.disagreements] == [row.fault for row in lies]
    assert {one.run for one in summary.disagreements} == {"hung"}
    assert lies


def test_an_audit_takes_from_every_way_of_concluding(tmp_path: Path) -> None:
    summary = campaign(tmp_path / "out", audit=30)
    assert summary.audited == 30 and not summary.disagreements
    with Store.read(tmp_path / "out") as store:
        header = store.header
        moments = {row.position: header.strata[row.stratum][4] for row in store.rows()}
        concluded = {
            (row.how, row.outcome, moments[row.position]) for row in store.rows() if row.how != "run"
        }
        audited = {(one.how, one.decided, moments[one.position]) for one in store.audits()}
    assert audited == concluded
    assert len(concluded) > 4


def test_everything_is_audited_where_there_is_less_than_asked_for(tmp_path: Path) -> None:
    summary = campaign(tmp_path / "out", audit=10 * FAULTS)
    assert summary.audited == sum(count for how, count in summary.how.items() if how != "run") < FAULTS


def test_nothing_is_audited_where_everything_was_run(tmp_path: Path) -> None:
    assert campaign(tmp_path / "out", "nothing-decided").audited == 0


def test_a_finished_campaign_resumed_is_the_same_without_work(tmp_path: Path) -> None:
    first = campaign(tmp_path / "out")
    again = campaign(tmp_path / "out", resume=True)
    assert again == first


def test_more_audits_can_be_added_to_a_campaign(tmp_path: Path) -> None:
    assert campaign(tmp_path / "out", audit=10).audited == 10
    assert campaign(tmp_path / "out", audit=25, resume=True).audited == 25


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stores_what_has_come_back_and_the_rest_is_done_later(tmp_path: Path, workers: int) -> None:
    pressed: list[int] = []

    def interrupt(phase: str, done: int, total: int, outcomes: object) -> None:
        if phase == "faults" and done >= 2 * CHUNK and not pressed:
            pressed.append(done)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # ignored where the tests are a shell's job in the background
    with pytest.raises(Interrupted) as stopped:
        campaign(tmp_path / "out", workers=workers, progress=interrupt)
    with Store.read(tmp_path / "out") as store:
        assert stopped.value.done == store.count()
        assert 2 * CHUNK <= store.count() < FAULTS
    assert signal.getsignal(signal.SIGINT) is before
    resumed = campaign(tmp_path / "out", resume=True)
    assert resumed.table_sha256 == campaign(tmp_path / "whole").table_sha256


def test_ctrl_c_in_the_audit_keeps_what_was_audited(tmp_path: Path) -> None:
    def interrupt(phase: str, done: int, total: int, outcomes: object) -> None:
        if phase == "audit" and done == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        campaign(tmp_path / "out", progress=interrupt)
    with Store.read(tmp_path / "out") as store:
        assert len(store.audits()) == 7
    assert campaign(tmp_path / "out", resume=True).audited > 200


def test_a_campaign_runs_in_another_thread_than_the_main_one(tmp_path: Path) -> None:
    found: list[Summary] = []
    thread = threading.Thread(target=lambda: found.append(campaign(tmp_path / "out", audit=0)))
    thread.start()
    thread.join()
    assert found[0].faults == FAULTS


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import test_work
from kexecemu.campaign.work import run_campaign

if __name__ == "__main__":
    run_campaign(
        test_work.plan(test_work.fake_engine.scenario({name!r})), Path({out!r}), resume=True, workers={workers}
    )
"""


def begin(tmp_path: Path, out: Path, name: str, workers: int) -> subprocess.Popen[bytes]:
    """A campaign in a process of its own, which goes on with what is in out."""
    script = tmp_path / "campaign.py"
    path = [str(HERE), str(HERE.parent), *sys.path]
    script.write_text(SCRIPT.format(path=path, name=name, out=str(out), workers=workers))
    return subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)


def stored(out: Path) -> int:
    """How many results a campaign that was killed has left."""
    try:
        with Store.read(out) as store:
            return store.count()
    except InputError as error:
        assert "no campaign there" in str(error)
        return 0


def wait_for_writes(process: subprocess.Popen[bytes], out: Path, number: int) -> None:
    """Wait until the store's log has been written to so often, or the campaign is over."""

    def state() -> tuple[int, int] | None:
        try:
            found = (out / "campaign.sqlite-wal").stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size

    for _ in range(number):
        before = state()
        while process.poll() is None and state() == before:
            time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path: Path, workers: int) -> None:
    name = "slow=3"
    undisturbed = campaign(tmp_path / "whole", name, audit=20)
    out = tmp_path / "out"
    counts: list[int] = []
    # The first ones die while they begin, perhaps before there is a file; each of the others soon after it has written
    # twice, or more often where that was not enough to store anything. So it takes no more on a slow machine.
    writes = 2
    while len({count for count in counts if 0 < count < FAULTS}) < 3:
        moment = len(counts)
        assert moment < 40, counts
        process = begin(tmp_path, out, name, workers)
        if moment < 3:
            time.sleep(0.25)
        else:
            wait_for_writes(process, out, writes)
            time.sleep(0.01 * (moment % 5))
        process.kill()
        process.communicate()
        counts.append(stored(out))
        if moment >= 3 and counts[-1] == counts[-2]:
            writes += 1
    assert counts == sorted(counts), "a result that was stored is gone"
    finished = campaign(out, name, audit=20, resume=True)
    assert rows(out) == rows(tmp_path / "whole")
    assert finished.table_sha256 == undisturbed.table_sha256
    assert finished.outcomes == undisturbed.outcomes


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc for a process's children")
def test_workers_do_not_outlive_a_campaign_that_was_killed(tmp_path: Path) -> None:
    process = begin(tmp_path, tmp_path / "out", "slow=1", 2)
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while len(children := listed.read_text().split()) < 3:  # two workers, and multiprocessing's tracker
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=30)  # its workers hold the pipe as well
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline + 30, "a worker lives on"
        time.sleep(0.05)


def test_a_fault_that_kills_the_campaign_itself_is_found_when_it_is_resumed(tmp_path: Path) -> None:
    at = offset_of(450)
    out = tmp_path / "out"
    process = begin(tmp_path, out, f"kill={at:x}", 1)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # From the second chunk on at the latest: each time that it is resumed one killer at most is left.
    for _ in range(4):
        process = begin(tmp_path, out, f"kill={at:x}", 1)
        if process.wait() == 0:
            break
    assert process.returncode == 0, process.communicate()[1]
    errors = [row for row in rows(out) if row.outcome == "error"]
    assert errors and all(f"kernel+{at:x}." in row.fault for row in errors)


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one fault"):
        campaign(tmp_path / "out", faults=0)
    with pytest.raises(InputError, match="cannot be drawn"):
        campaign(tmp_path / "out", faults=10**12)
    with pytest.raises(InputError, match="at least one worker"):
        campaign(tmp_path / "out", workers=0)


def test_a_worker_does_not_hear_ctrl_c(tmp_path: Path) -> None:
    planned = plan(fake_engine.scenario("slow=5"))
    worker = WorkerProcess(planned.config)
    try:
        for task in (Task(range(10), planned.sample[:10]), Task(range(10, 40), planned.sample[10:40])):
            worker.give(task)
            assert worker.pid is not None
            for _ in range(20):
                os.kill(worker.pid, signal.SIGINT)
                time.sleep(0.002)
            assert worker.wait(30)
            results = worker.receive()
            assert results is not None
            assert [one.fault for one in results()] == [planned.space.fault(index) for index in task.indices]
    finally:
        worker.close()
