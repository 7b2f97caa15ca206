"""What the tests of the model kernel share: booted kernels, files to load, and a ptdump of their tables."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path

from kexecemu.data import fixture_path
from kexecemu.kernel.base.config import KernelConfig, Protection
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.board import Board
from kexecemu.machine.memory.ram import Ram
from kexecemu.machine.ranges import PhysRange

DATA = Path(__file__).parents[1] / "data" / "kernel"
REAL = Path(__file__).parents[1] / "data" / "linux-6.1.192"

MIB = 1 << 20
GIB = 1 << 30

IMAGE = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()


def real(name: str) -> bytes:
    """A file of the real kernel's crash that is kept for several rooms."""
    return gzip.decompress((REAL / f"{name}.gz").read_bytes())


def small_purgatory(folder: Path) -> Path:
    """A purgatory of three pages, as small as the one that real kernels placed; written to the folder."""
    path = folder / "purgatory-small.ro"
    path.write_bytes(gzip.decompress((DATA / "purgatory-small.ro.gz").read_bytes()))
    return path


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
    seeds: tuple[int, bytes] | None = None,
    dtb: bytes | None = None,
    seed: int = 0,
) -> KernelModel:
    """A booted first kernel."""
    config = KernelConfig(
        era,
        protection=protection,
        purgatory=purgatory,
        options=options or {},
        rng_ready=rng_ready or seeds is not None,
        seeds=seeds,
    )
    return KernelModel.boot(Board(ram, cpus), config, cmdline=cmdline, dtb=dtb, seed=seed)


def small(era: str = "6.4", **arguments: object) -> KernelModel:
    """A kernel that boots quickly: 256 MiB, of which 64 MiB are for the crash kernel."""
    return boot(era, "crashkernel=64M", **{"ram": "256M", **arguments})  # type: ignore[arg-type]


def arm64_image(size: int, *, text_offset: int = 0, image_size: int | None = None, flags: int = 0xA) -> bytes:
    """An arm64 Image of `size` bytes that is only a header (booting.rst); by default 4K pages, placed anywhere."""
    total = size if image_size is None else image_size
    header = struct.pack("<IIQQQQQQII", 0, 0, text_offset, total, flags, 0, 0, 0, 0x644D5241, 0)
    return header + bytes(size - len(header))


_ADDRESS = (1 << 48) - 1 & ~0xFFF
_VALID, _TABLE, _READ_ONLY, _SHARED, _ACCESSED, _CONTIGUOUS = 1, 2, 1 << 7, 3 << 8, 1 << 10, 1 << 52
_NOT_GLOBAL, _PXN, _UXN = 1 << 11, 1 << 53, 1 << 54
_LEVELS = ("PGD", "PUD", "PMD", "PTE")


def ptdump(ram: Ram, root_phys: int, virt_to_phys: int) -> list[list[str]]:
    """The kernel's ptdump of the linear map (4K pages, 48 bits), as words: runs of equal leaves or holes, one a line.

    Walks the tables' bytes by itself. Every leaf must lead to its virtual address plus virt_to_phys.
    """
    runs: list[tuple[int, int, int, int]] = []  # virt, end, level, attributes
    _walk(ram, root_phys, 0, 0xFFFF000000000000, 256, virt_to_phys, runs)
    return [[f"{virt:#018x}-{end:#018x}", _size(end - virt), *_words(*what)] for virt, end, *what in runs]


def _walk(
    ram: Ram, table: int, level: int, virt: int, count: int, shift: int, runs: list[tuple[int, int, int, int]]
) -> None:
    step = 1 << 39 - 9 * level
    entries = struct.unpack(f"<{count}Q", ram.read(table, 8 * count))
    at = 0
    while at < count:
        entry = entries[at]
        if level < 3 and entry & (_VALID | _TABLE) == _VALID | _TABLE:
            _walk(ram, entry & _ADDRESS, level + 1, virt + at * step, 512, shift, runs)
            at += 1
            continue
        last = at + 1
        attributes = entry & ~_ADDRESS
        while (
            last < count and entries[last] & ~_ADDRESS == attributes and (entry == 0) == (entries[last] == 0)
        ):
            last += 1
        first_virt, end = virt + at * step, virt + last * step
        if entry:
            expected = range(first_virt + shift, end + shift, step)
            assert [one & _ADDRESS for one in entries[at:last]] == list(expected)
        if runs and runs[-1][1:] == (first_virt, level, attributes):
            runs[-1] = (runs[-1][0], end, level, attributes)
        else:
            runs.append((first_virt, end, level, attributes))
        at = last


def _words(level: int, attributes: int) -> list[str]:
    words = [_LEVELS[level]]
    if not attributes:
        return words
    assert attributes & (_SHARED | _ACCESSED) == _SHARED | _ACCESSED
    words += [] if attributes & _VALID else ["F"]
    words += ["ro" if attributes & _READ_ONLY else "RW", "NX" if attributes & _PXN else "x", "SHD", "AF"]
    words += ["NG"] if attributes & _NOT_GLOBAL else []
    words += ["CON"] if attributes & _CONTIGUOUS else []
    words += ["BLK"] if level < 3 and attributes & _VALID else []
    words += ["UXN"] if attributes & _UXN else []
    return [*words, "MEM/NORMAL-TAGGED" if attributes >> 2 & 7 == 1 else "MEM/NORMAL"]


def _size(size: int) -> str:
    value, unit = size >> 10, 0
    while value % 1024 == 0 and unit < 2:
        value, unit = value >> 10, unit + 1
    return f"{value}{'KMG'[unit]}"
