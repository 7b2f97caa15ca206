"""Every error that a caller of kexecemu can meet, with one sentence each on when.

What happens *inside* the guest is data, never an exception: a store that faults, a purgatory that finds damage, a
CPU that hangs are results (see kexecemu.machine.cpu.cpu and kexecemu.crash.outcome).
"""

import errno as _errno
from pathlib import Path

__all__ = [
    "BuildError",
    "BusError",
    "FetchError",
    "FormatError",
    "InputError",
    "KexecError",
    "KexecemuError",
    "MachineError",
    "NotFetched",
    "NothingReserved",
    "WorkersDied",
]


class KexecemuError(Exception):
    """The base of all errors that kexecemu raises on purpose."""


class InputError(KexecemuError, ValueError):
    """Something that the user gave cannot be used: a file, an option, a scenario key or a target."""


class FormatError(InputError):
    """Bytes do not have the format that they should have: an Image, an ELF object, a core, a device tree."""


class NothingReserved(InputError):
    """The first kernel has reserved no crash memory, so that nothing can be loaded: why, in its own words."""


class NotFetched(InputError):
    """Something is needed that does not ship and has not been fetched: a real kernel, busybox, kexec-tools."""

    def __init__(self, what: str, cache: Path) -> None:
        super().__init__(f"{what} is not fetched yet: run kexecemu fetch {what} (looked in {cache})")


class FetchError(KexecemuError):
    """Something cannot be fetched, in one line: no apt, no network, no such package."""


class BuildError(KexecemuError):
    """A kernel cannot be built, in one line: its source does not unpack, or a step of make failed."""


class MachineError(KexecemuError):
    """The emulated machine was asked for something that it cannot do, or the engine under it failed."""


class WorkersDied(KexecemuError):
    """A campaign cannot go on: processes of this machine are killed before they have tried a single fault."""


class BusError(MachineError):
    """A physical address range that is not RAM was read or written from the host or by a DMA master."""

    def __init__(self, phys: int, length: int) -> None:
        super().__init__(f"no RAM at physical {phys:#x}, length {length:#x}")
        self.phys = phys
        self.length = length


class KexecError(KexecemuError, OSError):
    """A system call of the model kernel failed; carries what a real one would return, and why.

    errno is positive (EINVAL is 22); step is the kernel function that refused; reason is one clause in the
    kernel's own terms.
    """

    def __init__(self, errno: int, step: str, reason: str) -> None:
        # OSError fills .errno and .strerror from two arguments.
        super().__init__(errno, reason)
        self.step = step
        self.reason = reason

    @property
    def name(self) -> str:
        """The errno's symbolic name, for example "EADDRNOTAVAIL"."""
        # ENOTSUPP is kernel-internal and has no userspace name.
        return "ENOTSUPP" if self.errno == 524 else _errno.errorcode.get(self.errno or 0, str(self.errno))

    def __str__(self) -> str:
        return f"{self.reason} ({self.name} from {self.step})"
