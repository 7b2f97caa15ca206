"""Files from outside that are too large to ship, by name: where they are, and what to do when they are missing."""

from __future__ import annotations

import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from kexecemu.capture.initramfs import capture_initramfs
from kexecemu.data import fixture_path
from kexecemu.errors import InputError
from kexecemu.suggest import did_you_mean

__all__ = [
    "FETCHED",
    "Programs",
    "fetchable_kernels",
    "fetched_initrd",
    "fetched_kernel",
    "fetched_programs",
    "is_fetched",
]

FETCHED: Final = "fetched:"
"""In front of the name of something to fetch, in place of a path: fetched:kernel-trixie."""


@dataclass(frozen=True)
class Programs:
    """What a first kernel's init runs; packages is the folder with kexec's libraries."""

    busybox: Path
    kexec: Path
    packages: Path


@functools.cache
def _fetch() -> ModuleType:
    """fixtures/fetch.py, which knows the cache. A checkout has it beside the package, where no import finds it."""
    name = "kexecemu.fixtures.fetch"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, fixture_path("fetch.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
    return sys.modules[name]


def fetchable_kernels() -> list[str]:
    """Names that can stand behind fetched: where a kernel is wanted."""
    return [name for name in _fetch().TARGETS if name.startswith("kernel")]


def is_fetched(path: Path | None) -> bool:
    """True for a name with fetched: in front."""
    return path is not None and str(path).startswith(FETCHED)


def fetched_kernel(path: Path | None) -> Path:
    """The path of a kernel that may be given as fetched:NAME; None is Debian's. InputError says what to fetch."""
    if path is not None and not is_fetched(path):
        return path
    name = "kernel" if path is None else str(path).removeprefix(FETCHED)
    if name not in fetchable_kernels():
        like = did_you_mean(name, fetchable_kernels())
        raise InputError(
            f"{FETCHED}{name}: there is no such kernel to fetch{like}; there are {', '.join(fetchable_kernels())}"
        )
    return _cached(name)


def fetched_initrd(kernel: Path) -> bytes:
    """The initramfs that copies a dump to a disk, with the modules of this kernel if it was fetched."""
    busybox = _cached("busybox")
    for name in fetchable_kernels():
        if _fetch().cached(name) == kernel:
            return capture_initramfs(busybox=busybox, modules_folder=_fetch().kernel_modules(name))
    return capture_initramfs(busybox=busybox)


def fetched_programs() -> Programs:
    """busybox and kexec-tools, of arm64. InputError says what to fetch."""
    busybox, kexec = _cached("busybox"), _cached("kexec-tools")
    packages = _fetch().fetched_folder("kexec-tools")
    assert packages is not None
    return Programs(busybox, kexec, packages)


def _cached(name: str) -> Path:
    path: Path | None = _fetch().cached(name)
    if path is None:
        raise InputError(
            f"{name} is not fetched yet: run python -m kexecemu.fixtures.fetch {name} (Debian, apt)"
        )
    return path
