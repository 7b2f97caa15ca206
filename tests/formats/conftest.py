"""Bytes of a real kernel: Linux 6.1.192, QEMU virt, 768 MiB, 2 CPUs, crashkernel=96M, kexec_file_load."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data" / "linux-6.1.192"


@pytest.fixture(scope="session")
def real() -> Callable[[str], bytes]:
    """real(name) gives the bytes of tests/data/linux-6.1.192/name.gz."""
    return lambda name: gzip.decompress((DATA / f"{name}.gz").read_bytes())
