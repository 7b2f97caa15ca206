"""apt with lists and archives of its own: packages of any release and architecture of Debian, without root.

The machine's own apt is asked for its mirrors and keys, and for nothing else: its packages, its architecture and its
release do not matter, and are not touched.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from kexecemu.children import run_child
from kexecemu.errors import FetchError, InputError

__all__ = ["Apt", "Archive", "run_program"]

_TIMEOUT_SECONDS = 900
_HELPER = "/usr/lib/apt/apt-helper"
_SNAPSHOT = "http://snapshot.debian.org/archive/debian/20260320T000000Z/"
"""Debian's archive as it was when the newest of what is fetched by download_old() was in it."""

_MIRROR = re.compile(r"[a-z][a-z0-9+]*:[^\s\[\]]+")  # the second word of a line of a sources.list

# Read by apt after the machine's own configuration, which it overrides. The hooks are those of the machine's own
# lists and packages, which are not touched here.
_APT_CONF = """\
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Dir::State "{folder}/state";
Dir::State::Lists "{folder}/lists";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
"""

_OTHER_SOURCES = """\
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "/dev/null";
"""

# Where Debian's releases have the keys of all releases that are still supported.
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

Say = Callable[[str], None]


class Apt:
    """apt with a private state: the lists of one architecture, and no installed package.

    Its sources are the machine's, or the lines given; release is only what it says that they are of.
    """

    def __init__(
        self, folder: Path, say: Say, architecture: str, release: str = "", sources: Sequence[str] = ()
    ) -> None:
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise FetchError(f"{tool} is missing: this needs Debian's apt and dpkg")
        for name in ("lists/partial", "cache/archives/partial", "state", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "state/status").touch()
        self._archives = folder / "cache/archives"
        self._conf = folder / "apt.conf"
        conf = _APT_CONF
        if sources:
            conf += _OTHER_SOURCES
            (folder / "sources.list").write_text("".join(f"{line}\n" for line in sources))
        self._conf.write_text(conf.format(folder=folder, architecture=architecture))
        self._what = f"{architecture} packages" + (f" of {release}" if release else "")
        self._say = say
        self._trouble = ""  # what went wrong with the lists, should a package be missing later
        self._updated = False

    def update(self) -> str:
        """apt-get update, once; what went wrong, "" for nothing.

        A list that cannot be had is no error yet: another may have the package.
        """
        if not self._updated:
            self._say(f"apt: updating the lists of {self._what}")
            self._trouble = _complaint(self._run(["apt-get", "update"], check=False).stderr)
            self._updated = True
        return self._trouble

    def index_targets(self, form: str) -> list[str]:
        """What apt has lists of, a line each in apt's own format (see apt-get's indextargets)."""
        # Only the lists tell whose packages a source has; without a network nothing can be had anyway.
        self.update()
        command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
        return self._run(command).stdout.splitlines()

    def dependencies(self, package: str) -> list[str]:
        """What a package depends on, in the order that it says."""
        self.update()
        lines = self._run(["apt-cache", "depends", "--important", package]).stdout.splitlines()
        return [line.split()[-1] for line in lines if line.strip().startswith("Depends:")]

    def download(self, packages: Sequence[str], folder: Path) -> None:
        """Put the packages named, and nothing else, into a folder."""
        self.update()
        self._run(["apt-get", "download", *packages], cwd=folder)

    def download_old(self, path: str, sha256: str, folder: Path) -> None:
        """Put a package that no release has any more into a folder, by its path in the archive and its digest.

        From the mirrors of Debian, some of which keep such ones, else from snapshot.debian.org.
        """
        rows = (line.split() for line in self.index_targets("$(ORIGIN) $(REPO_URI)"))
        mirrors = dict.fromkeys(row[-1] for row in rows if row[0] == "Debian")
        place = folder / os.path.basename(path)
        for where in (*mirrors, _SNAPSHOT):
            words = ["download-file", f"{where}{quote(path)}", str(place), f"SHA256:{sha256}"]
            done = run_program([_HELPER, "-c", str(self._conf), *words])
            if done.returncode == 0 and place.is_file():
                return
        why = self._trouble or "no mirror keeps it, and snapshot.debian.org cannot be reached"
        raise FetchError(f"{place.name}: no release of Debian has it any more; {why}")

    def download_with_dependencies(self, packages: Sequence[str], folder: Path) -> None:
        """Put packages and everything that they need into a folder."""
        self.update()
        self._run(["apt-get", "install", "--yes", "--download-only", *packages])
        for archive in sorted(self._archives.glob("*.deb")):
            shutil.move(archive, folder)

    def _run(
        self, command: list[str], *, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = run_program([command[0], "-c", str(self._conf), "-q", *command[1:]], cwd)
        if check and done.returncode:
            words = [_complaint(done.stderr) or f"ended with {done.returncode}", self._trouble]
            raise FetchError(f"{command[0]} {command[1]}: " + "; ".join(word for word in words if word))
        return done


class Archive:
    """Debian's archive from the mirrors that this machine has its packages from, or from the one that is given.

    folder is where the private states lie, one for each release and architecture that is asked for.
    """

    def __init__(self, folder: Path, say: Say, mirror: str | None = None) -> None:
        if mirror is not None and not _MIRROR.fullmatch(mirror):
            raise InputError(f"--mirror {mirror!r} is no address, as http://deb.debian.org/debian")
        self._folder, self._say, self._mirror = folder, say, mirror
        self._apts: dict[tuple[str, str], Apt] = {}

    def apt(self, release: str, architecture: str) -> Apt:
        """The packages of a release, by its codename, for an architecture in Debian's words."""
        key = (release, architecture)
        if key not in self._apts:
            sources = self._sources(release)
            tail = "" if architecture == "arm64" else f"-{architecture}"
            if not sources and not tail:
                self._apts[key] = self._machine  # whose lists are there already
            else:
                folder = self._folder / f"apt-{release}{tail}"
                self._apts[key] = Apt(folder, self._say, architecture, release, sources)
        return self._apts[key]

    @cached_property
    def _machine(self) -> Apt:
        """The machine's own sources."""
        return Apt(self._folder / "apt", self._say, "arm64")

    def _sources(self, release: str) -> list[str]:
        """Lines of a sources.list for a release, in the machine's order; [] where the machine's own have it."""
        suites = {"Debian Debian": [release], "Debian Debian-Security": [f"{release}-security"]}
        if release.endswith("-backports"):
            suites["Debian Debian-Security"] = []
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
        if self._mirror is not None:
            return [f"deb {signed}{self._mirror} {release} main"]
        machine = self._machine
        form = "$(ORIGIN) $(LABEL) $(CODENAME) $(REPO_URI)"
        rows = [line.rsplit(" ", 2) for line in machine.index_targets(form)]
        ours = [row for row in rows if row[0] in suites]
        if any(codename == release for _, codename, _ in ours):
            return []
        sources = [f"deb {signed}{where} {suite} main" for whose, _, where in ours for suite in suites[whose]]
        if not sources:
            why = machine.update() or "give one with --mirror URL"
            raise FetchError(f"{release}: no source of this machine's apt is Debian's: {why}")
        return list(dict.fromkeys(sources))


def _complaint(stderr: str) -> str:
    """The first error in apt's messages, else the first warning, without its letter."""
    lines = [line.strip() for line in stderr.splitlines()]
    said = [line[3:] for letter in "EW" for line in lines if line.startswith(f"{letter}: ")]
    return said[0] if said else ""


def run_program(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of Debian's tools, its words in English; FetchError when it gets nowhere."""
    try:
        return run_child(
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{command[0]} got nowhere in {_TIMEOUT_SECONDS} s") from error
