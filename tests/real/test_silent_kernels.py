"""Real kernels that run out of memory before their console is up: what they said is in their memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kexecemu.linux.capture import LinuxEnd
from kexecemu.scenario.options import Setup
from kexecemu.scenario.runner import crash

pytestmark = pytest.mark.real

# Debian's, on 1 GiB: which, and a size in which 64 MiB for CMA leave too little.
KERNELS = [("6.1", "kernel", "100M"), ("7.3", "kernel-backports", "112M")]


@pytest.mark.parametrize(("era", "target", "size"), KERNELS)
def test_a_kernel_that_dies_without_a_word_says_why_in_its_log(
    fetched: Callable[[str], Path], era: str, target: str, size: str
) -> None:
    setup = Setup(era=era, cmdline=f"crashkernel={size}", kernel=fetched(target), capture="linux")
    result = crash("silent", setup, [])
    with result.kernel:
        assert result.end.capture is not None
        linux = result.end.capture.linux
        assert linux is not None
        assert linux.console == ""
        assert (linux.end, linux.panic) == (LinuxEnd.PANIC, "System is deadlocked on memory")
        lines = linux.unshown.splitlines()
        assert lines[0].startswith("[    0.000000] Booting Linux on physical CPU 0x0000000000")
        assert lines[1].startswith(f"[    0.000000] Linux version {era}.")
        assert lines[-1].endswith("]---")
        assert result.end.reason == "the capture kernel panicked: System is deadlocked on memory"
