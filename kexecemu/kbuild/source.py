"""Debian's packages linux-source-VERSION: fetched by apt into the cache, kept packed, unpacked for each build."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kexecemu.children import child
from kexecemu.errors import InputError
from kexecemu.fetch.apt import Apt, Say
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
    path = cache / _name(version) / "PACKAGES"
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is damaged: {error}") from error


def unpack_source(tarball: Path, folder: Path) -> None:
    """Unpack into a folder that is to be made, without the tarball's own first folder.

    InputError, with tar's first word on it, where that fails: tar itself would go on to the end.
    """
    folder.mkdir(parents=True)
    command = ["tar", "-xf", str(tarball), "-C", str(folder), "--strip-components=1"]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with child(command, **pipes, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        said = process.stderr.readline(1000).strip()
        if said or process.wait():
            raise InputError(f"{tarball}: {said[:300] or 'cannot be unpacked'}")
