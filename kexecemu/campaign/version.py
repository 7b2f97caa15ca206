"""Which kexecemu it is that tried a campaign's faults, down to its code."""

from __future__ import annotations

import hashlib
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import kexecemu

__all__ = ["own_version"]

# The rooms that decide what comes of a fault. The others only tell of it.
_ROOMS = ("machine", "formats", "kernel", "capture", "faults", "scenario", "campaign")


@cache
def own_version() -> str:
    """For example 0.1.0+5b0c9f31: the release, and a hash of the code, which in a checkout changes without a release.

    What a campaign loads (fixtures, the purgatory, Linux) is not in it, but in the campaign's configuration hash.
    """
    home = Path(kexecemu.__file__).parent
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((home / room).rglob("*")):
            if path.suffix in (".py", ".so"):
                digest.update(f"{path.relative_to(home).as_posix()} ".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{_release(home)}+{digest.hexdigest()[:8]}"


def _release(home: Path) -> str:
    """The release of the package in a folder. A checkout says so itself: what is installed may be another one."""
    checkout = ConfigParser()
    try:
        checkout.read(home.parent / "setup.cfg", encoding="utf-8")
        if checkout.get("metadata", "name") == "kexecemu":
            return checkout.get("metadata", "version")
    except (ConfigParserError, UnicodeDecodeError):
        pass  # not a checkout of ours
    try:
        return version("kexecemu")
    except PackageNotFoundError:
        return "unknown"
