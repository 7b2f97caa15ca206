"""What objects say of themselves with Debian's kernel in them: no more than with a small one."""

from __future__ import annotations

from pathlib import Path

import pytest
from reachable import one_of_each, unfit

from kexecemu import Board, Kernel, KernelConfig

pytestmark = pytest.mark.real


def test_everything_fits_a_small_table_with_debians_kernel_loaded(debian_kernel: Path, busybox: Path) -> None:
    with Kernel.boot(Board("1G", cpus=2), KernelConfig("6.4"), cmdline="crashkernel=256M") as kernel:
        image = kernel.kexec_file_load(debian_kernel, busybox, "console=ttyAMA0")
        assert image is not None
        assert len(image.segments[0].buf) == debian_kernel.stat().st_size
        end = kernel.panic()
        found = one_of_each([kernel, image, end])
        assert unfit(found.values()) == []
        assert len(found) > 50
