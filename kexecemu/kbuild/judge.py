"""Every fault of `purgatory check`, and some more, on a real kernel: is the end of each what the model says?"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from kexecemu.crash.purgatory_check import UNTOUCHED, Case, Reply
from kexecemu.errors import InputError
from kexecemu.kbuild.on_board import board_runs
from kexecemu.kbuild.on_qemu import QemuRuns, qemu_runs, run_in_qemu
from kexecemu.kbuild.qemu import QemuMachine
from kexecemu.kbuild.trial import NO_PURGATORY, Loaded, Trial
from kexecemu.machine.virt import RAM_BASE
from kexecemu.scenario.purgatory_bench import every_case, model_replies
from kexecemu.shown import shown
from kexecemu.stray.fault import Fault

__all__ = ["PLACES", "Judged", "judge_kernel"]

PLACES = ("model", "board", "qemu")

OnRun = Callable[[], None]


@shown()
@dataclass(frozen=True)
class Judged:
    """One row: what each place made of each run, by its name in PLACES; those that were not asked are not there.

    absent says why a row has no runs. in_flash are the runs that abort in the model at an address where QEMU's virt has
    flash or devices: on that machine nothing aborts, and what comes is not compared. hit is what of the purgatory each
    run writes to, "" where that is something else. rewritten are the runs in which the purgatory stores to its own
    code: what is run then no two boots have alike, so they are compared with nothing. captured is said of the intact
    image: a capture kernel came up, and its dump, if it has a disk for one, was a true one.
    """

    case: str
    replies: Mapping[str, Sequence[Reply]]
    absent: str = ""
    captured: Mapping[str, bool] = field(default_factory=dict)
    in_flash: Sequence[int] = ()
    hit: Sequence[str] = ()
    rewritten: Sequence[int] = ()

    @property
    def differs(self) -> list[str]:
        """The places that do not say what the model says, run for run."""
        return [name for name in self.replies if self._apart(name)]

    @property
    def differing_runs(self) -> list[int]:
        """The numbers, from 0, of the runs of which some place does not say what the model says."""
        return sorted({at for name in self.replies for at in self._apart(name)})

    def _apart(self, name: str) -> list[int]:
        pairs = enumerate(zip(self.replies[name], self.replies["model"], strict=True))
        left_out = {*self.rewritten, *(self.in_flash if name == "qemu" else ())}
        compared = ((at, pair) for at, pair in pairs if at not in left_out)
        return [at for at, (found, said) in compared if found is not said]

    @property
    def wrong(self) -> list[str]:
        """The places where an intact image did not capture."""
        if self.case != UNTOUCHED:
            return []
        bad = [name for name, found in self.replies.items() if set(found) != {Reply.BOOTS}]
        return [*bad, *(name for name, good in self.captured.items() if not good and name not in bad)]

    def as_object(self) -> dict[str, Any]:
        """For --json."""
        counted = {name: Counter(found) for name, found in self.replies.items()}
        return {
            "fault": self.case,
            **{
                name: {one.value: count[one] for one in Reply if count[one]}
                for name, count in counted.items()
            },
            "runs": {name: [one.value for one in found] for name, found in self.replies.items()},
            "absent": self.absent or None,
            "in_flash": list(self.in_flash),
            "rewritten": list(self.rewritten),
            "hit": list(self.hit),
            "differs": self.differs,
            "wrong": self.wrong,
        }


def judge_kernel(
    trial: Trial,
    machine: QemuMachine | None,
    *,
    board: bool,
    jobs: int = 1,
    rows: Sequence[str] = (),
    on_run: OnRun = lambda: None,
) -> list[Judged]:
    """Try a kernel with every row: on our board, and in QEMU (None: not there) with so many at a time.

    rows are words: a row is tried that has one of them in its name, all of them if there are none. on_run is called
    after each run that is no model's. Raises InputError for a kernel without a purgatory, where it does not come as far
    as the load, and for words that no row has.
    """
    path = trial.kernel.purgatory
    obj = trial.kernel.built_in()
    if obj is None:
        raise InputError(
            f"{trial.kernel.folder}: this kernel has no purgatory that is known here: {NO_PURGATORY}"
        )
    if path is None:
        raise InputError(
            f"{trial.kernel.folder}: the model needs purgatory.ro, which is not beside the Image"
        )
    # What this purgatory has no use for is a row only for who asks for it.
    model = {name: one for name, one in model_replies(path, obj, rows).items() if rows or not one.absent}
    found: dict[str, dict[str, list[Reply]]] = {name: {"model": one.replies} for name, one in model.items()}
    captured: dict[str, bool] = {}
    if board:
        _on_board(trial, found, captured, on_run)
    if machine is not None:
        _in_qemu(trial, machine, found, captured, jobs, on_run)
    return [
        Judged(
            name,
            replies,
            model[name].absent,
            captured if name == UNTOUCHED else {},
            _in_flash(model[name].aborted),
            model[name].hit,
            [at for at, own in enumerate(model[name].rewritten) if own],
        )
        for name, replies in found.items()
    ]


def _in_flash(aborted: Sequence[int | None]) -> list[int]:
    """Which runs abort below RAM, where QEMU's virt has flash, devices and PCIe's windows."""
    return [number for number, at in enumerate(aborted) if at is not None and at < RAM_BASE]


def _cases(loaded: Loaded) -> dict[str, Case]:
    purgatory = loaded.image.purgatory
    assert loaded.obj is not None and purgatory is not None
    return {one.name: one for one in every_case(loaded.ram, loaded.image, loaded.obj, purgatory)}


def _on_board(
    trial: Trial, found: dict[str, dict[str, list[Reply]]], captured: dict[str, bool], on_run: OnRun
) -> None:
    with board_runs(trial) as runs:
        cases = _cases(runs.loaded)
        for name, places in found.items():
            case, replies = cases[name], places.setdefault("board", [])
            for faults in case.runs:
                intact = name == UNTOUCHED
                end = runs.run(lambda loaded, faults=faults: faults, linux=intact)  # type: ignore[misc]
                replies.append(end.reply)
                if intact:
                    captured["board"] = end.captured
                on_run()


def _in_qemu(
    trial: Trial,
    machine: QemuMachine,
    found: dict[str, dict[str, list[Reply]]],
    captured: dict[str, bool],
    jobs: int,
    on_run: OnRun,
) -> None:
    def intact() -> Reply:
        """With a disk for the dump, which a state that goes to a file has not."""
        end = run_in_qemu(trial, machine, lambda loaded: [])
        captured["qemu"] = end.captured
        on_run()
        return end.reply

    def run(runs: QemuRuns, faults: Sequence[Fault]) -> Reply:
        reply = runs.run(lambda loaded: faults).reply
        on_run()
        return reply

    with qemu_runs(replace(trial, dump=False), machine) as runs, ThreadPoolExecutor(jobs) as pool:
        cases = _cases(runs.loaded)
        waiting = {
            name: [pool.submit(intact)]
            if name == UNTOUCHED
            else [pool.submit(run, runs, faults) for faults in cases[name].runs]
            for name in found
        }
        try:
            for name, replies in waiting.items():
                found[name]["qemu"] = [one.result() for one in replies]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
