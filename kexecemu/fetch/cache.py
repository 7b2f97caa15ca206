"""The cache of what was fetched: where it is, what it has, and how something gets into it, whole or not at all."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from kexecemu.errors import FetchError, NotFetched
from kexecemu.fetch.apt import Archive, Say, run_program
from kexecemu.fetch.targets import TARGETS, FetchTarget
from kexecemu.folders import temporary_folder

__all__ = ["cache_folder", "cached", "fetch", "fetch_targets", "fetched", "fetched_folder", "kernel_modules"]


def cache_folder() -> Path:
    """The cache: $KEXECEMU_CACHE, else kexecemu/ in $XDG_CACHE_HOME, else ~/.cache/kexecemu."""
    own = os.environ.get("KEXECEMU_CACHE")
    if own:
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "kexecemu"


def cached(what: str, cache: Path | None = None) -> Path | None:
    """The file of a target (for dumptools: the folder) if it has been fetched, else None.

    Looks nowhere but into the cache. KeyError for a name that is no target.
    """
    return TARGETS[what].find((cache or cache_folder()) / what)


def fetched(what: str, cache: Path | None = None) -> Path:
    """The file of a target; NotFetched, with the command that brings it, where it has not been fetched."""
    path = cached(what, cache)
    if path is None:
        raise NotFetched(what, cache or cache_folder())
    return path


def fetched_folder(what: str, cache: Path | None = None) -> Path | None:
    """The folder of a target, with everything that is kept of its packages, if it has been fetched, else None."""
    return None if cached(what, cache) is None else (cache or cache_folder()) / what


def kernel_modules(what: str, cache: Path | None = None) -> Path | None:
    """The folder lib/modules/RELEASE of a fetched kernel, else None; its modules may be compressed (.ko.xz)."""
    kernel, folder = cached(what, cache), fetched_folder(what, cache)
    if kernel is None or folder is None:
        return None
    release = kernel.name.removeprefix("vmlinuz-")
    return next((path for path in sorted(folder.glob(f"**/lib/modules/{release}"))), None)


def fetch(wanted: Sequence[str], cache: Path, say: Say, mirror: str | None = None) -> None:
    """Fetch targets into a cache, each unless it is there; KeyError for a name that is no target.

    Errors are those of fetch_targets().
    """
    fetch_targets({what: TARGETS[what] for what in wanted}, cache, say, mirror)


def fetch_targets(
    targets: Mapping[str, FetchTarget], cache: Path, say: Say, mirror: str | None = None
) -> None:
    """Fetch each of these into a cache, into a folder of its name, unless it is there.

    One fetch at a time in a cache: the next one waits, and then finds everything there. Raises FetchError if something
    cannot be had, InputError for a mirror that is no address; what had come before it is kept.
    """
    archive = Archive(cache, say, mirror)
    with _lock(cache):
        for what, target in targets.items():
            there = target.find(cache / what)
            if there is not None:
                say(f"{what}: already there, {there}")
            else:
                _fetch_one(what, target, cache, archive, say)


def _fetch_one(what: str, target: FetchTarget, cache: Path, archive: Archive, say: Say) -> None:
    apt = archive.apt(target.release, target.architecture())
    with temporary_folder(f".{what}.", cache) as scratch:
        for part in ("packages", "root", "kept"):
            (scratch / part).mkdir()
        say(f"{what}: downloading {target.summary}")
        target.download(apt, scratch / "packages")
        packages = sorted((scratch / "packages").glob("*.deb"))
        for package in packages:
            done = run_program(["dpkg-deb", "-x", str(package), str(scratch / "root")])
            if done.returncode:
                raise FetchError(f"{package.name}: {done.stderr.strip() or 'cannot be unpacked'}")
        _keep(scratch / "root", scratch / "kept", target.keep)
        names = "".join(f"{package.stem.replace('%3a', ':')}\n" for package in packages)
        (scratch / "kept/PACKAGES").write_text(names)
        if target.finish is not None:
            target.finish(scratch / "kept")
        if target.find(scratch / "kept") is None:
            raise FetchError(f"{what}: no {' or no '.join([target.file, *target.needs])} in {names.split()}")
        if (cache / what).exists():
            (cache / what).rename(scratch / "before")
        (scratch / "kept").rename(cache / what)
    found = target.find(cache / what)
    assert found is not None
    brought = packages[0].stem.replace("%3a", ":") if len(packages) == 1 else f"{len(packages)} packages"
    kept = (one for one in (cache / what).rglob("*") if one.is_file() and not one.is_symlink())
    size = sum(one.stat().st_size for one in kept) / 1e6
    say(f"{what}: fetched {brought}: {found} ({size:.1f} MB)")


def _keep(root: Path, kept: Path, patterns: Sequence[str]) -> None:
    """Move what matches from one tree to another; a tree with /usr/lib only gets the /lib that loaders look for."""
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        if path.is_symlink() or path.is_file():
            place = kept / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
    if (kept / "usr/lib").is_dir() and not (kept / "lib").exists():
        (kept / "lib").symlink_to("usr/lib")


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
