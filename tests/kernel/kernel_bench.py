"""What the tests of the model kernel share: booted kernels, files to load, and a ptdump of their tables."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path

from kexecemu.data import fixture_path
from kexecemu.kernel.config import KernelConfig, Protection
from kexecemu.kernel.model import Kernel
from kexecemu.machine.board import Board
from kexecemu.machine.descriptors import AF, AP_RO, PXN, SH_INNER, UXN
from kexecemu.machine.ranges import PhysRange
from kexecemu.machine.walk import TableReader

DATA = Path(__file__).parents[1] / "data" / "kernel"
REAL = Path(__file__).parents[1] / "data" / "linux-6.1.192"

MIB = 1 << 20
GIB = 1 << 30

IMAGE = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()


def real(name: str) -> bytes:
    """A file of the real kernel's crash that is kept for several rooms."""
    return gzip.decompress((REAL / f"{name}.gz").read_bytes())


def boot(
    era: str = "6.4",
    cmdline: str | None = "crashkernel=128M",
    *,
    ram: str | int | list[PhysRange] = "1G",
    cpus: int = 1,
    protection: Protection | str | None = None,
    purgatory: bool | str | Path | None = True,
    options: Mapping[str, str] | None = None,
    rng_ready: bool = False,
    dtb: bytes | None = None,
    seed: int = 0,
) -> Kernel:
    """A booted first kernel."""
    config = KernelConfig(
        era, protection=protection, purgatory=purgatory, options=options or {}, rng_ready=rng_ready
    )
    return Kernel.boot(Board(ram, cpus), config, cmdline=cmdline, dtb=dtb, seed=seed)


def arm64_image(size: int, *, text_offset: int = 0, image_size: int | None = None, flags: int = 0xA) -> bytes:
    """An arm64 Image of `size` bytes that is only a header (booting.rst); by default 4K pages, placed anywhere."""
    total = size if image_size is None else image_size
    header = struct.pack("<IIQQQQQQII", 0, 0, text_offset, total, flags, 0, 0, 0, 0x644D5241, 0)
    return header + bytes(size - len(header))


def ptdump(tables: TableReader, start_virt: int, end_virt: int) -> list[list[str]]:
    """The lines of the kernel's ptdump as words: runs of equal leaves or holes, one a line."""
    runs: list[tuple[int, int, list[str]]] = []
    for leaf in tables.leaves(start_virt, end_virt):
        words = ["PGD", "PUD", "PMD", "PTE"][leaf.level : leaf.level + 1]
        if leaf.descriptor:
            assert leaf.descriptor & (SH_INNER | AF) == SH_INNER | AF
            words += [] if leaf.valid else ["F"]
            words += ["ro" if leaf.descriptor & AP_RO else "RW"]
            words += ["NX" if leaf.descriptor & PXN else "x", "SHD", "AF"]
            words += ["CON"] if leaf.contiguous else []
            words += ["BLK"] if leaf.level < 3 else []
            words += ["UXN"] if leaf.descriptor & UXN else []
            words += ["MEM/NORMAL-TAGGED" if leaf.descriptor >> 2 & 7 == 1 else "MEM/NORMAL"]
        if runs and runs[-1][1] == leaf.virt and runs[-1][2] == words:
            runs[-1] = (runs[-1][0], leaf.virt + leaf.size, words)
        else:
            runs.append((leaf.virt, leaf.virt + leaf.size, words))
    return [[f"{first:#018x}-{last:#018x}", _size(last - first), *words] for first, last, words in runs]


def _size(size: int) -> str:
    value, unit = size >> 10, 0
    while value % 1024 == 0 and unit < 2:
        value, unit = value >> 10, unit + 1
    return f"{value}{'KMG'[unit]}"
