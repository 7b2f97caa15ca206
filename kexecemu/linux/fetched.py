"""Files from outside that are too large to ship, by name: where they are, and what to do when they are missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kexecemu.arguments import contents
from kexecemu.errors import InputError
from kexecemu.fetch.cache import cached, fetched, fetched_folder, kernel_modules
from kexecemu.fetch.targets import TARGETS
from kexecemu.linux.initramfs import capture_initramfs
from kexecemu.linux.module_folder import module_folder
from kexecemu.suggest import there_are

__all__ = ["FETCHED", "Programs", "fetchable_kernels", "fetched_initrd", "fetched_kernel"]
__all__ += ["fetched_programs", "is_fetched"]

FETCHED: Final = "fetched:"
"""In front of the name of something to fetch, in place of a path: fetched:kernel-trixie."""


@dataclass(frozen=True)
class Programs:
    """What a first kernel's init runs; packages is the folder with kexec's libraries."""

    busybox: Path
    kexec: Path
    packages: Path


def fetchable_kernels() -> list[str]:
    """Names that can stand behind fetched: where a kernel is wanted."""
    return [name for name in TARGETS if name.startswith("kernel")]


_OTHER_NAMES = {
    "bookworm": "kernel",
    "6.1": "kernel",
    "trixie": "kernel-trixie",
    "6.12": "kernel-trixie",
    "6.18": "kernel-6.18",
    "backports": "kernel-backports",
    "7.3": "kernel-backports",
}


def is_fetched(path: Path | None) -> bool:
    """True for a name with fetched: in front."""
    return path is not None and str(path).startswith(FETCHED)


def fetched_kernel(path: Path | None) -> Path:
    """The path of a kernel that may be given as fetched:NAME; None is Debian's. NotFetched says what to fetch.

    NAME is a target's, or its release of Debian, or of Linux.
    """
    if path is not None and not is_fetched(path):
        return path
    name = "kernel" if path is None else str(path).removeprefix(FETCHED)
    name = _OTHER_NAMES.get(name, name)
    if name not in fetchable_kernels():
        known = there_are(name, fetchable_kernels())
        raise InputError(f"{FETCHED}{name}: there is no such kernel to fetch{known}")
    return fetched(name)


def fetched_initrd(kernel: Path, modules: Path | None = None) -> bytes:
    """The initramfs that copies a dump to a disk, with the modules of this kernel: those given, or if it was fetched.

    Raises InputError for modules of another kernel.
    """
    folder = None if modules is None else module_folder(modules, contents(kernel, "kernel"))
    busybox = fetched("busybox")
    if folder is not None:
        return capture_initramfs(busybox=busybox, modules_folder=folder)
    for name in fetchable_kernels():
        if cached(name) == kernel:
            return capture_initramfs(busybox=busybox, modules_folder=kernel_modules(name))
    return capture_initramfs(busybox=busybox)


def fetched_programs() -> Programs:
    """busybox and kexec-tools, of arm64. NotFetched says what to fetch."""
    busybox, kexec = fetched("busybox"), fetched("kexec-tools")
    packages = fetched_folder("kexec-tools")
    assert packages is not None
    return Programs(busybox, kexec, packages)
