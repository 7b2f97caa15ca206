"""Debian's packages linux-source-VERSION: fetched by apt into the cache, kept packed, unpacked for each build."""

from collections.abc import Mapping
from pathlib import Path

from kexecemu.errors import BuildError, InputError
from kexecemu.fetch.apt import Apt, Say, run_program
from kexecemu.fetch.cache import fetch_targets
from kexecemu.fetch.targets import FetchTarget
from kexecemu.suggest import there_are

__all__ = ["SOURCES", "check_version", "fetch_source", "find_source", "package_of", "unpack_source"]


def _source(version: str, release: str) -> FetchTarget:
    package, tarball = f"linux-source-{version}", f"usr/src/linux-source-{version}.tar.xz"

    def download(apt: Apt, folder: Path) -> None:
        apt.download([package], folder)

    return FetchTarget(
        f"Linux {version} as {release} builds it", download, [tarball], tarball, release=release
    )


SOURCES: Mapping[str, FetchTarget] = {
    "6.12": _source("6.12", "trixie"),
    "7.3": _source("7.3", "trixie-backports"),
}
"""By version: which source there is to fetch, pinned to a release of Debian."""


def check_version(version: str) -> None:
    """InputError, with those that there are, for a version that there is no source of."""
    if version not in SOURCES:
        raise InputError(f"there is no source of Linux {version!r}{there_are(version, SOURCES)}")


def _name(version: str) -> str:
    check_version(version)
    return f"linux-source-{version}"


def fetch_source(version: str, cache: Path, say: Say, mirror: str | None = None) -> None:
    """Fetch a version's source unless it is there. InputError for a version that there is none of, else FetchError."""
    name = _name(version)
    fetch_targets({name: SOURCES[version]}, cache, say, mirror)


def find_source(version: str, cache: Path) -> Path:
    """The tarball; InputError, with the command that brings it, where it has not been fetched."""
    name = _name(version)
    path = SOURCES[version].find(cache / name)
    if path is None:
        command = f"kexecemu kernel fetch {version}"
        raise InputError(f"{name} is not fetched yet: run {command} (looked in {cache})")
    return path


def package_of(version: str, cache: Path) -> str:
    """Name and version of the package that the source came in, as linux-source-6.12_6.12.57-1_all."""
    return (cache / _name(version) / "PACKAGES").read_text().strip()


def unpack_source(tarball: Path, folder: Path) -> None:
    """Unpack into a folder that is to be made, without the tarball's own first folder. BuildError where that fails."""
    folder.mkdir(parents=True)
    done = run_program(["tar", "-xf", str(tarball), "-C", str(folder), "--strip-components=1"])
    if done.returncode:
        raise BuildError(f"{tarball.name}: {done.stderr.strip() or 'cannot be unpacked'}")
