"""Many sizes, on several processes: steps, finer ones where the outcome changes, and what-ifs where it is bad.

Not a search for one border: more memory may be less for the kernel itself, as soon as there is room for what it sets
aside. So every step is run, and what is between two steps of different ends is run as well.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import msgspec

from kexecemu.arguments import contents
from kexecemu.campaign.process import Worker, ready
from kexecemu.errors import InputError
from kexecemu.files import read_file, replace_file
from kexecemu.linux.fetched import fetched_kernel
from kexecemu.scenario.options import OPTIONS, Setup
from kexecemu.scenario.setup import boot
from kexecemu.shown import shown
from kexecemu.sizing.run import NOT_RESERVED, Asked, Row, run_size, setup_for

__all__ = ["Plan", "RowFile", "check_setup", "setting_of", "sweep"]

_POLL = 0.2  # seconds after which Ctrl-C is noticed at the latest
_MOST = 4096
# What takes memory by itself, and the word that forbids it.
_FORBIDS = {"cma": "cma=0", "swiotlb": "swiotlb=noforce"}


@shown()
@dataclass(frozen=True)
class Plan:
    """Which sizes are tried, in bytes.

    Each of sizes, and between two of which one works down to fine. Where one fails and something has taken memory for
    itself, also without that; and every size with each of what_if on the capture kernel's command line.
    """

    sizes: tuple[int, ...]
    fine: int = 4 << 20
    what_if: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) > _MOST:
            raise InputError(f"1 to {_MOST} sizes can be tried, not {len(self.sizes)}")
        if self.fine < 1 << 20:
            raise InputError("--fine: sizes are tried down to steps of 1 MiB, and no finer")


def check_setup(setup: Setup, plan: Plan) -> None:
    """InputError for a setup that no size makes good; files are read, and a first kernel is booted to find out."""
    if any(word.startswith("crashkernel=") for word in (setup.cmdline or "").split()):
        raise InputError("cmdline: has crashkernel= in it, and that is what is tried")
    boot(setup_for(setup, Asked(max(plan.sizes)))).kernel.close()


def setting_of(setup: Setup, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was run: labels and words."""
    release = next((row.release for row in rows if row.release), "")
    said = {
        "kernel": f"{setup.kernel or 'fetched:kernel'}" + (f", Linux {release}" if release else ""),
        "initrd": str(setup.initrd or "one that copies the dump to a disk"),
        "first kernel": f"the model, era {setup.era}",
        "machine": str(setup.dtb) if setup.dtb is not None else f"{setup.value('ram')} of RAM",
        "command line": setup.value("append"),
    }
    return list(said.items())


def sweep(
    setup: Setup,
    plan: Plan,
    *,
    jobs: int = 1,
    known: Iterable[Row] = (),
    told: Callable[[Row, int], object] = lambda row, left: None,
) -> list[Row]:
    """Rows for all that the plan asks, by size and what-if. known are rows that need not be run again.

    told(row, how many are still to come as far as is known) hears of each that is done. InputError for what no size
    makes good; a process that dies is a row that says so.
    """
    rows = {row.asked: row for row in known}
    with _Workers(setup, jobs) as workers:
        while missing := _missing(plan, rows):
            left = len(missing)
            for row in workers.rows(missing):
                rows[row.asked] = row
                left -= 1
                told(row, left)
    return [rows[asked] for asked in _wanted(plan, rows)]


def _missing(plan: Plan, rows: dict[Asked, Row]) -> list[Asked]:
    return [asked for asked in _wanted(plan, rows) if asked not in rows]


def _wanted(plan: Plan, rows: dict[Asked, Row]) -> list[Asked]:
    """All that is to be tried, as far as what is known says: the steps, what lies between them, the what-ifs."""
    sizes = set(plan.sizes)
    while True:
        done = [rows[one] for one in map(Asked, sorted(sizes)) if one in rows]
        more = {_middle(low, high, plan.fine) for low, high in pairwise(done) if _differ(low, high)}
        if not more - {None} - sizes:
            break
        sizes |= {size for size in more if size is not None}
    wanted = {Asked(size) for size in sizes}
    wanted |= {Asked(size, words) for size in plan.sizes for words in plan.what_if}
    for row in done:
        if not row.works and row.memory is not None:
            wanted |= {
                Asked(row.asked.size, word) for what, word in _FORBIDS.items() if getattr(row.memory, what)
            }
    return sorted(wanted)


def _differ(low: Row, high: Row) -> bool:
    """Whether what is between two sizes is of interest: one works, and the other is loaded at least."""
    return low.works != high.works and NOT_RESERVED not in (low.outcome, high.outcome)


def _middle(low: Row, high: Row, fine: int) -> int | None:
    """A size between two, a multiple of fine; None where there is none."""
    middle = (low.asked.size + high.asked.size) // 2 // fine * fine
    return middle if middle > low.asked.size else None


class _Workers:
    """Processes that run a size each."""

    def __init__(self, setup: Setup, jobs: int) -> None:
        self._work = partial(run_size, setup)
        self._jobs = jobs
        self._idle: list[Worker] = []
        self._busy: dict[Worker, Asked] = {}

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self._idle, *self._busy]:
            worker.close()

    def rows(self, asked: list[Asked]) -> Iterator[Row]:
        """The rows, as they come."""
        waiting = deque(asked)
        while waiting or self._busy:
            while waiting and len(self._busy) < self._jobs:
                worker = self._idle.pop() if self._idle else Worker(self._work)
                self._busy[worker] = waiting.popleft()
                worker.send(self._busy[worker])
            for worker in ready(list(self._busy), _POLL):
                one, result = self._busy.pop(worker), worker.receive()
                if result is None:
                    worker.close()
                    yield Row(
                        one, "error", "none", "the process that ran it died: too little memory of the host's?"
                    )
                    continue
                self._idle.append(worker)
                yield result()


class RowFile:
    """Rows that are done, kept in a file of JSON lines: the first is what they are rows of."""

    def __init__(self, path: Path, setup: Setup, version: str) -> None:
        """InputError where the file is of another setup, or none of ours."""
        self.path = path
        self._head = {"rows of": _identity(setup, version)}
        self.rows: list[Row] = []
        if not path.exists():
            return
        try:
            head, *lines = read_file(path).splitlines()
            if msgspec.json.decode(head) != self._head:
                raise InputError(
                    f"{path}: its rows are of another setup, or another version; give another file"
                )
            self.rows = [msgspec.json.decode(line, type=Row) for line in lines]
        except (ValueError, msgspec.MsgspecError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: has no rows of an earlier run") from error

    def add(self, row: Row) -> None:
        """One row more: the file is replaced by one that has it."""
        self.rows.append(row)
        lines = [msgspec.json.encode(one) for one in (self._head, *self.rows)]
        replace_file(self.path, b"".join(line + b"\n" for line in lines))


def _identity(setup: Setup, version: str) -> str:
    """A digest of all that decides a row: options, and the bytes of the files that they name."""
    digest = hashlib.sha256(version.encode())
    for name, option in OPTIONS.items():
        value = getattr(setup, name)
        digest.update(f"\0{name}={value!r}\0".encode())
        if name == "kernel":
            value = fetched_kernel(value)
        if option.is_path and isinstance(value, Path) and value.is_file():
            digest.update(hashlib.sha256(contents(value, name)).digest())
    return digest.hexdigest()
