"""Programs of others: nothing of them is left when the block ends, when it fails, and when we are killed ourselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kexecemu.children import child, run_child

# Writes its own number and a child's, and both wait.
TWO = "sleep 60 & echo $$ $!; wait"


def gone(pids: list[int], patience: float = 2.0) -> bool:
    """Whether there are no such processes, within so many seconds."""
    end = time.monotonic() + patience
    while left := [pid for pid in pids if _runs(pid)]:
        if time.monotonic() > end:
            return not left
        time.sleep(0.02)
    return True


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc for processes")


@linux
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_program_and_what_it_started_end_with_the_block(error: type[BaseException] | None) -> None:
    pids: list[int] = []
    try:
        with child(["sh", "-c", TWO], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            pids += map(int, process.stdout.readline().split())
            assert len(pids) == 2 and all(map(_runs, pids))
            if error is not None:
                raise error
    except KeyboardInterrupt:
        assert error is not None
    assert gone(pids)


SCRIPT = """
import sys
from kexecemu.children import child
with child(["sh", "-c", {two!r}]) as process:
    process.wait()
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_and_what_it_started_end_with_us(number: signal.Signals) -> None:
    ours = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(two=TWO)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert ours.stdout is not None
    pids = [int(word) for word in ours.stdout.readline().split()]
    try:
        assert len(pids) == 2
        ours.send_signal(number)
        assert gone(pids, 2.0) or number == signal.SIGINT  # which a shell's job in the background ignores
    finally:
        ours.kill()
        ours.communicate()
    assert gone(pids, 2.0)


def test_a_program_that_is_run_says_what_it_said_and_how_it_ended() -> None:
    done = run_child(["sh", "-c", "echo out; echo err >&2; exit 3"], text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: run_child(["no such program"]), FileNotFoundError),
        (lambda: run_child(["sleep", "60"], timeout=0.1), subprocess.TimeoutExpired),
    ],
)
def test_a_program_that_gets_nowhere_is_an_error_as_of_subprocess(
    call: Callable[[], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        call()
