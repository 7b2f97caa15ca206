"""Where the modules of a kernel are, below a folder as a package or an installation has it."""

import re
from pathlib import Path

from kexecemu.errors import InputError
from kexecemu.visible import visible_line

__all__ = ["kernel_release", "module_folder"]

_BANNER = re.compile(rb"Linux version (\S{1,64}) \(")  # linux_banner of init/version.c
_PLACES = ("lib/modules", "usr/lib/modules", ".")


def kernel_release(image: bytes) -> str | None:
    """What an unpacked kernel calls itself (uname -r); None where it does not say so."""
    found = _BANNER.search(image)
    return found[1].decode(errors="replace") if found else None


def module_folder(given: Path, image: bytes) -> Path:
    """The folder lib/modules/RELEASE of this kernel: given itself, or below it. InputError where it has another's.

    A kernel loads no module that was built for another one. Of a kernel that does not say its release, it is the only
    one that there is.
    """
    if not given.is_dir():
        words = "is no folder: unpack a package first (dpkg -x, rpm2cpio | cpio -id)"
        raise InputError(f"modules {given}: {words if given.exists() else 'there is no such folder'}")
    release = kernel_release(image)
    if (given / "modules.builtin").is_file():
        found = {given.resolve().name: given}
    else:
        folders = [one for place in _PLACES for one in sorted((given / place).glob("*"))]
        found = {one.name: one for one in folders if (one / "modules.builtin").is_file()}
    if release in found:
        return found[release]
    there = visible_line(", ".join(sorted(found))) or "none"
    if release is None and len(found) == 1:
        return next(iter(found.values()))
    own = (
        f"none of the kernel's own, {visible_line(release)}"
        if release
        else "the kernel does not say its release"
    )
    raise InputError(f"modules {given}: {own}; there are: {there}")
