"""What one process does with its one engine: kept, made anew after a failure, refused where it is another one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kexecemu.campaign import job, tasks
from kexecemu.campaign.fault import CampaignFault, Decided, How
from kexecemu.campaign.job import (
    CampaignConfig,
    discard_engine,
    error_of,
    keep_engine,
    make_engine,
    run_chunk,
)
from kexecemu.campaign.tasks import stoppable
from kexecemu.campaign.version import own_version
from kexecemu.errors import InputError, MachineError
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, When

HASH = "abcdef0123456789"
NONE = "a worker has no machine to try faults on"


def fault(number: int, base: str = "kernel") -> CampaignFault:
    return CampaignFault(By.DMA, "byte", 0, base, number, When.AFTER_LOAD)


class Places:
    def area(self, base: str) -> PhysRange:
        if base != "kernel":
            raise InputError("no such place")
        return PhysRange.of(0x1000, 0x1000)


class Engine:
    """Decides that a fault is its number, or raises what is asked for; what it was asked is kept."""

    made: list[Engine]

    def __init__(self, scenario: Any, folder: Any) -> None:
        assert (scenario, folder) == ("the scenario", Path("there"))
        self.config_hash, self.asked, self.closed = HASH, list[str](), 0
        self.space: Any = SimpleNamespace(fault=fault, places=Places())
        self.made.append(self)

    def _answer(self, word: str, one: CampaignFault) -> Any:
        self.asked.append(f"{word} {one.offset}")
        if one.offset == 3:
            raise InputError("there is  no\nsuch fault")
        if one.offset == 5:
            raise RuntimeError("the machine is lost")
        return one.offset

    def decide(self, one: CampaignFault) -> Any:
        return self._answer("decide", one)

    def run(self, one: CampaignFault) -> Any:
        return self._answer("run", one)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    discard_engine()
    monkeypatch.setattr(Engine, "made", [], raising=False)
    yield Engine.made
    discard_engine()


def config(**more: Any) -> CampaignConfig:
    values = {
        "scenario": "the scenario",
        "folder": Path("there"),
        "version": own_version(),
        "config_hash": HASH,
    }
    return CampaignConfig(**({"engine": Engine} | values | more))  # type: ignore[arg-type]


def chunk(*words: Any, **more: Any) -> Any:
    """run_chunk(), of an engine whose results are numbers."""
    return run_chunk(*words, **more)


def words(results: list[Any]) -> list[Any]:
    return [f"{one.outcome}: {one.detail}" if isinstance(one, Decided) else one for one in results]


def test_each_fault_has_its_result_in_order_by_an_engine_that_is_kept(made: list[Engine]) -> None:
    assert chunk(config(), [7, 1, 4], False) == [7, 1, 4]
    assert chunk(config(), [8], True) == [8]
    assert chunk(config(), [], False) == []
    given: list[Any] = [0]
    assert chunk(config(), [2], False, results=given) is given == [0, 2]
    (engine,) = made
    assert (engine.asked, engine.closed) == (["decide 7", "decide 1", "decide 4", "run 8", "decide 2"], 0)
    chunk(config(config_hash=HASH, folder=Path("there"), version=own_version()), [], False)
    assert len(made) == 1
    discard_engine()
    discard_engine()
    assert engine.closed == 1


@pytest.mark.parametrize(("seconds", "done"), [(0.0, 1), (-1.0, 1), (2.5, 3), (3.0, 3), (3.5, 4), (99.0, 6)])
def test_after_its_time_it_comes_back_with_what_is_done_at_least_one(
    seconds: float, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))  # a second for each fault
    monkeypatch.setattr(job, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    assert chunk(config(), range(10, 16), False, seconds) == list(range(10, 10 + done))


def test_an_exception_is_the_outcome_of_its_fault_and_costs_the_engine_unless_the_fault_was_wrong(
    made: list[Engine],
) -> None:
    found = chunk(config(), [1, 3, 4, 5, 6, 5], False)
    assert words(found) == [
        1, "error: InputError: there is no such fault", 4, "error: RuntimeError: the machine is lost", 6,
        "error: RuntimeError: the machine is lost",
    ]  # fmt: skip
    assert [(one.asked, one.closed) for one in made] == [
        (["decide 1", "decide 3", "decide 4", "decide 5"], 1),
        (["decide 6", "decide 5"], 1),
    ]


@pytest.mark.parametrize(("base", "phys"), [("kernel", 0x1005), ("cellar", 0)])
def test_an_error_says_where_its_fault_hit_as_far_as_that_is_known(base: str, phys: int) -> None:
    space: Any = SimpleNamespace(places=Places())
    expected = Decided(
        fault(5, base),
        "error",
        How.RUN,
        "",
        phys,
        "what was said",
        "none",
        "none: kexecemu itself failed",
        False,
    )
    assert error_of(space, fault(5, base), " what\n was  said ") == expected
    assert error_of(SimpleNamespace(places=None), fault(5, base), "x").phys == 0  # type: ignore[arg-type]


def failing(error: Exception) -> Callable[[Any, Any], Any]:
    def engine(scenario: Any, folder: Any) -> Any:
        raise error

    return engine


@pytest.mark.parametrize(
    ("more", "said", "engines"),
    [
        ({"version": "0.9+x"}, f"a worker has kexecemu {own_version()}, the campaign is one of 0.9+x", 0),
        (
            {"config_hash": "f" * 64},
            "a worker has loaded something else than the campaign's image: configuration abcdef012345, "
            "not ffffffffffff",
            1,
        ),
        ({"engine": failing(KeyError("x"))}, "a worker has no machine to try faults on: KeyError: 'x'", 0),
        (
            {"engine": failing(InputError("no file"))},
            "a worker has no machine to try faults on: InputError: no file",
            0,
        ),
    ],
)
def test_a_process_with_another_machine_takes_no_part_though_there_be_no_faults(
    more: dict[str, Any], said: str, engines: int, made: list[Engine]
) -> None:
    for indices in ([], [1]):
        with pytest.raises(MachineError) as refusal:
            chunk(config(**more), indices, False)
        assert str(refusal.value) == said
    assert [one.closed for one in made] == [1] * (2 * engines)


def test_an_engine_of_another_campaign_is_closed_before_one_is_made_and_one_that_is_given_is_used(
    made: list[Engine],
) -> None:
    given = Engine("the scenario", Path("there"))
    first, second = config(), config(config_hash=HASH, engine=lambda *args: Engine(*args))
    keep_engine(first, given)  # type: ignore[arg-type]
    assert chunk(first, [1], False) == [1] and made == [given]
    assert chunk(second, [2], False) == [2] and (given.closed, len(made)) == (1, 2)
    keep_engine(first, given)  # type: ignore[arg-type]
    assert made[1].closed == 1


def test_the_engine_of_campaigns_is_the_fault_decider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kexecemu.campaign.engine.FaultDecider", Engine)
    engine: Any = make_engine("the scenario", Path("there"))  # type: ignore[arg-type]
    assert isinstance(engine, Engine)


# -- Ctrl-C ------------------------------------------------------------------------------------------------------


def test_the_first_ctrl_c_asks_to_stop_and_the_second_is_one_which_comes_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[Any] = []

    class Patience:
        def __init__(self, *seconds: float) -> None:
            said.append(seconds)

        def __enter__(self) -> None:
            said.append("patient")

        def __exit__(self, *_: object) -> None:
            said.append("no more")

    def again_in(seconds: float) -> Callable[[], None]:
        said.append(f"again in {seconds}")
        return lambda: said.append("cancelled")

    monkeypatch.setattr(tasks, "patience", Patience)
    monkeypatch.setattr(tasks, "again_in", again_in)
    monkeypatch.setattr(tasks, "on_ctrl_c", lambda number, frame: said.append(f"ctrl-c {number:d}"))
    before = signal.getsignal(signal.SIGINT)
    with stoppable() as request:
        stop: Any = request
        assert not stop.asked and said == [(1.7, 0.3), "patient"]
        ask: Any = signal.getsignal(signal.SIGINT)
        ask(signal.SIGINT, None)
        assert stop.asked and said[2:] == ["again in 1.2"]
        ask(signal.SIGINT, None)
        assert said[3:] == [f"ctrl-c {signal.SIGINT:d}"]
    assert said[4:] == ["no more", "cancelled"] and signal.getsignal(signal.SIGINT) is before
    ask(signal.SIGINT, None)  # too late
    assert len(said) == 6


def test_in_another_thread_nothing_hears_ctrl_c() -> None:
    seen: list[Any] = []

    def work() -> None:
        with stoppable() as stop:
            seen.append((stop.asked, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
