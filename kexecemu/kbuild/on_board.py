"""Trials on our own board: one boot and one load, and a crash for each set of faults from that moment on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kexecemu.crash.dump import Dump
from kexecemu.crash.moments import crash, follow, injecting
from kexecemu.kbuild.trial import Loaded, Trial, TrialEnd, WhatIsWritten, setup_of, trial_end
from kexecemu.linux.capture import DUMP_SLOT
from kexecemu.linux.first import FirstLinux
from kexecemu.machine.snapshot import Snapshots
from kexecemu.stray.first import Progress

__all__ = ["BoardRuns", "board_runs"]


class BoardRuns:
    """A first kernel of ours that has loaded, on our board; each run begins at that moment."""

    def __init__(
        self, trial: Trial, hear: Callable[[bytes], object] | None, progress: Progress | None
    ) -> None:
        """InputError where the kernel does not come as far as the load."""
        self._trial, self._progress = trial, progress
        self._first = FirstLinux(setup_of(trial), hear)
        image = self._first.load(progress)
        region = self._first.crashk_res
        assert region is not None
        self.loaded = Loaded(self._first.ram, region, image, trial.kernel.built_in())
        self._snapshots = Snapshots(self._first.board)
        self._point = self._snapshots.take()
        self._at = self._first.stands_at

    def close(self) -> None:
        """No run afterwards."""
        self._snapshots.close()

    def run(self, written: WhatIsWritten, *, linux: bool = True) -> TrialEnd:
        """One crash, with what is written astray on its way; linux follows the capture kernel to its end."""
        first = self._first
        self._snapshots.restore(self._point)
        for cpu in first.board.cpus:
            cpu.flush_code()
        first.board.virtio.slots[DUMP_SLOT] = None  # the disk of the run before
        first.injections.clear()
        first.stands_at = self._at
        acts = injecting(first, written(self.loaded))
        end = follow(crash(first, wanted=acts, linux=linux, progress=self._progress), acts)
        return trial_end(
            end.outcome,
            self.loaded.image,
            end.injections,
            end.damage,
            end.purgatory,
            end.capture,
            console=end.console,
            el=1 if end.purgatory is not None or end.capture is not None else None,
            release=first.release,
            dump=end.dump is Dump.TRUE if end.vmcore is not None else None,
            stood="" if end.capture is not None else end.reason,
        )


@contextmanager
def board_runs(
    trial: Trial, hear: Callable[[bytes], object] | None = None, progress: Progress | None = None
) -> Iterator[BoardRuns]:
    """A board with the kernel up and its crash kernel loaded."""
    runs = BoardRuns(trial, hear, progress)
    try:
        yield runs
    finally:
        runs.close()
