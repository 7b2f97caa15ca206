"""Which kexecemu it is that tried a campaign's faults, down to its code."""

import hashlib
from functools import cache
from pathlib import Path

import kexecemu

__all__ = ["own_version"]

# The rooms that decide what comes of a fault. The others only tell of it.
_ROOMS = ("machine", "formats", "kernel", "stray", "linux", "crash", "scenario", "campaign")


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
    return f"{kexecemu.__version__}+{digest.hexdigest()[:8]}"
